"""fm.minimize: its methods against loops by hand, SciPy's protocol, reported results, and signals."""

import gc
import os
import signal
import weakref

import numba
import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeWarning, lsq_linear, minimize, rosen, rosen_der

import fastmomentum as fm
from tests.helpers.processes import run_python
from tests.helpers.reference import DTYPES, soft_threshold

RNG = np.random.default_rng(0)
SIZE = 12
VECTORS = np.linalg.qr(RNG.standard_normal((SIZE, SIZE)))[0]
M, L = 0.05, 1.0
CURVATURES = np.geomspace(M, L, SIZE)
A = np.ascontiguousarray((VECTORS * CURVATURES) @ VECTORS.T)
A = (A + A.T) / 2
B = RNG.standard_normal(SIZE)
X0 = RNG.standard_normal(SIZE)
SOLUTION = np.linalg.solve(A, B)


@numba.njit
def quadratic(x, A, b):
    return 0.5 * np.dot(x, np.dot(A, x)) - np.dot(b, x)


@numba.njit
def slope(x, A, b):
    return np.dot(A, x) - b


@numba.njit
def both(x, A, b):
    return 0.5 * np.dot(x, np.dot(A, x)) - np.dot(b, x), np.dot(A, x) - b


def run(compiled=True, **settings):
    fun, jac = (quadratic, slope) if compiled else (quadratic.py_func, slope.py_func)
    return fm.minimize(fun, X0, (A, B), **{"jac": jac, "gtol": 0.0, "maxiter": 25} | settings)


def points(**settings):
    """Return the points at which gradients are taken, without x0."""
    seen = []
    run(callback=seen.append, **settings)
    return np.array(seen)


def by_hand(steps, lr, momentum, prox=lambda x: x, polyak=False, project=lambda x: x, restart=None):
    """Return the points of FISTA or Polyak's method; lr and momentum are functions of the step since a restart."""
    p, q, since, seen, last = X0.copy(), X0.copy(), 0, [], np.inf
    for _ in range(steps):
        g = A @ p - B
        for _ in range(2):
            x = prox(p - lr(since) * g)
            new = x + momentum(since) * ((p - q) if polyak else (x - q))
            there = restart == "function" and quadratic.py_func(p if polyak else x, A, B)
            climbs = restart == "gradient" and (p - x) @ ((new - p) if polyak else (x - q)) > 0
            if since and (climbs or (restart == "function" and there > last)):
                q, since = p.copy(), 0
                continue
            break
        p, q, since, last = project(new), (p if polyak else x), since + 1, there
        seen.append(p)
    return np.array(seen)


def sequence(k):
    t = 1.0
    for _ in range(k):
        t = (1 + np.sqrt(1 + 4 * t * t)) / 2
    return (t - 1) / ((1 + np.sqrt(1 + 4 * t * t)) / 2)


def root(k):
    return np.sqrt(k)


