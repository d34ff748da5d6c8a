"""fm.minimize as a method of scipy.optimize.minimize, with bounds: SciPy's own tests, and fixed parameters.

Those with SciPy's names are adapted from scipy/optimize/tests/test_optimize.py of SciPy 1.17 (BSD-3-Clause).
"""

import numpy as np
import pytest
from scipy import optimize
from scipy.optimize import Bounds, OptimizeWarning, rosen, rosen_der

import fastmomentum as fm
from tests.solvers.test_scipy_protocol import minimize

LOW, HIGH = np.array([0, 2, -1, -1.0]), np.array([3, 2, 2, -1.0])


def test_minimize_invalid_bounds():
    for bounds in (Bounds([1, 2], [3, 4]), [(1, 3), (2, 4)]):
        with pytest.raises(ValueError, match="The number of bounds is not compatible with the length of `x0`."):
            minimize(lambda x: np.sum(x**2), [1, 2, 3], bounds=bounds)
    for bounds in (Bounds([1, 6, 1], [3, 4, 2]), [(1, 3), (6, 4), (1, 2)]):
        with pytest.raises(ValueError, match="An upper bound is less than the corresponding lower bound."):
            minimize(lambda x: np.sum(x**2), [1, 2, 3], bounds=bounds)
    with pytest.raises(ValueError, match=r".*bound.*"):
        minimize(rosen, [0, -1], jac=rosen_der, bounds=[(1, 10), (10, 1)])


@pytest.mark.parametrize("jac", ["2-point", "3-point", None])
@pytest.mark.parametrize("args", [(), (2.0,)])
def test_minimize_l_bfgs_b_bounds_FD(jac, args):
    def fun(x, p=2.0):
        return 1.0 / p * (x[0] ** p + x[1] ** p)

    with pytest.warns(OptimizeWarning, match="Initial guess is not within the specified bounds"):
        found = minimize(fun, [0, -1], args=args, jac=jac, bounds=((1, None), (None, None)), tol=1e-7)
    assert found.success
    np.testing.assert_allclose(found.x, [1, 0], atol=1e-6)


def test_minimize_with_scalar():
    found = minimize(lambda x: np.sum(x**2), 17, bounds=[(-100, 100)])
    assert found.success
    np.testing.assert_allclose(found.x, [0.0], atol=1e-5)


EQUAL = LOW == HIGH


@pytest.mark.parametrize("kind", ["differences", "gradient", "both"])
@pytest.mark.parametrize("make_bounds", [lambda low, high: list(zip(low, high)), Bounds])
@pytest.mark.parametrize("constraints", [None, []])
@pytest.mark.parametrize("called", [None, "x", "intermediate_result"])
def test_equal_bounds(kind, make_bounds, constraints, called):
    def check(x):
        assert x.size == 4
        np.testing.assert_array_equal(x[EQUAL], LOW[EQUAL])

    def fun(x):
        check(x)
        return rosen(x)

    def jac(x):
        check(x)
        return rosen_der(x)

    def told(intermediate_result):
        check(intermediate_result.x)

    functions = {"differences": (fun, False), "gradient": (fun, jac), "both": (lambda x: (fun(x), jac(x)), True)}
    callback = {None: None, "x": lambda x, *args: check(x), "intermediate_result": told}[called]
    given = {"bounds": make_bounds(LOW, HIGH), "constraints": constraints}
    start = np.random.default_rng(12223).random(4)
    found = minimize(functions[kind][0], start, jac=functions[kind][1], callback=callback, **given)
    expected = optimize.minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", bounds=given["bounds"], tol=1e-12)
    assert found.success
    np.testing.assert_allclose(found.fun, expected.fun, rtol=5e-6)
    np.testing.assert_allclose(found.x, expected.x, rtol=5e-4)
    if kind == "differences":
        expected.jac[EQUAL] = np.nan
    np.testing.assert_allclose(found.jac[EQUAL], expected.jac[EQUAL], rtol=1e-5)
    np.testing.assert_allclose(found.jac[~EQUAL], expected.jac[~EQUAL], atol=1e-2 if kind == "differences" else 1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"lr": 1e-4}, {"rule": "sgd"}, {"jac": "3-point"}, {"maxiter": 3}, {"l1": 0.1}]
)
def test_differences_by_fixed_parameters_are_nan(settings):
    start, bounds = np.array([0.5, 2, 0.5, -1]), [(None, None), (2, 2), (None, None), (-1, -1)]
    found = fm.minimize(rosen, start, bounds=bounds, **{"maxiter": 0} | settings)
    np.testing.assert_array_equal(np.isnan(found.jac), [False, True, False, True])
    np.testing.assert_allclose(found.jac[::2], rosen_der(found.x)[::2], atol=1e-4, rtol=1e-5)
    assert np.isfinite(found.optimality)
    given = fm.minimize(rosen, start, bounds=bounds, **settings | {"jac": rosen_der, "maxiter": 0})
    np.testing.assert_array_equal(given.jac, rosen_der(start))


@pytest.mark.parametrize("given", [{}, {"lr": 0.1}, {"rule": "heavy_ball"}, {"spectrum": True}, {"l1": 2.0}])
@pytest.mark.parametrize("jac", [None, "3-point", lambda x, p: x / np.linalg.norm(x)])
def test_all_bounds_equal(jac, given):
    def fun(x, p=1):
        return np.linalg.norm(x) + p

    for p in (1, 2):
        found = fm.minimize(fun, (1.0, 3.0), args=(p,), jac=jac, bounds=[(1, 1), (2, 2)], **given)
        assert (found.success, found.status, found.nit, found.nfev, found.njev) == (True, 0, 0, 1, 1)
        assert found.message == "All independent variables were fixed by bounds."
        np.testing.assert_array_equal(found.x, [1.0, 2.0])
        np.testing.assert_allclose(found.fun, fun([1.0, 2.0], p) + 3 * given.get("l1", 0.0))
        assert found.optimality == 0.0
        assert np.isnan(found.jac).all() == (not callable(jac))
    found = fm.minimize(lambda x: np.nan, (1.0, 3.0), bounds=[(1, 1), (2, 2)], **given)
    assert (found.success, found.status) == (False, 2)


def test_bounds_with_list():
    assert minimize(rosen, np.array([9, 9]), bounds=Bounds(lb=[5.0, 5.0], ub=[10.0, 10.0])).success
