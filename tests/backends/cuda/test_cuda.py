"""Updates in device memory, on Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) or on a GPU.

Both run the same table of rules and options. Tests that the simulator cannot run stand in test_gpu.py.
"""

import json
import os
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import random_arrays
from tests.helpers.jit import given, rule_arrays
from tests.helpers.reference import (
    DTYPES,
    RULES,
    SUMMING_RULES,
    as_state,
    assert_all_same_bits,
    assert_same_bits,
    slots_of,
)
from tests.helpers.rules import ADAPTIVE

cuda = pytest.importorskip("numba.cuda")
pytest.importorskip("numba_cuda", reason="the extra cuda is not installed")
if not cuda.is_available():
    pytest.skip("no GPU; NUMBA_ENABLE_CUDASIM=1 simulates one", allow_module_level=True)

from benchmarks import gpu_contenders  # noqa: E402
from fastmomentum.backends.cuda import device_array, kernels, streams, tables  # noqa: E402
from fastmomentum.rules.cache import _kernels  # noqa: E402

SIMULATED = "NUMBA_ENABLE_CUDASIM" in os.environ
TILE, WIDTH = kernels.TILE, 4
SIZES = (0, 1, WIDTH - 1, WIDTH, WIDTH + 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5)


def on_device(arrays):
    return [cuda.to_device(array) for array in arrays]


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_bits(ours.copy_to_host(), theirs)