STEP = 1 / L
KNOWN = (1 - np.sqrt(M / L)) / (1 + np.sqrt(M / L))
CASES = {
    "gradient descent": ({"rule": "sgd", "lr": 0.3}, {"lr": lambda k: 0.3, "momentum": lambda k: 0.0}),
    "heavy ball": (
        {"rule": "heavy_ball", "lr": 0.3, "momentum": 0.8},
        {"lr": lambda k: 0.3, "momentum": lambda k: 0.8, "polyak": True},
    ),
    "nesterov, t-sequence": ({"lr": STEP, "restart": False}, {"lr": lambda k: STEP, "momentum": sequence}),
    "nesterov, strong convexity": ({"spectrum": (M, L)}, {"lr": lambda k: STEP, "momentum": lambda k: KNOWN}),
    "gradient restarts": ({"lr": STEP}, {"lr": lambda k: STEP, "momentum": sequence, "restart": "gradient"}),
    "function restarts": (
        {"lr": STEP, "restart": "function"},
        {"lr": lambda k: STEP, "momentum": sequence, "restart": "function"},
    ),
    "heavy ball, function restarts": (
        {"rule": "heavy_ball", "lr": 0.3, "momentum": 0.99, "restart": "function"},
        {"lr": lambda k: 0.3, "momentum": lambda k: 0.99, "polyak": True, "restart": "function"},
    ),
    "lasso": (
        {"lr": STEP, "restart": False, "l1": 0.2},
        {"lr": lambda k: STEP, "momentum": sequence, "prox": lambda x: soft_threshold(x, 0.2 * STEP)},
    ),
    "box": (
        {"lr": STEP, "restart": False, "bounds": Bounds(-0.5, 0.7)},
        {
            "lr": lambda k: STEP,
            "momentum": sequence,
            "prox": lambda x: np.clip(x, -0.5, 0.7),
            "project": lambda x: np.clip(x, -0.5, 0.7),
        },
    ),
    "schedules": (
        {"rule": "heavy_ball", "lr": fm.schedules.Exponential(0.5, 0.9), "momentum": fm.schedules.Linear(0.5, 0.9, 10)},
        {
            "lr": lambda k: 0.5 * 0.9**k,
            "momentum": lambda k: 0.5 + 0.4 * min(k / 10, 1.0),
            "polyak": True,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("compiled", [True, False])
def test_minimize_takes_the_points_of_the_method_by_hand(name, compiled):
    settings, hand = CASES[name]
    if "bounds" in settings:
        hand = hand | {"prox": hand["prox"]}
        with pytest.warns(OptimizeWarning, match="Initial guess"):
            found = points(compiled=compiled, **settings)
        return_to = X0.copy()
        X0[:] = np.clip(X0, -0.5, 0.7)
        try:
            expected = by_hand(25, **hand)
        finally:
            X0[:] = return_to
    else:
        found, expected = points(compiled=compiled, **settings), by_hand(25, **hand)
    # The two round A @ p alike but sums of products in another order, and nothing here grows what is rounded.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_minimize_restarts_in_these_cases():
    """Check that the cases of the test above restart."""
    assert run(lr=STEP, maxiter=100).restarts > 0
    assert run(lr=STEP, restart="function", maxiter=100).restarts > 0
    assert run(rule="heavy_ball", lr=0.3, momentum=0.99, restart="function").restarts > 0
    assert run(lr=STEP, restart=False, maxiter=100).restarts == 0


def test_chebyshev_meets_its_bound():
    found = fm.minimize(quadratic, X0, (A, B), jac=slope, rule="chebyshev", spectrum=(M, L), gtol=0.0, maxiter=30)
    wide = fm.theory.Chebyshev(M * 0.98, L * 1.02)
    error = np.linalg.norm(found.x - SOLUTION) / np.linalg.norm(X0 - SOLUTION)
    assert error <= wide.bound(30)
    assert error >= wide.bound(30) / 100


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", ["sgd", "heavy_ball", "nesterov_positions", "chebyshev"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rule_ends_at_the_minimum(rule, compiled, dtype):
    fun, jac = (quadratic, slope) if compiled else (quadratic.py_func, slope.py_func)
    gtol = 1e-4 if dtype == np.float32 else 1e-9
    given = {"spectrum": (M, L)} if dtype == np.float32 else {}
    found = fm.minimize(
        fun, X0.astype(dtype), (A.astype(dtype), B.astype(dtype)), jac=jac, rule=rule, gtol=gtol, **given
    )
    assert found.success, found.message
    assert found.x.dtype == dtype
    assert found.optimality <= gtol
    assert np.abs(found.x - SOLUTION).max() <= gtol / M * np.sqrt(SIZE)  # ‖x − x*‖ ≤ ‖∇f‖/m
    np.testing.assert_allclose(
        found.jac, A.astype(dtype) @ found.x - B.astype(dtype), atol=1e-5 if dtype == np.float32 else 1e-12
    )


def test_compiled_and_interpreted_loops_have_the_same_bits():
    for settings in ({}, {"lr": 0.5}, {"l1": 0.1}, {"restart": "function"}, {"jac": True}):
        fun = both if "jac" in settings else quadratic
        jac = settings.get("jac", slope)
        one = fm.minimize(fun, X0, (A, B), **{"jac": jac, "maxiter": 40, "gtol": 0.0} | settings)
        python = jac if jac is True else jac.py_func
        other = fm.minimize(fun.py_func, X0, (A, B), **settings | {"jac": python, "maxiter": 40, "gtol": 0.0})
        np.testing.assert_array_equal(one.x.view(np.uint64), other.x.view(np.uint64))
        assert (one.nit, one.nfev, one.njev, one.restarts) == (other.nit, other.nfev, other.njev, other.restarts)


@pytest.mark.parametrize("x0", [[-1.2, 1.0], [10.0, -20.0], [1.3, 0.7, 0.8, 1.9, 1.2]])
@pytest.mark.parametrize("jac", [rosen_der, None, "3-point"])
def test_rosenbrock(x0, jac):
    found = fm.minimize(rosen, x0, jac=jac, gtol=1e-5)
    assert found.success
    np.testing.assert_allclose(found.x, 1.0, atol=2e-4)


HIMMELBLAU = [(3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)]


@pytest.mark.parametrize("x0", [(0.0, 0.0), (-1.0, 1.0), (-4.0, -4.0), (4.0, -1.0)])
def test_himmelblau(x0):
    def fun(x):
        return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2

    found = fm.minimize(fun, x0, gtol=1e-5)
    assert found.success
    assert min(np.abs(found.x - minimum).max() for minimum in HIMMELBLAU) < 1e-5


def test_an_ill_conditioned_quadratic_ends_honestly():
    h = np.geomspace(1e-8, 1.0, 30)
    found = fm.minimize(lambda x: 0.5 * np.sum(h * x * x), np.ones(30), jac=lambda x: h * x, gtol=1e-12, maxiter=500)
    assert not found.success
    assert found.status == 1
    assert "maxiter" in found.message
    assert found.optimality == np.abs(found.jac).max() > 1e-12


def test_minimize_can_be_a_method_of_scipy():
    options = {"rule": "heavy_ball", "maxiter": 5000}
    found = minimize(quadratic, X0, (A, B), jac=slope, method=fm.minimize, tol=1e-10, options=options)
    assert found.success
    assert np.abs(A @ found.x - B).max() <= 1e-10
    joint = minimize(both.py_func, X0, (A, B), jac=True, method=fm.minimize, tol=1e-10)
    np.testing.assert_allclose(joint.x, SOLUTION, atol=1e-8)
    bounded = minimize(rosen, [0.2, 0.2], jac=rosen_der, method=fm.minimize, bounds=[(0, 0.5), (None, None)], tol=1e-9)
    np.testing.assert_allclose(bounded.x, [0.5, 0.25], atol=1e-8)
    assert bounded.x[0] == 0.5


def test_minimize_takes_the_spectrum_from_the_hessian():
    asked = []

    def hessp(x, v, A, b):
        asked.append(v)
        return A @ v

    for curvature in ({"hessp": hessp}, {"hess": lambda x, A, b: A}):
        found = run(rule="chebyshev", maxiter=1000, gtol=1e-9, **curvature)
        assert found.success
        assert found.njev < 300
    assert asked


def test_bounded_least_squares_has_scipys_answer():
    for bounds in (Bounds(0.0, 0.5), [(0.0, 0.5)] * SIZE, np.array([[0.0, 0.5]] * SIZE)):
        found = fm.minimize(quadratic, np.full(SIZE, 0.1), (A, B), jac=slope, bounds=bounds, gtol=1e-10)
        factor = np.linalg.cholesky(A).T
        expected = lsq_linear(factor, np.linalg.solve(factor.T, B), bounds=(0.0, 0.5), tol=1e-14).x
        np.testing.assert_allclose(found.x, expected, atol=1e-8)


def test_minimize_evaluates_functions_within_the_bounds_alone():
    low, high = np.array([1.0, 0.0, 0.5, -1.0]), np.array([1.0, 2.0, 0.5 + 1e-12, 1.0])

    def fun(x):
        assert np.all((low <= x) & (x <= high))
        return float(np.sum((x - 3.0) ** 2 * [1, 10, 100, 1000]))

    for jac in (None, "3-point", lambda x: fun(x) * 0 + 2 * (x - 3.0) * [1, 10, 100, 1000]):
        found = fm.minimize(fun, [1.0, 1.0, 0.5, 0.0], jac=jac, bounds=list(zip(low, high)))
        assert found.success
        np.testing.assert_allclose(found.x, high, atol=1e-12)


def test_minimize_counts_evaluations_for_differences():
    asked = []
    found = fm.minimize(lambda x: asked.append(x) or float(x @ x), np.ones(5))
    assert found.nfev == len(asked)
    assert found.nit < found.njev <= found.nfev / 6 + 1  # a difference in each direction, and a value


@pytest.mark.parametrize("outside", [np.nan, np.inf])
@pytest.mark.parametrize("x0", [5.0, 100.0])
def test_minimize_stays_behind_a_barrier(outside, x0):
    def fun(x):
        return x[0] - np.log(x[0]) if x[0] > 0 else outside

    found = fm.minimize(fun, [x0], jac=lambda x: 1 - 1 / x)
    assert found.success
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)


def test_minimize_reports_divergence_and_keeps_the_best_point():
    seen = []

    def fun(x):
        seen.append((0.5 * float(np.sum(CURVATURES * x * x)), x))
        return seen[-1][0]

    with np.errstate(all="ignore"):
        found = fm.minimize(fun, X0, jac=lambda x: CURVATURES * x, lr=4.0, momentum=0.9, rule="heavy_ball", ftol=1e-300)
    assert (found.status, found.success) == (2, False)
    assert "diverged" in found.message
    assert "lr" in found.message
    assert found.fun == min(value for value, _ in seen if np.isfinite(value))
    assert np.isfinite(found.x).all()


def test_a_function_without_lower_bound_returns_a_finite_point():
    with np.errstate(all="ignore"):
        found = fm.minimize(lambda x: -float(np.exp(x[0])), [0.0], jac=lambda x: -np.exp(x))
    assert not found.success
    assert np.isfinite(found.x).all()
    assert np.isfinite(found.fun)


def test_minimize_reports_a_wrong_gradient():
    found = fm.minimize(rosen, [1.0, 2.0], jac=lambda x: -rosen_der(x))
    assert found.status == 3
    assert "jac" in found.message


def test_minimize_reports_no_success_when_rounding_hides_the_step():
    scales = np.array([1.0, 1e8])

    def jac(x):
        return scales * (x - 1e8 - 0.3)

    for bounds in (None, [(0, None)] * 2):
        found = fm.minimize(lambda x: 0.0, [1e8, 1e8], jac=jac, bounds=bounds, lr=1e-8, maxiter=50)
        assert not found.success
        assert found.optimality == np.abs(jac(found.x)).max()


@pytest.mark.parametrize("settings", [{}, {"l1": 0.1}, {"bounds": Bounds(-9.0, 9.0)}, {"rule": "fire"}])
def test_minimize_reports_no_success_when_the_last_gradient_is_not_finite(settings):
    asked = []

    def jac(x):
        asked.append(x)
        return CURVATURES * x if len(asked) <= 5 else x * np.nan

    settings = {"rule": "sgd", "lr": 0.1, "maxiter": 5} | settings
    found = fm.minimize(lambda x: 0.5 * float(np.sum(CURVATURES * x * x)), X0, jac=jac, **settings)
    assert (found.nit, found.status, found.success) == (5, 1, False)
    assert np.isfinite(found.x).all()
    assert np.isnan(found.optimality)  # jac has no finite value any more


def test_large_and_small_units_are_served():
    for scale in (1e-150, 1e-30, 1e30, 1e150):
        functions = (lambda x, scale=scale: scale * float(x @ x), lambda x, scale=scale: 2 * scale * x)
        found = fm.minimize(functions[0], np.ones(3), jac=functions[1], gtol=1e-8 * scale)
        assert found.success
        np.testing.assert_allclose(found.x, 0.0, atol=1e-8)


def test_minimize_returns_exact_zeros_however_it_ends():
    for maxiter in (30, 5000):
        found = run(l1=0.3, maxiter=maxiter, gtol=1e-10)
        assert (found.x == 0.0).sum() > 0
        assert found.fun == pytest.approx(quadratic(found.x, A, B) + 0.3 * np.abs(found.x).sum(), rel=1e-14)


def test_minimize_accepts_none_and_float_counts_as_scipy_does():
    found = run(maxiter=1e3, ftol=None, disp=0, callback=None, bounds=None, gtol=1e-6)
    assert found.success
    assert run(maxiter=0).nit == 0
    start = fm.minimize(quadratic, SOLUTION, (A, B), jac=slope, maxiter=0, gtol=1e-6)
    assert start.success


def test_minimize_calls_callbacks_of_both_forms_and_stops_on_stopiteration():
    seen, results = [], []

    def told(intermediate_result):
        results.append(intermediate_result)
        if len(results) == 7:
            raise StopIteration

    one = run(callback=lambda x: seen.append(x), maxiter=20)
    other = run(callback=told)
    assert (len(seen), one.nit) == (20, 20)
    assert (other.status, other.success, other.nit) == (99, False, 7)
    for x, result in zip(seen, results):
        np.testing.assert_array_equal(x, result.x)
        assert result.fun == quadratic(x, A, B)
    np.testing.assert_array_equal(other.x, results[-1].x)
    for x in seen:
        x[:] = np.nan  # a callback may write to its copy
    with pytest.raises(ZeroDivisionError):
        run(callback=lambda x: 1 / 0)


def test_callbacks_of_which_python_knows_no_parameters_are_called_with_x():
    seen = []

    class Callback:
        __signature__ = "none"

        def __call__(self, x):
            seen.append(x)

    run(callback=Callback(), maxiter=3)
    assert len(seen) == 3


def test_disp_prints_how_it_ended(capsys):
    run(disp=True, gtol=1e-6, maxiter=1000)
    last = capsys.readouterr().out.splitlines()[-1]  # a compilation of over a second gives a line of progress before
    assert last.startswith("converged: the largest element of the prox-gradient is at most gtol: ")


def test_minimize_writes_to_no_array_of_the_caller_and_keeps_none():
    start = X0.copy()
    buffer = np.empty(SIZE)

    def fun(x):
        value = quadratic.py_func(x, A, B)
        x[:] = np.nan
        return value

    def jac(x):
        buffer[:] = A @ x - B
        x[:] = np.nan
        return buffer

    found = fm.minimize(fun, start, jac=jac, gtol=1e-8)
    assert found.success
    np.testing.assert_array_equal(start, X0)
    assert not np.shares_memory(found.jac, buffer)


class Data:
    """Data of a user, which a closure refers to."""


def test_minimize_keeps_no_reference_to_python_functions():
    alive = []
    for settings in ({}, {"lr": 0.5}, {"restart": "function"}, {"rule": "fire"}):
        data = Data()
        alive.append(weakref.ref(data))
        fm.minimize(lambda x, data=data: float(x @ x), X0, jac=lambda x, data=data: 2 * x, maxiter=3, **settings)
    del data
    gc.collect()
    assert [each() for each in alive] == [None] * 4


INTERRUPTED = """
    import os, signal, threading, time, numpy as np, fastmomentum as fm, numba
    fun, jac = lambda x: np.sum(x * x), lambda x: 2 * x
    if {compiled}:
        fun, jac = numba.njit(fun), numba.njit(jac)
    settings = dict(jac=jac, lr=1e-12, momentum=0.0, gtol=0.0, maxiter=10**9)
    x = np.ones({size})
    fm.minimize(fun, x, **settings | dict(maxiter=3))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    for delay in (0.05, 0.2, 0.3, 0.4):
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            fm.minimize(fun, x, **settings)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it went on")
        timer.join()
    assert fm.minimize(fun, x, jac=jac, gtol=1e-6).success
    """


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="no signals of this kind")
@pytest.mark.parametrize(("compiled", "size"), [(True, 3), (False, 3), (False, 2_000_000)])
def test_ctrl_c_raises_keyboard_interrupt(compiled, size):
    run_python(INTERRUPTED.format(compiled=compiled, size=size))
