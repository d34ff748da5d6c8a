"""fm.minimize as a method of scipy.optimize.minimize: SciPy's own tests that concern no one method.

Each is adapted from scipy/optimize/tests/test_optimize.py of SciPy 1.17 (BSD-3-Clause), and has its name.
"""

import itertools
from decimal import Decimal
from fractions import Fraction

import numba
import numpy as np
import pytest
from scipy import optimize
from scipy.optimize import OptimizeResult, OptimizeWarning, rosen, rosen_der

import fastmomentum as fm


def minimize(*args, **kwargs):
    return optimize.minimize(*args, **kwargs, method=fm.minimize)


class Entropy:
    """The maximum entropy problem of Berger et al. 1996 that SciPy's tests minimise."""

    F = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]])
    K = np.array([1.0, 0.3, 0.5])
    solution = np.array([0.0, -0.524869316, 0.487525860])

    def __init__(self):
        self.trace = []

    def fun(self, x):
        assert len(self.trace) < 6000
        self.trace.append(x)
        return np.log(np.exp(self.F @ x).sum()) - self.K @ x

    def jac(self, x):
        p = np.exp(self.F @ x)
        return self.F.T @ (p / p.sum()) - self.K


RULES = [{"rule": "sgd"}, {}, {"restart": "function"}, {"lr": 0.5}, {"rule": "heavy_ball", "lr": 0.5}]
RULES = [*RULES, {"rule": "fire"}]


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("jac", ["2-point", "3-point", None, False])
def test_finite_differences_jac(jac, options):
    problem = Entropy()
    found = fm.minimize(problem.fun, np.zeros(3), jac=jac, **options)
    assert found.success
    np.testing.assert_allclose(problem.fun(found.x), problem.fun(problem.solution), atol=1e-6)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("kind", ["2-point", "3-point", "jac", "both"])
@pytest.mark.parametrize("maxiter", [0, 1, 2, 7, None])
def test_duplicate_evaluations(kind, options, maxiter):
    problem = Entropy()
    fun, jac = (problem.fun, problem.jac) if kind == "jac" else (problem.fun, kind)
    if kind == "both":
        fun, jac = (lambda x: (problem.fun(x), problem.jac(x))), True
    for bounds in (None, [(-1, 1)] * 3):
        if bounds and options == {"rule": "fire"}:
            continue
        problem.trace.clear()
        found = fm.minimize(fun, np.zeros(3), jac=jac, bounds=bounds, maxiter=maxiter, **options)
        assert found.nfev == len(problem.trace)
        for before, after in itertools.pairwise(problem.trace):
            assert not np.array_equal(before, after)


@pytest.mark.parametrize("options", RULES)
def test_bfgs_double_evaluations(options):
    seen = set()

    def fun(x):
        assert x[0] not in seen
        seen.add(x[0])
        return 10 * x**2, 20 * x

    lr = {"lr": 0.01} if "lr" in options or options == {"rule": "fire"} else {}
    assert minimize(fun, -100, jac=True, tol=1e-7, options=options | lr).success


@pytest.mark.parametrize("compiled", [False, True])
def test_evaluations_are_as_many_as_are_needed(compiled):
    def fun(x, calls):
        calls[0] += 1
        return 0.5 * np.sum(x * x * np.array([1.0, 4.0, 9.0]))

    def jac(x, calls):
        calls[1] += 1
        return x * np.array([1.0, 4.0, 9.0])

    if compiled:
        fun, jac = numba.njit(fun), numba.njit(jac)
    for options in RULES[2:4] if compiled else RULES:  # the others compile the same functions
        # At maxiter=0: fun and jac at x0. Each step of gradient descent: fun and jac at the next point.
        calls = np.zeros(2, np.int64)
        found = fm.minimize(fun, np.ones(3), (calls,), jac=jac, maxiter=0, **options)
        assert (found.nfev, found.njev, *calls) == (1, 1, 1, 1)
        np.testing.assert_array_equal(found.x, 1.0)
        calls[:] = 0
        found = fm.minimize(fun, np.ones(3), (calls,), jac=jac, maxiter=20, gtol=0.0, **options | {"lr": 0.05})
        fixed = 1 if options.get("restart") != "function" else found.nit
        assert (found.nfev, found.njev) == tuple(calls)
        assert found.njev <= found.nit + 2
        assert found.nfev <= 2 * found.nit + 2 if fixed > 1 else found.nfev <= 3
    calls[:] = 0
    found = fm.minimize(fun, np.ones(3), (calls,), jac=jac, rule="sgd", maxiter=10, gtol=0.0)
    assert found.njev == calls[1] == found.nit + 2  # one is for the first lr


