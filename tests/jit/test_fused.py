"""Updates fused with the gradient, of one coordinate or of its neighbours on a grid."""

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

import fastmomentum as fm
from tests.helpers import reference
from tests.helpers.arrays import random_arrays
from tests.helpers.jit import every_dtype, every_rule, given, rule_arrays
from tests.helpers.reference import as_state, assert_same_bits


def slope(p, h, b):
    return 2.0 * h * p - b


@pytest.mark.sampled(2)
@every_rule
@every_dtype
def test_fused_steps_have_the_bits_of_gradient_then_step(rule, dtype):
    fused, hyper = fm.jit.fuse(slope, rule), fm.jit.hyper(rule, dtype, **given(rule))
    for size in (0, 1, 9, 101, 16_384, 40_001):
        p, *state, h = rule_arrays(rule, size, dtype)
        (b,) = random_arrays(size, 1, dtype, seed=1)
        once, many = [x.copy() for x in (p, *state)], [x.copy() for x in (p, *state)]
        for _ in range(5):
            g = (2.0 * h.astype(np.float64) * p - b).astype(dtype)
            fm.step(p, as_state(state), g, rule=rule, backend="numpy", **{"lr": 0.1} | given(rule))
            fused.step(*once, h, b, *hyper)
        fused.run(5, *many, h, b, *hyper)
        for wanted, one, other in zip((p, *state), once, many):
            assert_same_bits(one, wanted)
            assert_same_bits(other, wanted)


def one(p):
    return p * 0.0 + 1.0


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 8])
def test_run_takes_as_many_steps_as_asked_for(steps):
    fused, p = fm.jit.fuse(one, "sgd"), np.zeros(20_000)
    fused.run(steps, p, 0.25)
    np.testing.assert_array_equal(p, -0.25 * steps)


def test_fused_functions_are_called_from_compiled_code():
    step, run = fm.jit.fuse(numba.njit(lambda p, h: h * p), "classical")

    @numba.njit
    def both(p, v, h):
        step(p, v, h, 0.1, 0.5)
        run(9, p, v, h, 0.1, 0.5)

    p, v, h = np.ones(3), np.zeros(3), np.array([1.0, 2.0, 3.0])
    both(p, v, h)
    q, w = np.ones(3), np.zeros(3)
    for _ in range(10):
        q, w = reference.update("classical", q, w, h * q, float, lr=0.1, momentum=0.5)
    assert_same_bits(p, q)


@pytest.mark.parametrize("steps", [-1, 2.5, None, True, "3"])
def test_run_refuses_a_wrong_number_of_steps(steps):
    run, p = fm.jit.fuse(lambda p: p, "sgd").run, np.ones(3)
    with pytest.raises((TypeError, ValueError), match="steps: expected a whole number"):
        run(steps, p, 0.25)
    with pytest.raises((TypingError, ValueError), match="steps: expected a whole number"):
        numba.njit(lambda steps, p: run(steps, p, 0.25))(steps, p)
    np.testing.assert_array_equal(p, np.ones(3))


def test_fused_gradient_divides_by_zero_as_numpy_does():
    inverse = numba.njit(lambda p, h: p / h)
    with pytest.raises(ZeroDivisionError):
        inverse(1.0, 0.0)
    p = np.ones(3)
    fm.jit.fuse(inverse, "sgd").step(p, np.array([1.0, 0.0, 2.0]), 0.5)
    np.testing.assert_array_equal(p, [0.5, -np.inf, 0.75])


def test_fuse_refuses_a_gradient_that_returns_no_number():
    with pytest.raises(TypingError, match="expected a number; got"):
        fm.jit.fuse(lambda p: (p, p), "sgd").step(np.ones(3), 0.5)


def test_fuse_compiles_the_same_gradient_and_rule_once():
    assert fm.jit.fuse(slope, "sgd") == fm.jit.fuse(slope, "sgd")
    assert fm.jit.fuse(slope, "sgd") != fm.jit.fuse(slope, "heavy_ball")


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (3, "grad: expected a plain function, or one compiled by Numba; got 3"),
        (np.sin, "grad: expected a plain function"),
        (lambda p, h=2.0: p, "grad: expected a fixed number of arguments, at least one, without defaults"),
        (lambda: 0, "grad: expected a fixed number of arguments"),
        (lambda p, *data: p, "grad: expected a fixed number of arguments"),
    ],
)
def test_fuse_refuses_what_is_no_function_of_a_coordinate(grad, message):
    with pytest.raises(TypeError, match=message):
        fm.jit.fuse(grad, "sgd")


FIVE = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]


STENCILS = {
    1: ([(0,), (-1,), (2,)], lambda c, left, right, f: c + c - left - right - f),
    2: (FIVE, lambda c, n, s, w, e, f: c + c + c + c - n - s - w - e - f),
    3: ([(0, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)], lambda c, a, b, d, f: c + c + c - a - b - d - f),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("axes", STENCILS)
@pytest.mark.parametrize("rule", ["pytorch", "heavy_ball", "sgd"])
@every_dtype
def test_stencils_have_the_bits_of_shifted_arrays(axes, rule, dtype):
    offsets, grad = STENCILS[axes]
    values = given(fm.rules.find(rule)) | ({"dampening": 0.0} if rule == "pytorch" else {})
    step, hyper = fm.jit.fuse_stencil(grad, rule, offsets), fm.jit.hyper(rule, dtype, **values)
    for length in (3, 9, 20):
        old, f = random_arrays((length, 7, 11)[:axes], 2, dtype)
        halos = [max(abs(x) for x in axis) for axis in zip(*offsets)]
        inner = tuple(slice(halo, length - halo) for halo, length in zip(halos, old.shape))
        new, p, state = old.copy(), old.copy(), reference.rest(rule, old)
        s = state.copy()
        for _ in range(4):
            step(new, *([state] if rule != "sgd" else []), old, f, *hyper)
            old, new = new, old
            shifted = [np.roll(p, [-x for x in offset], range(axes))[inner] for offset in offsets]
            g = grad(*shifted, f[inner])
            p = p.copy()
            p[inner], s[inner] = reference.update(rule, p[inner].copy(), s[inner], g, dtype, lr=0.1, momentum=0.9)
            assert_same_bits(old, p)
        assert_same_bits(state, np.zeros_like(state) if rule == "sgd" else s)


def test_stencil_leaves_a_grid_smaller_than_itself_unchanged():
    step = fm.jit.fuse_stencil(STENCILS[1][1], "sgd", STENCILS[1][0])
    for size in range(5):
        new, old = np.full(size, 7.0), np.ones(size)
        step(new, old, np.ones(size), 0.1)
        np.testing.assert_array_equal(new, np.full(size, 7.0))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "offsets: expected one shift for each axis"),
        ([(0,), (0, 1)], "offsets: expected one shift for each axis"),
        ([-1, 0, 1], "offsets: expected a tuple for each neighbour"),
        ([(0.5,)], "offsets: expected a whole number"),
        ([(0,)] * 9, "grad: expected an argument for each of 9 offsets"),
    ],
)
def test_fuse_stencil_refuses_wrong_offsets(offsets, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fm.jit.fuse_stencil(lambda c, f: c, "sgd", offsets)
