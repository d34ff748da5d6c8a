"""Iteration matrices, spectral radii, regimes and stability limits against matrices written on paper."""

import math

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import theory
from tests.helpers.quadratics import (
    FORMS,
    PLAIN,
    aggregated,
    ahead,
    form_id,
    matrix,
    polynomial,
    quasi_hyperbolic,
    quasi_hyperbolic_limit,
    share,
)
from tests.helpers.rules import AGGMO, QHM

POINTS = 10_000
EPS = np.finfo(float).eps


def random_points(seed, count=POINTS):
    """Return random (lr, μ, h), slow to divergent, over twelve decades of units; half of the momenta are near 1."""
    rng = np.random.default_rng(seed)
    h = 10.0 ** rng.uniform(-6, 6, count)
    mu = np.where(rng.random(count) < 0.5, rng.random(count), 1 - 10.0 ** rng.uniform(-4, 0, count))
    return 10.0 ** rng.uniform(-4, 1, count) / h, mu, h


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_iteration_matrix_is_the_one_written_on_paper(rule, options):
    lr, mu, h = random_points(1)
    found = theory.iteration_matrix(lr, mu, h, rule=rule, **options)
    expected = matrix(rule, lr, mu, h, **options)
    assert found.shape == expected.shape
    # Entry by entry: a sum of three products, rounded each, may cancel to no less than ε times the largest term.
    scale = np.maximum(np.abs(expected), 1.0) if rule != "sgd" else 1.0 + lr[:, None, None] * (h[:, None, None] + 1.0)
    scale = np.maximum(scale, (4 * lr * (h + 1))[:, None, None])
    assert (np.abs(found - expected) <= 8 * EPS * scale).all()


