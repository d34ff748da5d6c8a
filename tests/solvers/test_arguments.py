"""fm.minimize: the arguments that it refuses, with what it says, and starts at which no step can be taken."""

import numba
import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeWarning, minimize, rosen, rosen_der

import fastmomentum as fm


@pytest.mark.parametrize(
    "given", [{"fun": lambda x: np.nan}, {"fun": lambda x: -np.inf}, {"jac": lambda x: x * [1, np.nan]}]
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"l1": 0.1}, {"bounds": Bounds(-9, 9)}, {"rule": "fire"}, {"rule": "heavy_ball"}, {"lr": 0.1}, {"jac": None}],
)
def test_a_number_that_is_not_finite_at_the_start_is_no_success(settings, given):
    if "jac" in settings and "jac" in given:
        return
    asked = []
    functions = {"fun": rosen, "jac": rosen_der} | given | settings
    fun = functions.pop("fun")
    found = fm.minimize(lambda x: asked.append(x) or fun(x), [1.2, 0.7], callback=lambda x: 1 / 0, **functions)
    assert (found.status, found.success, found.nit, found.nfev) == (2, False, 0, 1)
    np.testing.assert_array_equal(found.x, [1.2, 0.7])
    expected = f"fun is {given['fun'](0)}" if "fun" in given else "jac is nan for parameter 1"
    assert found.message == f"no step can be taken: at x0, {expected}"
    assert len(asked) == 1
    with pytest.raises(ValueError, match="lr: expected a finite number > 0"):
        fm.minimize(fun, [1.2, 0.7], **functions | {"lr": -1.0})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"fun": lambda x: None}, ValueError, "fun: expected it to return a number; got None. Does it end without"),
        ({"fun": lambda x: "a"}, ValueError, "fun: expected it to return a number; got 'a'"),
        ({"fun": lambda x: [[1.0], [1.0, 2.0]]}, ValueError, "fun: expected it to return a number; got a list of 2"),
        ({"fun": lambda x: object()}, ValueError, "fun: expected it to return a number; got object"),
        ({"fun": lambda x: [1.0, 2.0]}, ValueError, "fun: expected it to return a number; got a list"),
        ({"fun": 3}, TypeError, "fun: expected a function; got 3"),
        ({"jac": lambda x: np.zeros(3)}, ValueError, "jac: expected it to return numbers of shape"),
        (
            {"jac": lambda x: None},
            ValueError,
            "jac: expected it to return numbers of shape \\(2,\\).*; got None. Does it",
        ),
        (
            {"jac": lambda x: 1.0},
            ValueError,
            "jac: expected it to return numbers of shape \\(2,\\), as x0 has; got 1.0",
        ),
        ({"jac": lambda x: [None, 1.0]}, ValueError, "jac: expected it to return numbers of shape"),
        ({"jac": lambda x: [[1.0], [1.0, 2.0]]}, ValueError, "jac: expected it to return numbers of shape"),
        (
            {"jac": True, "fun": lambda x: None},
            ValueError,
            "fun: expected it to return \\(f, gradient\\).* Does it end",
        ),
        (
            {"jac": numba.njit(lambda x: x[:1]), "fun": numba.njit(lambda x: x[0])},
            ValueError,
            "jac: expected it to return",
        ),
        ({"jac": True}, ValueError, "fun: expected it to return \\(f, gradient\\)"),
        ({"jac": "cs"}, ValueError, "jac: expected a function, True, None, '2-point' or '3-point'"),
        ({"bounds": [(1, 0), (0, 1)]}, ValueError, "bounds: expected low <= high; got 1.0 and 0.0 for parameter 0"),
        ({"bounds": [(np.nan, 1), (0, 1)]}, ValueError, "bounds: expected low <= high"),
        ({"bounds": [(np.inf, np.inf), (0, 1)]}, ValueError, "bounds: expected low <= high"),
        (
            {"bounds": [(0, 1)]},
            ValueError,
            "bounds: expected a sequence of 2; got one of 1. The number of bounds is not",
        ),
        (
            {"bounds": Bounds([0] * 3, 1)},
            ValueError,
            "bounds: .*one number for each of 2 parameters; got 3. The number",
        ),
        ({"bounds": Bounds("a", "b")}, ValueError, "bounds: .*one number for each of 2 parameters; got Bounds"),
        ({"bounds": 3}, TypeError, "bounds: expected Bounds, or pairs \\(low, high\\); got 3"),
        (
            {"bounds": Bounds([1, 6], [3, 4])},
            ValueError,
            "bounds: .*got 6.0 and 4.0 for parameter 1. An upper bound is",
        ),
        ({"bounds": [0, 1]}, ValueError, "bounds: expected Bounds, or pairs"),
        ({"constraints": {"type": "eq", "fun": sum}}, ValueError, "constraints: expected none"),
        ({"x0": [[1.0, 2.0]]}, ValueError, "x0: expected a one-dimensional array of at least one number"),
        ({"x0": []}, ValueError, "x0: expected a one-dimensional array of at least one number"),
        ({"x0": [np.nan, 1.0]}, ValueError, "x0: expected a finite number"),
        ({"x0": ["a"]}, TypeError, "x0: expected numbers"),
        ({"rule": "pytorch"}, ValueError, "rule: expected one of sgd, heavy_ball"),
        ({"rule": fm.Rule(lambda p, q, g, a, b: (p, q), name="heavy_ball")}, ValueError, "rule: expected one of"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number > 0"),
        ({"lr": np.nan}, ValueError, "lr: expected a finite number > 0"),
        ({"lr": lambda k: np.nan if k > 5 else 1e-4}, ValueError, "lr: expected a finite number > 0"),
        ({"momentum": 2.0}, ValueError, "momentum: expected a number in"),
        ({"rule": "sgd", "momentum": 0.9}, ValueError, "momentum: expected none with rule 'sgd'"),
        ({"rule": "heavy_ball", "momentum": 0.9}, ValueError, "lr: expected a value if momentum is given"),
        ({"rule": "chebyshev", "lr": 0.1}, ValueError, "lr, momentum: expected none with rule 'chebyshev'|spectrum"),
        ({"rule": "heavy_ball", "lr": 0.1, "spectrum": (1, 2)}, ValueError, "spectrum: expected None"),
        ({"rule": "heavy_ball", "x0": [0.0, 1.0]}, ValueError, "spectrum: expected m above its error"),
        ({"spectrum": (1.0,)}, TypeError, "spectrum: expected a Spectrum"),
        ({"restart": []}, ValueError, "restart: expected 'gradient'"),
        ({"l1": -1.0}, ValueError, "l1: expected a finite number >= 0"),
        ({"gtol": np.nan}, ValueError, "gtol: expected a finite number"),
        ({"maxiter": -1}, ValueError, "maxiter: expected a whole number"),
        ({"maxiter": 100.1}, TypeError, "maxiter: expected a whole number from 0 to 2\\*\\*62; got 100.1"),
        ({"maxiter": np.inf}, TypeError, "maxiter: expected a whole number"),
        ({"maxiter": "10"}, TypeError, "maxiter: expected a whole number"),
        ({"callback": 3}, TypeError, "callback: expected a function; got 3"),
    ],
)
def test_minimize_refuses_wrong_arguments(given, error, message):
    with pytest.raises(error, match=message):
        fm.minimize(**{"fun": rosen, "x0": [1.2, 0.7], "jac": rosen_der} | given)


