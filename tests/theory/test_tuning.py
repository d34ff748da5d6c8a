"""Optimal tunings against closed forms and numerical searches, and the Chebyshev schedule."""

import math
from functools import cache

import numpy as np
import pytest
from numpy.polynomial.chebyshev import chebval
from scipy.optimize import minimize

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.theory.linear import resolve_rule
from fastmomentum.theory.tuning import minimax
from tests.helpers.quadratics import (
    FORMS,
    PLAIN,
    aggregated,
    ahead,
    form_id,
    matrix,
    polyak,
    quasi_hyperbolic,
    share,
)
from tests.helpers.rules import AGGMO, QHM

KAPPAS = [2.0, 10.0, 100.0, 1e4, 1e6, 1e8]
ONE = 1e-7
"""Relative tolerance of 1 − rate: at κ = 10⁸ gradient descent's is 2e-8, and 1 rounds by 1e-16."""


def closed_form(rule, options, m, L):
    """Return the closed forms of (effective lr, momentum, 1 − rate)."""
    kappa = L / m
    if rule == "sgd":
        return 2 / (L + m), 0.0, 2 / (kappa + 1)
    if ahead(rule, options):
        root = math.sqrt(3 * kappa + 1)
        return 4 / (3 * L + m), (root - 2) / (root + 2), 2 / root
    return polyak(m, L)[0], ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2, 2 / (math.sqrt(kappa) + 1)


@pytest.mark.parametrize("m", [1.0, 3e-7, 2e5])
@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_optimal_is_the_closed_form(rule, options, kappa, m):
    lr, mu, rest = closed_form(rule, options, m, m * kappa)
    found = theory.optimal(m, m * kappa, rule=rule, **options)
    assert found.lr * share(rule, found.momentum, options) == pytest.approx(lr, rel=1e-12)
    assert 1 - found.momentum == pytest.approx(1 - mu, rel=1e-11)  # 1 − μ is 4e-4 at κ = 10⁸
    assert 1 - found.rate == pytest.approx(rest, rel=ONE)


@pytest.mark.parametrize("kappa", [2.0, 100.0, 1e4])
@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_optimal_rate_is_the_largest_radius_on_the_spectrum(rule, options, kappa):
    found = theory.optimal(1.0, kappa, rule=rule, **options)
    radii = np.abs(np.linalg.eigvals(matrix(rule, found.lr, found.momentum, np.geomspace(1, kappa, 301), **options)))
    # At the ends roots are double, and rounding moves them by its square root.
    assert radii.max() == pytest.approx(found.rate, abs=10 * math.sqrt(np.finfo(float).eps))


def searched(worst, starts):
    """Return the minimum of `worst` over log lr and log(1 − μ), by Nelder and Mead from several starts."""
    runs = [
        minimize(worst, start, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-14, "maxfev": 1500})
        for start in starts
    ]
    return min(run.fun for run in runs)


def by_hand(form, h):
    def worst(x):
        lr, mu = math.exp(x[0]), 1 - math.exp(min(x[1], 0.0))
        return np.abs(np.linalg.eigvals(form(lr, mu, h))).max()

    return worst


def stacked(form):
    return lambda lr, mu, h: np.stack([form(lr, mu, each) for each in h])


@pytest.mark.parametrize(
    ("rule", "options", "form"),
    [
        ("heavy_ball", {}, lambda lr, mu, h: matrix("heavy_ball", lr, mu, h)),
        ("classical", {"nesterov": True}, lambda lr, mu, h: matrix("classical", lr, mu, h, nesterov=True)),
        ("sgd", {}, lambda lr, mu, h: matrix("sgd", lr, mu, h)),
        ("classical", {"weight_decay": 2.0}, lambda lr, mu, h: matrix("classical", lr, mu, h, weight_decay=2.0)),
        (QHM, {}, stacked(lambda lr, mu, h: quasi_hyperbolic(lr, mu, h, 0.7))),
        (AGGMO, {}, stacked(lambda lr, mu, h: aggregated(lr, mu, 0.5, h))),
    ],
    ids=form_id,
)
def test_optimal_is_not_beaten_by_a_search(rule, options, form):
    m, L = 0.5, 15.0
    worst = by_hand(form, np.geomspace(m, L, 21))
    starts = [(math.log(a / L), math.log(rest)) for a in (0.5, 1.5) for rest in (0.2, 0.7)]
    found = theory.optimal(m, L, rule=rule, **options)
    best = searched(worst, starts)
    assert 1 - best <= (1 - found.rate) * (1 + 1e-6) + 1e-7  # eigvals is off by √ε at double roots, and lower, too
    assert best < 1 - 0.3 * (1 - found.rate)  # the search did find a good setting