PROXIMAL = fm.chain(fm.stages.scale(0.5), "nesterov_positions", fm.stages.soft_threshold(0.05), fm.stages.box(-3, 3))
SETTINGS = [
    *(pytest.param({"rule": name}, id=name) for name in RULES),
    pytest.param({"rule": ADAPTIVE, "beta": 0.9, "eps": 0.25}, id="two slots"),
    pytest.param({"rule": PROXIMAL}, id="proximal"),
    pytest.param({"nesterov": True}, id="nesterov"),
    pytest.param({"dampening": 0.25}, id="dampening"),
    pytest.param({"weight_decay": 0.1}, id="weight_decay"),
    pytest.param({"decoupled_weight_decay": 0.1}, id="decoupled_weight_decay"),
    pytest.param({"maximize": True}, id="maximize"),
    pytest.param({"clip_value": 0.5}, id="clip_value"),
    pytest.param({"clip_value": 0.5, "maximize": True, "weight_decay": 0.1, "rule": "ema"}, id="several"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_step_has_the_bits_of_numpy(settings, dtype):
    slots = len(fm.rules.find(settings.get("rule", "pytorch")).state)
    for size in SIZES:
        host = random_arrays(size, 2 + slots, dtype, size)
        there = on_device(host)
        for values, how in ((host, {"backend": "numpy"}), (there, {})):
            p, *state, g = values
            fm.step(p, as_state(state), g, lr=0.1, **settings, **how)
        assert_equal(there, host)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [(0, 0, 0), (1, 1, 1), (3, 3, 3), (0, 1, 0), (2, 2, 1)])
def test_step_has_the_bits_of_numpy_at_any_address(places, dtype):
    size = TILE + 11
    host = random_arrays(size + 8, 3, dtype)
    there = on_device(host)
    fm.step(*(a[i : i + size] for a, i in zip(there, places)), lr=0.1)
    fm.step(*(a[i : i + size] for a, i in zip(host, places)), lr=0.1, backend="numpy")
    assert_equal(there, host)


@pytest.mark.parametrize("settings", [*SETTINGS, pytest.param({"lookahead": True}, id="lookahead")])
def test_momentum_has_the_bits_of_numpy(settings):
    shapes = [(7,), (2, 3, TILE // 4), (), (0,), (TILE + 3,), (5,)]
    dtypes = [np.float32, np.float32, np.float64, np.float64, np.float64, np.float32]
    host = [random_arrays(shape, 1, dtype, i)[0] for i, (shape, dtype) in enumerate(zip(shapes, dtypes))]
    there = on_device(host)
    runs = []
    for params, how in ((host, {"backend": "numpy"}), (there, {})):
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.05, "momentum": 0.5}]
        runs.append(fm.Momentum(groups, lr=0.1, **settings, **how))
    for step in range(4):
        grads = [
            random_arrays(shape, 1, dtype, 100 * step + i)[0] for i, (shape, dtype) in enumerate(zip(shapes, dtypes))
        ]
        grads[1 + step] = None
        runs[0].step(grads)
        runs[1].step([None if grad is None else cuda.to_device(grad) for grad in grads])
        assert_equal(there, host)
    for ours, theirs in zip(runs[1].state, runs[0].state):
        if theirs is not None:
            assert_equal(slots_of(ours), slots_of(theirs))
    assert_equal(runs[1].point, runs[0].point)
    assert runs[1].steps == runs[0].steps == 4


def test_momentum_follows_functions_of_the_step_and_assignments():
    host = random_arrays(TILE + 5, 1, np.float32)
    there = on_device(host)
    runs = [
        fm.Momentum(p, lr=lambda t: 0.1 / (t + 1), momentum=lambda t: 1 - 0.5 / (t + 1), lookahead=True, **how)
        for p, how in ((host[0], {"backend": "numpy"}), (there[0], {}))
    ]
    for step in range(6):
        (grad,) = random_arrays(TILE + 5, 1, np.float32, step)
        runs[0].step(grad)
        runs[1].step(cuda.to_device(grad))
        if step == 3:
            for run in runs:
                run.lr = 0.025
    assert_equal(there, host)
    assert_equal([runs[1].point], [runs[0].point])


def test_launch_table_is_reused_when_the_gradient_array_is_the_same():
    host = random_arrays(100, 2, np.float32)
    there = on_device(host)
    ours, theirs = fm.Momentum(there[0], lr=0.1), fm.Momentum(host[0], lr=0.1, backend="numpy")
    tables = None
    for step in range(5):
        ours.step(there[1])
        theirs.step(host[1])
        words = ours._engine._executor._table.words
        assert tables is None or words.address == tables
        tables = words.address if step else None
    assert_equal(there, host)


@pytest.mark.parametrize("sizes", [(1, 7, 0, 130), (70_000, 5), (65_536, 65_537, 31)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_norm_has_the_bits_of_numpy(sizes, dtype):
    if SIMULATED and dtype == np.float64 and max(sizes) > 1000:
        sizes = tuple(min(size, 1000) for size in sizes)
    host = [random_arrays(size, 1, dtype, i)[0] for i, size in enumerate(sizes)]
    there = on_device(host)
    ours = fm.Momentum(there, lr=0.1, max_norm=1.5)
    theirs = fm.Momentum(host, lr=0.1, max_norm=1.5, backend="numpy")
    for step in range(2):
        grads = [random_arrays(size, 1, dtype, 9 + i + step)[0] for i, size in enumerate(sizes)]
        theirs.step(grads)
        ours.step(on_device(grads))
        assert_equal(there, host)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_skip_nonfinite_skips_the_steps_that_the_numpy_backend_skips(wrong, max_norm):
    sizes = (5, 70, 0)
    host = [random_arrays(size, 1, dtype, size)[0] for size, dtype in zip(sizes, (np.float32, np.float64, np.float32))]
    there = on_device(host)
    how = {"lr": 0.1, "dampening": 0.5, "skip_nonfinite": True, "max_norm": max_norm}
    ours, theirs = fm.Momentum(there, **how), fm.Momentum(host, backend="numpy", **how)
    for step in range(5):
        grads = [random_arrays(p.shape, 1, p.dtype, step)[0] for p in host]
        if step in (0, 3):
            grads[step % 2][2] = wrong
        theirs.step(grads)
        ours.step(on_device(grads))
    assert_equal(there, host)
    assert_equal(ours.velocity, theirs.velocity)
    assert (ours.steps, ours.skipped) == (theirs.steps, theirs.skipped) == (3, 2)


def test_skip_nonfinite_keeps_finite_gradients_whose_squares_overflow():
    p = cuda.to_device(np.zeros(3))
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, skip_nonfinite=True)
    opt.step(cuda.to_device(np.array([1e200, -1e200, 1.0])))
    assert (opt.steps, opt.skipped) == (1, 0)
    np.testing.assert_array_equal(p.copy_to_host(), [-1e200, 1e200, -1.0])


SUMMING = {
    **{name: {"rule": name} for name in SUMMING_RULES},
    "clip_norm": {"clip_norm": 0.5},
    "clip_norm and max_norm": {"clip_norm": 0.5, "max_norm": 0.7, "weight_decay": 0.1},
    "max_norm after a scale": {"rule": fm.chain(fm.stages.scale(0.5), "pytorch"), "max_norm": 0.7},
    "max_norm and lamb": {"rule": "lamb", "max_norm": 0.7, "skip_nonfinite": True},
    "cautious": {"rule": fm.cautious("adamw")},
    "filters": {"rule": fm.chain(fm.stages.grokfast, fm.stages.mars, "lion")},
    "schedule": {"rule": "lamb", "lr": fm.schedules.Cosine(0.1, 0.0, steps=9)},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SUMMING.values(), ids=SUMMING)
def test_rules_with_sums_have_the_bits_of_numpy(settings, dtype):
    sizes = (3, 0, 140, 70_000) if dtype == np.float32 and not SIMULATED else (3, 0, 140)
    host = [random_arrays(size, 1, dtype, i)[0] for i, size in enumerate(sizes)]
    there = on_device(host)
    how = {"lr": 0.1, "momentum": 0.5} | settings
    ours, theirs = fm.Optimizer(there, **how), fm.Optimizer(host, backend="numpy", **how)
    for step in range(4):
        grads = [random_arrays(size, 1, dtype, 9 + i + step)[0] for i, size in enumerate(sizes)]
        grads[0] = None if step == 1 else grads[0]
        if step == 2 and "skip_nonfinite" in settings:
            grads[2][5] = np.nan
        theirs.step(grads)
        ours.step([None if g is None else cuda.to_device(g) for g in grads])
        assert_equal(there, host)
    assert ours._engine.state.memory == theirs._engine.state.memory
    assert (ours.steps, ours.skipped) == (theirs.steps, theirs.skipped)


def test_rules_with_sums_keep_a_finite_step_whose_squares_overflow_and_go_on_after_it():
    p, host = cuda.to_device(np.zeros(3)), np.zeros(3)
    how = {"lr": 1.0, "clip_norm": 1e300, "skip_nonfinite": True}
    runs = [fm.Optimizer(p, "sgd", **how), fm.Optimizer(host, "sgd", backend="numpy", **how)]
    for grad in ([1e200, -1e200, 1.0], [np.inf, 0.0, 0.0], [1.0, 2.0, 3.0]):
        runs[0].step(cuda.to_device(np.array(grad)))
        runs[1].step(np.array(grad))
        assert_same_bits(p.copy_to_host(), host)
    assert [(run.steps, run.skipped) for run in runs] == [(2, 1), (2, 1)]


def test_max_norm_propagates_nan_as_the_host_does():
    host = random_arrays(9, 1, np.float32)
    there = on_device(host)
    grad = np.array([np.nan, *range(8)], np.float32)
    fm.Momentum(host[0], lr=0.1, max_norm=1.0, backend="numpy").step(grad)
    fm.Momentum(there[0], lr=0.1, max_norm=1.0).step(cuda.to_device(grad))
    assert np.isnan(there[0].copy_to_host()).all()
    assert np.isnan(host[0]).all()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "ema", "nesterov": True},
        {"decoupled_weight_decay": 0.3, "weight_decay": 0.1},
        {"rule": "heavy_ball"},
        {"lookahead": True},
        {"max_norm": 0.5},
    ],
    ids=str,
)
def test_device_scalars_as_lr_and_momentum_have_the_bits_of_numbers(settings, dtype, stored):
    lr, momentum = cuda.to_device(np.array([0.1], stored)), cuda.to_device(np.array(0.9, stored))
    host = random_arrays(TILE + 3, 2, dtype)
    there = on_device(host)
    ours = fm.Momentum(there, lr=lr, momentum=momentum, **settings)
    theirs = fm.Momentum(host, lr=float(stored(0.1)), momentum=float(stored(0.9)), backend="numpy", **settings)
    for step, (now, mu) in enumerate([(0.1, 0.9), (0.05, 0.5), (0.2, 0.99)]):
        lr.copy_to_device(np.array([now], stored))
        momentum.copy_to_device(np.array(mu, stored))
        if "lookahead" not in settings or step == 0:
            theirs.lr, theirs.momentum = float(stored(now)), float(stored(mu))
        else:
            break
        grads = random_arrays(TILE + 3, 2, dtype, step)
        theirs.step(grads)
        ours.step(on_device(grads))
        assert_equal(there, host)
    assert ours.lr is lr


