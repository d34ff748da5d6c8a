"""Frozen elements keep their bits and leave the others alone; each element may have a learning rate of its own."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import checks
from fastmomentum.backends.cpu import threads as cpu_threads
from tests.helpers.arrays import gradients, random_arrays
from tests.helpers.memory import assert_allocates_nothing
from tests.helpers.reference import assert_all_same_bits
from tests.helpers.rules import ADAPTIVE

BACKENDS = ("numpy", "cpu")
DTYPES = (np.float32, np.float64)
SIZES = (0, 1, 7, 8, 9, 31, 1009)

RULES = {
    "sgd": {"rule": "sgd"},
    "pytorch": {"weight_decay": 0.1},
    "dampened": {"dampening": 0.25},
    "nesterov": {"nesterov": True, "clip_value": 0.5},
    "classical": {"rule": "classical_nesterov", "decoupled_weight_decay": 0.5},
    "ema": {"rule": "ema", "maximize": True},
    "positions": {"rule": "nesterov_positions", "weight_decay": 0.1},
    "proximal": {"rule": fm.chain("heavy_ball", fm.stages.soft_threshold(0.25))},
    "mean": {"rule": fm.averaged("pytorch"), "weight_decay": 0.1},
    "exponential": {"rule": fm.averaged("pytorch", 0.75)},
    "three slots": {"rule": fm.rules.aggregated([0.0, 0.5, 0.75])},
    "user": {"rule": ADAPTIVE, "beta": 0.5, "eps": 0.5},
    "lookahead": {"lookahead": True},
}
"""Settings of the optimisers, which cover every kind of part."""


LAYOUTS = {
    "C": lambda values: values.copy(),
    "Fortran": lambda values: values.copy(order="F"),
    "channels last": lambda values: values.transpose(0, 2, 1).copy().transpose(0, 2, 1),
    "rows reversed": lambda values: values[::-1].copy()[::-1],
    "Fortran, columns reversed": lambda values: values[:, :, ::-1].copy(order="F")[:, :, ::-1],
}
"""By name: what copies an array of three axes into this layout."""


def settings_of(name):
    """Return the settings of an entry of RULES with lr and, if the rule takes it, momentum."""
    momentum = {} if name in ("sgd", "three slots") else {"momentum": 0.75}
    return {"lr": 0.125} | momentum | RULES[name]


def random_mask(shape, seed=0):
    """Return a mask that freezes about a third of the elements."""
    return np.asarray(np.random.default_rng((seed, 3)).random(shape) < 2 / 3)


def arrays_in(opt):
    """Return copies of the parameter, all state slots, and the point."""
    state = opt.state
    slots = () if state is None else state if isinstance(state, tuple) else (state,)
    return [np.copy(array) for array in (opt.params, *slots, opt.point)]


def run(opt, grads):
    """Do one step for each gradient."""
    for grad in grads:
        opt.step(grad)
    return opt


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_mask_freezes_elements_and_updates_the_others_as_without_it(name, dtype, backend):
    for size in SIZES:
        (start,) = random_arrays(size, 1, dtype)
        mask = random_mask(size)
        grads = gradients(size, 4, dtype)
        moving = grads[:, mask].copy()
        grads[:, ~mask] = [[np.nan], [np.inf], [1e30], [-np.inf]]
        opt = fm.Optimizer(start.copy(), mask=mask, backend=backend, **settings_of(name))
        before = arrays_in(opt)
        run(opt, grads)
        alone = run(fm.Optimizer(start[mask], backend="numpy", **settings_of(name)), moving)
        assert_all_same_bits([array[mask] for array in arrays_in(opt)], arrays_in(alone))
        assert_all_same_bits([array[~mask] for array in arrays_in(opt)], [array[~mask] for array in before])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_mask_keeps_the_state_of_elements_that_were_moving(name, backend):
    (start,), mask = random_arrays(31, 1), random_mask(31)
    opt = run(fm.Optimizer(start, backend=backend, **settings_of(name)), gradients(31, 2))
    before = arrays_in(opt)[:-1]  # the point of an element that stops is the element
    opt.mask = mask
    run(opt, gradients(31, 3, seed=1))
    assert_all_same_bits([array[~mask] for array in arrays_in(opt)[:-1]], [array[~mask] for array in before])
    assert not any(np.array_equal(now[mask], array[mask]) for now, array in zip(arrays_in(opt)[:1], before[:1]))
    assert_all_same_bits([opt.point[~mask]], [opt.params[~mask]])


LR_RULES = {
    "sgd": {"rule": "sgd"},
    "pytorch": {"rule": "pytorch", "momentum": 0.75, "weight_decay": 0.1},
    "nesterov": {"rule": "pytorch_nesterov", "momentum": 0.75},
    "classical": {"rule": "classical_nesterov", "momentum": 0.75},
    "positions": {"rule": "nesterov_positions", "momentum": 0.75},
    "user": {"rule": ADAPTIVE, "momentum": 0.75, "beta": 0.5, "eps": 0.5},
    "lr/2": {"rule": fm.rules.aggregated([0.0, 0.5])},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LR_RULES)
def test_lr_scale_updates_an_element_as_its_product_with_lr(name, dtype, backend, is_masked):
    size = 19
    start, scale = random_arrays(size, 2, dtype)
    scale = np.absolute(scale)
    scale[3] = 0
    mask = random_mask(size) if is_masked else np.ones(size, bool)
    grads = gradients(size, 3, dtype)
    settings = {"mask": mask if is_masked else None, "lr_scale": scale, "backend": backend, **LR_RULES[name]}
    opt = fm.Optimizer(start.copy(), lr=0.1, **settings)
    run(opt, grads)
    for i in np.flatnonzero(mask):
        product = float(dtype(0.1) * scale[i])
        alone = fm.Optimizer(start[i : i + 1].copy(), lr=product, backend="numpy", **LR_RULES[name])
        run(alone, grads[:, i : i + 1].copy())
        assert_all_same_bits([array[i : i + 1] for array in arrays_in(opt)], arrays_in(alone))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lr_scale_multiplies_the_rate_of_decoupled_decay(dtype, backend):
    p, scale, g = random_arrays(1009, 3, dtype)
    scale = np.absolute(scale)
    one, factor = dtype(1), dtype(1.0 - 0.1 * 0.5)
    expected = p * (one - scale * (one - factor)) - (dtype(0.1) * scale) * g
    fm.Optimizer(p, "sgd", lr=0.1, decoupled_weight_decay=0.5, lr_scale=scale, backend=backend).step(g)
    assert_all_same_bits([p], [expected])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_lr_scale_of_one_changes_no_bits(name, dtype, backend):
    (start,) = random_arrays(1009, 1, dtype)
    grads = gradients(1009, 3, dtype)
    plain = run(fm.Optimizer(start.copy(), backend=backend, **settings_of(name)), grads)
    scaled = fm.Optimizer(start.copy(), lr_scale=np.ones(1009), backend=backend, **settings_of(name))
    assert_all_same_bits(arrays_in(run(scaled, grads)), arrays_in(plain))


def test_lr_scale_of_the_look_ahead_is_that_of_the_update():
    start, scale = random_arrays(31, 2)
    scale = np.absolute(scale)
    opt = fm.Momentum(start, lr=0.1, momentum=0.5, lookahead=True, lr_scale=scale)
    run(opt, gradients(31, 2))
    in_kernel = opt.point.copy()
    assert_all_same_bits([in_kernel], [opt.params - (0.1 * scale) * 0.5 * opt.velocity])
    opt.lr = 0.1  # writes the points without the kernel
    assert_all_same_bits([opt.point], [in_kernel])


def test_threads_change_no_bits_of_masked_updates(monkeypatch):
    monkeypatch.setattr(cpu_threads, "available", lambda: 7)
    monkeypatch.setattr(cpu_threads, "ELEMENTS", 16)
    sizes = (200_001, 17, 70_000)
    masks = [random_mask(200_001), None, random_mask(70_000)]
    scales = [np.arange(200_001) / 2**17, None, np.arange(70_000) / 2**16]
    found = []
    for threads in (1, 2, 7):
        arrays = [random_arrays(size, 1, np.float32, size)[0] for size in sizes]
        own = {"mask": masks, "lr_scale": scales, "max_norm": 2.0, "threads": threads}
        opt = fm.Optimizer(arrays, **own, **settings_of("mean"))
        for step in range(2):
            opt.step([gradients(size, 1, np.float32, (size, step))[0] for size in sizes])
        found.append([*arrays, *(slot for slots in opt.state for slot in slots)])
    assert_all_same_bits(found[1], found[0])
    assert_all_same_bits(found[2], found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", [{"max_norm": 0.5}, {"clip_norm": 0.5}, {"skip_nonfinite": True}])
@pytest.mark.parametrize("size", [31, 70_001])
def test_norms_leave_frozen_elements_out(option, backend, size):
    (start,), mask = random_arrays(size, 1), random_mask(size)
    grads = gradients(size, 2)
    zeroed = np.where(mask, grads, 0.0)
    grads[0, ~mask], grads[1, ~mask] = np.nan, 1e300  # whose square overflows
    opt = run(fm.Momentum(start.copy(), lr=0.1, mask=mask, backend=backend, **option), grads)
    expected = run(fm.Momentum(start.copy(), lr=0.1, backend="numpy", **option), zeroed)
    assert_all_same_bits([opt.params[mask]], [expected.params[mask]])
    assert (opt.steps, opt.skipped) == (2, 0)


def test_skip_nonfinite_still_skips_for_a_moving_element():
    mask = np.array([True, False])
    opt = fm.Momentum(np.ones(2), lr=0.1, mask=mask, skip_nonfinite=True)
    opt.step(np.array([np.nan, 1.0]))
    opt.step(np.array([1e200, np.nan]))  # a finite gradient, whose square overflows
    assert (opt.steps, opt.skipped) == (1, 1)


@pytest.mark.parametrize("threads", [1, 7])
def test_trace_leaves_gradients_of_frozen_elements_out(threads, monkeypatch):
    monkeypatch.setattr(cpu_threads, "available", lambda: 7)
    monkeypatch.setattr(cpu_threads, "ELEMENTS", 16)
    mask, scale = random_mask(70_001), np.absolute(random_arrays(70_001, 1, np.float32)[0])
    rows = []
    for backend in BACKENDS:
        (start,) = random_arrays(70_001, 1, np.float32)
        opt = fm.Momentum(start, lr=0.1, mask=mask, lr_scale=scale, backend=backend, threads=threads)
        trace = opt.trace()
        grads = gradients(70_001, 3, np.float32)
        before = [start.copy()]
        for grad in grads:
            opt.step(np.where(mask, grad, np.float32(np.nan)))
            before.append(start.copy())
        rows.append((trace.velocity, trace.gradient, trace.step))
    norms = [np.linalg.norm(grad[mask].astype(float)) for grad in grads]
    moves = [np.linalg.norm((after - now).astype(float)) for now, after in pairwise(before)]
    assert_all_same_bits(rows[0], rows[1])
    np.testing.assert_allclose(rows[0][1], norms, rtol=1e-12)  # other orders of summation, in double precision
    np.testing.assert_allclose(rows[0][2], moves, rtol=1e-12)


def test_gradient_restart_is_not_hindered_by_nan_in_a_frozen_element():
    mask = np.array([True, False])
    opt = fm.Momentum(np.array([1.0, 1.0]), lr=1.0, momentum=0.9, mask=mask, restart="gradient")
    for _ in range(6):
        opt.step(np.array([float(opt.params[0]), np.nan]))
    assert opt.resets
    assert opt.params[1] == 1.0


@pytest.mark.parametrize("name", RULES)
def test_reset_keeps_the_mask_and_the_scale(name):
    (start,), mask = random_arrays(31, 1), random_mask(31)
    opt = fm.Optimizer(start, mask=mask, lr_scale=np.full(31, 0.5), backend="numpy", **settings_of(name))
    run(opt, gradients(31, 2))
    opt.reset("a test")
    expected = fm.Optimizer(start.copy(), mask=mask, lr_scale=np.full(31, 0.5), backend="numpy", **settings_of(name))
    grads = gradients(31, 2, seed=1)
    run(expected, grads)
    assert_all_same_bits(arrays_in(run(opt, grads)), arrays_in(expected))


def continued(way, opt, folder):
    """Return an optimiser that continues the run of `opt`."""
    if way == "load":
        opt.save(folder / "run.npz")
        return fm.Momentum.load(folder / "run.npz", opt.params.copy())
    if way == "load_state_dict":
        again = fm.Momentum(opt.params.copy(), lr=0.5, mask=np.zeros(31, bool))
        again.load_state_dict(opt.state_dict())
        return again
    return {"pickle": lambda: pickle.loads(pickle.dumps(opt)), "deepcopy": lambda: copy.deepcopy(opt)}[way]()


@pytest.mark.parametrize("given", [("mask",), ("lr_scale",), ("mask", "lr_scale")])
@pytest.mark.parametrize("way", ["load", "load_state_dict", "pickle", "deepcopy"])
def test_saved_run_continues_with_its_mask_and_scale(way, given, tmp_path):
    (start,) = random_arrays(31, 1)
    values = {"mask": random_mask(31), "lr_scale": np.arange(31) / 16}
    opt = fm.Momentum(start, lr=0.1, **{name: values[name] for name in given})
    run(opt, gradients(31, 2))
    again = continued(way, opt, tmp_path)
    grads = gradients(31, 2, seed=1)
    assert_all_same_bits(arrays_in(run(again, grads)), arrays_in(run(opt, grads)))
    for name in given:
        assert_all_same_bits([getattr(again, name)], [values[name]])


def test_state_saved_without_masks_leaves_the_mask():
    (start,), mask = random_arrays(31, 1), random_mask(31)
    pretrained = run(fm.Momentum(start, lr=0.1), gradients(31, 2))
    assert "elements" not in pretrained.state_dict()
    opt = fm.Momentum(start, lr=0.1, mask=mask)
    opt.load_state_dict(pretrained.state_dict())
    before = start.copy()
    run(opt, gradients(31, 1, seed=1))
    assert_all_same_bits([start[~mask], opt.velocity[~mask]], [before[~mask], pretrained.velocity[~mask]])
    assert not np.array_equal(start[mask], before[mask])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([], "elements: expected 1 entries; got 0"),
        ([{"masc": np.ones(3, bool)}], r"elements\[0\]: expected a dict with mask and lr_scale"),
        ([{"mask": np.ones(4, bool)}], r"state_dict\['elements'\]\[0\]\['mask'\]: expected shape \(3,\)"),
        ([{"lr_scale": -np.ones(3)}], "lr_scale.*expected a finite number >= 0"),
    ],
)
def test_saved_masks_that_do_not_fit_are_refused(elements, message):
    opt = fm.Momentum(np.ones(3), lr=0.1)
    saved = opt.state_dict() | {"elements": elements, "steps": 7}
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(saved)
    assert opt.steps == 0


def test_saved_masks_are_matched_by_name():
    mask = np.array([True, False])
    opt = fm.Momentum({"w": np.ones(2), "b": np.ones(2)}, lr=0.1, mask={"b": mask})
    again = fm.Momentum({"b": np.ones(2), "w": np.ones(2)}, lr=0.1)
    again.load_state_dict(opt.state_dict())
    assert again.mask[0].tolist() == [True, False]
    assert again.mask[1] is None


def test_mask_is_copied_and_read_as_a_copy():
    mask, p = np.array([True, False]), np.ones(2)
    opt = fm.Momentum(p, lr=0.5, momentum=0.0, mask=mask)
    mask[:] = False
    opt.mask[:] = False
    opt.step(np.ones(2))
    assert p.tolist() == [0.5, 1.0]


def test_allocates_no_array_in_a_step():
    p, g = np.ones(10_000), np.ones(10_000)
    opt = fm.Momentum(p, lr=1e-3, mask=random_mask(10_000), lr_scale=np.ones(10_000))

    def steps(times):
        for _ in range(times):
            opt.step(g)

    assert_allocates_nothing(steps)


def floats(values):
    """Return the numbers of an array in C order, complex ones as pairs of floats."""
    return values.reshape(-1).view(np.empty(0, values.dtype).real.dtype)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128])
@pytest.mark.parametrize("name", RULES)
def test_mask_and_scale_follow_the_layout_of_the_parameter(name, dtype, backend):
    shape, parts = (3, 4, 5), 2 if np.dtype(dtype).kind == "c" else 1
    real = np.empty(0, dtype).real.dtype
    (start,) = random_arrays(60 * parts, 1, real)
    mask, scale = random_mask(shape), np.random.default_rng(5).random(shape)
    masks, scales = np.repeat(mask.reshape(-1), parts), np.repeat(scale.reshape(-1), parts)
    grads = gradients(60 * parts, 3, real)
    grads[:, ~masks] = np.nan
    settings = settings_of(name) | {"skip_nonfinite": True}
    oracle = run(fm.Optimizer(start.copy(), mask=masks, lr_scale=scales, backend="numpy", **settings), grads)
    for layout in LAYOUTS.values():
        param = layout(start.view(dtype).reshape(shape))
        opt = fm.Optimizer(param, mask=mask, lr_scale=layout(scale), backend=backend, **settings)
        run(opt, [layout(grad.view(dtype).reshape(shape)) for grad in grads])
        assert_all_same_bits([floats(array) for array in arrays_in(opt)], arrays_in(oracle))
        assert opt.skipped == 0
        assert opt.mask.tolist() == mask.tolist()
        assert opt.lr_scale.tolist() == scale.astype(real).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("frozen", "skipped"), [(True, 0), (False, 1)])
def test_skip_looks_at_moving_elements_of_every_layout_when_the_norm_overflows(backend, frozen, skipped):
    mask = np.array([[False, True, True], [True, True, True]])
    grad = np.full((2, 3), 1e200 + 1e200j, order="F")
    grad[(0, 0) if frozen else (0, 1)] = complex(0.0, np.nan)
    param = np.zeros((2, 3), complex, order="F")
    opt = fm.Momentum(param, lr=0.5, mask=mask, skip_nonfinite=True, backend=backend)
    opt.step(grad)
    assert (opt.skipped, opt.steps) == (skipped, 1 - skipped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_masks_in_other_layouts_are_copied_and_saved(tmp_path, dtype, backend):
    (start,) = random_arrays(120, 1, np.float32)
    start = start.view(dtype)[:60].reshape(3, 4, 5)
    mask, scale = random_mask(start.shape), np.random.default_rng(5).random(start.shape)
    settings = {"lr": 0.5, "momentum": 0.75, "rule": "classical", "lookahead": True, "correct": True}
    for layout in LAYOUTS.values():
        opt = fm.Optimizer(layout(start), mask=mask, lr_scale=scale, backend=backend, **settings)
        run(opt, [layout(start), layout(-0.5 * start)])
        opt.save(tmp_path / "state.npz")
        loaded = fm.Optimizer.load(tmp_path / "state.npz", layout(opt.params), backend=backend)
        runs = [opt, loaded, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
        for each in runs:
            each.lr = 0.25
            grad = checks.empty_like(each.params)  # a copy may have another layout
            grad[...] = start
            each.step(grad)
            assert_all_same_bits(map(np.ascontiguousarray, arrays_in(each)), map(np.ascontiguousarray, arrays_in(opt)))
            assert each.mask.tolist() == mask.tolist()
        assert_all_same_bits([opt.params[~mask], opt.point[~mask]], [start[~mask]] * 2)