@pytest.mark.parametrize("kappa", [2.0, 100.0, 1e4, 1e6])
@pytest.mark.parametrize(
    ("rule", "options"), [("sgd", {}), ("heavy_ball", {}), ("ema", {}), ("pytorch", {"nesterov": True})], ids=form_id
)
def test_minimax_finds_the_closed_form(rule, options, kappa):
    lr, _, rest = closed_form(rule, options, 0.3, 0.3 * kappa)
    found = minimax(resolve_rule(rule, options), 0.3, 0.3 * kappa)
    # Rounding moves double roots by √ε: of 1 − ρ a part of √ε·√κ, and the minimum is as uncertain.
    assert 1 - found.rate == pytest.approx(rest, rel=1e-7 * math.sqrt(kappa) + 1e-7)
    assert found.lr * share(rule, found.momentum, options) == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize(("m", "L", "decay"), [(1.0, 10.0, 0.5), (0.01, 1.0, 0.09), (3.0, 3000.0, 3.0)])
@pytest.mark.parametrize("rule", ["sgd", "classical", "heavy_ball", "classical_nesterov"])
def test_optimal_with_weight_decay_is_that_of_the_shifted_spectrum(rule, m, L, decay):
    found = theory.optimal(m, L, rule=rule, weight_decay=decay)
    _, _, rest = closed_form(rule, {}, m + decay, L + decay)
    assert 1 - found.rate == pytest.approx(rest, rel=3e-6)  # by a search, to √ε·√κ at the most
    assert found.rate == pytest.approx(theory.optimal(m + decay, L + decay, rule=rule).rate, rel=3e-6)


def copied(p, q, g, lr, mu):
    return p - lr * g + mu * (p - q), p


def twice(p, v, g, lr, mu):
    v = mu * v + g + g
    return p - lr * v, v


def test_optimal_of_a_users_copy_of_a_known_rule_is_the_known_tuning():
    known = theory.optimal(2.0, 300.0, rule="heavy_ball")
    copy = fm.Rule(copied, state=(("before", "param"),))
    assert theory.optimal(2.0, 300.0, rule=copy) == pytest.approx(known, rel=1e-12)
    assert theory.standard(2.0, 300.0, rule=copy) == pytest.approx(known, rel=1e-12)
    doubled = theory.optimal(2.0, 300.0, rule=fm.Rule(twice))
    assert doubled == pytest.approx((known.lr / 2, known.momentum, known.rate), rel=1e-12)
    scaled = theory.optimal(2.0, 300.0, rule=fm.chain(fm.stages.scale(1 / 1024), "classical"))
    assert scaled == pytest.approx((known.lr * 1024, known.momentum, known.rate), rel=1e-12)


@pytest.mark.parametrize("kappa", [100.0])
def test_optimal_of_a_rule_that_contains_others_is_no_worse(kappa):
    descent = closed_form("sgd", {}, 1.0, kappa)[2]
    ball = closed_form("ema", {}, 1.0, kappa)[2]
    assert 1 - theory.optimal(1.0, kappa, rule=QHM).rate >= descent * (1 - 1e-6)
    assert 1 - theory.optimal(1.0, kappa, rule=QHM, nu=0.0).rate >= descent * (1 - 1e-6)
    assert 1 - theory.optimal(1.0, kappa, rule=QHM, nu=1.0).rate == pytest.approx(ball, rel=1e-7)
    assert 1 - theory.optimal(1.0, kappa, rule=QHM, nu=1 - 1e-9).rate == pytest.approx(ball, rel=1e-3)


@cache
def in_units_of_one(rule):
    """Return the tuning for curvatures from 1 to 50, which takes two seconds for a rule without a closed form."""
    return theory.optimal(1.0, 50.0, rule=rule)