def test_device_scalars_are_checked():
    there = cuda.to_device(np.zeros(3))
    for wrong in (np.zeros(2), np.zeros(1, np.int64)):
        with pytest.raises(TypeError, match="lr: expected one number of float32 or float64 in device memory"):
            fm.Momentum(there, lr=cuda.to_device(wrong))
    scalar = cuda.to_device(np.array([0.1]))
    with pytest.raises(TypeError, match="lr: expected a number, as the arrays are on the host"):
        fm.Momentum(np.zeros(3), lr=scalar)
    with pytest.raises(TypeError, match="lr: expected"):
        fm.step(there, cuda.to_device(np.zeros(3)), cuda.to_device(np.zeros(3)), lr=scalar)


def test_device_scalars_are_saved_as_numbers():
    lr = cuda.to_device(np.array([0.1]))
    there = on_device(random_arrays(5, 2, np.float32))
    opt = fm.Momentum(there[0], lr=lr)
    opt.step(there[1])
    saved = opt.state_dict()
    assert saved["groups"][0]["lr"] == 0.1
    lr.copy_to_device(np.array([0.3]))
    opt.load_state_dict(saved)
    assert opt.lr is lr
    assert fm.Momentum(there[0], lr=0.5).state_dict()["groups"][0]["lr"] == 0.5