def test_bfgs_nan_return():
    found = minimize(lambda x: np.nan, 0.0)
    assert np.isnan(found.fun)
    assert found.success is False

    found = minimize(lambda x: 0 if x == 0 else np.nan, 0.0, jac=lambda x: np.ones_like(x))
    assert found.success is False
    assert (found.fun, found.x) == (0, 0)  # the best point, where SciPy gives the last one


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("jac", [lambda x: np.array([1.0]), None])
@pytest.mark.parametrize("defined", [0, 2])
def test_nan_values(defined, jac, options):
    rng, count = np.random.default_rng(123122), [0]

    def fun(x):
        count[0] += 1
        return np.nan if count[0] > defined else rng.random()

    found = minimize(fun, np.array([1.0]), jac=jac, options=options | {"maxiter": 20})
    assert found.success is False


def test_obj_func_returns_scalar():
    for fun in (lambda x: x, lambda x: None, lambda x: "1", lambda x: [1.0, 2.0], lambda x: (1.0, x)):
        with pytest.raises(ValueError, match="fun: expected it to return a number"):
            minimize(fun, np.array([1, 1]))


def test_bfgs_gh_2169():
    def fun(x):
        return 1.79769313e308 if x < 0 else x + 1.0 / x

    np.testing.assert_allclose(minimize(fun, [10.0]).x, 1.0, rtol=1e-4, atol=1e-4)


def test_minimize_tol_parameter():
    def fun(z):
        return z[0] ** 2 * z[1] ** 2 + z[0] ** 4 + 1

    def jac(z):
        return np.array([2 * z[0] * z[1] ** 2 + 4 * z[0] ** 3, 2 * z[0] ** 2 * z[1]])

    found = [minimize(fun, [2, 2], jac=jac, tol=tol) for tol in (1e-10, 1.0)]
    assert found[0].fun < found[1].fun


@pytest.mark.parametrize("options", RULES)
def test_minimize_callback_copies_array(options):
    results = []
    options = options | ({"lr": 1e-3} if "lr" in options else {}) | {"maxiter": 50}
    minimize(rosen, np.zeros(10), jac=rosen_der, callback=lambda x: results.append((x, x.copy())), options=options)
    assert len(results) > 2
    assert all((x == y).all() for x, y in results)
    assert not any(np.may_share_memory(x, y) for (x, _), (y, _) in itertools.combinations(results, 2))


@pytest.mark.parametrize("options", RULES)
def test_no_increase(options):
    def fun(x):
        return (x - 1) ** 2

    found = minimize(fun, np.array([2.0]), jac=lambda x: 2 * (x - 1) * (-1) - 2, options=options | {"maxiter": 20})
    assert found.fun == fun(found.x)
    assert found.fun <= fun(2.0)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("jac", [rosen_der, None])
def test_respect_maxiter(jac, options):
    calls = [0, 0]

    def fun(x):
        calls[0] += 1
        return rosen(x)

    def counted(x):
        calls[1] += 1
        return jac(x)

    options = options | ({"lr": 1e-3} if "lr" in options else {})
    found = minimize(fun, np.zeros(10), jac=jac and counted, options=options | {"maxiter": 4})
    assert (found.nit, found.status, found.nfev) == (4, 1, calls[0])
    assert found.njev == calls[1] if jac else found.njev >= found.nit


@pytest.mark.parametrize("options", RULES)
@pytest.mark.filterwarnings("error")
def test_minimize_warnings_gh1953(options, capsys):
    options = options | ({"lr": 1e-3} if "lr" in options else {}) | {"maxiter": 10}
    with pytest.warns(OptimizeWarning, match="Maximum number"):
        minimize(rosen, [0, 0], jac=rosen_der, options=options | {"disp": True})
    assert "Maximum number" in capsys.readouterr().out
    minimize(rosen, [0, 0], jac=rosen_der, options=options | {"disp": False})
    assert capsys.readouterr().out == ""


def test_disp_warns_of_each_run_without_success():
    with pytest.warns(OptimizeWarning, match="at x0, fun is nan"):
        minimize(lambda x: np.nan, [0, 0], options={"disp": True})
    with pytest.warns(OptimizeWarning, match="jac is not its gradient"):
        minimize(rosen, [1, 2], jac=lambda x: -rosen_der(x), options={"disp": True})


def test_minimize_automethod():
    found = [minimize(lambda x: x**2, np.array([10.0]), bounds=bounds, tol=1e-8) for bounds in (None, [(5, 10)])]
    assert all(each.success for each in found)
    np.testing.assert_allclose([each.x[0] for each in found], [0, 5], atol=1e-7)


def test_minimize_coerce_args_param():
    c = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
    start = np.random.default_rng(1234).standard_normal(c.size)
    found = minimize(lambda x, c: np.sum((x - c) ** 2), start, jac=lambda x, c=None: 2 * (x - c), args=(c))
    np.testing.assert_allclose(found.x, c, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-50, 1, 1e50])
