"""The arguments that the functions of the theory refuse, and their messages."""

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import theory
from tests.helpers.ids import label

NAN, INF = float("nan"), float("inf")


def signless(p, v, g, lr, mu):
    v = mu * v + np.absolute(g)
    return p - lr * v, v


def rooted(p, v, g, lr, mu):
    v = mu * v + np.sqrt(g)
    return p - lr * v, v


def squared(p, v, g, lr, mu):
    v = mu * v + g * g
    return p - lr * v, v


def constant(p, v, g, lr, mu):
    return p - lr * g + lr, mu * v


NONLINEAR = [
    ({"rule": "pytorch", "clip_value": 1.0}, "linear"),
    ({"rule": fm.chain(fm.stages.clip_value(1.0), "classical")}, "linear"),
    ({"rule": fm.chain("heavy_ball", fm.stages.box(0.0, 1.0))}, "linear"),
    ({"rule": fm.chain("nesterov_positions", fm.stages.soft_threshold(0.1))}, "linear"),
    *(({"rule": fm.Rule(function)}, "linear") for function in (signless, rooted, squared, constant)),
]

RULES = [
    *NONLINEAR,
    ({"max_norm": 1.0}, "max_norm: expected None, as clipping is not linear"),
    ({"rule": "no such"}, "rule must be one of .*; got 'no such'"),
    ({"rule": 3}, "rule must be a name, a Rule or a chain"),
    ({"rule": None}, "rule must be a name, a Rule or a chain"),
    ({"betta": 0.5}, "betta: rule .* takes no such hyper-parameter"),
    ({"weight_decay": -0.1}, "weight_decay: expected"),
    ({"dampening": 2.0}, "dampening: expected"),
    ({"rule": "classical", "dampening": 0.5}, "dampening: expected 0"),
    ({"nesterov": 1}, "nesterov: expected True or False"),
    ({"nesterov": True, "lookahead": True}, "lookahead=True"),
    ({"rule": "heavy_ball", "nesterov": True}, "nesterov=True"),
]

NUMBERS = {
    "lr": [-0.1, NAN, INF, True, "0.1", None, 1j],
    "momentum": [1.5, -0.1, NAN, True, "0.9", None],
    "curvature": [0.0, -1.0, NAN, INF, [1.0, 0.0], True, "1", None],
    "m": [0.0, -1.0, NAN, INF, True, "1", None, [1.0, 2.0], 3.0],
    "L": [0.0, -1.0, NAN, INF, True, "1", None, [1.0, 2.0], 0.5],
    "tol": [0.0, 1.0, -0.1, 1.5, NAN, True, "0.1", None],
    "spectrum": [[0.0, 1.0], [-1.0, 1.0], [NAN, 1.0], [INF], [], 1.0, [[1.0, 2.0]], [True], ["1"], None],
    "t": [1.5, -1, True, "1", None, [1, -1], NAN],
    "r": [0.0, -1.0, NAN, INF, True, "1", None, [0.5]],
    "noise_variance": [-1.0, NAN, INF, True, "1", None],
    "grad": [NAN, INF, True, "1", None],
    "velocity": [NAN, INF, True, "1", None],
    "step": [0.0, -1.0, NAN, INF, True, "1", None],
    "friction": [-1.0, NAN, INF, True, "1", None],
    "error": [[1.0], [1.0, NAN, 1.0], "1", [True, True, True]],
    "margin": [-0.1, 1.0, NAN, True, "1", None],
}

POINT = {"lr": 0.1, "momentum": 0.5, "curvature": 1.0, "rule": "pytorch"}
FUNCTIONS = [
    (theory.iteration_matrix, POINT),
    (theory.spectral_radius, POINT),
    (theory.regime, POINT),
    (theory.transient, POINT | {"t": 3}),
    (theory.response, POINT | {"t": 3}),
    (theory.transient_peak, POINT),
    (theory.stationary_variance, POINT | {"noise_variance": 1.0}),
    (theory.max_stable_lr, {"momentum": 0.5, "curvature": 1.0, "rule": "pytorch"}),
    (theory.optimal, {"m": 1.0, "L": 2.0, "rule": "pytorch"}),
    (theory.standard, {"m": 1.0, "L": 2.0, "rule": "pytorch"}),
    (theory.iterations, {"lr": 0.1, "momentum": 0.5, "spectrum": [1.0, 2.0, 3.0], "tol": 0.1, "rule": "pytorch"}),
    (
        theory.iterations,
        {"lr": 0.1, "momentum": 0.5, "spectrum": [1.0, 2.0, 3.0], "tol": 0.1, "rule": "pytorch", "error": [1, 1, 1]},
    ),
    (theory.certificate, {"lr": 0.1, "momentum": 0.5, "spectrum": [1.0], "r": 0.99, "rule": "pytorch"}),
    (theory.terminal_velocity, {"grad": 1.0, "lr": 0.1, "momentum": 0.5, "rule": "pytorch", "t": 3}),
    (theory.tune, {"spectrum": (1.0, 2.0), "tol": 0.1, "rule": "pytorch", "margin": 0.02}),
    (theory.effective_window, {"momentum": 0.5}),
    (theory.ema_weights, {"momentum": 0.5, "t": 3}),
    (theory.bias_corrected, {"velocity": 1.0, "momentum": 0.5, "t": 3}),
    (theory.two_step, {"step": 0.1, "friction": 1.0}),
    (theory.motion, {"lr": 0.1, "momentum": 0.5}),
    (theory.Chebyshev, {"m": 1.0, "L": 2.0}),
]

