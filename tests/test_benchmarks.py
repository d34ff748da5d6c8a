"""The benchmarks: their summaries, their contenders, and the instructions that they count."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks import assembly, native, shapes, torch_steps
from benchmarks.__main__ import smoke_separately
from benchmarks.contenders import OURS, many_array_makers, one_array_makers
from benchmarks.summary import goal_results, regimes, summaries
from fastmomentum.cli.errors import Failure
from tests.helpers.arrays import random_arrays
from tests.helpers.reference import DTYPES


@pytest.mark.parametrize(
    ("make", "arrays", "parameters"), [(shapes.resnet50, 161, 25_557_032), (shapes.gpt2_small, 148, 124_439_808)]
)
def test_networks_have_the_published_numbers_of_parameters(make, arrays, parameters):
    found = make()
    assert len(found) == arrays
    assert sum(int(np.prod(shape)) for shape in found) == parameters


def test_the_small_cnn_has_the_shapes_of_torchs_layers():
    widths = [3, *7 * [16], *6 * [32], *6 * [64]]
    layers = [(torch.nn.Conv2d(a, b, 3), torch.nn.BatchNorm2d(b)) for a, b in pairwise(widths)]
    modules = [*(module for pair in layers for module in pair), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)]
    assert shapes.small_cnn() == [tuple(param.shape) for module in modules for param in module.parameters()]


@pytest.mark.parametrize("name", torch_steps.MAKERS)
def test_steps_of_torch_optimisers_have_a_new_lr_each(name):
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.tensor([1.0, -2.0, 0.0])
    run = torch_steps.stepping(torch_steps.MAKERS[name]([param], lr=9.0, momentum=0.5))
    run()
    run()
    # velocities g and 1.5·g, learning rates 1e-3 and 5e-4; three roundings of each step, of numbers below 4e-3
    torch.testing.assert_close(param.detach(), -1.75e-3 * param.grad, rtol=0, atol=6 * 2e-10)


@pytest.mark.parametrize("name", torch_steps.MAKERS)
def test_steps_with_new_gradients_get_another_tensor_each(name):
    param, seen = torch.nn.Parameter(torch.zeros(3)), []
    run = torch_steps.stepping_with_new_gradients(torch_steps.MAKERS[name]([param], lr=9.0, momentum=0.5))
    velocity = torch.zeros(3)
    for number in range(1, 4):
        before = param.detach().clone()
        run()
        seen.append(param.grad)
        velocity = 0.5 * velocity + param.grad
        torch.testing.assert_close(param.detach(), before - 1e-3 / number * velocity)
    assert len({id(grad) for grad in seen}) == 3


def test_a_smoke_run_that_fails_is_reported(tmp_path):
    with pytest.raises(Failure, match="benchmarks.missing ended with status 1"):
        smoke_separately("missing", tmp_path)


def line(seconds, case="float32, n = 100", elements=100, moved=2000):
    return {"case": case, "threads": 1, "elements": elements, "moved": moved, "seconds": seconds}


def test_summaries_take_ratios_within_processes_and_medians_over_them():
    runs = [(1.0, 2.0), (10.0, 30.0), (2.0, 2.0)]
    (found,) = summaries([line({OURS: ours, "torch fused": theirs}) for ours, theirs in runs])
    assert found.ratio("torch fused") == 2.0
    assert (found.seconds(OURS), found.seconds("torch fused")) == (2.0, 2.0)
    assert found.rate == 2000 / 2.0 / 1e9
    assert found.peers == ["torch fused"]
    (result,) = goal_results([found])
    assert not result.met
    assert (result.value, result.goal) == (2.0, "≥ 10")


def test_a_ceiling_is_the_best_stream_of_as_many_bytes():
    seconds = {OURS: 5.0, "ceiling: copy": 4.5, "ceiling: scale": 4.0, "ceiling: triad": 6.0}
    (found,) = summaries([line(seconds)])
    assert found.ceiling == pytest.approx(0.8)
    (regime,) = regimes([found], {"L1": 1199, "L2": 1200})
    assert (regime.name, regime.elements) == ("L2", 100)
    assert regime.measured / regime.predicted == pytest.approx(0.8)
    (other,) = summaries([line({OURS: 5.0})])
    assert other.ceiling is None


@pytest.mark.parametrize("name", native.MOVED)
@pytest.mark.parametrize("threads", [1, 2])
def test_streams_move_what_they_say(name, threads, monkeypatch):
    made = []
    real = np.full
    monkeypatch.setattr(native.np, "full", lambda *given: made.append(real(*given)) or made[-1])
    run = native.streams(600, np.float32, threads)[name]()
    if run is None:
        pytest.skip("no compiler that knows OpenMP")
    (room,) = made
    room[:] = np.arange(600)
    before, expected = room.copy(), room.copy()
    run()
    third = before[:200] * 0 + before[400:] + np.float32(1e-3) * before[200:400]
    expected[: 600 // native.MOVED[name]] = {"copy": before[300:], "scale": before[:300], "triad": third}[name]
    np.testing.assert_array_equal(room, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_loop_in_c_is_the_update(dtype, threads):
    p, v, g = random_arrays(1000, 3, dtype)
    lr, mu = dtype(0.1), dtype(0.9)
    expected_v = mu * v + dtype(1) * g
    expected_p = p - lr * expected_v
    update = native.loop("update", p, v, g, threads, 0.1, 0.9)
    if update is None:
        pytest.skip("no compiler that knows OpenMP")
    update()
    np.testing.assert_array_equal(v, expected_v)
    np.testing.assert_array_equal(p, expected_p)


def make_contenders(make_makers):
    """Yield every contender that is available here, with memory of its own."""
    for name in make_makers():
        contender = make_makers()[name]()
        if contender is not None:
            yield name, contender


SETS = [
    pytest.param(partial(one_array_makers, 1000, dtype, threads), dtype, 1, id=f"{dtype.__name__}-{threads}")
    for dtype in (np.float32, np.float64)
    for threads in (1, 2)
] + [pytest.param(partial(many_array_makers, [(10, 10), (3,)], 1), np.float32, 2, id="many")]


@pytest.mark.parametrize(("make_makers", "dtype", "arrays"), SETS)
def test_every_contender_does_the_same_update(make_makers, dtype, arrays):
    lr, mu, g, p, v = 1e-3, 0.9, 1e-3, 1.5, 0.0
    for _ in range(40):
        v = mu * v + g
        p = p - lr * v
    found = dict(make_contenders(make_makers))
    assert OURS in found
    for contender in found.values():
        for _ in range(40):
            contender.run()
        assert len(contender.params()) == arrays
        for params in contender.params():
            # The way from 1.5, to some roundings of each step: 40 of half a unit in the last place of 1.5.
            np.testing.assert_allclose(np.asarray(params) - 1.5, p - 1.5, rtol=0, atol=20 * 1.5 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("rule", "loads", "stores", "arithmetic"),
    # p and the state are read and written, g is read: 28 bytes an element for adam in float32. The operations are those
    # of the formula; roots, minima and comparisons are not counted.
    [
        *(("sgd", 2, 1, 2), ("pytorch", 3, 2, 5), ("classical", 3, 2, 4), ("heavy_ball", 3, 2, 5)),
        *(("adam", 4, 3, 12), ("amsgrad", 5, 4, 12), ("lion", 3, 2, 10)),
    ],
)
def test_a_kernel_loads_and_stores_each_element_once(rule, loads, stores, arithmetic, compiled_here):
    found = assembly.kernel_loop(rule)
    assert found.unrolled >= stores
    assert found.loads * stores == loads
    assert found.arithmetic * stores == arithmetic
