"""fm.minimize: the status of a run against the truth about its functions, over many kinds of functions."""

import itertools

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der

import fastmomentum as fm
from tests.helpers.reference import soft_threshold

GTOL = 1e-5


class Recorder:
    """A function and its gradient that record what they return, and that may be spoiled from some call on.

    Attributes
    ----------
    values, gradients, undefined : int
        The numbers of calls, and of those that have returned a number that is not finite.
    """

    def __init__(self, value, gradient, spoil=lambda name, call, x, found: found):
        self._value, self._gradient, self._spoil = value, gradient, spoil
        self.values = self.gradients = self.undefined = 0

    def fun(self, x):
        assert np.isfinite(x).all()
        self.values += 1
        return self._record(self._spoil("fun", self.values, x, self._value(x)))

    def jac(self, x):
        assert np.isfinite(x).all()
        self.gradients += 1
        return self._record(self._spoil("jac", self.gradients, x, self._gradient(x)))

    def both(self, x):
        return self.fun(x), self.jac(x)

    def _record(self, found):
        self.undefined += not np.isfinite(found).all()
        return found


def quadratic(seed=0, n=6, condition=100.0, offset=0.0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = (vectors * np.geomspace(1 / condition, 1, n)) @ vectors.T
    centre = rng.standard_normal(n)
    return (
        lambda x: offset + 0.5 * float((x - centre) @ matrix @ (x - centre)),
        lambda x: (matrix + matrix.T) / 2 @ (x - centre),
    )


def logistic(seed=0, n=4):
    rng = np.random.default_rng(seed)
    rows, signs = rng.standard_normal((30, n)), rng.choice([-1.0, 1.0], 30)

    def gradient(x):
        return -(rows.T @ (signs / (1 + np.exp(signs * (rows @ x))))) + x

    return lambda x: float(np.logaddexp(0, -signs * (rows @ x)).sum() + x @ x / 2), gradient


SMOOTH = {
    "quadratic": quadratic(),
    "quadratic, offset 1e6": quadratic(1, offset=1e6),
    "quadratic, offset -1e9": quadratic(2, offset=-1e9),
    "one parameter": (lambda x: 3.0 * float((x[0] - 2.0) ** 2), lambda x: 6.0 * (x - 2.0)),
    "logistic": logistic(),
    "rosenbrock": (rosen, rosen_der),
}
"""Functions that have a minimum within reach; in the last, of rounding, too."""

START = {"one parameter": 1, "logistic": 4, "rosenbrock": 2}

SETTINGS = {
    "backtracking": {},
    "backtracking, function restarts": {"restart": "function"},
    "backtracking, sgd": {"rule": "sgd"},
    "fixed lr": {"rule": "heavy_ball", "lr": 1e-3, "momentum": 0.9},
    "fixed lr, valued": {"rule": "sgd", "lr": 1e-3, "ftol": 1e-300},
    "fire": {"rule": "fire", "lr": 1e-2, "max_dt": 3e-2},
}
TERMS = {
    "none": {},
    "bounds": {"bounds": (-1.0, 1.5)},
    "l1": {"l1": 0.01},
    "both": {"bounds": (-0.5, np.inf), "l1": 0.1},
}
CASES = [
    pytest.param(settings, terms, id=f"{settings}, {terms}")
    for settings, terms in itertools.product(SETTINGS, TERMS)
    if settings != "fire" or terms == "none"
]


def prox_gradient(x, g, lr, l1=0.0, bounds=(-np.inf, np.inf)):
    return np.abs(x - np.clip(soft_threshold(x - lr * g, lr * l1), *bounds)).max() / lr


def solve(recorder, start, settings, terms, jac="jac", noisy=False, **more):
    given = SETTINGS[settings] | TERMS[terms] | {"gtol": GTOL, "maxiter": 400} | more
    if "bounds" in given:
        given["bounds"] = [given["bounds"]] * start.size
        start = np.clip(start, *TERMS[terms]["bounds"])
    functions = {"jac": (recorder.fun, recorder.jac), "both": (recorder.both, True), "2-point": (recorder.fun, None)}
    fun, jac = functions[jac]
    with np.errstate(all="ignore"):
        found = fm.minimize(fun, start, jac=jac, **given)
    check(found, recorder, SETTINGS[settings], TERMS[terms], jac, noisy)
    return found


def check(found, recorder, settings, terms, jac, noisy):
    """Check what holds for each result: that it agrees with itself, with the calls and with the recorder."""
    low, high = terms.get("bounds", (-np.inf, np.inf))
    assert found.success == (found.status == 0)
    assert np.isfinite(found.x).all()
    assert np.all((low <= found.x) & (found.x <= high))
    assert found.nfev == recorder.values
    if jac is not None:
        assert found.njev == recorder.gradients
    if found.success:
        assert np.isfinite(found.fun)
        assert np.isfinite(found.jac).all()
        if "ftol" not in settings:
            assert found.optimality <= GTOL
        if "ftol" not in settings and not (noisy and terms):
            # A step of gradient descent with lr ≤ 2/L from p to x makes a prox-gradient at most three times as large.
            assert prox_gradient(found.x, found.jac, found.lr if terms else 1.0, **terms) <= 3 * GTOL
    if found.status == 2:
        assert recorder.undefined or settings.get("rule") == "fire"  # whose step may overflow before fun does
    if recorder.undefined and found.nit == 0:
        assert not found.success
    assert found.status in (0, 1, 2, 3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("settings", "terms"), CASES)
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_converge_or_need_more_steps(name, settings, terms):
    for jac in ("jac", "both", "2-point"):
        recorder = Recorder(*SMOOTH[name])
        start = np.full(START.get(name, 6), 0.3)
        found = solve(recorder, start, settings, terms, jac)
        if jac != "2-point":
            assert found.status in (0, 1)
        if jac != "2-point" and settings.startswith("backtracking") and "sgd" not in settings:
            assert found.success


def spoiled(name, is_spoiled, value, element=None):
    """Return how to spoil a function: calls for which `is_spoiled(call)` return `value`, in one element or in all."""

    def spoil(called, call, x, found):
        if called != name or not is_spoiled(call):
            return found
        if name == "fun":
            return value
        return np.where(np.arange(x.size) == element if element is not None else True, value, found)

    return spoil


@pytest.mark.sampled(4)
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "element"), [("fun", None), ("jac", None), ("jac", 2)])
@pytest.mark.parametrize(("settings", "terms"), CASES)
def test_values_that_are_not_finite_from_some_call_on_end_a_run_with_status_2(settings, terms, name, element, outside):
    for jac, first in itertools.product(("jac", "both", "2-point"), (1, 2, 3, 5, 13)):
        recorder = Recorder(*quadratic(), spoiled(name, lambda call, first=first: call >= first, outside, element))
        found = solve(recorder, np.full(6, 0.3), settings, terms, jac)
        if not recorder.undefined:
            continue
        # No further step sees a number that is not finite and comes with the last step that is allowed; and one at the
        # result of a proximal map after convergence leaves the point before it as the result.
        assert found.status == 2 or found.nit == 400 or (found.success and recorder.undefined == 1)
        assert np.isfinite(found.fun) or name == "fun"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "element"), [("fun", None), ("jac", None), ("jac", 2)])
