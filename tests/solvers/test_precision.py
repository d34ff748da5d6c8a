"""fm.minimize with backtracking where rounding hides changes of fun: gradients decide, and a run still ends."""

import numba
import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der

import fastmomentum as fm


def nonnegative_problem(seed):
    """Return A and b: sizes, scales from 1e-2 to 100, small and large residuals, well and badly conditioned."""
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(20, 400)), int(rng.integers(5, 20))
    A = rng.standard_normal((m, n)) * [1.0, 100.0, 1e-2, 10.0][seed % 4]
    if seed % 3 == 0:
        A = np.abs(A)
    if seed % 2:
        return A, 10.0 * rng.standard_normal(m)
    return A, A @ np.maximum(rng.standard_normal(n), 0.0) + 0.01 * rng.standard_normal(m)


def residuals(x, A, b):
    r = A @ x - b
    return 0.5 * (r @ r)


def slope(x, A, b):
    return A.T @ (A @ x - b)


def solve(A, b, x0=None, jac=slope, **settings):
    return fm.minimize(residuals, np.zeros(A.shape[1]) if x0 is None else x0, (A, b), jac=jac, **settings)


@pytest.mark.parametrize("seed", range(64))
def test_backtracking_reaches_what_a_fixed_lr_reaches_on_nonnegative_least_squares(seed):
    A, b = nonnegative_problem(seed)
    L = np.linalg.norm(A, 2) ** 2
    for gtol in (1e-11, 1e-11 * np.sqrt(L) * np.linalg.norm(b)):
        settings = {"bounds": [(0, None)] * A.shape[1], "gtol": gtol, "maxiter": 20_000}
        fixed, found = solve(A, b, lr=1 / L, **settings), solve(A, b, **settings)
        assert found.success or not fixed.success
        # The gradient at the result by numbers of twice the precision: rounding of A.T @ r is √m·ε·‖A‖·‖r‖ at most.
        r = A.astype(np.longdouble) @ found.x - b
        g = np.asarray(A.T @ r, np.float64)
        rounding = np.sqrt(b.size) * np.finfo(np.float64).eps * np.sqrt(L) * np.linalg.norm(r.astype(np.float64))
        assert np.abs(np.where(found.x > 0, g, np.minimum(g, 0))).max() <= 3 * gtol + 4 * rounding


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("terms", [{}, {"l1": 0.5}, {"bounds": True}])
@pytest.mark.parametrize("jac", ["jac", "both"])
def test_least_squares_converge_at_the_default_gtol_whatever_the_scale(scale, terms, jac):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        A, b = scale * rng.standard_normal((200, 8)), rng.standard_normal(200) * [1.0, 1e3][seed % 2]
        settings = {"bounds": [(0, None)] * 8} if "bounds" in terms else terms
        if jac == "jac":
            found = solve(A, b, **settings)
        else:
            found = fm.minimize(
                lambda x, A=A, b=b: (residuals(x, A, b), slope(x, A, b)), np.zeros(8), jac=True, **settings
            )
        # Rounding of the gradient alone may exceed 1e-5: √m·ε·‖A‖·‖r‖ is 1e-5 for scale 1e4 and b of 1e3.
        assert found.success or (scale, seed % 2) == (1e4, 1)


@pytest.mark.parametrize("offset", [-1e9, -1e6, -1.0, 0.0, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_a_large_constant_in_fun_does_not_limit_the_gradient(offset, condition):
    h = np.geomspace(1 / condition, 1.0, 12)
    for gtol in (1e-5, 1e-11):
        found = fm.minimize(
            lambda x: offset + 0.5 * float(h @ (x - 1) ** 2), np.zeros(12), jac=lambda x: h * (x - 1), gtol=gtol
        )
        assert found.success
        assert np.abs(h * (found.x - 1)).max() <= gtol


def test_values_that_cancel_do_not_limit_the_gradient():
    for seed in range(8):  # f = ½xᵀHx − bᵀx + c has its minimum 0, as a difference of numbers of size c
        rng = np.random.default_rng(seed)
        vectors = np.linalg.qr(rng.standard_normal((10, 10)))[0]
        H = (vectors * np.geomspace(1e-2, 1, 10)) @ vectors.T
        H, centre = (H + H.T) / 2, 1e3 * rng.standard_normal(10)
        b, c = H @ centre, centre @ H @ centre / 2
        found = fm.minimize(
            *(lambda x, H, b, c: float(x @ H @ x / 2 - b @ x + c), np.zeros(10), (H, b, c)),
            jac=lambda x, H, b, c: H @ x - b,
            gtol=1e-9,
        )
        assert found.success


@pytest.mark.parametrize("noise", [1e-15, 1e-13, 1e-11, 1e-9])
def test_small_errors_of_fun_do_not_limit_the_gradient(noise):
    h = np.geomspace(1e-2, 1.0, 12)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = fm.minimize(
            lambda x, rng: (1 + 0.5 * float(h @ (x - 1) ** 2)) * (1 + noise * rng.standard_normal()),
            np.zeros(12),
            (rng,),
            jac=lambda x, rng: h * (x - 1),
            gtol=1e-8,
        )
        assert found.success


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
def test_a_run_that_cannot_reach_gtol_ends_long_before_maxiter(offset):
    rng = np.random.default_rng(0)
    h = np.geomspace(1e-2, 1.0, 12)

    def fun(x):
        return offset + 0.5 * float(h @ (x - 1) ** 2)

    for jac in (lambda x: h * (x - 1) + 1e-7 * rng.standard_normal(12), None, "3-point"):
        found = fm.minimize(fun, np.zeros(12), jac=jac, gtol=1e-14)
        if found.status == 3:
            assert "gtol is beyond the precision of fun" in found.message
        assert found.nit < 20_000
        assert found.status == 3 or found.optimality <= 1e-14
    assert fm.minimize(fun, np.zeros(12), jac=lambda x: h * (x - 1), gtol=0.0).nit < 20_000


@pytest.mark.parametrize("x0", [(1.0, 2.0), (-3.0, 5.0), (1e3, -1e3)])
@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
def test_a_gradient_of_the_other_sign_is_reported(offset, x0):
    found = fm.minimize(lambda x: rosen(x) + offset, x0, jac=lambda x: -rosen_der(x))
    assert found.status == 3
    assert found.fun <= rosen(np.array(x0)) + offset + 1e-7 * abs(offset)


def test_compiled_and_interpreted_loops_have_the_same_bits_where_gradients_decide():
    fun, jac = numba.njit(residuals), numba.njit(slope)
    for seed in (0, 4, 12):  # the runs of these ended with status 3 while values alone decided
        A, b = nonnegative_problem(seed)
        for settings in ({}, {"restart": "function"}, {"rule": "sgd", "maxiter": 300}):
            given = {"bounds": [(0, None)] * A.shape[1], "gtol": 1e-11} | settings
            one = fm.minimize(fun, np.zeros(A.shape[1]), (A, b), jac=jac, **given)
            # Interpreted loop, compiled functions: Numba and NumPy do not sum products in the same order.
            other = fm.minimize(lambda *a: fun(*a), np.zeros(A.shape[1]), (A, b), jac=lambda *a: jac(*a), **given)
            np.testing.assert_array_equal(one.x.view(np.uint64), other.x.view(np.uint64))
            assert one.njev > one.nit + 2  # gradients were asked to decide
            for name in ("nit", "nfev", "njev", "restarts", "lr", "status", "fun", "optimality"):
                assert one[name] == other[name]