def test_initial_step_scaling(scale):
    def fun(x):
        assert abs(x).max() <= 1e4
        return scale * (x[0] - 1) ** 2

    found = minimize(fun, [-1.0], jac=lambda x: scale * np.array([2 * (x[0] - 1)]), options={"gtol": scale * 1e-8})
    assert found.success
    np.testing.assert_allclose(found.x, [1.0])
    assert found.nit <= 20  # SciPy's line searches need 3; they begin with a step of unit length


@pytest.mark.parametrize("form", ["x", "intermediate_result", "class"])
def test_callback_stopiteration(form):
    counted = []

    def count():
        counted.append(1)
        if len(counted) == 5:
            raise StopIteration

    class Callback:
        def __call__(self, intermediate_result: OptimizeResult):
            told(intermediate_result=intermediate_result)

    def told(*, intermediate_result):
        assert intermediate_result.fun == rosen(intermediate_result.x)
        count()

    callback = {"x": lambda xk, *args: count(), "intermediate_result": told, "class": Callback()}[form]
    found = minimize(rosen, [1.1] * 5, jac=rosen_der, callback=callback)
    expected = minimize(rosen, [1.1] * 5, jac=rosen_der, options={"maxiter": 5})
    assert found.message.startswith("`callback` raised `StopIteration`")
    assert (found.nit, found.status, found.success) == (5, 99, False)
    assert found.fun == expected.fun
    np.testing.assert_array_equal(found.x, expected.x)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("jac", [None, lambda x: 2.0 * x, lambda x: 2.0 * x[0], lambda x: [2 * x[0]]])
def test_result_x_shape_when_len_x_is_one(jac, options):
    for start in (np.array([0.1]), 0.1):
        found = minimize(lambda x: x * x, start, jac=jac, options=options)
        assert found.success
        assert found.x.shape == found.jac.shape == (1,)


def test_a_compiled_gradient_may_be_a_number_if_x_has_one_element():
    fun, jac, both = (
        numba.njit(function)
        for function in (lambda x: x[0] ** 2, lambda x: 2.0 * x[0], lambda x: (x[0] ** 2, 2.0 * x[0]))
    )
    for found in (fm.minimize(both, 3.0, jac=True), fm.minimize(fun, 3.0, jac=jac, lr=0.1)):
        assert found.success
        assert abs(found.x[0]) < 1e-5
    with pytest.raises(ValueError, match="jac: expected it to return numbers of shape"):
        fm.minimize(fun, [3.0, 1.0], jac=jac)


@pytest.mark.parametrize("jac", [None, "2-point", "3-point", rosen_der])
@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neldermead_respect_fp(dtype, options, jac):
    def fun(x):
        assert x.dtype == dtype
        return rosen(x)

    def gradient(x):
        assert x.dtype == dtype
        return rosen_der(x)

    options = options | ({"lr": 1e-5} if "lr" in options else {})
    start = np.array([5.0, 4.0], dtype)
    for bounds in (None, [(0, 10)] * 2):
        if bounds is None or options != {"rule": "fire"}:
            given = {"jac": gradient if callable(jac) else jac, "bounds": bounds, "maxiter": 50}
            found = fm.minimize(fun, start, **given, **options)
            assert found.x.dtype == found.jac.dtype == dtype


@pytest.mark.parametrize("jac", [None, "3-point"])
def test_differences_in_float32_find_the_minimum_as_well_as_float32_allows(jac):
    h = np.array([1.0, 4.0, 9.0], np.float32)
    found = fm.minimize(lambda x: np.sum(h * (x - 1) ** 2), np.zeros(3, np.float32), jac=jac, gtol=1e-3)
    assert found.success
    np.testing.assert_allclose(found.x, 1.0, atol=1e-3)


def test_x_overwritten_user_function():
    def fun(x):
        x -= np.arange(x.size)
        x *= x
        return np.sum(x)

    def jac(x):
        x *= 2
        x -= 2 * np.arange(x.size)
        return x

    for given in (None, jac):
        np.testing.assert_allclose(minimize(fun, np.ones(5) * 1.5, jac=given).x, np.arange(5), atol=2e-4)


def test_attributes_present():
    found = minimize(rosen, [5, 5], jac=rosen_der)
    for name in ("nit", "nfev", "njev", "x", "success", "status", "fun", "message", "jac"):
        assert hasattr(found, name)
        assert name in dir(found)
    assert isinstance(found.message, str)
    assert isinstance(found.success, bool)


def test_maxiter_of_none_is_the_default():
    assert minimize(rosen, [0, 0], jac=rosen_der, options={"maxiter": None}).success


def test_x0_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="'x0' must only have one dimension."):
        minimize(lambda x: x, np.ones((2, 1)))


@pytest.mark.parametrize("kind", [Fraction, Decimal, np.float16, np.longdouble, np.array])
def test_numbers_of_other_types_are_results(kind):
    for jac in (lambda x: 2 * x, lambda x: [kind(2 * float(each)) for each in x]):
        found = minimize(lambda x: kind(float(x @ x)), [1.0, 0.0], jac=jac)
        assert (found.success, found.fun) == (True, 0.0)
