"""Arrays of every dense layout, complex arrays, and gradients of other libraries: the same bits as plain floats."""

import array
import copy
import ctypes
import pickle
import warnings

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends import host_arrays
from tests.helpers.arrays import assert_untouched
from tests.helpers.ids import text_or_none
from tests.helpers.reference import (
    BACKENDS,
    DTYPES,
    RULES,
    assert_all_same_bits,
    assert_same_bits,
    rest,
    slots_of,
    update,
)

COMPLEX = {np.float32: np.complex64, np.float64: np.complex128}
LAYOUTS = {
    "C": lambda dtype: np.empty((3, 5), dtype),
    "Fortran": lambda dtype: np.empty((3, 5), dtype, order="F"),
    "transposed": lambda dtype: np.empty((2, 4, 3), dtype).transpose(1, 2, 0),
    "channels last": lambda dtype: np.empty((2, 4, 5, 3), dtype).transpose(0, 3, 1, 2),
    "reversed": lambda dtype: np.empty(33, dtype)[::-1],
    "rows reversed": lambda dtype: np.empty((3, 5), dtype)[::-1],
    "Fortran, columns reversed": lambda dtype: np.empty((3, 5), dtype, order="F")[:, ::-1],
    "all axes reversed": lambda dtype: np.empty((2, 4, 3), dtype).transpose(2, 0, 1)[::-1, ::-1, ::-1],
    "axis of length 1": lambda dtype: np.empty((4, 3), dtype).T[:, None, ::-1],
    "no dimension": lambda dtype: np.empty((), dtype),
    "no element": lambda dtype: np.empty((3, 0), dtype, order="F"),
}
"""By name: what makes an array of this layout and dtype."""

SQUARES = {
    "C": lambda a: a,
    "Fortran": lambda a: a.T,
    "rows reversed": lambda a: a[::-1],
    "Fortran, rows reversed": lambda a: a.T[::-1],
}
"""By name: what makes a view of another layout of a square array."""


def normal(like, seed=0):
    """Return an array of the layout of `like`, with normally distributed numbers, some of them −0."""
    rng, values = np.random.default_rng(seed), in_layout(like, 0)
    parts = (values.real, values.imag) if values.dtype.kind == "c" else (values,)
    for part in parts:
        numbers = rng.standard_normal(values.shape)
        part[...] = np.where(rng.random(values.shape) < 0.1, -0.0, numbers)
    return values


def in_layout(like, values):
    """Return these values in a new array whose strides are those of `like`."""
    negative = [axis for axis, stride in enumerate(like.strides) if stride < 0 and like.shape[axis] > 1]
    found = np.flip(np.empty_like(like), negative) if negative else np.empty_like(like)
    found[...] = values
    return found


def memory(values):
    """Return a copy of the numbers in the order of their addresses, complex ones as pairs of floats."""
    values = np.asarray(values)
    offsets = [sum(i * stride for i, stride in zip(at, values.strides)) for at in np.ndindex(values.shape)]
    flat = values.flatten()[np.argsort(offsets)] if values.size else values.flatten()
    return flat.view(f"f{flat.itemsize // 2}") if flat.dtype.kind == "c" else flat


def every_layout(dtype):
    """Return arrays of all layouts, real and complex."""
    return [make(kind) for make in LAYOUTS.values() for kind in (dtype, COMPLEX[dtype])]


def assert_same_memory(found, expected):
    assert_all_same_bits([memory(values) for values in found], expected)


