"""Noise, averages and the ball with friction, against closed forms, exact sums and runs."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

import fastmomentum as fm
from fastmomentum import theory
from tests.helpers.ids import label
from tests.helpers.quadratics import FORMS, aggregated, form_id, matrix, share
from tests.helpers.rules import AGGMO, QHM


def column(rule, lr, mu, options):
    """Return the effect of unit noise in one gradient on (p, state): the part of the matrix that grows with h."""
    h = 1e6
    A = matrix(rule, lr, mu, h, **options) - matrix(rule, lr, mu, 2 * h, **options)
    return -A[:, 0] / h


@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch"])
def test_stationary_variance_is_the_number_of_the_theory(rule):
    assert theory.stationary_variance(0.1, 0.9, 2.0, 1.0, rule=rule) == pytest.approx(0.263889, abs=5e-7)
    assert theory.stationary_variance(1.0, 0.9, 2.0, 1.0, rule="ema") == pytest.approx(0.263889, abs=5e-7)


@pytest.mark.parametrize("unit", [1e-120, 1e-12, 1.0, 1e12, 1e120])
@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch", "ema", "sgd"])
def test_stationary_variance_is_the_closed_form_in_any_units(rule, unit):
    rng = np.random.default_rng(1)
    mu = np.zeros(50) if rule == "sgd" else 1 - 10.0 ** rng.uniform(-3, 0, 50)
    ah, h, variance = 10.0 ** rng.uniform(-4, 0, 50), unit * rng.uniform(0.5, 2, 50), 10.0 ** rng.uniform(-3, 3, 50)
    alpha = ah / h
    expected = alpha * variance * (1 + mu) / (h * (1 - mu) * (2 * (1 + mu) - ah))
    found = theory.stationary_variance(alpha / share(rule, mu, {}), mu, h, variance, rule=rule)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # the equation is solved where 1 − ρ is 1e-7


@pytest.mark.parametrize(("rule", "options"), [*FORMS, ("classical", {"maximize": False})], ids=form_id)
def test_stationary_variance_is_the_sum_over_all_past_gradients(rule, options):
    lr, mu, h = 0.3, 0.7, 1.5
    A, b = matrix(rule, lr, mu, h, **{k: v for k, v in options.items() if k != "maximize"}), None
    b = column(rule, lr, mu, {k: v for k, v in options.items() if k not in ("maximize", "weight_decay")})
    expected = 0.0
    for _ in range(400):
        expected += b[0] ** 2
        b = A @ b
    found = theory.stationary_variance(lr, mu, h, 2.5, rule=rule, **options)
    assert found == pytest.approx(2.5 * expected, rel=1e-8)  # b is a difference of numbers near 10⁶


def test_stationary_variance_of_two_state_slots_is_that_of_the_lyapunov_equation():
    A, b = aggregated(0.3, 0.7, 0.5, 1.5), np.array([-0.3, 1.0, 1.0])
    expected = solve_discrete_lyapunov(A, np.outer(b, b))[0, 0]
    assert theory.stationary_variance(0.3, 0.7, 1.5, 1.0, rule=AGGMO) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("lr", "mu", "variance", "expected"),
    [(4.0, 0.5, 1.0, math.inf), (0.1, 1.0, 1.0, math.inf), (0.0, 0.5, 1.0, math.inf), (4.0, 0.5, 0.0, 0.0)],
)
def test_stationary_variance_is_infinite_where_nothing_settles(lr, mu, variance, expected):
    assert theory.stationary_variance(lr, mu, 1.0, variance, rule="heavy_ball") == expected


@pytest.mark.parametrize(("rule", "options"), [("pytorch", {}), ("ema", {"nesterov": True})], ids=form_id)
def test_stationary_variance_is_what_a_simulation_has(rule, options):
    rng, count = np.random.default_rng(2), 40_000
    p, v = np.zeros(count), np.zeros(count)
    for _ in range(150):  # ρ is below 0.85: what is left of the start is below 1e-10
        fm.step(p, v, 2.0 * p + 0.5 * rng.standard_normal(count), rule=rule, lr=0.2, momentum=0.7, **options)
    expected = theory.stationary_variance(0.2, 0.7, 2.0, 0.25, rule=rule, **options)
    # The mean of n squares of normal numbers has the relative standard deviation √(2/n); five of these.
    assert np.mean(p * p) == pytest.approx(expected, rel=5 * math.sqrt(2 / count))


def test_stationary_variance_broadcasts():
    found = theory.stationary_variance(np.full((3, 1), 0.1), 0.9, [1.0, 2.0], [[[1.0]], [[4.0]]], rule="pytorch")
    assert found.shape == (2, 3, 2)
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-15)
    assert found[0, 0, 1] == pytest.approx(0.263889, abs=5e-7)


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        ("classical", lambda g, lr, mu: lr * g / (1 - mu)),
        ("classical_nesterov", lambda g, lr, mu: lr * g / (1 - mu)),
        ("pytorch", lambda g, lr, mu: g / (1 - mu)),
        ("pytorch_nesterov", lambda g, lr, mu: g / (1 - mu)),
        ("ema", lambda g, lr, mu: g + 0 * mu),
        ("ema_nesterov", lambda g, lr, mu: g + 0 * mu),
        ("heavy_ball", lambda g, lr, mu: lr * g / (1 - mu)),
        (QHM, lambda g, lr, mu: g + 0 * mu),
    ],
    ids=label,
)
def test_terminal_velocity_is_the_closed_form_and_what_step_comes_to(rule, limit):
    g, lr, mu = np.array([[2.0], [-0.5]]), 0.25, np.array([0.0, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(theory.terminal_velocity(g, lr, mu, rule=rule), limit(g, lr, mu), rtol=1e-12)
    t = np.array([0, 1, 2, 10, 1000])[:, None]
    found = theory.terminal_velocity(2.0, lr, mu, rule=rule, t=t)
    np.testing.assert_allclose(found, limit(2.0, lr, mu) * (1 - mu ** t.astype(float)), rtol=1e-11)
    p, state = np.zeros(1), np.zeros(1)
    for step in range(11):
        velocity = (state - p if rule == "heavy_ball" else state)[0]
        at = theory.terminal_velocity(2.0, lr, 0.9, rule=rule, t=step)
        assert velocity == pytest.approx(at, rel=1e-13, abs=1e-13)
        fm.step(p, state, np.array([2.0]), rule=rule, lr=lr, momentum=0.9)


def test_terminal_velocity_takes_dampening_and_look_ahead():
    assert theory.terminal_velocity(2.0, 0.1, 0.5, rule="pytorch", dampening=0.25) == pytest.approx(3.0)
    assert theory.terminal_velocity(2.0, 0.1, 0.5, rule="classical", lookahead=True) == pytest.approx(0.4)
    assert theory.terminal_velocity(2.0, 0.1, 0.5, rule="classical", maximize=True) == pytest.approx(-0.4)


def test_effective_window_is_the_mean_age_and_one():
    mu = np.array([0.0, 0.5, 0.9, 0.999])
    k = np.arange(100_000)
    ages = [((k + 1) * (1 - each) * each**k).sum() for each in mu]
    np.testing.assert_allclose(theory.effective_window(mu), ages, rtol=1e-9)
    assert isinstance(theory.effective_window(0.5), float)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("t", [0, 1, 2, 17])
def test_ema_weights_are_what_each_gradient_counts_for_in_step(beta, t):
    counted = []
    for k in range(t):
        p, v = np.zeros(1), np.zeros(1)
        for step in range(t):
            fm.step(p, v, np.array([1.0 if step == t - 1 - k else 0.0]), rule="ema", lr=0.1, momentum=beta)
        counted.append(v[0])
    found = theory.ema_weights(beta, t)
    assert (found.shape, found.dtype) == ((t,), np.float64)
    np.testing.assert_allclose(found, counted, rtol=1e-13)
    assert found.sum() == pytest.approx(1 - beta**t, abs=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1 - 1e-12])
def test_bias_corrected_velocity_is_the_weighted_mean_of_the_gradients(beta):
    rng = np.random.default_rng(3)
    g, v = rng.uniform(1, 2, 20), 0.0
    for t in range(1, 21):
        v = beta * v + (1 - beta) * g[t - 1]
        weights = beta ** np.arange(t - 1.0, -1.0, -1.0)
        assert theory.bias_corrected(v, beta, t) == pytest.approx(np.average(g[:t], weights=weights), rel=1e-13)


def test_bias_corrected_broadcasts_over_steps():
    found = theory.bias_corrected(np.ones((2, 3)), 0.5, [1, 2, 3])
    np.testing.assert_allclose(found, [[2.0, 4 / 3, 8 / 7]] * 2, rtol=1e-15)


@pytest.mark.parametrize("step", [1e-8, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("damped", [0.0, 1e-6, 0.3, 1.0])
def test_motion_is_the_inverse_of_two_step(step, damped):
    friction = 2 * damped / step
    found = theory.two_step(step, friction)
    assert found.lr == pytest.approx(step**2 / (1 + damped), rel=1e-14)
    assert found.momentum == pytest.approx((1 - damped) / (1 + damped), rel=1e-14)
    back = theory.motion(*found)
    assert back.step == pytest.approx(step, rel=1e-13)
    assert back.friction == pytest.approx(friction, rel=1e-9, abs=0)  # 1 − μ is 2e-6, and rounds by 1e-16


def test_motion_of_a_heavy_ball_is_as_computed_by_hand():
    found = theory.motion(0.02, 0.6)
    assert found.step == pytest.approx(math.sqrt(0.04 / 1.6))
    assert found.friction == pytest.approx(0.8 / 1.6 / math.sqrt(0.025))


def oscillator(t, friction, h=1.0):
    """Return the solution of ẍ + γẋ + hx = 0 from rest at 1, underdamped."""
    w = math.sqrt(h - friction**2 / 4)
    return np.exp(-friction * t / 2) * (np.cos(w * t) + friction / (2 * w) * np.sin(w * t))


@pytest.mark.parametrize("friction", [0.0, 0.5, 1.5])
def test_ball_is_the_damped_oscillator(friction):
    times = np.linspace(0, 10, 21)
    found = theory.ball(lambda x: np.array([1.0, 4.0]) * x, [1.0, 2.0], friction, times)
    expected = np.stack([oscillator(times, friction), 2 * oscillator(times, friction, 4.0)], axis=1)
    assert found.shape == (21, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_ball_at_time_zero_is_where_it_starts():
    np.testing.assert_array_equal(theory.ball(lambda x: x, [1.0, 2.0], 0.5, [0.0]), [[1.0, 2.0]])


def ball_error(step, friction, centred, grad, end=4.0):
    """Return the largest distance of heavy_ball from the rolling ball up to time `end`."""
    lr, mu = theory.two_step(step, friction)
    p = np.array([1.0, -0.7])
    q, path = (p - 0.5 * step**2 * grad(p) if centred else p.copy()), [p.copy()]
    for _ in range(round(end / step)):
        fm.step(p, q, grad(p), rule="heavy_ball", lr=lr, momentum=mu)
        path.append(p.copy())
    return np.abs(np.array(path) - theory.ball(grad, path[0], friction, step * np.arange(len(path)))).max()


@pytest.mark.parametrize("friction", [0.3, 1.0])
@pytest.mark.parametrize(("centred", "factor"), [(False, 2.0), (True, 4.0)])
@pytest.mark.parametrize("grad", [lambda x: np.array([1.0, 3.0]) * x, lambda x: x**3 + x], ids=["linear", "cubic"])
def test_heavy_ball_tends_to_the_ball_as_the_docstring_of_two_step_says(centred, factor, friction, grad):
    errors = [ball_error(step, friction, centred, grad) for step in (0.02, 0.01, 0.005)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(factor, rel=0.1)  # the next order in s is some parts in a hundred