@pytest.mark.parametrize("scale", [1e-13, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("rule", [QHM, "classical_nesterov"], ids=str)
def test_optimal_does_not_depend_on_the_units_of_the_gradient(rule, scale):
    plain = in_units_of_one(rule)
    found = theory.optimal(1.0, 50.0, rule=fm.chain(fm.stages.scale(scale), rule))
    assert found.rate == pytest.approx(plain.rate, rel=1e-6)
    assert found.lr * scale == pytest.approx(plain.lr, rel=1e-3)
    limit = theory.max_stable_lr(0.5, 50.0, rule=rule)
    assert theory.max_stable_lr(0.5, 50.0, rule=fm.chain(fm.stages.scale(scale), rule)) * scale == pytest.approx(limit)


@pytest.mark.parametrize(("curvature", "decay"), [(1e-13, 1e-13), (1e-10, 1.0), (1e-6, 1e-6)])
def test_max_stable_lr_counts_weight_decay_as_curvature_in_any_units(curvature, decay):
    found = theory.max_stable_lr(0.5, curvature, rule="classical", weight_decay=decay)
    assert found == pytest.approx(3.0 / (curvature + decay), rel=1e-6)


@pytest.mark.parametrize("m", [1e-5, 1.0, 7e4])
@pytest.mark.parametrize("kappa", [2.0, 9.0, 1e4, 1e8])
@pytest.mark.parametrize(("rule", "options"), PLAIN, ids=form_id)
def test_standard_is_the_tuning_usually_given(rule, options, kappa, m):
    found = theory.standard(m, m * kappa, rule=rule, **options)
    root = math.sqrt(kappa)
    lr, mu, rest = polyak(m, m * kappa)[0], ((root - 1) / (root + 1)) ** 2, 2 / (root + 1)
    if rule == "sgd":
        lr, mu, rest = 1 / (m * kappa), 0.0, 1 / kappa
    elif ahead(rule, options):
        lr, mu, rest = 1 / (m * kappa), (root - 1) / (root + 1), 1 / root
    assert found.lr * share(rule, found.momentum, options) == pytest.approx(lr, rel=1e-11)
    assert found.momentum == pytest.approx(mu, rel=1e-11, abs=1e-15)
    assert 1 - found.rate == pytest.approx(rest, rel=ONE)


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_optimal_of_a_single_curvature_is_reached_in_a_step_or_two(rule, options):
    found = theory.optimal(3.0, 3.0, rule=rule, **options)
    assert found.rate <= 1e-6
    assert found.momentum <= 1e-6


def test_polyaks_tuning_diverges_when_L_is_underestimated_by_more_than_one_over_kappa():
    lr, mu, _ = theory.optimal(1.0, 1e4 * (1 - 2e-4), rule="heavy_ball")
    assert theory.spectral_radius(lr, mu, 1e4, rule="heavy_ball") == pytest.approx(1.0083, abs=5e-5)
    lr, mu, _ = theory.optimal(1.0, 1e4 * (1 - 0.5e-4), rule="heavy_ball")
    assert theory.spectral_radius(lr, mu, 1e4, rule="heavy_ball") < 1


def test_polyaks_tuning_cycles_on_the_function_of_lessard_recht_and_packard():
    lr, mu, _ = theory.optimal(1.0, 25.0, rule="heavy_ball")
    assert (lr, mu) == pytest.approx((1 / 9, 4 / 9), rel=1e-14)
    p = np.array([3.3])
    opt, path = fm.Momentum(p, rule="heavy_ball", lr=lr, momentum=mu), []
    for _ in range(600):
        x = p[0]
        opt.step(np.array([25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24]))
        path.append(p[0])
    np.testing.assert_allclose(sorted(path[-3:]), [-1.8024490, 0.6465306, 2.1159184], atol=1e-7)


def omegas(m, L, count):
    """Return ω_t of Golub and Varga 1961, counted from 0: ω₁ = 1, ω₂ = 2σ²/(2σ² − 1), ω_{t+1} = 1/(1 − ω_t/(4σ²))."""
    sigma = (L + m) / (L - m)
    found = [1.0, 2 * sigma**2 / (2 * sigma**2 - 1)]
    while len(found) < count:
        found.append(1 / (1 - found[-1] / (4 * sigma**2)))
    return np.array(found)


@pytest.mark.parametrize(("m", "L"), [(1.0, 2.0), (1.0, 9.0), (1e-3, 1.0), (2e-6, 3e2)])
def test_chebyshev_follows_the_recurrence(m, L):
    expected = omegas(m, L, 200)
    for rule in ("heavy_ball", "classical", "pytorch"):
        found = theory.Chebyshev(m, L, rule=rule)
        lr, mu = (np.array([schedule(t) for t in range(200)]) for schedule in (found.lr, found.momentum))
        np.testing.assert_allclose(lr, expected * 2 / (L + m), rtol=1e-12)
        if rule == "pytorch":  # μ_t·lr_t must be what lr_{t−1} was times ω_t − 1
            np.testing.assert_allclose((mu * lr)[1:], (expected - 1)[1:] * lr[:-1], rtol=1e-9)
        else:
            np.testing.assert_allclose(mu, expected - 1, rtol=0, atol=1e-12)
        assert mu[0] == 0
        assert ((mu >= 0) & (mu <= 1)).all()


@pytest.mark.parametrize("t", [0, 1, 2, 5, 20, 60])
@pytest.mark.parametrize(("m", "L"), [(1.0, 2.0), (1.0, 9.0), (1e-3, 1.0)])
@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch"])
def test_chebyshev_reaches_its_bound_and_keeps_it_everywhere(rule, m, L, t):
    sigma, unit = (L + m) / (L - m), [0.0] * t + [1.0]
    h = np.concatenate([[m], np.linspace(m, L, 41)[1:-1], [L]])
    schedule, p = theory.Chebyshev(m, L, rule=rule), np.ones(41)
    opt = fm.Momentum(p, rule=rule, lr=schedule.lr, momentum=schedule.momentum)
    for _ in range(t):
        opt.step(h * p)
    bound = 1 / chebval(sigma, unit)
    assert schedule.bound(t) == pytest.approx(bound, rel=1e-11)
    np.testing.assert_allclose(p, chebval((L + m - 2 * h) / (L - m), unit) * bound, rtol=0, atol=1e-11 * max(t, 1))
    assert abs(p).max() == pytest.approx(bound, rel=1e-6)


def test_chebyshev_beats_polyaks_tuning_and_tends_to_it():
    m, L = 1.0, 1000.0
    h, (lr, mu, _) = np.geomspace(m, L, 200), polyak(m, L)
    found = theory.Chebyshev(m, L)
    p, q = np.ones(200), np.ones(200)
    best = fm.Momentum(p, rule="heavy_ball", lr=found.lr, momentum=found.momentum)
    fixed = fm.Momentum(q, rule="heavy_ball", lr=lr, momentum=mu)
    for t in range(1, 201):
        best.step(h * p)
        fixed.step(h * q)
        assert abs(p).max() <= abs(q).max() * (1 + 1e-9) or t == 1
    assert abs(p).max() < abs(q).max() / 5
    assert found.lr(10_000) == pytest.approx(lr, rel=1e-12)
    assert found.momentum(10_000) == pytest.approx(mu, rel=1e-12)
    assert theory.Chebyshev(m, L, rule="pytorch").momentum(10_000) == pytest.approx(mu, rel=1e-12)


@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch"])
def test_a_chebyshev_run_resumes_with_the_same_bits(rule, tmp_path):
    h, schedule = np.geomspace(1.0, 50.0, 7), theory.Chebyshev(1.0, 50.0, rule=rule)
    settings = {"lr": schedule.lr, "momentum": schedule.momentum}
    p = np.ones(7)
    opt = fm.Momentum(p, rule=rule, **settings)
    for t in range(30):
        if t == 13:
            opt.save(tmp_path / "run")
            q = p.copy()
        opt.step(h * p)
    other = fm.Momentum.load(tmp_path / "run", q, **settings)
    for _ in range(17):
        other.step(h * q)
    np.testing.assert_array_equal(p, q)


def test_chebyshev_of_one_curvature_is_there_in_one_step():
    found = theory.Chebyshev(4.0, 4.0)
    assert [found.bound(t) for t in range(3)] == [1.0, 0.0, 0.0]
    assert (found.lr(0), found.momentum(0), found.lr(7), found.momentum(7)) == (0.25, 0.0, 0.25, 0.0)