UNKNOWN = [
    (
        {"foo": 1},
        "foo: expected no option but fun, x0, args, jac, .*, disp with rule 'nesterov_positions'; got an unknown",
    ),
    ({"prox": abs}, "prox: .* The proximal maps that minimize has are those of l1= and of bounds="),
    ({"bound": [(0, 1)] * 2}, "bound: .* Did you mean bounds"),
    ({"learning_rate": 0.1}, "learning_rate: .* Did you mean lr"),
    ({"max_iter": 5}, "max_iter: .* Did you mean maxiter"),
    ({"maxfun": 5}, "maxfun: .* Did you mean maxiter"),
    ({"fprime": rosen_der}, "fprime: .* Did you mean jac"),
    ({"method": "sgd"}, "method: .* Did you mean rule"),
    ({"options": {"maxiter": 3}}, "options: .* Pass each option by its own name"),
    ({"bound": 1, "prox": 1}, "bound, prox: .* got unknown ones. Did you mean bounds\\?. The proximal maps"),
    ({"max_step": 1, "foo": 1}, "max_step, foo: .* max_step is a setting of rule 'fire'"),
    ({"max_stp": 1, "rule": "fire"}, "max_stp: .*, max_step, .* with rule 'fire'; .* Did you mean max_step"),
    ({"settings": {}}, "settings: expected no option"),
]


@pytest.mark.parametrize(("given", "message"), UNKNOWN)
def test_minimize_refuses_unknown_options_and_says_what_may_have_been_meant(given, message):
    with pytest.raises(TypeError, match=message):
        fm.minimize(rosen, [1.2, 0.7], **{"jac": rosen_der} | given)
    if "method" not in given and "options" not in given:
        options = {name: value for name, value in given.items() if name != "rule"} | {"rule": given.get("rule", "sgd")}
        with pytest.raises(TypeError, match=message.replace("nesterov_positions", "sgd")):
            minimize(rosen, [1.2, 0.7], jac=rosen_der, method=fm.minimize, options=options)


def test_x0_is_brought_within_bounds():
    with pytest.warns(OptimizeWarning, match="Initial guess is not within the specified bounds"):
        found = fm.minimize(rosen, [2.0, 0.7], jac=rosen_der, bounds=[(0, 0.5), (0, 1)])
    np.testing.assert_allclose(found.x, [0.5, 0.25], atol=1e-5)