def test_checkpoints_of_one_backend_continue_on_the_other(tmp_path):
    host, grads = random_arrays(TILE + 1, 1, np.float32)[0], random_arrays(TILE + 1, 6, np.float32, 1)
    whole = host.copy()
    theirs = fm.Momentum(whole, lr=0.1, dampening=0.5)
    for grad in grads:
        theirs.step(grad)
    there = cuda.to_device(host)
    ours = fm.Momentum(there, lr=0.1, dampening=0.5)
    for grad in grads[:2]:
        ours.step(cuda.to_device(grad))
    ours.save(tmp_path / "run.npz")
    back = there.copy_to_host()
    again = fm.Momentum.load(tmp_path / "run.npz", back)
    for grad in grads[2:4]:
        again.step(grad)
    again.save(tmp_path / "run.npz")
    there = cuda.to_device(back)
    last = fm.Momentum.load(tmp_path / "run.npz", there)
    for grad in grads[4:]:
        last.step(cuda.to_device(grad))
    assert_equal([there], [whole])
    assert_equal([last.velocity], [theirs.velocity])
    assert last.steps == 6


def test_reset_restores_the_initial_state():
    there = on_device(random_arrays(9, 1, np.float32))
    for rule, rest in (("pytorch", np.zeros(9, np.float32)), ("heavy_ball", None)):
        opt = fm.Momentum(there, lr=0.1, rule=rule)
        opt.step(on_device(random_arrays(9, 1, np.float32, 1)))
        opt.reset("a test")
        expected = there[0].copy_to_host() if rest is None else rest
        assert_equal(opt.state, [expected])


@pytest.mark.parametrize(("rule", "lookahead"), [("classical", False), ("classical", True), ("heavy_ball", False)])
def test_lr_correction_rescales_the_state_as_the_host_does(rule, lookahead):
    settings = {"rule": rule, "lr": lambda step: 0.3 / (step + 1), "correct": True, "lookahead": lookahead}
    runs = []
    for place in (list, on_device):
        params = place(random_arrays(9, 2, np.float32))
        opt = fm.Momentum(params, **settings)
        for step in range(6):
            if step == 4:
                opt.lr = 0.25
            grads = place(random_arrays(9, 2, np.float32, step + 1))
            opt.step([grads[0], None] if step == 2 else grads)
        runs.append([*params, *opt.velocity] if rule == "classical" else [*params, *opt.state])
    assert_equal(runs[1], runs[0])


def test_lr_correction_refuses_a_device_scalar():
    there = on_device(random_arrays(9, 1, np.float32))
    with pytest.raises(TypeError, match="lr: expected a number or a function of the step with correct=True"):
        fm.Momentum(there, lr=cuda.to_device(np.array(0.1)), rule="classical", correct=True)


@pytest.mark.parametrize("rule", ["pytorch", "heavy_ball"])
def test_reset_of_rows_leaves_other_rows_unchanged(rule):
    there, *grads = on_device(random_arrays((5, 3), 3, np.float32))
    opt = fm.Momentum(there, lr=0.1, rule=rule)
    for grad in grads:
        opt.step(grad)
    expected = opt.state.copy_to_host()
    expected[1:3] = 0.0 if rule == "pytorch" else there.copy_to_host()[1:3]
    opt.reset("new rows", rows=(1, 3))
    assert_equal([opt.state], [expected])


class Exported:
    """An array of another library, which has the CUDA array interface alone."""

    def __init__(self, array, version=3, **told):
        self.owner = array
        address = device_array.DeviceArray(array, device_array.find_reader(array)(array)[0]).address
        self.__cuda_array_interface__ = {
            "shape": tuple(array.shape),
            "typestr": array.dtype.str,
            "data": (address, False),
            "strides": None,
            "version": version,
            **told,
        }


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_with_the_cuda_array_interface_are_accepted(version):
    host = random_arrays(50, 3, np.float32)
    there = on_device(host)
    fm.step(*(Exported(a, version) for a in there), lr=0.1)
    fm.step(*host, lr=0.1)
    assert_equal(there, host)
    opt = fm.Momentum([Exported(there[0], version)], lr=0.1)
    theirs = fm.Momentum([host[0]], lr=0.1)
    for _ in range(2):
        opt.step([Exported(there[2], version)])
        theirs.step([host[2]])
    assert_equal(there, host)


ADDRESS = 1 << 20


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"version": 1}, "expected version 2 or 3 of __cuda_array_interface__; got 1"),
        ({"mask": object()}, "expected a plain array; got a masked one"),
        ({"data": (ADDRESS, True)}, "expected a writeable array; got a read-only one"),
        ({"strides": (8,)}, "expected a C-contiguous array"),
        ({"typestr": "<f2"}, "expected an array of float32 or float64; got float16"),
        ({"typestr": ">f4"}, "in another byte order"),
        ({"data": (ADDRESS + 2, False)}, "expected an aligned array"),
    ],
)
def test_cuda_array_interface_is_checked(told, message):
    there = cuda.to_device(np.zeros(4, np.float32))
    for call in (
        lambda: fm.step(Exported(there, **told), there, there, lr=0.1),
        lambda: fm.Momentum(Exported(there, **told), lr=0.1),
    ):
        with pytest.raises((TypeError, ValueError), match=f"params?: .*{message}"):
            call()