@pytest.mark.parametrize(
    ("rule", "options", "row"),
    [
        ("classical", {"maximize": True}, [[1 + 0.5 * 2, -0.75], [-0.5 * 2, 0.75]]),
        ("classical", {"maximize": True, "weight_decay": 0.5}, [[1 + 0.5 * 1.5, -0.75], [-0.5 * 1.5, 0.75]]),
        ("pytorch", {"decoupled_weight_decay": 0.5}, [[0.75 - 0.5 * 2, -0.5 * 0.75], [2, 0.75]]),
        ("sgd", {"decoupled_weight_decay": 0.5}, [[0.75 - 0.5 * 2]]),
        ("pytorch", {"dampening": 0.25}, [[1 - 0.5 * 0.75 * 2, -0.5 * 0.75], [0.75 * 2, 0.75]]),
        ("pytorch_nesterov", {"momentum_next": 0.5}, [[1 - 0.5 * 2 * 1.5, -0.5 * 0.75 * 0.5], [2, 0.75]]),
        (fm.chain(fm.stages.scale(0.5), "pytorch"), {}, [[1 - 0.5 * 1, -0.5 * 0.75], [1, 0.75]]),
        (fm.chain("pytorch", fm.stages.decoupled_weight_decay(0.5)), {}, [[0, -0.5 * 0.75 * 0.75], [2, 0.75]]),
        (QHM, {}, quasi_hyperbolic(0.5, 0.75, 2.0, 0.7)),
        (QHM, {"nu": 1.0}, [[1 - 0.5 * 0.25 * 2, -0.5 * 0.75], [0.25 * 2, 0.75]]),
        (AGGMO, {"beta2": 0.25}, aggregated(0.5, 0.75, 0.25, 2.0)),
    ],
    ids=lambda value: form_id(value) if not isinstance(value, list | np.ndarray) else "",
)
def test_iteration_matrix_of_options_chains_and_users_rules(rule, options, row):
    found = theory.iteration_matrix(0.5, 0.75, 2.0, rule=rule, **options)
    np.testing.assert_allclose(found, row, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_spectral_radius_is_that_of_eigvals(rule, options):
    lr, mu, h = random_points(2)
    found = theory.spectral_radius(lr, mu, h, rule=rule, **options)
    expected = np.abs(np.linalg.eigvals(matrix(rule, lr, mu, h, **options))).max(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ah", [0.01, 0.19, 0.5, 1.0, 2.0, 3.0, 3.61])
@pytest.mark.parametrize("rule", ["classical", "pytorch", "ema", "heavy_ball"])
def test_spectral_radius_is_the_root_of_momentum_whatever_the_curvature(rule, ah):
    found = theory.spectral_radius(ah / 7.0 / share(rule, 0.81, {}), 0.81, 7.0, rule=rule)
    assert abs(found - 0.9) <= 10 * math.sqrt(EPS)  # rounding moves a double root (the ends) by its own square root


@pytest.mark.parametrize(
    ("rule", "name", "by_hand"),
    [
        (AGGMO, "beta2", lambda lr, mu, h, beta2: aggregated(lr, mu, beta2, h)),  # three eigenvalues
        (QHM, "nu", quasi_hyperbolic),  # its derived hyper-parameters are functions of numbers alone
    ],
    ids=["aggregated", "qhm"],
)
def test_spectral_radius_of_users_rules_is_that_of_eigvals(rule, name, by_hand):
    lr, mu, h = random_points(3, 300)
    own = np.random.default_rng(4).random(300)
    found = theory.spectral_radius(lr, mu, h, rule=rule, **{name: own})
    expected = [np.abs(np.linalg.eigvals(by_hand(*each))).max() for each in zip(lr, mu, h, own)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_rules_of_one_method_have_the_characteristic_polynomial_of_the_theory(rule, options):
    for ah, mu in [(0.01, 0.81), (0.3, 0.5), (1.2, 0.9), (2.5, 0.3)]:
        lr = ah / 2.0 / share(rule, mu, options)
        found = np.poly(theory.iteration_matrix(lr, mu, 2.0, rule=rule, **options))
        expected = polynomial(rule, ah, mu, options) if rule != "sgd" else [1.0, -(1 - ah)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)  # numbers near 1, rounded a dozen times


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ((0.1, 0.9, 2.0), ()),
        (([0.1], 0.9, 2.0), (1,)),
        ((0.1, [0.9, 0.5], 2.0), (2,)),
        ((0.1, 0.9, np.array(2.0)), ()),
        ((np.full((3, 1, 1), 0.1), np.full((4, 1), 0.9), np.arange(1.0, 6.0)), (3, 4, 5)),
        ((np.full((2, 1), 0.1), 0.9, np.ones((2, 0))), (2, 0)),
        ((1, 0, 2), ()),
        ((np.float32(0.5), 0.5, np.arange(1, 4, dtype=np.int32)), (3,)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rule", "size"), [("sgd", 1), ("pytorch", 2), ("heavy_ball", 2), (QHM, 2), (AGGMO, 3)], ids=str
)
def test_functions_broadcast(rule, size, settings, shape):
    assert theory.iteration_matrix(*settings, rule=rule).shape == (*shape, size, size)
    radii = theory.spectral_radius(*settings, rule=rule)
    assert np.shape(radii) == shape
    assert radii.dtype == np.float64
    assert np.shape(theory.regime(*settings, rule=rule)) == shape
    assert np.shape(theory.max_stable_lr(*settings[1:], rule=rule)) == np.broadcast_shapes(*map(np.shape, settings[1:]))
    if shape == ():
        assert isinstance(radii, float)
        assert isinstance(theory.regime(*settings, rule=rule), str)


def test_broadcast_points_are_each_what_they_are_alone():
    lr, mu, h = np.array([[0.1], [1.5]]), np.array([[[0.3]], [[0.9]], [[0.0]]]), np.array([0.5, 1.0, 2.0, 4.0])
    for rule in ("pytorch", QHM, AGGMO):
        together = theory.spectral_radius(lr, mu, h, rule=rule)
        names = theory.regime(lr, mu, h, rule=rule)
        for i, j, k in np.ndindex(3, 2, 4):
            alone = (lr[j, 0], mu[i, 0, 0], h[k])
            assert abs(together[i, j, k] - theory.spectral_radius(*alone, rule=rule)) <= 1e-14
            assert names[i, j, k] == theory.regime(*alone, rule=rule)


def test_blocks_of_a_large_grid_are_put_where_they_belong():
    lr, mu = np.linspace(0.01, 3.5, 331)[:, None], np.linspace(0.0, 0.99, 101)
    found = theory.spectral_radius(lr, mu, 1.0, rule="heavy_ball")
    np.testing.assert_array_equal(found.T, theory.spectral_radius(lr.T, mu[:, None], 1.0, rule="heavy_ball"))
    expected = np.abs(np.linalg.eigvals(matrix("heavy_ball", lr, mu, 1.0))).max(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # near double roots eigvals itself is off by √ε


def heavy_ball_regime(ah, mu):
    if not (mu < 1 and 0 < ah < 2 * (1 + mu)):
        return "divergent"
    if (1 - math.sqrt(ah)) ** 2 < mu < (1 + math.sqrt(ah)) ** 2:
        return "oscillating"
    return "alternating" if ah > 1 + mu else "monotone"


def nesterov_regime(ah, mu):
    """Return the regime by q = 1 − αh: complex roots for 0 < q < 4μ/(1+μ)², a dominant negative root for q < 0."""
    if ah <= 0 or ah >= (2 + 2 * mu) / (1 + 2 * mu):
        return "divergent"
    q = 1 - ah
    if 0 < q < 4 * mu / (1 + mu) ** 2:
        return "oscillating"
    return "alternating" if q < 0 else "monotone"


@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_regime_is_that_of_the_conditions_written_on_paper(rule, options):
    rng = np.random.default_rng(7)
    ah, mu = rng.uniform(0, 4.5, 2000), rng.uniform(0.01, 0.99, 2000)
    ah[::2] = 10.0 ** rng.uniform(-5, 0, 1000)
    lr = ah / 3.0 / share(rule, mu, options)
    by_hand = {"sgd": lambda ah, mu: "divergent" if ah >= 2 else "monotone" if ah <= 1 else "alternating"}.get(
        rule, nesterov_regime if ahead(rule, options) else heavy_ball_regime
    )
    expected = [by_hand(*each) for each in zip(ah, mu)]
    assert len(set(expected)) >= 3
    np.testing.assert_array_equal(theory.regime(lr, mu, 3.0, rule=rule, **options), expected)


@pytest.mark.parametrize(("m", "L"), [(1.0, 9.0), (0.3, 7.1), (1e-4, 1.0), (2e-3, 5e3)])
@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_regime_is_critical_at_a_double_root_and_nowhere_else(rule, options, m, L):
    mu = 0.6
    if rule == "sgd":
        return
    at = [1 - 4 * mu / (1 + mu) ** 2] if ahead(rule, options) else [(1 - math.sqrt(mu)) ** 2, (1 + math.sqrt(mu)) ** 2]
    for ah in at:
        for h in (m, L):
            lr = ah / h / share(rule, mu, options)
            assert theory.regime(lr, mu, h, rule=rule, **options) == "critical"
            assert theory.regime(lr * (1 + 1e-9), mu, h, rule=rule, **options) != "critical"
            assert theory.regime(lr * (1 - 1e-9), mu, h, rule=rule, **options) != "critical"


@pytest.mark.parametrize(
    ("rule", "lr", "mu", "expected"),
    [
        ("sgd", 0.0, 0.0, "divergent"),
        ("sgd", 1.0, 0.0, "monotone"),
        ("sgd", 2.0, 0.0, "divergent"),
        ("classical", 1.0, 0.0, "monotone"),  # both roots are 0, but 0·t is 0
        ("classical", 0.5, 1.0, "divergent"),
        ("classical", 0.0, 0.5, "divergent"),
        ("classical_nesterov", 1.0, 0.5, "monotone"),
        ("classical_nesterov", 0.5, 1.0, "oscillating"),  # ρ = √(1 − αh)
        ("ema", 0.5, 1.0, "divergent"),
    ],
)
def test_regime_at_the_edges(rule, lr, mu, expected):
    assert theory.regime(lr, mu, 1.0, rule=rule) == expected


@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_max_stable_lr_is_the_closed_form(rule, options):
    rng = np.random.default_rng(8)
    mu, h = np.r_[0.0, 0.5, 0.999, rng.random(500)], 10.0 ** np.r_[0.0, -12, 12, rng.uniform(-12, 12, 500)]
    limit = 2.0 if rule == "sgd" else (2 + 2 * mu) / (1 + 2 * mu) if ahead(rule, options) else 2 * (1 + mu)
    expected = limit / (h * share(rule, mu, options))
    np.testing.assert_allclose(theory.max_stable_lr(mu, h, rule=rule, **options), expected, rtol=1e-12)


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_max_stable_lr_parts_what_converges_from_what_does_not(rule, options):
    mu, h = np.array([0.05, 0.5, 0.95]), np.array([[0.5], [3.0]])
    limit = theory.max_stable_lr(mu, h, rule=rule, **options)
    for factor, converges in ((1 - 1e-6, True), (1 + 1e-6, False)):
        radii = np.abs(np.linalg.eigvals(matrix(rule, factor * limit, mu, h, **options))).max(axis=-1)
        assert ((radii < 1.0) == converges).all()


@pytest.mark.parametrize("nu", [0.0, 0.3, 0.7, 0.99, 1.0])
def test_max_stable_lr_of_a_rule_with_functions_of_numbers_alone(nu):
    mu, h = np.array([0.0, 0.5, 0.9, 0.99]), np.array([[1e-6], [1.0], [1e6]])
    found = theory.max_stable_lr(mu, h, rule=QHM, nu=nu)
    np.testing.assert_allclose(found, quasi_hyperbolic_limit(mu, h, nu), rtol=1e-9)


def test_max_stable_lr_of_three_eigenvalues_is_what_bisection_finds():
    for mu, mu2, h in [(0.9, 0.5, 1.0), (0.99, 0.0, 30.0), (0.3, 0.8, 1e-3)]:
        low, high = 0.0, 1e3 / h
        for _ in range(200):
            middle = (low + high) / 2
            stable = np.abs(np.linalg.eigvals(aggregated(middle, mu, mu2, h))).max() < 1
            low, high = (middle, high) if stable else (low, middle)
        found = theory.max_stable_lr(mu, h, rule=AGGMO, beta2=mu2)
        np.testing.assert_allclose(found, low, rtol=1e-9)


@pytest.mark.parametrize(
    ("rule", "options", "mu", "expected"),
    [
        ("heavy_ball", {}, 1.0, 0.0),
        ("ema", {}, 1.0, 0.0),
        ("pytorch", {"dampening": 1.0}, 0.5, 0.0),
        ("classical", {"maximize": True}, 0.5, 0.0),
        ("classical_nesterov", {}, 1.0, 4 / 3),
        (QHM, {}, 1.0, 0.0),  # an eigenvalue is 1: the velocity takes no gradient and keeps what it has
    ],
    ids=str,
)
def test_max_stable_lr_at_the_edges(rule, options, mu, expected):
    np.testing.assert_allclose(theory.max_stable_lr(mu, 1.0, rule=rule, **options), expected, rtol=1e-12)


def run_by_step(rule, options, p, state, lr, mu, h, steps):
    """Return the path of fm.step on g = h·p, with one problem for each element."""
    path = [p.copy()]
    for _ in range(steps):
        fm.step(p, state, h * p, rule=rule, lr=lr, momentum=mu, **options)
        path.append(p.copy())
    return np.stack(path)


@pytest.mark.parametrize(
    ("rule", "options"),
    [form for form in FORMS if "lookahead" not in form[1]] + [(QHM, {}), (AGGMO, {}), ("sgd", {"maximize": True})],
    ids=form_id,
)
def test_a_run_of_step_is_powers_of_the_iteration_matrix(rule, options):
    rng = np.random.default_rng(9)
    h, lr, mu, steps = np.array([0.1, 1.0, 3.0]), 0.2, 0.8, 60
    A = theory.iteration_matrix(lr, mu, h, rule=rule, **options)
    x = rng.standard_normal((3, A.shape[-1]))
    state = tuple(np.ascontiguousarray(column) for column in x.T[1:])
    found = run_by_step(rule, options, x[:, 0].copy(), state if state else None, lr, mu, h, steps)
    for p in found:
        # t products of a 3 × 3 matrix of norm below 4: sizes below 10² (but sgd's ascent), each rounded to ε
        np.testing.assert_allclose(p, x[:, 0], rtol=1e-12, atol=1e-13)
        x = np.einsum("kij,kj->ki", A, x)
    assert np.abs(found[-1] - found[0]).min() > 1e-3


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("rule", ["classical", "pytorch", "ema"])
def test_a_run_with_a_look_ahead_is_powers_of_the_iteration_matrix(rule, weight_decay):
    h, lr, mu = np.array([0.1, 1.0, 3.0]), 0.2, 0.8
    p = np.ones(3)
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=mu, lookahead=True, weight_decay=weight_decay)
    A = theory.iteration_matrix(lr, mu, h, rule=rule, lookahead=True, weight_decay=weight_decay)
    x = np.array([[1.0, 0.0]] * 3)
    for _ in range(60):
        opt.step(h * opt.point)
        x = np.einsum("kij,kj->ki", A, x)
        np.testing.assert_allclose(p, x[:, 0], rtol=0, atol=1e-13)
    assert np.abs(p).max() > 1e-6


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_spectral_radius_does_not_depend_on_units(scale):
    for rule in ("pytorch", "heavy_ball", "classical_nesterov", QHM):
        plain = theory.spectral_radius(0.3, 0.7, 2.0, rule=rule)
        assert abs(theory.spectral_radius(0.3 / scale, 0.7, 2.0 * scale, rule=rule) - plain) <= 1e-14
        assert theory.regime(0.3 / scale, 0.7, 2.0 * scale, rule=rule) == "oscillating"