def strides_of(values):
    """Return the strides that matter."""
    return [stride for stride, length in zip(values.strides, values.shape) if length > 1 and values.size]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_all_layouts_get_the_bits_of_plain_arrays(rule, dtype, backend):
    params = [normal(like, (1, i)) for i, like in enumerate(every_layout(dtype))]
    own = [in_layout(param, param) for param in params]
    states = [in_layout(p, rest(rule, p)) for p in own]
    expected = [memory(param) for param in params]
    kept = [rest(rule, p) for p in expected]
    opt = fm.Momentum(params, rule=rule, lr=0.1, momentum=0.75, backend=backend)
    for step in range(3):
        grads = [normal(param, (2, step, i)) for i, param in enumerate(params)]
        opt.step(grads)
        for p, s, g in zip(own, states, grads):
            fm.step(p, None if rule == "sgd" else s, g, rule=rule, lr=0.1, momentum=0.75, backend=backend)
        for i, g in enumerate(grads):
            expected[i], kept[i] = update(rule, expected[i], kept[i], memory(g), dtype, lr=0.1, momentum=0.75)
    assert_same_memory(params, expected)
    assert_same_memory(own, expected)
    for param, state, s, k in zip(params, opt.state, states, kept):
        for values in slots_of(state):
            assert (values.shape, values.dtype, strides_of(values)) == (param.shape, param.dtype, strides_of(param))
            assert_same_bits(memory(values), k)
            assert_same_bits(memory(s), k)