def test_gradients_may_be_read_only():
    there = on_device(random_arrays(4, 3, np.float32))
    grad = Exported(there[2])
    grad.__cuda_array_interface__["data"] = (grad.__cuda_array_interface__["data"][0], True)
    fm.step(there[0], there[1], grad, lr=0.1)
    fm.Momentum(there[0], lr=0.1).step(grad)


def test_unusual_strides_of_contiguous_arrays_are_accepted():
    there = on_device(random_arrays((1, 4), 3, np.float32))
    fm.step(Exported(there[0], strides=(999, 4)), there[1], there[2], lr=0.1)


class Packed:
    """An array that supports DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, **named):
        assert stream == 1
        return self.array.__dlpack__(**named)


@pytest.mark.skipif(not SIMULATED, reason="device memory is the host's in the simulator alone")
def test_dlpack_arrays_are_accepted():
    host = random_arrays((5, 7), 3, np.float32)
    there = [array.copy() for array in host]
    fm.step(*map(Packed, there), lr=0.1)
    opt = fm.Momentum(Packed(there[0]), lr=0.1)
    opt.step(Packed(there[2]))
    fm.step(*host, lr=0.1)
    fm.Momentum(host[0], lr=0.1).step(host[2])
    assert_all_same_bits(there, host)
    there[0].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fm.step(*map(Packed, there), lr=0.1)


@pytest.mark.skipif(not SIMULATED, reason="device memory is the host's in the simulator alone")
def test_step_increments_the_version_of_torch_tensors():
    torch = pytest.importorskip("torch")

    class OnDevice(torch.Tensor):
        is_cuda = True

    host = random_arrays(30, 2, np.float32)
    p = torch.from_numpy(host[0].copy()).as_subclass(OnDevice).requires_grad_()
    g = torch.from_numpy(host[1].copy()).as_subclass(OnDevice)
    opt, before = fm.Momentum([p], lr=0.1), p._version
    opt.step([g])
    fm.Momentum(host[0], lr=0.1).step(host[1])
    np.testing.assert_array_equal(p.detach().numpy(), host[0])
    assert p._version == before + 1
    assert g._version == 0
    with pytest.raises(ValueError, match="expected a C-contiguous array"):
        fm.Momentum([torch.zeros(4, 6).T.as_subclass(OnDevice)], lr=0.1)
    with pytest.raises(TypeError, match="expected an array of float32 or float64; got torch.bfloat16"):
        fm.Momentum([torch.zeros(4, dtype=torch.bfloat16).as_subclass(OnDevice)], lr=0.1)


@pytest.mark.parametrize("which", range(3))
def test_step_refuses_host_and_device_arrays_together(which):
    values = on_device(random_arrays(4, 3, np.float32))
    kept = [value.copy_to_host() for value in values]
    given = [np.zeros(4, np.float32) if i == which else value for i, value in enumerate(values)]
    with pytest.raises(TypeError, match="expected an array in device memory" if which else "expected a NumPy array"):
        fm.step(*given, lr=0.1)
    assert_equal(values, kept)
    with pytest.raises(TypeError, match="expected an array in device memory"):
        fm.step(*given, lr=0.1, backend="cuda")


def test_momentum_refuses_host_and_device_arrays_together():
    there = cuda.to_device(np.zeros(4))
    with pytest.raises(TypeError, match=r"params\[1\]: expected an array in device memory, as the others are"):
        fm.Momentum([there, np.zeros(4)], lr=0.1)
    opt = fm.Momentum([there], lr=0.1)
    for wrong in (np.zeros(4), 3.0, "grads"):
        with pytest.raises(TypeError, match=r"grads\[0\]: expected an array in device memory"):
            opt.step([wrong])
    with pytest.raises(TypeError, match="expected a NumPy array"):
        fm.Momentum([there], lr=0.1, backend="cpu")
    assert opt.steps == 0


@pytest.mark.parametrize("again", [False, True])
def test_refused_step_changes_nothing(again):
    there = on_device(random_arrays(20, 3, np.float32))
    opt = fm.Momentum(there[:2], lr=0.1)
    grads = on_device(random_arrays(20, 2, np.float32, 5))
    if again:
        opt.step(grads)
    kept = [a.copy_to_host() for a in (*there, *opt.velocity)]
    wrong = [
        cuda.to_device(np.zeros(19, np.float32)),
        cuda.to_device(np.zeros(20)),
        there[0],
        opt.velocity[0],
        cuda.to_device(np.zeros(40, np.float32))[::2],
    ]
    for grad in wrong:
        with pytest.raises((TypeError, ValueError), match=r"grads\[1\]"):
            opt.step([grads[0], grad])
    assert_equal((*there, *opt.velocity), kept)
    assert opt.steps == again
    opt.step(grads)
    assert opt.steps == again + 1


def test_step_after_a_refused_step_uses_its_own_gradients():
    there = on_device([np.zeros(4, np.float32), np.zeros(4, np.float32)])
    opt = fm.Momentum(there, lr=1.0, momentum=0.0)
    old = on_device([np.ones(4, np.float32), np.ones(4, np.float32)])
    opt.step(old)
    (new,) = on_device([np.full(4, 100, np.float32)])
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        opt.step([new, cuda.to_device(np.zeros(5, np.float32))])
    opt.step([new, old[1]])
    assert_equal(there, [np.full(4, -101, np.float32), np.full(4, -2, np.float32)])


def test_step_counters_survive_resets_and_loads(tmp_path):
    bad, good = np.array([np.nan, 1, 2], np.float32), np.ones(3, np.float32)
    counts = []
    for backend, put in (("numpy", np.array), (None, cuda.to_device)):
        p = put(np.zeros(3, np.float32))
        opt = fm.Momentum(p, lr=lambda t: 0.1 * (t + 1), skip_nonfinite=True, backend=backend)
        seen = []
        for kind in (good, bad, good, bad, None, good, bad, "again", good, good, bad):
            if kind is None:
                opt.reset("a test")
            elif isinstance(kind, str):
                opt.load_state_dict(opt.state_dict())
            else:
                opt.step(put(kind))
            seen.append((opt.steps, opt.skipped))
        counts.append((seen, p if backend else p.copy_to_host()))
    assert counts[0][0] == counts[1][0]
    assert counts[0][0][-1] == (5, 4)
    assert_same_bits(counts[1][1], counts[0][1])


@pytest.mark.parametrize("place", range(4))
def test_state_is_allocated_with_the_alignment_of_its_parameter(place):
    room, grads = on_device(random_arrays(3 * TILE + 4, 2, np.float32))
    host, g = (a.copy_to_host() for a in (room, grads))
    part = slice(place, place + 2 * TILE + 1)
    opt = fm.Momentum([room[part]], lr=0.1)
    for _ in range(2):
        opt.step([grads[part]])
    theirs = fm.Momentum([host[part]], lr=0.1)
    for _ in range(2):
        theirs.step([g[part]])
    assert_equal([room], [host])
    head = opt._engine._executor._table._table[0, 1]
    begin = device_array.DeviceArray(room, device_array.find_reader(room)(room)[0]).address
    assert head == -(begin // 4 + place) % 4
    opt.step([grads[place + 1 : place + 2 * TILE + 2]])  # now the arrays have no alignment in common
    theirs.step([g[place + 1 : place + 2 * TILE + 2]])
    assert opt._engine._executor._table._table[0, 1] == TILE
    assert_equal([room], [host])


def test_launch_tables_are_kept_for_each_pattern_of_missing_gradients(monkeypatch):
    there, grads = on_device(random_arrays(9, 2, np.float32)), on_device(random_arrays(9, 2, np.float32, 5))
    host, g = [a.copy_to_host() for a in there], [a.copy_to_host() for a in grads]
    opt, theirs = fm.Momentum(there, lr=0.1), fm.Momentum(host, lr=0.1)
    patterns = [(1, 1), (1, 0), (0, 1)]
    for turn in range(3):
        if turn == 1:
            monkeypatch.setattr(cuda, "device_array", lambda *given: pytest.fail("allocated"))
        for pattern in patterns:
            opt.step([grad if on else None for grad, on in zip(grads, pattern)])
            theirs.step([grad if on else None for grad, on in zip(g, pattern)])
    assert_equal(there, host)


def test_lookahead_point_is_compiled_once():

    opt = fm.Momentum(on_device(random_arrays(9, 1, np.float32)), lr=0.1, lookahead=True)
    before = len(_kernels)
    for _ in range(3):
        opt.lr = 0.2
    assert len(_kernels) == before


def test_device_scalars_are_checked_at_every_step():
    class Moving:
        def __init__(self, array):
            self.array = array

        @property
        def __cuda_array_interface__(self):
            return Exported(self.array).__cuda_array_interface__

    lr = Moving(cuda.to_device(np.array([1.0])))
    there, grad = cuda.to_device(np.zeros(3)), cuda.to_device(np.ones(3))
    opt = fm.Momentum([{"params": [there]}, {"params": [cuda.to_device(np.zeros(2))]}], lr=lr, momentum=0.0)
    assert all(each is lr for each in opt.lr)
    opt.step([grad, None])
    lr.array = cuda.to_device(np.array([10.0]))
    opt.step([grad, None])
    np.testing.assert_array_equal(there.copy_to_host(), -11.0)
    lr.array = cuda.to_device(np.array([10.0, 1.0]))
    with pytest.raises(TypeError, match="lr: expected one number"):
        opt.step([grad, None])
    lr.array = there[:1]
    with pytest.raises(ValueError, match="lr: expected memory of its own"):
        opt.step([grad, None])
    np.testing.assert_array_equal(there.copy_to_host(), -11.0)


class Recorded:
    """A maker of events that records which stream records an event and which one waits."""

    def __init__(self):
        self.done = []

    def event(self, timing):
        made = self

        class Event:
            def record(self, stream):
                made.done.append(("record", stream))

            def wait(self, stream):
                made.done.append(("wait", stream))

        return Event()


def test_stream_of_a_step_waits_for_the_streams_of_its_arrays(monkeypatch):
    told = Recorded()
    monkeypatch.setattr(streams.config, "ENABLE_CUDASIM", 0)
    monkeypatch.setattr(streams, "_external_stream", lambda handle: f"stream {handle}")
    monkeypatch.setattr(streams.cuda, "event", told.event, raising=False)
    monkeypatch.setattr(streams, "_torch_stream", lambda device: 77)
    streams._event.cache_clear()
    assert streams.streams_for(None, [None, None], 0) == ("stream 1", [])
    assert streams.streams_for(None, [None, 5, 5], 0) == ("stream 5", [])
    assert streams.streams_for(9, [5, 6], 0) == ("stream 9", [])
    assert streams.streams_for(None, [device_array.TORCH, 6, 77, 2], 0) == ("stream 77", ["stream 6", "stream 2"])
    streams.let_wait("stream 77", "stream 6")
    assert told.done == [("record", "stream 6"), ("wait", "stream 77")]
    streams._event.cache_clear()


def test_device_attributes_have_the_names_of_the_cuda_bindings():
    bindings = pytest.importorskip("cuda.bindings.driver")
    for name in ("MULTIPROCESSOR_COUNT", "MAX_THREADS_PER_MULTIPROCESSOR", "L2_CACHE_SIZE"):
        assert hasattr(bindings.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        users = "".join(Path(m.__file__).read_text() for m in (kernels, gpu_contenders))
        assert f".{name}" in users
    assert hasattr(bindings.CUpointer_attribute, "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL")


def test_step_and_momentum_refuse_arrays_that_share_memory():
    (there,) = on_device(random_arrays(40, 1, np.float32))
    with pytest.raises(ValueError, match="grad: expected memory of its own; got memory that it shares with param"):
        fm.step(there[:20], cuda.to_device(np.zeros(20, np.float32)), there[19:39], lr=0.1)
    with pytest.raises(ValueError, match=r"params\[1\]: expected memory of its own"):
        fm.Momentum([there[:20], there[19:39]], lr=0.1)
    grads = on_device(random_arrays(20, 1, np.float32))
    fm.Momentum([there[:20], there[20:]], lr=0.1).step(grads * 2)  # gradients are only read


def test_stream_argument_accepts_handles_and_streams_of_other_libraries():
    class OfTorch:
        cuda_stream = 7

    class OfCupy:
        ptr = 8

    class OfProtocol:
        def __cuda_stream__(self):
            return 0, 9

    assert [streams.handle_of(s) for s in (None, 5, OfTorch(), OfCupy(), OfProtocol())] == [None, 5, 7, 8, 9]
    for wrong in (True, -1, "0", 1.5, object()):
        with pytest.raises(TypeError, match="stream: expected None, a handle or a stream of CUDA"):
            streams.handle_of(wrong)
    there = on_device(random_arrays(5, 3, np.float32))
    with pytest.raises(TypeError, match="stream: expected"):
        fm.step(*there, lr=0.1, stream="0")
    opt = fm.Momentum(there[0], lr=0.1)
    with pytest.raises(TypeError, match="stream: expected"):
        opt.step(there[2], stream="0")
    opt.step(there[2])
    assert opt.steps == 1


def test_buffers_in_a_captured_graph_are_never_overwritten():
    numbers = tables.DeviceBuffer()
    numbers.set(np.arange(4))
    with pytest.raises(RuntimeError, match="run one such step before the capture"):
        numbers.upload(0, True)
    numbers.upload(0, False)
    first = numbers.address
    numbers.set(np.arange(4) + 1)
    numbers.upload(0, False)
    assert numbers.address == first
    numbers.upload(0, True)
    numbers.set(np.arange(4) + 2)
    numbers.upload(0, False)
    assert numbers.address != first
    numbers.upload(0, False)
    assert numbers.address != first


def test_captured_step_is_refused_unless_the_step_before_was_alike(monkeypatch):
    there = on_device(random_arrays(5, 3, np.float32))
    opt = fm.Momentum(there[0], lr=0.1)
    opt.step(there[2])
    kept = there[0].copy_to_host()
    monkeypatch.setattr(streams, "is_capturing", lambda stream: True)
    with pytest.raises(RuntimeError, match="run one such step before the capture"):
        opt.step(there[1])
    assert_equal(there[:1], [kept])
    monkeypatch.undo()
    opt.step(there[2])
    monkeypatch.setattr(streams, "is_capturing", lambda stream: True)
    opt.step(there[2])
    assert opt.steps == 2  # a captured step is only recorded, so the counter stays


def test_second_step_compiles_nothing_and_allocates_nothing(monkeypatch):
    there = on_device(random_arrays(TILE, 3, np.float32))
    opt = fm.Momentum(there[0], lr=0.1, max_norm=1.0, skip_nonfinite=True)
    opt.step(there[2])
    monkeypatch.setattr(kernels, "compiled", lambda made: pytest.fail("compiled again"))
    monkeypatch.setattr(cuda, "device_array", lambda *given: pytest.fail("allocated"))
    monkeypatch.setattr(cuda, "synchronize", lambda: pytest.fail("waited"))
    opt.step(there[2])
    opt.step(there[1])


def test_optimisers_share_their_kernel(monkeypatch):
    there = on_device(random_arrays(5, 3, np.float32))
    fm.Momentum(there[0], lr=0.1).step(there[2])
    monkeypatch.setattr(kernels, "compiled", lambda made: pytest.fail("compiled again"))
    fm.Momentum(there[1], lr=0.2).step(there[2])


def test_groups_of_one_array_are_accepted():
    (there,) = on_device(random_arrays(6, 1, np.float32))
    (host,) = random_arrays(6, 1, np.float32)
    (grad,) = random_arrays(6, 1, np.float32, 3)
    fm.Momentum([{"params": there, "lr": 0.5}], lr=0.1).step([cuda.to_device(grad)])
    fm.Momentum([{"params": host, "lr": 0.5}], lr=0.1).step([grad])
    assert_equal([there], [host])


def test_copies_and_pickles_are_refused():
    opt = fm.Momentum(on_device(random_arrays(6, 1, np.float32)), lr=0.1)
    for copy in (pickle.dumps, deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled; save\\(\\) writes its state"):
            copy(opt)


@pytest.mark.skipif(not SIMULATED, reason="on a GPU it is run for its figures")
def test_gpu_benchmark_runs(tmp_path, monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr("sys.argv", ["gpu", "--smoke", "--out", str(tmp_path)])
    gpu.main()
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["smoke"]
    assert [case["case"] for case in record["cases"]] == ["n = 10,000", "launch overhead"]
    assert (tmp_path / "gpu.png").exists()


@pytest.mark.skipif(not SIMULATED, reason="the copies on the host are those that can be looked at")
def test_gpu_benchmark_contenders_do_the_same_update(monkeypatch):
    from benchmarks import gpu_contenders

    case = gpu_contenders.Case("small", [(TILE + 3,)])
    made = gpu_contenders.copies(case)
    monkeypatch.setattr(gpu_contenders, "copies", lambda case: made)
    gpu_contenders.makers(case)[gpu_contenders.OURS]()()
    ((p, _, _),) = made[0]
    np.testing.assert_allclose(p.copy_to_host(), 1.5 - gpu_contenders.LR * 1e-3, rtol=1e-6)
    gpu_contenders.makers(case)[gpu_contenders.COPY]()()
    np.testing.assert_array_equal(p.copy_to_host()[: TILE // 2], np.float32(1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [*RULES, ADAPTIVE], ids=str)
@pytest.mark.parametrize("size", [0, 1, 37])
def test_rules_in_users_kernels_have_the_bits_of_step(rule, dtype, size):
    found = fm.rules.find(rule)
    hyper, sweep = fm.jit.hyper(found, dtype, **given(found)), fm.jit.cuda.kernel(found)

    @cuda.jit
    def kernel(written, g, hyper):
        sweep(cuda.grid(1), cuda.gridsize(1), *written, g, *hyper)

    p, *state, g = rule_arrays(found, size, dtype)
    written, grad = on_device([p, *state]), cuda.to_device(g)
    if size:
        kernel[2, 4](tuple(written), grad, hyper)
    fm.step(p, as_state(state), g, rule=found, backend="numpy", **{"lr": 0.1} | given(found))
    assert_equal(written, [p, *state])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_functions_in_users_kernels_have_the_bits_of_step(dtype):
    pytorch = fm.jit.cuda.pytorch

    @cuda.jit
    def kernel(p, v, g):
        i = cuda.grid(1)
        if i < p.size:
            p[i], v[i] = pytorch(p[i], v[i], g[i], 0.1, 0.9, 1.0)

    p, v, g = random_arrays(37, 3, dtype)
    there = on_device([p, v, g])
    kernel[5, 8](*there)
    fm.step(p, v, g, lr=0.1, momentum=0.9, backend="numpy")
    assert_equal(there[:2], [p, v])
