"""What the benchmarks compute from their measurements."""

import numpy as np
import pytest

from benchmarks import assembly, native, shapes
from benchmarks.contenders import OURS, many, one
from benchmarks.summary import headlines, summaries


@pytest.mark.parametrize(
    ("make", "arrays", "parameters"), [(shapes.resnet50, 161, 25_557_032), (shapes.gpt2_small, 148, 124_439_808)]
)
def test_networks_have_the_published_numbers_of_parameters(make, arrays, parameters):
    found = make()
    assert len(found) == arrays
    assert sum(int(np.prod(shape)) for shape in found) == parameters


def test_summaries_take_ratios_within_processes_and_medians_over_them():
    runs = [(1.0, 2.0), (10.0, 30.0), (2.0, 2.0)]
    lines = [
        {"case": "float32, n = 100", "threads": 1, "bytes": 2000, "seconds": {OURS: ours, "torch fused": theirs}}
        for ours, theirs in runs
    ]
    (found,) = summaries(lines)
    assert found.ratio["torch fused"] == 2.0
    assert found.seconds == {OURS: 2.0, "torch fused": 2.0}
    assert found.rate == 2000 / 2.0 / 1e9
    (result,) = headlines([found])
    assert not result.met
    assert (result.value, result.goal) == (2.0, "≥ 10")


def test_a_ceiling_is_the_best_stream_by_the_bytes_it_moves():
    seconds = {OURS: 5.0, "ceiling: copy": 4.0, "ceiling: scale": 2.0, "ceiling: triad": 4.0}
    (found,) = summaries([{"case": "x", "threads": 1, "bytes": 20, "seconds": seconds}])
    # ours moves 5 elements in 5 s; copy 2 in 4, scale 2 in 2, triad 3 in 4
    assert found.ceiling == pytest.approx(1.0)
    (other,) = summaries([{"case": "x", "threads": 1, "bytes": 20, "seconds": {OURS: 5.0}}])
    assert other.ceiling is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_loop_in_c_is_the_update(dtype, threads):
    rng = np.random.default_rng(0)
    p, v, g = (rng.standard_normal(1000).astype(dtype) for _ in range(3))
    lr, mu = dtype(0.1), dtype(0.9)
    expected_v = mu * v + dtype(1) * g
    expected_p = p - lr * expected_v
    update = native.loop("update", p, v, g, threads, 0.1, 0.9)
    if update is None:
        pytest.skip("no compiler that knows OpenMP")
    update()
    np.testing.assert_array_equal(v, expected_v)
    np.testing.assert_array_equal(p, expected_p)


def test_every_contender_does_the_same_update():
    """Sides share their arrays: after one call of each the velocity has taken as many gradients."""
    for sides in (one(1000, np.float32, 1), many([(10, 10), (3,)], 1)):
        for side in sides.values():
            side()
        assert OURS in sides
        assert len(sides) >= 3


@pytest.mark.parametrize(
    ("rule", "loads", "stores", "arithmetic"),
    # p and v are read and written, g is read; and the operations are those of the formula
    [("sgd", 2, 1, 2), ("pytorch", 3, 2, 5), ("classical", 3, 2, 4), ("heavy_ball", 3, 2, 5)],
)
def test_a_kernel_loads_and_stores_each_element_once(rule, loads, stores, arithmetic):
    found = assembly.of(rule)
    assert found.unrolled >= stores
    assert found.loads * stores == loads
    assert found.arithmetic * stores == arithmetic
