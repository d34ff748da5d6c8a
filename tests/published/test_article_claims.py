"""Claims and small numbers of articles on momentum: paths on a quadratic, weights of gradients, and look-ahead.

The expected values come from exact fractions and from closed forms. A comment names each claim that is wrong.
"""

from fractions import Fraction

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import DTYPES, RULES, assert_same_bits, rest, update

EPS = np.finfo(np.float64).eps


# The article on the momentum method: f = x² + 10 y² from (10, 1) and (−10, −1), 15 iterations.
#
# The article prints neither lr nor momentum. The tests take two pairs. One is lr = 0.01 with momentum 0.8, as in the
# article's code for a network. The other is lr = 1/16 with momentum 1/2: gradient descent then oscillates along y as in
# the article's picture (it oscillates above lr = 1/20, and converges below 1/10), and no operation rounds. Momentum
# does not come nearer for every pair: at lr = 1/16 the article's usual 0.9 is farther off after 15 iterations than
# gradient descent (3.11 against 1.35).

CURVATURE = (2, 20)
STARTS = ((10, 1), (-10, -1))
ITERATIONS = 15


def descend(rule, start, lr, momentum, dtype=np.float64):
    """Return the parameters after each iteration of the package."""
    p = np.array(start, dtype)
    h = np.array(CURVATURE, dtype)
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=momentum)
    path = []
    for _ in range(ITERATIONS):
        opt.step(h * p)
        path.append(p.copy())
    return np.array(path)


def exact_descent(start, lr, momentum):
    """Return the parameters after each iteration of the article's formula, in fractions.

    x⁺ = x − lr·∇f(x) + momentum·(x − x⁻)
    """
    path = []
    last = now = [Fraction(x) for x in start]
    for _ in range(ITERATIONS):
        last, now = now, [x - lr * h * x + momentum * (x - q) for x, q, h in zip(now, last, CURVATURE, strict=True)]
        path.append(now)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_have_the_bits_of_a_hand_written_loop_on_the_quadratic(rule, start, dtype):
    p = np.array(start, dtype)
    h = np.array(CURVATURE, dtype)
    s = rest(rule, p)
    path = []
    for _ in range(ITERATIONS):
        p, s = update(rule, p, s, h * p, dtype, lr=0.01, momentum=0.8)
        path.append(p)
    assert_same_bits(descend(rule, start, 0.01, 0.8, dtype), np.array(path))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_have_mirrored_bits_from_the_two_starts_of_the_quadratic(rule, dtype):
    one, other = (descend(rule, start, 0.01, 0.8, dtype) for start in STARTS)
    assert_same_bits(one, -other)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["classical", "pytorch", "heavy_ball"])
def test_velocity_forms_equal_the_heavy_ball_exactly_on_the_quadratic_when_no_operation_rounds(rule, start):
    """Two articles derive that the velocity forms are equivalent to Polyak's heavy ball; the numbers are equal."""
    path = descend(rule, start, 1 / 16, 1 / 2)
    exact = exact_descent(start, Fraction(1, 16), Fraction(1, 2))
    assert [[Fraction(x) for x in point] for point in path.tolist()] == exact


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
@pytest.mark.parametrize(
    ("lr", "momentum", "plain", "with_momentum"),
    [("1/100", "4/5", 7.3858, 2.0446), ("1/16", "1/2", 1.3493, 0.0754), ("1/16", "9/10", 1.3493, 3.1137)],
)
def test_momentum_ends_nearer_on_the_quadratic_unless_it_is_too_large(rule, start, lr, momentum, plain, with_momentum):
    lr, momentum = Fraction(lr), Fraction(momentum)
    found = [descend(name, start, float(lr), float(momentum))[-1] for name in ("sgd", rule)]
    expected = np.array([exact_descent(start, lr, mu)[-1] for mu in (0, momentum)], float)
    # The start is 10, and the velocity carries a rounding of one of the 15 steps on for at most 15 steps.
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * ITERATIONS**2 * EPS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [plain, with_momentum], rtol=0, atol=0.00005)


