"""The options max_norm and skip_nonfinite, and the sums that they need."""

import math

import numpy as np
import pytest
import torch

import fastmomentum as fm
from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.numpy.reductions import sum_up
from fastmomentum.backends.step_sums import make_square
from tests.helpers import reference
from tests.helpers.arrays import arrays_of, gradients_of, random_arrays
from tests.helpers.memory import assert_allocates_nothing
from tests.helpers.reference import BACKENDS, DTYPES, RULES, assert_all_same_bits, assert_same_bits

SIZES = (0, 1, LANES - 1, LANES, LANES + 1, 1009, CHUNK - 1, CHUNK, CHUNK + LANES + 1)


def measured(grads, backend="cpu"):
    """Return the gradients and the clip factor, which the update of a zero by the gradient 1 shows."""
    grads = [np.append(g, g.dtype.type(1)) for g in grads]
    params = [np.zeros_like(g) for g in grads]
    opt = fm.Momentum(params, rule="sgd", lr=1.0, max_norm=0.5, backend=backend)
    opt.step(grads)
    return grads, [-p[-1] for p in params]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_squares_has_the_bits_of_the_promised_order(dtype):
    rng = np.random.default_rng(14)
    for size in SIZES:
        g = (rng.standard_normal(size) * 10.0 ** rng.integers(-8, 8, size)).astype(dtype)
        expected = reference.sum_of_squares(g)
        assert sum_up(make_square(fm.rules.sgd), (g,), g, ()) == [expected]
        assert math.isclose(expected, math.fsum(float(x) ** 2 for x in g), rel_tol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_norm_factor_is_that_of_the_norm_over_all_arrays(dtype, backend):
    grads, factors = measured(arrays_of((3, 1000, 0, 70_000), dtype), backend)
    total = 0.0
    for g in grads:
        total += reference.sum_of_squares(g)
    expected = dtype(0.5 / (math.sqrt(total) + 1e-6))
    assert all(f == expected for f in factors)


def test_max_norm_takes_one_norm_over_dtypes_and_groups():
    params = [np.zeros(2, np.float32), np.zeros(2), np.zeros(1, np.float32)]
    groups = [{"params": params[:2]}, {"params": params[2], "weight_decay": 0.5}]
    opt = fm.Momentum(groups, rule="sgd", lr=1.0, max_norm=1.0)
    opt.step([np.array([3, 0], np.float32), np.array([0, 4.0]), np.array([12], np.float32)])
    f = 1 / (13 + 1e-6)
    assert_same_bits(params[1], -np.float64(f) * np.array([0, 4.0]) + 0.0)
    assert_same_bits(params[2], -np.float32(f) * np.array([12], np.float32))


def test_max_norm_changes_no_bits_when_the_norm_is_below_the_limit():
    (g,) = random_arrays(1000, 1)
    for rule, backend in [*((rule, "numpy") for rule in RULES), ("pytorch", "cpu"), ("heavy_ball", "cpu")]:
        found = []
        for limit in (None, 1e6):
            p = np.ones(1000)
            opt = fm.Momentum(p, rule=rule, lr=0.1, max_norm=limit, backend=backend)
            opt.step(g)
            opt.step(g)
            found.append(p)
        assert_same_bits(*found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.1, 1.0, 30.0, 1e9])