@pytest.mark.parametrize(("settings", "terms"), CASES)
def test_one_value_that_is_not_finite_never_makes_a_result_that_is_wrong(settings, terms, name, element, outside):
    for jac, at in itertools.product(("jac", "both", "2-point"), (1, 2, 3, 4, 9)):
        recorder = Recorder(*quadratic(), spoiled(name, lambda call, at=at: call == at, outside, element))
        found = solve(recorder, np.full(6, 0.3), settings, terms, jac)
        assert found.status != 3


UNBOUNDED = {
    "exponential": (lambda x: -float(np.exp(x[0])), lambda x: -np.exp(x)),
    "linear": (lambda x: -float(x[0]), lambda x: -np.ones(1)),
    "concave": (lambda x: -float(x[0] ** 2), lambda x: -2 * x),
    "cubic": (lambda x: -float(x[0] ** 3), lambda x: -3 * x**2),
    "logarithm": (lambda x: float(np.log(x[0])), lambda x: 1 / x),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_functions_without_lower_bound_end_with_status_2_or_at_maxiter(name, settings):
    for start, jac in itertools.product((0.5, 1.0, 30.0), ("jac", "both", "2-point")):
        recorder = Recorder(*UNBOUNDED[name])
        found = solve(recorder, np.array([start]), settings, "none", jac, maxiter=2000, gtol=1e-12)
        assert found.status in (1, 2)
        assert np.isfinite(found.fun)
        if settings.startswith("backtracking") and name in ("exponential", "concave", "cubic"):
            assert found.status == 2


def rotated(g):
    return np.roll(g, 1) * [1, -1, 1, -1, 1, -1]


WRONG = {
    "other sign": lambda g: -g,
    "constant": lambda g: np.ones_like(g),
    "rotated": rotated,
    "four times": lambda g: 4 * g,
    "shifted": lambda g: g + 1.0,
    "one element": lambda g: np.where(np.arange(g.size) == 1, -g, g),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_gradient_is_no_success_unless_it_vanishes(wrong, settings):
    for offset in (0.0, 1.0, -1e3, 1e9):
        value, gradient = quadratic(3, offset=offset)
        recorder = Recorder(value, lambda x, gradient=gradient: WRONG[wrong](gradient(x)))
        found = solve(recorder, np.full(6, 0.3), settings, "none")
        if settings == "backtracking" and wrong == "other sign":
            assert found.status == 3
            assert found.fun <= value(np.full(6, 0.3)) + 1e-6 * abs(offset)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("offset", [0.0, 1.0, -1e9])
def test_a_flat_function_converges_at_once_and_only_with_its_gradient(settings, offset):
    recorder = Recorder(lambda x: offset, lambda x: 0.0 * x)
    found = solve(recorder, np.full(6, 0.3), settings, "none")
    assert (found.status, found.nit) == (0, 0)
    recorder = Recorder(lambda x: offset, lambda x: 0.0 * x + 1.0)
    found = solve(recorder, np.full(6, 0.3), settings, "none")
    assert found.status == (3 if settings.startswith("backtracking") else 0 if "ftol" in SETTINGS[settings] else 1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("noise", [1e-14, 1e-9, 1e-6, 1e-2])
@pytest.mark.parametrize("name", ["fun", "jac"])
@pytest.mark.parametrize(("settings", "terms"), CASES)
def test_noise_may_end_a_run_but_makes_no_result_that_is_wrong(settings, terms, name, noise):
    for jac, seed in itertools.product(("jac", "both", "2-point"), range(2)):
        rng = np.random.default_rng(seed)

        def spoil(called, call, x, found, rng=rng):
            return found + noise * rng.standard_normal(np.shape(found)) if called == name else found

        found = solve(Recorder(*quadratic(seed, offset=1.0), spoil), np.full(6, 0.3), settings, terms, jac, noisy=True)
        if name == "fun" and jac == "jac" and noise <= 1e-9 and settings == "backtracking":
            assert found.success


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-20, 1e20, 1e150, 1e290])
@pytest.mark.parametrize(("settings", "terms"), CASES)
def test_huge_and_tiny_functions_have_true_results(settings, terms, scale):
    if "l1" in TERMS[terms] or settings == "fire":
        return
    value, gradient = quadratic(4)
    given = {"lr": SETTINGS[settings]["lr"] / scale} if "lr" in SETTINGS[settings] else {}
    with np.errstate(all="ignore"):
        found = fm.minimize(
            lambda x: scale * value(x),
            np.full(6, 0.3),
            jac=lambda x: scale * gradient(x),
            bounds=[TERMS[terms]["bounds"]] * 6 if "bounds" in TERMS[terms] else None,
            **SETTINGS[settings] | given | {"gtol": GTOL * scale, "maxiter": 3000},
        )
    assert found.success or (found.status == 1 and given)


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["heavy_ball", "fire"])
def test_a_run_that_meets_an_undefined_value_only_at_its_end_is_no_success(rule, outside):
    recorder = Recorder(*quadratic(), spoiled("fun", lambda call: call == 2, outside))
    found = fm.minimize(recorder.fun, np.full(6, 0.3), jac=recorder.jac, rule=rule, lr=0.1)
    assert (found.status, found.success) == (2, False)
    assert np.isfinite(found.fun)  # that of the best point
    recorder = Recorder(*quadratic(), spoiled("fun", lambda call: call >= 2, outside))
    found = fm.minimize(recorder.fun, np.full(6, 0.3), jac=recorder.jac, rule=rule, lr=0.1)
    assert (found.status, found.success) == (2, False)