def test_sgd_oscillates_along_the_short_axis_only():
    path = np.vstack([STARTS[0], descend("sgd", STARTS[0], 1 / 16, 0.0)])
    assert (path[1:, 1] * path[:-1, 1] < 0).all()
    assert (path[:, 0] > 0).all()
    assert (descend("sgd", STARTS[0], 0.01, 0.0) > 0).all()  # no oscillation at the lr of the article's code


# Small numbers in several articles.


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_classical_nears_its_terminal_velocity_under_a_constant_gradient(gamma):
    """The velocities are αg, (1+γ)αg, (1+γ+γ²)αg, …, and their limit αg/(1−γ) is ten times αg for γ = 0.9."""
    g, lr = np.array([3.0, -0.25]), 0.01
    opt = fm.Momentum(np.zeros(2), rule="classical", lr=lr, momentum=gamma)
    for total in (1, 1 + gamma, 1 + gamma + gamma**2):
        opt.step(g)
        np.testing.assert_allclose(opt.velocity, total * (lr * g), rtol=4 * EPS)  # each side rounds twice a step
    for _ in range(4000):  # 0.99⁴⁰⁰⁰ < 1e-17
        opt.step(g)
    # Each step adds at most a unit of roundings, which decay as gradients do; 1 − γ has a rounding of its own.
    limit = lr * g / float(1 - Fraction(str(gamma)))
    np.testing.assert_allclose(opt.velocity, limit, rtol=3 * EPS / (1 - gamma))
    if gamma == 0.9:
        np.testing.assert_allclose(opt.velocity, 10 * (lr * g), rtol=3 * EPS / (1 - gamma))


def test_classical_halves_the_steps_of_alternating_gradients():
    """The gradients +δ/lr, −δ/lr, … give v₂ = γδ − δ, and in the limit ±δ/(1+γ), which is 0.526 δ for γ = 0.9.

    The article on momentum writes γηδ − ηδ for v₂, although its δ contains η already.
    """
    lr, gamma, delta = 0.5, 0.9, 0.25
    opt = fm.Momentum(np.zeros(1), rule="classical", lr=lr, momentum=gamma)
    sizes = []
    for step in range(400):  # 0.9⁴⁰⁰ < 1e-18
        opt.step(np.array([(-1.0) ** step * delta / lr]))
        sizes.append((-1.0) ** step * opt.velocity[0])
    np.testing.assert_allclose(sizes[:2], [delta, delta * 0.1], rtol=10 * EPS)  # 1 − 0.9 loses a digit
    np.testing.assert_allclose(sizes[-2:], delta / 1.9, rtol=2 * EPS / (1 - gamma))


def weights(rule, momentum, steps):
    """Return the part of the velocity that a gradient of 1 has 0, 1, … steps later."""
    opt = fm.Momentum(np.zeros(1), rule=rule, lr=1.0, momentum=momentum)
    left = []
    for step in range(steps):
        opt.step(np.array([1.0 if step == 0 else 0.0]))
        left.append(opt.velocity[0])
    return np.array(left)


@pytest.mark.parametrize(("rule", "first"), [("ema", Fraction(1, 10)), ("pytorch", 1), ("classical", 1)])
def test_velocity_weighs_a_gradient_k_steps_back_by_a_power_of_beta(rule, first):
    """The weight is (1−β)βᵏ in the averaging form: that of step 1 is 0.0387 at step 10 and 0.000573 at step 50."""
    left = weights(rule, 0.9, 50)
    exact = [float(first * Fraction(9, 10) ** k) for k in range(50)]
    # 0.9 and each product are half a unit off, and 1 − 0.9 is one unit off.
    np.testing.assert_allclose(left, exact, rtol=(50 + 1) * EPS)
    if rule == "ema":
        assert [f"{left[t - 1]:.3g}" for t in (10, 50)] == ["0.0387", "0.000573"]