def test_steps_agree_with_torch_clip_grad_norm(limit, dtype):
    shapes = ((7,), (3, 5), (300,))
    ours = arrays_of(shapes, dtype, seed=1)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in ours]
    opt = fm.Momentum(ours, lr=0.1, max_norm=limit)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, foreach=False)
    for grads in gradients_of(shapes, 10, dtype):
        kept = [g.copy() for g in grads]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.from_numpy(g.copy())
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        opt.step(grads)
        sgd.step()
        assert_all_same_bits(grads, kept)  # gradients are never written to
    for p, q in zip(ours, theirs, strict=True):
        # ten steps of numbers about 1; torch rounds the norm and each product once more in the arrays' dtype
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_max_norm_propagates_a_norm_that_is_not_finite(bad, backend):
    params = [np.ones(2), np.ones(2)]
    fm.Momentum(params, rule="sgd", lr=1.0, max_norm=1.0, backend=backend).step([np.array([bad, 1.0]), np.ones(2)])
    assert np.isnan(params[0][0])
    if np.isnan(bad):
        assert np.isnan(params).all()
    else:  # the factor is 0, as in torch
        np.testing.assert_array_equal(params[1], 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skip_nonfinite_skips_the_whole_step_for_one_bad_number(bad, limit, dtype, backend):
    sizes = (5, 300, 70_000)
    params = arrays_of(sizes, dtype, seed=1)
    alone = [p.copy() for p in params]
    settings = {"lr": lambda t: 0.1 / (t + 1), "dampening": 0.5, "max_norm": limit, "backend": backend}
    opt = fm.Momentum(params, skip_nonfinite=True, **settings)
    other = fm.Momentum(alone, **settings)
    # The first step, both ends of an array, and ends of chunks.
    places = [(0, 0), None, (1, 299), (2, 0), (2, 69_999), None, (2, 65_536)]
    for place, grads in zip(places, gradients_of(sizes, len(places), dtype), strict=True):
        if place is None:
            other.step(grads)
        else:
            grads[place[0]][place[1]] = bad
        opt.step(grads)
        assert_all_same_bits(params + opt.velocity, alone + other.velocity)
    assert (opt.steps, opt.skipped) == (2, 5)


def test_skip_nonfinite_keeps_finite_gradients_whose_squares_overflow():
    p = np.zeros(2)
    opt = fm.Momentum(p, rule="sgd", lr=1.0, skip_nonfinite=True)
    opt.step(np.array([1e200, -1e200]))
    np.testing.assert_array_equal(p, [-1e200, 1e200])
    assert opt.skipped == 0


def test_gradients_are_checked_before_the_norm_is_formed():
    params = [np.ones(3), np.ones(3)]
    opt = fm.Momentum(params, lr=0.1, max_norm=1.0, skip_nonfinite=True)
    opt.step([np.ones(3), None])
    for bad in ([np.ones(4), None], [np.ones(3), params[0]], [np.full(3, np.nan), [1.0]]):
        with pytest.raises((TypeError, ValueError), match="grads"):
            opt.step(bad)
    assert (opt.steps, opt.skipped) == (1, 0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", True])
def test_max_norm_out_of_range_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="max_norm: expected a finite number > 0"):
        fm.Momentum(np.ones(3), lr=0.1, max_norm=value)


def test_max_norm_allocates_no_array():
    p, g = np.ones(10_000), np.ones(10_000)
    opt = fm.Momentum(p, lr=1e-3, max_norm=1.0, skip_nonfinite=True)

    def run(times):
        for _ in range(times):
            opt.step(g)

    assert_allocates_nothing(run)


def test_max_norm_is_refused_for_a_rule_that_has_its_own():
    rule = fm.Rule(
        lambda p, v, g, lr, mu, limit: (p - lr * limit * g, mu * v),
        hyper=("lr", "momentum", "max_norm"),
        defaults={"max_norm": 1.0},
    )
    with pytest.raises(ValueError, match="max_norm: expected None, as .* has a hyper-parameter"):
        fm.Momentum(np.ones(3), rule=rule, lr=0.1, max_norm=3.0)
    fm.Momentum(np.ones(3), rule=rule, lr=0.1).step(np.ones(3))


def test_max_norm_in_float32_is_the_number_that_it_holds():
    found = []
    for limit in (np.float32(0.3), float(np.float32(0.3))):
        opt = fm.Momentum(p := np.zeros(3), rule="sgd", lr=1.0, max_norm=limit)
        opt.step(np.array([0.1, 0.7, 3.1]))
        found.append(p)
    assert_same_bits(*found)