FEATURES = {
    "max_norm": {"max_norm": 0.5, "weight_decay": 0.1},
    "options": {"clip_value": 0.5, "maximize": True, "decoupled_weight_decay": 0.1, "nesterov": True},
    "lookahead": {"lookahead": True, "lr": fm.schedules.Exponential(0.1, 0.5), "rule": "classical"},
    "correct": {"correct": True, "lr": fm.schedules.Exponential(0.1, 0.5), "rule": "classical"},
    "correct, positions": {"correct": True, "lr": fm.schedules.Exponential(0.1, 0.5), "rule": "heavy_ball"},
    "restart": {"restart": "gradient", "lr": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "lion": {"rule": "lion"},
    "signum": {"rule": "signum"},
    "aggmo": {"rule": "aggmo"},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_serves_all_layouts(feature, backend):
    settings = {"lr": 0.1, "momentum": 0.75, "backend": backend} | FEATURES[feature]
    params = [normal(like, (1, i)) for i, like in enumerate(every_layout(np.float64))]
    plain = [memory(param) for param in params]
    opt, expected = fm.Momentum(params, **settings), fm.Momentum(plain, **settings)
    traces = opt.trace(), expected.trace()
    for step in range(6):
        grads = [normal(param, (2, step, i)) for i, param in enumerate(params)]
        if step == 4:
            grads[3] = None
        if step == 3 and feature == "skip_nonfinite":
            grads[5].imag[1, 2] = np.inf
        if step == 3 and feature == "restart":
            grads = [-0.1 * velocity for velocity in opt.velocity]
            grads = [in_layout(param, grad) for param, grad in zip(params, grads)]
        opt.step(grads)
        expected.step([None if g is None else memory(g) for g in grads])
    assert_same_memory(params, plain)
    for state, other in zip(opt._engine.state.slots, expected._engine.state.slots):
        assert_same_memory(state, other)
    assert_same_memory(opt.point, expected.point)
    assert (opt.steps, opt.skipped, opt.resets) == (expected.steps, expected.skipped, expected.resets)
    assert bool(opt.resets) == (feature == "restart")
    assert opt.skipped == (feature == "skip_nonfinite")
    for name in ("velocity", "gradient", "cosine", "step", "slope"):
        np.testing.assert_array_equal(getattr(traces[0], name), getattr(traces[1], name))
    assert (traces[0].gradient > 0).all()


@pytest.mark.parametrize("settings", [{"correct": True}, {"lookahead": True}], ids=["correct", "lookahead"])
def test_infinite_parts_of_complex_state_stay_apart(settings):
    param = normal(np.empty((3, 4), np.complex64, order="F"), 1)
    plain = memory(param)
    opts = [fm.Momentum(p, lr=0.5, momentum=0.5, rule="classical", **settings) for p in (param, plain)]
    opts[0].velocity[...] = 1.0
    opts[0].velocity.real[0], opts[0].velocity.imag[1] = np.inf, -np.inf
    opts[1].velocity[...] = memory(opts[0].velocity)
    for opt in opts:
        opt.lr = 0.25
    for values, expected in ((opts[0].velocity, opts[1].velocity), (opts[0].point, opts[1].point)):
        assert_same_bits(memory(values), expected)
        assert not np.isnan(expected).any()


def test_threads_give_the_same_bits_for_large_arrays():
    likes = [np.empty((500, 300), np.complex64, order="F"), np.empty(200_003, np.float32)[::-1]]
    runs = []
    for threads in (1, 2):
        params = [normal(like, i) for i, like in enumerate(likes)]
        opt = fm.Momentum(params, lr=0.1, threads=threads, max_norm=0.5)
        states = [in_layout(param, 0) for param in params]
        own = [normal(like, i) for i, like in enumerate(likes)]
        for step in range(2):
            grads = [normal(like, (step, i)) for i, like in enumerate(likes)]
            opt.step(grads)
            for p, s, g in zip(own, states, grads):
                fm.step(p, s, g, lr=0.1, threads=threads)
        runs.append([memory(values) for values in (*params, *opt.velocity, *own, *states)])
    assert_all_same_bits(*runs)


def test_trace_of_an_own_loop_takes_all_layouts():
    for like in every_layout(np.float64):
        p, v, g = (normal(like, seed) for seed in range(3))
        traces = fm.Trace(), fm.Trace()
        traces[0].record(p, v, g, lr=0.1)
        traces[1].record(memory(p), memory(v), memory(g), lr=0.1)
        for name in ("velocity", "gradient", "cosine", "step"):
            np.testing.assert_array_equal(getattr(traces[0], name), getattr(traces[1], name))


def test_norms_of_complex_gradients_are_complex_norms():
    p, g = np.zeros(2, np.complex128), np.array([3.0j, 4.0])
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, max_norm=2.5)
    trace = opt.trace()
    opt.step(g)
    np.testing.assert_array_equal(trace.gradient, 5.0)
    np.testing.assert_allclose(p, [-1.5j, -2.0], rtol=1e-6)  # max_norm divides by norm + 1e-6


def test_clip_value_acts_on_the_parts_of_complex_gradients():
    p = np.zeros(2, np.complex64)
    fm.step(p, None, np.array([3.0 - 0.25j, -4.0j], np.complex64), rule="sgd", lr=1.0, clip_value=0.5)
    np.testing.assert_array_equal(p, [-0.5 + 0.25j, 0.5j])


def test_flatten_joins_complex_arrays():
    arrays = [normal(make(np.complex64), i) for i, make in enumerate(LAYOUTS.values())]
    flat, views = fm.flatten(arrays)
    assert flat.dtype == np.complex64
    for view, values in zip(views, arrays):
        assert view.flags.c_contiguous
        np.testing.assert_array_equal(view, values)
    with pytest.raises(TypeError, match=r"arrays\[1\]: expected complex64, as the first has; got float32"):
        fm.flatten([arrays[0], np.ones(2, np.float32)])


# What happens to a run: saved states, copies, resets, conversions


def run_of(param, steps=2, **settings):
    """Return an optimiser of one array after some steps with gradients that depend on the shape alone."""
    opt = fm.Momentum(param, **{"lr": 0.1, "backend": "cpu"} | settings)
    go_on(opt, range(steps))
    return opt


def go_on(opt, steps):
    for step in steps:
        values = np.empty(opt.params.shape, opt.params.dtype)
        opt.step(in_layout(opt.params, normal(values, (2, step))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", SQUARES)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_saved_states_load_into_any_layout(dtype, layout, backend, tmp_path):
    start = normal(np.empty((4, 4), dtype), 1)
    straight = run_of(start.copy(), 4, lookahead=True, backend=backend)
    saver = SQUARES[layout](start.copy())
    saver[...] = start
    opt = run_of(saver, lookahead=True, backend=backend)
    opt.save(tmp_path / "run.npz")
    saved = opt.state_dict()
    for view in SQUARES.values():
        param = view(np.empty((4, 4), dtype))
        param[...] = opt.params
        loaded = fm.Momentum.load(tmp_path / "run.npz", param, backend=backend)
        again = fm.Momentum(in_layout(param, param), lr=0.1, lookahead=True, backend=backend)
        again.load_state_dict(saved)
        for each in (loaded, again):
            assert each.velocity.strides == param.strides
            go_on(each, range(2, 4))
            for name in ("params", "velocity", "point"):
                np.testing.assert_array_equal(getattr(each, name), getattr(straight, name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_and_pickles_continue_with_the_same_values(layout, duplicate):
    opt = run_of(normal(LAYOUTS[layout](np.complex64), 1))
    again = duplicate(opt)
    assert strides_of(again.velocity) == strides_of(again.params)
    for each in (opt, again):
        go_on(each, range(2, 4))
    np.testing.assert_array_equal(again.params, opt.params)
    np.testing.assert_array_equal(again.velocity, opt.velocity)


@pytest.mark.parametrize("layout", ["Fortran", "channels last", "rows reversed"])
def test_reset_of_rows_zeroes_these_rows_alone(layout):
    opt = run_of(normal(LAYOUTS[layout](np.complex64), 1))
    before = opt.velocity.copy()
    opt.reset("a test", rows=(1, 2))
    assert (opt.velocity[1] == 0).all()
    np.testing.assert_array_equal(np.delete(opt.velocity, 1, 0), np.delete(before, 1, 0))
    assert (before != 0).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversions_have_the_values_of_plain_arrays(layout):
    param = normal(LAYOUTS[layout](np.complex64), 1)
    plain = memory(param)
    opt, expected = fm.Momentum(param, lr=0.1), fm.Momentum(plain, lr=0.1)
    g = normal(param, 2)
    opt.step(g)
    expected.step(memory(g))
    for rule in ("classical", "heavy_ball", "pytorch"):
        opt, expected = opt.convert(rule), expected.convert(rule)
        assert_same_bits(memory(opt.state), expected.state)
        found, _, _ = fm.convert(opt.state, source=rule, target="ema", lr=0.1, momentum=0.9, param=param)
        wanted, _, _ = fm.convert(expected.state, source=rule, target="ema", lr=0.1, momentum=0.9, param=plain)
        assert strides_of(found) == strides_of(param)
        assert_same_bits(memory(found), wanted)
    same, _, _ = fm.convert(opt.state, source="pytorch", target="pytorch", lr=0.1, momentum=0.9)
    assert strides_of(same) == strides_of(param)
    np.testing.assert_array_equal(same, opt.state)


def test_velocities_move_to_other_frameworks_and_back_with_the_same_bits():
    torch = pytest.importorskip("torch")
    param = np.zeros((2, 3), np.complex64).T
    opt = fm.Momentum(param, lr=0.25, momentum=0.5)
    opt.step(in_layout(param, 1))
    special = np.array([np.inf, -0.0, 1.0], np.float32)
    opt.velocity.real[...], opt.velocity.imag[...] = special[:, None], special[::-1, None]
    saved = opt.to_torch(torch.from_numpy)
    again = fm.Momentum.from_torch(saved, param)
    assert again.velocity.strides == param.strides
    assert_same_bits(memory(again.velocity), memory(opt.velocity))
    keras = fm.Momentum(in_layout(param, 0), rule="classical", lr=0.25, momentum=0.5)
    keras.step(in_layout(param, 1))
    keras.velocity[...] = opt.velocity
    again = fm.Momentum.from_keras(keras.to_keras(), param, lr=0.25, momentum=0.5)
    assert_same_bits(memory(again.velocity), memory(opt.velocity))


def test_torch_s_sgd_does_the_same_steps_on_complex_tensors():
    torch = pytest.importorskip("torch")
    ours = normal(np.empty((2, 3, 4, 5), np.complex128).transpose(0, 3, 1, 2), 1)
    theirs = torch.from_numpy(in_layout(ours, ours)).requires_grad_()
    sgd, opt = torch.optim.SGD([theirs], lr=0.1, momentum=0.5, weight_decay=0.1), None
    opt = fm.Momentum(ours, lr=0.1, momentum=0.5, weight_decay=0.1)
    for step in range(3):
        theirs.grad = torch.from_numpy(normal(ours, (2, step)))
        opt.step(theirs.grad)
        sgd.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-14)  # torch contracts to FMA


# The compiled check of headers


def stepped_fast(param, **settings):
    """Return an optimiser whose next step is one compiled call, and its executor."""
    opt = run_of(param, 3, **settings)
    assert opt._engine._fast is not None
    return opt, opt._engine._executor


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_gradients_of_every_layout_take_the_compiled_step(layout, dtype):
    opt, executor = stepped_fast(normal(LAYOUTS[layout](dtype), 1))
    go_on(opt, range(3, 6))
    g = in_layout(opt.params, 1)
    g.flags.writeable = False
    opt.step(g)
    assert opt._engine._executor is executor


def test_strides_of_axes_of_length_1_do_not_matter():
    for view in (lambda a: a[:, None], lambda a: a.T[:, None], lambda a: a[::-1, None]):
        opt, executor = stepped_fast(view(normal(np.empty((3, 4)), 1)))
        g = in_layout(opt.params, 1)
        odd = [stride if length > 1 else 4096 for stride, length in zip(g.strides, g.shape)]
        p, v = in_layout(opt.params, opt.params), in_layout(opt.params, opt.velocity)
        fm.step(p, v, np.lib.stride_tricks.as_strided(g, strides=odd), lr=0.1)
        opt.step(np.lib.stride_tricks.as_strided(g, strides=odd))
        assert opt._engine._executor is executor
        assert_same_bits(opt.params, p)


def change_strides(values, strides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        values.strides = strides


def change_shape(values, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        values.shape = shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", SQUARES)
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_gradient_in_another_layout_is_refused_and_the_advice_works(layout, dtype, backend):
    opt = run_of(normal(SQUARES[layout](np.empty((4, 4), dtype)), 1), 3, backend=backend)
    param = opt.params
    for other, view in SQUARES.items():
        grad = view(normal(np.empty((4, 4), dtype), 2))
        kept = [param.copy(), opt.velocity.copy()]
        if other == layout:
            continue
        with pytest.raises(ValueError, match="^grads: expected") as raised:
            opt.step(grad)
        assert_untouched((param, opt.velocity), kept)
        follow = str(raised.value)
        if layout == "C":
            assert follow.endswith("Pass numpy.ascontiguousarray(...)")
            new = np.ascontiguousarray(grad)
        else:
            names = {"numpy": np, "param": param, "old": grad}
            statements = follow.split("after ")[1].split(". Pass new")[0]
            exec(statements, names)
            new = names["new"]
        opt.step(new)
        v = dtype(0.9) * kept[1] + grad
        np.testing.assert_allclose(opt.velocity, v, rtol=1e-6)  # complex products round otherwise
        assert opt.steps == 4
        opt = run_of(in_layout(param, kept[0]), 3, backend=backend)
        param = opt.params


@pytest.mark.parametrize("layout", SQUARES)
@pytest.mark.parametrize("change", ["param", "velocity", "both", "all", "overlap"])
def test_changed_strides_are_noticed(change, layout):
    opt, _ = stepped_fast(normal(SQUARES[layout](np.empty((4, 4))), 1))
    p, v, g = opt.params, opt.velocity, in_layout(opt.params, 1)
    turned = (p.strides[1], p.strides[0])
    same = p.view(), v.view()  # on the same memory, with headers of their own
    kept = [memory(values) for values in same]
    if change == "overlap":
        for values in (p, v, g):
            change_strides(values, (0, 8) if min(p.strides) > 0 else (0, turned[0]))
    else:
        for values in {"param": (p,), "velocity": (v,), "both": (p, v), "all": (p, v, g)}[change]:
            change_strides(values, turned)
    if change == "all":  # all arrays have another layout now, but the same one
        opt.step(g)
        velocity = 0.9 * kept[1] + memory(g)
        assert_all_same_bits([memory(p), memory(v)], [kept[0] - 0.1 * velocity, velocity])
        return
    with pytest.raises(ValueError, match="expected"):
        opt.step(g)
    assert_all_same_bits([memory(values) for values in same], kept)
    if change != "overlap":  # NumPy does not let strides of 0 grow again
        for values in (p, v):
            change_strides(values, turned[::-1])
        opt.step(in_layout(p, 1))
        assert opt.steps == 4


@pytest.mark.parametrize("layout", ["C", "Fortran", "rows reversed"])
def test_other_changes_of_a_header_are_noticed(layout):
    def refuse(change, undo):
        opt, _ = stepped_fast(normal(SQUARES[layout](np.empty((4, 4), np.complex64)), 1))
        g, kept = in_layout(opt.params, 1), [opt.params.copy(), opt.velocity.copy()]
        change(opt)
        with pytest.raises((TypeError, ValueError), match="expected"):
            opt.step(g)
        undo(opt)
        assert_untouched((opt.params, opt.velocity), kept)
        opt.step(g)

    for name in ("params", "velocity"):
        refuse(
            lambda opt, name=name: getattr(opt, name).setflags(write=False),
            lambda opt, name=name: getattr(opt, name).setflags(write=True),
        )
    if layout == "C":
        refuse(lambda opt: change_shape(opt.params, (2, 8)), lambda opt: change_shape(opt.params, (4, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_shared_by_reversed_arrays_is_noticed(backend):
    base = np.zeros(20)
    p = base[:5][::-1]
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, backend=backend)
    for start, overlaps in ((5, False), (4, True), (5, False), (0, True), (5, False), (7, False)):
        base[5:] = 1.0
        g, before = base[start : start + 5][::-1], base.copy()
        if overlaps:
            for call in (lambda g=g: opt.step(g), lambda g=g: fm.step(p, np.zeros(5)[::-1], g, lr=1.0)):
                with pytest.raises(ValueError, match="shares"):
                    call()
            assert_same_bits(base, before)
        else:
            opt.step(g)
            np.testing.assert_array_equal(base[:5], before[:5] - 1.0)


# Arrays that are refused


def misaligned(values):
    """Return a copy at an odd address, with the same strides."""
    view = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.T.shape).T
    view[...] = values
    return view


HOLES = "expected elements that fill an interval of memory"
UNUSABLE = {
    "every other column": (lambda a: np.repeat(a, 2, 1)[:, ::2], HOLES, "view[...] = p"),
    "a part": (lambda a: np.pad(a, 1)[1:-1, 1:-1], HOLES, "view[...] = p"),
    "one row for all": (
        lambda a: np.lib.stride_tricks.as_strided(a, strides=(0, 8)),
        HOLES,
        "numpy.array(...), a copy",
    ),
    "windows": (lambda a: np.lib.stride_tricks.as_strided(a, strides=(8, 8)), HOLES, "numpy.array(...), a copy"),
    "read-only": (lambda a: np.broadcast_to(a, a.shape), "read-only", "numpy.array(...), a copy"),
    "misaligned": (misaligned, "aligned", "numpy.array(...), a copy"),
    "byte order": (lambda a: a.astype(a.dtype.newbyteorder()), "byte order", ".astype(numpy.complex64)"),
    "masked": (np.ma.masked_array, "mask", ".data"),
    "half": (lambda a: a.real.astype(np.float16), "float16", ".astype(numpy.float32)"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_parameters_are_refused_and_the_advice_works(kind):
    make, reason, advice = UNUSABLE[kind]
    view = make(normal(np.empty((3, 4), np.complex64, order="F"), 1))
    before = np.array(view)
    g = np.ones((3, 4), np.complex64)
    for call in (
        lambda: fm.Momentum(view, lr=0.5),
        lambda: fm.step(view, np.zeros((3, 4), np.complex64), g, lr=0.5),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^params?: .*{reason}") as raised:
            call()
        assert str(raised.value).endswith(advice)
    np.testing.assert_array_equal(np.array(view), before)
    p = {
        "view[...] = p": lambda: np.array(view),
        "numpy.array(...), a copy": lambda: np.array(view),
        ".data": lambda: view.data,
    }.get(advice, lambda: eval(f"view{advice}", {"numpy": np, "view": view}))()
    fm.Momentum(p, lr=0.5).step(in_layout(p, 1))
    if advice == "view[...] = p":
        view[...] = p
    np.testing.assert_allclose(p, before - np.float32(0.5), rtol=1e-3)
    assert advice != "view[...] = p" or (view == p).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unusable_gradients_are_refused(backend):
    p = np.zeros((3, 4), np.complex64).T
    opt = fm.Momentum(p, lr=0.5, backend=backend)
    for kind, (make, _, _) in UNUSABLE.items():
        grad = make(np.ones((3, 4), np.complex64)).T
        if kind == "read-only":
            opt.step(grad)
            continue
        steps, kept = opt.steps, p.copy()
        with pytest.raises((TypeError, ValueError), match="^grads: expected"):
            opt.step(grad)
        with pytest.raises((TypeError, ValueError), match="^grad: expected"):
            fm.step(p, np.zeros_like(p), grad, lr=0.5, backend=backend)
        assert_untouched([p], [kept])
        assert opt.steps == steps


# Gradients of other libraries


class Exporter:
    """Stand for an array of another library, which has DLPack alone; without values it cannot be exported."""

    def __init__(self, values=None):
        self.values = values

    def __dlpack__(self, **arguments):
        if self.values is None:
            raise BufferError("on another device")
        return self.values.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__() if self.values is not None else (1, 0)


def from_ctypes(values):
    kind = ctypes.c_float if values.dtype == np.float32 else ctypes.c_double
    found = (kind * values.size)(*values.tolist())
    return ctypes.cast(found, ctypes.POINTER(kind * values.size)).contents


def of_torch(values, **options):
    torch = pytest.importorskip("torch")
    found = torch.from_numpy(values.copy(order="K"))
    return found.requires_grad_(options.get("requires_grad", False))


def of_jax(values):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        return jax.numpy.array(values)


FOREIGN = {
    "memoryview": memoryview,
    "array.array": lambda values: array.array(values.dtype.char, values.tolist()),
    "ctypes": from_ctypes,
    "DLPack": Exporter,
    "torch": of_torch,
    "torch, requires_grad": lambda values: of_torch(values, requires_grad=True),
    "JAX": of_jax,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", FOREIGN)
def test_gradients_of_other_libraries_are_read(library, dtype, backend):
    start, g = normal(np.empty(9, dtype), 1), normal(np.empty(9, dtype), 2)
    params, expected = [start.copy() for _ in range(3)], [start.copy() for _ in range(3)]
    one, many = fm.Momentum(params[0], lr=0.1, backend=backend), fm.Momentum(params[1:], lr=0.1, backend=backend)
    plain = fm.Momentum(expected, lr=0.1, backend=backend)
    own, v = start.copy(), np.zeros(9, dtype)
    for step in range(4):
        if step == 2 and backend == "cpu":
            one._engine._plan_step = None  # after two steps, a step is one compiled call: it needs no plan
        one.step(FOREIGN[library](g))
        many.step([FOREIGN[library](g), g])
        plain.step([g, g, g])
        fm.step(own, v, FOREIGN[library](g), lr=0.1, backend=backend)
    assert_all_same_bits(params, expected)
    w, q = np.zeros(9, dtype), start.copy()
    for _ in range(4):
        fm.step(q, w, g, lr=0.1, backend=backend)
    assert_all_same_bits([own, v], [q, w])


@pytest.mark.parametrize("library", FOREIGN)
def test_gradients_of_other_libraries_are_not_copied(library):
    values = np.arange(9.0)
    foreign = FOREIGN[library](values)
    one, other = host_arrays.read("grad", foreign), host_arrays.read("grad", foreign)
    np.testing.assert_array_equal(one, values)
    assert one.ctypes.data == other.ctypes.data
    assert np.shares_memory(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpy_scalars_are_gradients_of_0_d_parameters(backend):
    for kind in (np.float32, np.float64, np.complex64, np.complex128):
        p, v = np.zeros((), kind), np.zeros((), kind)
        opt = fm.Momentum(p.copy(), lr=0.5, backend=backend)
        for _ in range(3):
            opt.step(kind(0.5))
            fm.step(p, v, kind(0.5), lr=0.5, backend=backend)
        assert_same_bits(memory(opt.params), memory(p))
        assert p < 0
        with pytest.raises(TypeError, match="grads: expected a NumPy array"):
            opt.step(0.5)
    with pytest.raises(ValueError, match=r"grads: expected shape \(1,\), as the parameter has; got \(\)"):
        fm.Momentum(np.zeros(1), lr=0.5, backend=backend).step(np.float64(0.5))


def test_torch_tensors_of_other_layouts_and_dtypes():
    torch = pytest.importorskip("torch")
    weight = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    opt = fm.Momentum(weight.numpy(), lr=1.0, momentum=0.0)
    grad = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    opt.step(grad)
    np.testing.assert_array_equal(weight.numpy(), -grad.numpy())
    with pytest.raises(ValueError, match="grads: expected strides"):
        opt.step(grad.contiguous())
    p = np.zeros(3, np.complex64)
    opt = fm.Momentum(p, lr=1.0, momentum=0.0)
    grad = torch.tensor([1j, 2.0, 3.0])
    for refused, advice in ((grad.conj(), "conj"), (torch._neg_view(grad), "neg")):
        with pytest.raises(ValueError, match=rf"grads: .*the {advice} bit.*Pass .resolve_{advice}\(\), a copy"):
            opt.step(refused)
        with pytest.raises(ValueError, match="grad: "):
            fm.step(p, np.zeros_like(p), refused, lr=1.0)
        opt.step(getattr(refused, f"resolve_{advice}")())
    np.testing.assert_array_equal(p, -grad.conj().resolve_conj().numpy() + grad.numpy())
    q = np.zeros(3, np.float32)
    opt = fm.Momentum(q, lr=1.0)
    for refused in (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, device="meta"), torch.ones(3).to_sparse()):
        with pytest.raises(TypeError, match="grads: expected an array in host memory, of a dtype that NumPy has"):
            opt.step(refused)
    assert (q == 0).all()


@pytest.mark.parametrize(
    ("grad", "error", "reason"),
    [
        (bytearray(24), TypeError, "grads: expected float64, as the parameter has; got uint8"),
        (array.array("f", [1, 2, 3]), TypeError, "grads: expected float64, as the parameter has; got float32"),
        (array.array("d", [1, 2]), ValueError, r"grads: expected shape \(3,\), as the parameter has; got \(2,\)"),
        (memoryview(np.ones(6))[::2], ValueError, r"C-contiguous.*Pass numpy.ascontiguousarray"),
        (Exporter(), TypeError, "grads: expected an array in host memory.*on another device"),
        ("abc", TypeError, "grads: expected a NumPy array"),
        ([1.0, 2.0, 3.0], TypeError, "grads: expected a NumPy array"),
    ],
    ids=text_or_none,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_other_libraries_are_checked(grad, error, reason, backend):
    opt = fm.Momentum(np.ones(3), lr=0.5, backend=backend)
    for _ in range(2):
        with pytest.raises(error, match=reason):
            opt.step(grad)
        opt.step(np.zeros(3))
    assert (opt.params == 1).all()


def test_parameters_of_other_libraries_are_refused_and_the_advice_works():
    jax = pytest.importorskip("jax")
    buffer, exporter = memoryview(np.zeros(3, np.float32)), Exporter(np.zeros(3, np.float32))
    immutable = jax.numpy.zeros(3)
    g = np.ones(3, np.float32)
    for param, advice, follow in (
        (buffer, "numpy.asarray(...) returns one on the same memory", lambda: np.asarray(buffer)),
        (exporter, "numpy.from_dlpack(...) returns one on the same memory", lambda: np.from_dlpack(exporter)),
        (immutable, "JAX arrays are immutable", lambda: np.array(immutable)),
    ):
        with pytest.raises(TypeError) as raised:
            fm.step(param, np.zeros(3, np.float32), g, lr=1.0)
        assert advice in str(raised.value)
        p = follow()
        fm.step(p, np.zeros(3, np.float32), g, lr=1.0)
        assert (p == -1).all()
    with pytest.raises(TypeError, match="JAX arrays are immutable"):
        fm.Momentum(immutable, lr=1.0)
    assert buffer.tolist() == [-1.0] * 3
    assert (exporter.values == -1).all()