@pytest.mark.parametrize(("beta", "window", "share"), [(0.9, 10, 0.6513), (0.99, 100, 0.6340)])
def test_ema_has_about_two_thirds_of_its_weight_in_its_effective_window(beta, window, share):
    """The last 1/(1−β) gradients, "about 10" and "about 100 steps", have the weight 1 − β^window, near 1 − 1/e."""
    v = np.zeros(1)
    for _ in range(window):
        fm.step(np.zeros(1), v, np.ones(1), rule="ema", lr=0.1, momentum=beta)
    # Each step adds a unit at most, and the rounding of β adds less than one.
    np.testing.assert_allclose(v, float(1 - Fraction(str(beta)) ** window), rtol=window * EPS)
    assert f"{v[0]:.4f}" == f"{share:.4f}"


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (lambda left: left.sum(), 10),
        (lambda left: (left**2).sum(), 1 / 0.19),
        (lambda left: (left**2).sum() ** 0.5 / left.sum(), (0.1 / 1.9) ** 0.5),
    ],
    ids=["mean", "variance", "deviation against mean"],
)
def test_classical_velocity_has_a_larger_variance_but_a_smaller_relative_deviation(statistic, expected):
    """The article on momentum calls v an average of the scaled gradients, with a smaller variance than one of them.

    The weights in v sum to 1/(1−γ) = 10, and their squares to 1/(1−γ²) = 5.26, so that the variance of v is 5.26 times
    that of independent gradients. Only its deviation against its mean is smaller, by √((1−γ)/(1+γ)) = 0.229.
    """
    left = weights("classical", 0.9, 400)  # 0.9⁴⁰⁰ < 1e-18
    np.testing.assert_allclose(statistic(left), expected, rtol=400 * EPS)  # the late, worst rounded ones weigh least


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rule", ["pytorch", "classical", "ema", "heavy_ball"])
def test_momentum_of_zero_has_the_bits_of_gradient_descent(rule, start):
    assert_same_bits(descend(rule, start, 0.01, 0.0), descend("sgd", start, 0.01, 0.0))


@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_momentum_of_one_oscillates_without_end(rule):
    """Without friction, x⁺ + x⁻ = (2 − αh)·x, which conserves x⁺² + x² − (2 − αh)·x⁺·x, here 0.1."""
    steps, lr, h = 1000, 0.05, 2.0
    p, path = np.ones(1), [1.0]
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=1.0)
    for _ in range(steps):
        opt.step(h * p)
        path.append(p[0])
    x = np.array(path)
    kept = x[1:] ** 2 + x[:-1] ** 2 - (2 - lr * h) * x[1:] * x[:-1]
    np.testing.assert_allclose(kept, 0.1, rtol=0, atol=steps * EPS)  # a rounding a step, of numbers of size 1
    assert x[-20:].max() > 0.99  # a period is 2π / arccos(0.95) = 19.8 steps
    assert x[-20:].min() < -0.99


def test_heavy_ball_gives_the_powers_of_the_companion_matrix_which_grow_faster_than_its_spectral_radius():
    """[x_{t+1}, x_t] = Aᵗ [x₁, x₀] with A = [[1 + β − αh, −β], [1, 0]]; the columns start from (1, 0) and (0, 1).

    The article on the momentum method concludes that ‖Aᵗ‖ = O(ρ(A)ᵗ). That is false if the two roots are equal, at
    β = (1 − √(αh))²: then Aᵗ = ρᵗ·[[t + 1, −tρ], [t/ρ, 1 − t]], and ‖Aᵗ‖/ρᵗ grows as 2t. (The article calls ρ the
    largest of the eigenvectors.)
    """
    rho = Fraction(15, 16)
    alpha, beta = (1 - rho) ** 2, rho**2
    power = np.array([[1, 0], [0, 1]]) * Fraction(1)
    a = np.array([[1 + beta - alpha, -beta], [Fraction(1), Fraction(0)]])
    x, last = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    growth = {}
    for t in range(1, 201):
        fm.step(x, last, x.copy(), rule="heavy_ball", lr=float(alpha), momentum=float(beta))
        power = a @ power
        assert (power == rho**t * np.array([[t + 1, -t * rho], [t / rho, 1 - t]])).all()
        found, expected = np.array([x, last]), power.astype(float)
        # A rounding at step s, of size s·ρˢ, grows by (t − s)·ρᵗ⁻ˢ; the sum of these is t³/6 against t·ρᵗ.
        np.testing.assert_allclose(found, expected, rtol=0, atol=t**2 * EPS * abs(expected).max())
        growth[t] = np.linalg.norm(found, 2) / float(rho**t)
    assert [f"{growth[t]:.1f}" for t in (1, 10, 100, 200)] == ["2.4", "20.1", "200.4", "400.8"]