# None stands for "not given" there, or the value is fine there.
FINE = {
    ("terminal_velocity", "t", "None"),
    ("tune", "spectrum", "[0.0, 1.0]"),
}


def cases():
    found = []
    for function, good in FUNCTIONS:
        for name in good:
            if name in ("rule",):
                found += [(function, good, change, reason) for change, reason in RULES]
            elif not (function is theory.tune and name == "spectrum"):
                found += [
                    (function, good, {name: value}, rf"\b{name}\b.*: expected .*; got ")
                    for value in NUMBERS[name]
                    if (function.__name__, name, str(value)) not in FINE
                ]
    return found


@pytest.mark.parametrize(
    ("function", "good", "change", "reason"),
    [pytest.param(*case, id=f"{case[0].__name__}-{label(case[2])}") for case in cases()],
)
def test_a_bad_argument_is_refused_with_its_name_and_what_was_expected(function, good, change, reason):
    function(**good)
    with pytest.raises((TypeError, ValueError), match=reason):
        function(**good | change)


@pytest.mark.parametrize(
    ("function", "change"),
    [(theory.max_stable_lr, {}), (theory.optimal, {}), (theory.standard, {}), (theory.tune, {})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_rule_without_lr_is_refused_where_lr_is_looked_for(function, change):
    good = dict(FUNCTIONS)[function] if False else next(settings for each, settings in FUNCTIONS if each is function)
    rule = fm.Rule(lambda p, g, rate: (p - rate * g,), state=(), hyper=("rate",), defaults={"rate": 0.1})
    with pytest.raises(ValueError, match="rule: expected one that takes lr"):
        function(**good | {"rule": rule})


def test_curvature_refused_says_what_weight_decay_would_do():
    with pytest.raises(ValueError, match="curvature: expected a finite number > 0; got 0.0. Weight decay adds"):
        theory.spectral_radius(0.1, 0.9, 0.0, rule="pytorch")


def test_m_above_L_is_refused_with_both_values():
    with pytest.raises(ValueError, match="m, L: expected m <= L.*got m = 3.0, L = 2.0"):
        theory.optimal(3.0, 2.0, rule="pytorch")


def test_a_run_too_long_to_look_at_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="lr, momentum: expected values .* converges within some .* steps"):
        theory.iterations(1e-6, 1 - 1e-11, [1.0], 1e-3, rule="heavy_ball")


def test_transient_peak_of_what_diverges_is_refused():
    with pytest.raises(ValueError, match="lr, momentum: expected a setting that converges; got spectral radius 4"):
        theory.transient_peak(5.0, 0.0, 1.0, rule="sgd")
    with pytest.raises(TypeError, match="lr: expected a finite number; got a list of 1"):
        theory.transient_peak([0.5], 0.0, 1.0, rule="sgd")


def test_standard_of_a_rule_that_is_no_known_method_is_refused():
    def own(p, v, g, lr, mu):
        v = mu * v + g
        return p - lr * (v + v), lr * v

    with pytest.raises(ValueError, match="rule: expected one that follows the trajectory of gradient descent"):
        theory.standard(1.0, 2.0, rule=fm.Rule(own))


def test_optimal_of_an_ascent_says_so():
    with pytest.raises(ValueError, match="maximize|descends"):
        theory.optimal(1.0, 2.0, rule="classical", maximize=True)


@pytest.mark.parametrize("rule", ["ema", "sgd", "classical_nesterov", None, 3])
def test_chebyshev_refuses_other_rules(rule):
    with pytest.raises(
        (TypeError, ValueError), match="rule:? (expected|must be) (one of heavy_ball, classical, pytorch|a name)"
    ):
        theory.Chebyshev(1.0, 2.0, rule=rule)


@pytest.mark.parametrize("t", [-1, NAN, True, "1", None, 1.5])
def test_chebyshev_bound_refuses_what_is_no_number_of_steps(t):
    with pytest.raises((TypeError, ValueError), match="t: expected"):
        theory.Chebyshev(1.0, 2.0).bound(t)


@pytest.mark.parametrize(
    ("spectrum", "reason"),
    [
        ((0.0, 1.0), "spectrum: expected m above its error"),
        ((-1.0, 1.0), "spectrum: expected m above its error.*Weight decay"),
        ((1.0, 2.0, 1.5, 0.0), "spectrum: expected m above its error"),
        ((3.0, 2.0), "spectrum: expected m <= L; got m = 3, L = 2"),
        ((NAN, 1.0), "m: expected a finite number"),
        ((1.0, INF), "L: expected a finite number"),
        ((1.0, 2.0, -1.0, 0.0), "m_error: expected"),
        ((1.0, 2.0, 0.0, NAN), "L_error: expected"),
        ((1.0, 2.0, 0.0, "0"), "L_error: expected"),
        ((True, 2.0), "m: expected"),
        (("1", 2.0), "m: expected"),
        ("abc", "spectrum: expected"),
        (5.0, "spectrum: expected"),
        (None, "spectrum: expected"),
        ((1.0,), "spectrum: expected"),
        ((1.0, 2.0, 0.0, 0.0, 0.0), "spectrum: expected"),
    ],
    ids=label,
)
def test_tune_refuses_a_spectrum_without_a_rate(spectrum, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        theory.tune(spectrum, rule="heavy_ball")


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"grad": None}, "grad: expected a function"),
        ({"grad": 3.0}, "grad: expected a function"),
        ({"hessp": 3.0}, "hessp: expected a function"),
        ({"x": []}, "x: expected one parameter at least"),
        ({"x": "ab"}, "x: expected"),
        ({"x": np.ones(3, complex)}, "x: expected"),
        ({"x": [1.0, NAN]}, "x: expected"),
        ({"tol": 0.0}, "tol: expected"),
        ({"tol": 1.5}, "tol: expected"),
        ({"tol": True}, "tol: expected"),
        ({"grad": lambda x: x[:1]}, r"grad: expected it to return shape \(2,\)"),
        ({"grad": lambda x: x * NAN}, "grad: expected a finite number; got nan"),
        ({"grad": lambda x: None}, "grad: expected"),
        ({"grad": lambda x: "a"}, "grad: expected"),
        ({"hessp": lambda x, v: v[:1]}, r"hessp: expected it to return shape \(2,\)"),
    ],
    ids=label,
)
def test_spectrum_refuses_what_it_cannot_measure(settings, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        theory.spectrum(**{"grad": double, "x": np.ones(2)} | settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"grad": None}, "grad: expected"),
        ({"grad": lambda x: np.ones(3)}, "grad: expected"),
        ({"x": [[1.0]]}, "x, times: expected"),
        ({"x": [NAN, 1.0]}, "x: expected"),
        ({"times": []}, "x, times: expected"),
        ({"times": [1.0, 0.5]}, "x, times: expected .*ascending"),
        ({"times": [-1.0, 0.5]}, "times: expected"),
        ({"times": 1.0}, "x, times: expected"),
        ({"friction": -1.0}, "friction: expected"),
    ],
    ids=label,
)
def test_ball_refuses_what_it_cannot_roll(settings, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        theory.ball(**{"grad": double, "x": [1.0, 2.0], "friction": 0.5, "times": [0.0, 1.0]} | settings)


def test_two_step_refuses_a_step_that_makes_momentum_negative():
    with pytest.raises(
        ValueError, match="step: expected at most 2/friction = 0.666667, or momentum is negative; got 1"
    ):
        theory.two_step(1.0, 3.0)


@pytest.mark.parametrize("rule", [fm.rules.sgd, fm.Rule(signless)], ids=label)
def test_terminal_velocity_refuses_rules_without_one(rule):
    with pytest.raises(ValueError, match="rule: expected one"):
        theory.terminal_velocity(1.0, 0.1, 0.9, rule=rule)
    with pytest.raises(ValueError, match="rule: expected one that does not decay p"):
        theory.terminal_velocity(1.0, 0.1, 0.9, rule="pytorch", weight_decay=0.1)


def test_means_over_zero_steps_are_refused():
    with pytest.raises(ValueError, match="t: expected whole numbers >= 1"):
        theory.bias_corrected(1.0, 0.9, 0)
    with pytest.raises(ValueError, match="t: expected one number of steps"):
        theory.ema_weights(0.9, [1, 2])
    for function in (theory.effective_window, lambda mu: theory.bias_corrected(1.0, mu, 3)):
        with pytest.raises(ValueError, match="momentum: expected"):
            function(1.0)