@pytest.mark.parametrize("rule", ["ema", "pytorch"])
def test_scheduled_momentum_has_the_bits_of_a_loop(rule):
    """The article on the exponential average raises momentum from 0.5 to 0.9, and 1 − β has to change with it."""

    def beta(step):
        return min(0.5 + 0.05 * step, 0.9)

    h = np.array(CURVATURE, float)
    p, q = np.array([10.0, 1.0]), np.array([10.0, 1.0])
    v = np.zeros(2)
    opt = fm.Momentum(p, rule=rule, lr=0.01, momentum=beta)
    for step in range(20):
        opt.step(h * p)
        v = beta(step) * v + ((1 - beta(step)) * (h * q) if rule == "ema" else h * q)
        q = q - 0.01 * v
        assert_same_bits(p, q)
        assert_same_bits(opt.velocity, v)


# Nesterov's form, in the articles on momentum and on SGD with momentum, takes the gradient at the point to which
# momentum will carry the parameter: w − η·β·v in the averaging form, and θ − γ·v in the classical form.


def ahead(rule, lr, momentum):
    """Return the factor of −v in the look-ahead point."""
    return momentum if rule == "classical" else lr * momentum


def look_ahead_path(rule, lr, momentum, steps, *, look):
    """Return (w, v) after each step on ½w² from w = 1, with the gradient at the look-ahead point if `look` is 1."""
    w, v, path = np.ones(1), np.zeros(1), []
    for _ in range(steps):
        fm.step(w, v, w - look * ahead(rule, lr, momentum) * v, rule=rule, lr=lr, momentum=momentum)
        path.append((w[0], v[0]))
    return np.array(path)


def test_look_ahead_has_the_bits_of_momentum_when_the_velocity_is_zero():
    """This is the article's third question: with v = 0 the look-ahead point is w itself; later the paths differ."""
    look, plain = (look_ahead_path("ema", 0.1, 0.9, 3, look=look) for look in (1, 0))
    assert_same_bits(look[0], plain[0])
    assert (look[1:, 1] != plain[1:, 1]).all()


def test_look_ahead_overshoots_less():
    """On ½w² from 1 with lr = 0.1 and β = 0.9, w goes down to −0.119 with look-ahead, and to −0.153 without."""
    least = []
    for look in (1, 0):
        w, v, path = 1.0, 0.0, []
        for _ in range(100):
            v = 0.9 * v + (1 - 0.9) * (w - look * (0.1 * 0.9) * v)
            w = w - 0.1 * v
            path.append((w, v))
        found = look_ahead_path("ema", 0.1, 0.9, 100, look=look)
        assert_same_bits(found, np.array(path))
        least.append(f"{found[:, 0].min():.3f}")
    assert least == ["-0.119", "-0.153"]


@pytest.mark.parametrize("rule", ["classical", "pytorch", "ema"])
def test_folded_nesterov_gives_the_look_ahead_points_exactly(rule):
    """The numbers are dyadic, so that no operation rounds in ten steps, and the points are equal."""
    lr, momentum = 0.25, 0.5
    explicit = look_ahead_path(rule, lr, momentum, 10, look=1)
    points = explicit[:, 0] - ahead(rule, lr, momentum) * explicit[:, 1]
    w = np.ones(1)
    opt = fm.Momentum(w, rule=rule, lr=lr, momentum=momentum, nesterov=True)
    for point, (_, v) in zip(points, explicit, strict=True):
        opt.step(w.copy())
        assert_same_bits(w, np.array([point]))
        assert_same_bits(opt.velocity, np.array([v]))
    assert abs(explicit[:, 0] - look_ahead_path(rule, lr, momentum, 10, look=0)[:, 0]).max() > 0.01
