"""Transients, counts of iterations and certificates, against runs by hand, exact fractions and real data."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

import fastmomentum as fm
from fastmomentum import theory
from tests.helpers.quadratics import (
    FORMS,
    PLAIN,
    REAL,
    ahead,
    first_below,
    form_id,
    last_crossing,
    polyak,
    polynomial,
    real,
    responses,
    share,
)
from tests.helpers.rules import AGGMO, QHM
from tests.helpers.runs import steps_taken


def companion(ah, mu, nesterov=False):
    _, c1, c0 = polynomial("", ah, mu, {"nesterov": nesterov})
    return np.array([[-c1, -c0], [1.0, 0.0]])


@pytest.mark.parametrize(("t", "quotient"), [(1, "2.4"), (10, "20.2"), (100, "201"), (200, "402")])
@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch"])
def test_transient_grows_beyond_the_spectral_radius_at_critical_damping(rule, t, quotient):
    found = theory.transient(0.01, 0.81, 1.0, t, rule=rule) / 0.9**t
    assert abs(found - float(quotient)) <= (0.05 if "." in quotient else 0.5)  # the digits that theory.md gives


@pytest.mark.parametrize(("rule", "options"), [form for form in PLAIN if form[0] != "sgd"], ids=form_id)
def test_transient_is_the_norm_of_products_written_out(rule, options):
    rng = np.random.default_rng(1)
    for _ in range(8):
        mu, h, ah = rng.random(), 10.0 ** rng.uniform(-6, 6), rng.uniform(0.01, 3.5)
        A, product = companion(ah, mu, ahead(rule, options)), np.eye(2)
        expected = [1.0]
        for _ in range(30):
            product = A @ product
            expected.append(np.linalg.norm(product, 2))
        found = theory.transient(ah / h / share(rule, mu, options), mu, h, np.arange(31), rule=rule, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-10)  # ah rounds, and 30 products magnify it


def test_response_is_the_recurrence_in_exact_fractions():
    lr, mu, h = Fraction(1, 64), Fraction(7, 8), Fraction(3)
    errors = [Fraction(1), Fraction(1)]
    for _ in range(300):
        errors.append((1 + mu - lr * h) * errors[-1] - mu * errors[-2])
    exact = np.array([float(e) for e in errors[1:]])
    t = np.arange(301)
    for rule, rate in (("heavy_ball", lr), ("classical", lr), ("pytorch", lr), ("ema", lr / (1 - mu))):
        found = theory.response(float(rate), float(mu), float(h), t, rule=rule)
        # t products of complex rotations, each rounded, of size ρ^t
        assert (np.abs(found - exact) <= 64 * (t + 1) * np.finfo(float).eps * math.sqrt(7 / 8) ** t).all()


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_response_is_the_run_from_rest(rule, options):
    lr, mu, h = 0.2, 0.8, np.array([0.1, 1.0, 3.0])
    found = theory.response(lr, mu, h, np.arange(61)[:, None], rule=rule, **options)
    np.testing.assert_allclose(found, responses(rule, lr, mu, h, 60, **options), rtol=0, atol=1e-13)


def test_transient_and_response_of_very_many_steps_follow_the_logarithm_of_the_rate():
    t = np.array([10**6, 10**7])
    lr, mu = 1e-8, 1 - 1e-6  # complex roots: |λ| = √μ, and ‖A^t‖ within a constant of it
    found = np.log(theory.transient(lr, mu, 1.0, t, rule="heavy_ball"))
    np.testing.assert_allclose(found, t * math.log(mu) / 2, atol=math.log(4e4))
    assert theory.response(2.5, 0.0, 1.0, 10**9, rule="sgd") == np.inf
    assert theory.response(0.5, 0.0, 1.0, 10**18, rule="sgd") == 0.0
    assert theory.response(0.5, 0.0, 1.0, 1000, rule="sgd") == 2.0**-1000
    assert theory.response(0.0, 0.5, 1.0, 10**18, rule="pytorch") == 1.0


@pytest.mark.parametrize("function", [theory.transient, theory.response])
def test_transient_and_response_broadcast(function):
    found = function(np.full((3, 1, 1), 0.1), np.full((4, 1), 0.9), 2.0, np.arange(5), rule="classical")
    assert found.shape == (3, 4, 5)
    np.testing.assert_array_equal(found[0, 0], [function(0.1, 0.9, 2.0, t, rule="classical") for t in range(5)])
    assert isinstance(function(0.1, 0.9, 2.0, 3, rule="classical"), float)


@pytest.mark.parametrize(("rule", "options"), [*PLAIN, (QHM, {}), (AGGMO, {})], ids=form_id)
def test_transient_peak_is_the_largest_of_all_transients(rule, options):
    rng = np.random.default_rng(2)
    for _ in range(15):
        mu = rng.uniform(0, 0.99)
        lr = theory.max_stable_lr(mu, 1.0, rule=rule, **options) * rng.uniform(0.01, 0.98)
        norms = theory.transient(lr, mu, 1.0, np.arange(3000), rule=rule, **options)
        found = theory.transient_peak(lr, mu, 1.0, rule=rule, **options)
        assert found.norm == pytest.approx(norms.max(), rel=1e-11)
        assert norms[found.t] == pytest.approx(norms.max(), rel=1e-11)


@pytest.mark.parametrize("name", REAL)
def test_iterations_on_real_data_are_those_measured(name):
    H, c, h, error = real(name)
    measured, bound, by_rate = {"diabetes": (241, 253, 189), "digits": (114, 144, 110)}.get(name, (1321, 1428, 997))
    lr, mu, rate = polyak(h[0], h[-1])
    assert round(math.log(1e-8) / math.log(rate)) == by_rate
    assert steps_taken(H, c, 1e-8, rule="heavy_ball", lr=lr, momentum=mu) == measured
    for rule in ("heavy_ball", "classical", "pytorch"):
        assert theory.iterations(lr, mu, h, 1e-8, rule=rule, error=error) == measured
        assert theory.iterations(lr, mu, h, 1e-8, rule=rule) == bound
        assert theory.iterations(lr, mu, (h[0], h[-1]), 1e-8, rule=rule) >= bound


@pytest.mark.parametrize(("rule", "options"), FORMS, ids=form_id)
def test_iterations_are_what_a_scan_of_the_run_finds(rule, options):
    rng = np.random.default_rng(3)
    for _ in range(7):
        h = 10.0 ** rng.uniform(-1, 0, rng.choice([1, 3, 6]))
        mu, tol = rng.choice([0.0, rng.uniform(0, 0.97)]), 10.0 ** rng.uniform(-7, -0.01)
        top = h.max() + options.get("weight_decay", 0.0)
        lr = rng.choice([0.1, 0.5, 1.0, 1.3]) / top / share(rule, mu, options)
        error = rng.standard_normal(len(h)) * 10.0 ** rng.uniform(-3, 3, len(h))
        error[: rng.integers(len(h))] = 0.0
        runs = responses(rule, lr, mu, h, 1500, **options)
        sizes = np.linalg.norm(runs * error, axis=1)
        if sizes[-1] > 1e-9 * sizes[0] or abs(runs[-1]).max() > 1e-9:
            continue  # the scan is too short to tell
        found = theory.iterations(lr, mu, h, tol, rule=rule, error=error, **options)
        assert found == first_below(sizes, tol * sizes[0])
        bound = theory.iterations(lr, mu, h, tol, rule=rule, **options)
        assert bound == last_crossing(abs(runs).max(axis=1), tol)
        assert bound >= found
        assert isinstance(found, int)
        assert isinstance(bound, int)


@pytest.mark.parametrize(("rule", "options"), [form for form in PLAIN if form[0] != "sgd"], ids=form_id)
@pytest.mark.parametrize("kappa", [3.0, 100.0])
def test_iterations_at_the_optimum_are_what_a_scan_finds(rule, options, kappa):
    tuning = theory.optimal(0.5, 0.5 * kappa, rule=rule, **options)
    h = np.array([0.5, 0.9, 0.5 * kappa])
    runs = responses(rule, tuning.lr, tuning.momentum, h, 1200, **options)
    for tol in (0.9, 1e-3, 1e-8):
        found = theory.iterations(*tuning[:2], h, tol, rule=rule, error=np.ones(3), **options)
        assert found == first_below(np.linalg.norm(runs, axis=1), tol * math.sqrt(3))
        assert theory.iterations(*tuning[:2], h, tol, rule=rule, **options) == last_crossing(abs(runs).max(axis=1), tol)


@pytest.mark.parametrize("rule", [QHM, AGGMO], ids=str)
def test_iterations_of_users_rules_are_what_a_scan_of_step_finds(rule):
    h, slots = np.array([0.1, 0.5, 1.0]), len(rule.slots)
    for lr, mu, tol in [(0.3, 0.9, 1e-6), (1.0, 0.5, 1e-3), (0.05, 0.0, 1e-2)]:
        p, path = np.ones(3), [np.ones(3)]
        state = tuple(np.zeros(3) for _ in range(slots))
        for _ in range(3000):
            fm.step(p, state, h * p, rule=rule, lr=lr, momentum=mu)
            path.append(p.copy())
        sizes = np.abs(np.array(path))
        assert theory.iterations(lr, mu, h, tol, rule=rule) == last_crossing(sizes.max(axis=1), tol)
        found = theory.iterations(lr, mu, h, tol, rule=rule, error=np.ones(3))
        assert found == first_below(np.linalg.norm(path, axis=1), tol * math.sqrt(3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((0.5, 0.0, [1.0], 0.5), 1),
        ((0.5, 0.0, [1.0], 2.0**-30), 30),
        ((1.0, 0.0, [1.0], 1e-300), 1),
        ((2.0**-10, 0.0, [1.0], 0.5), 710),  # ln 2·2¹⁰ − ½ ln 2 = 709.4
        ((2.0**-20, 0.0, [1.0], 0.5), 726818),  # ln 2·2²⁰ − ½ ln 2 = 726817.15
        ((2.0, 0.0, [1.0], 0.5), math.inf),
        ((0.0, 0.0, [1.0], 0.5), math.inf),
        ((3.0, 0.0, [0.1, 0.2, 1.0], 0.5), math.inf),
    ],
)
def test_iterations_of_gradient_descent_by_hand(settings, expected):
    assert theory.iterations(*settings, rule="sgd") == expected
    assert theory.iterations(*settings, rule="sgd", error=np.ones(len(settings[2]))) == expected


@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch_nesterov", "ema"])
def test_iterations_are_infinite_on_divergence_alone(rule):
    h = np.array([1.0, 2.0, 4.0])
    lr = theory.max_stable_lr(0.6, 4.0, rule=rule)
    assert theory.iterations(1.01 * lr, 0.6, h, 1e-3, rule=rule) == math.inf
    assert theory.iterations(1.01 * lr, 0.6, h, 1e-3, rule=rule, error=[1.0, 1.0, 0.0]) < 1000
    assert theory.iterations(1.01 * lr, 0.6, h, 1e-3, rule=rule, error=[0.0, 0.0, 0.0]) == 0
    assert theory.iterations(0.9 * lr, 0.6, h, 1e-3, rule=rule) < 1000
    assert theory.iterations(lr, 1.0, h, 1e-3, rule="heavy_ball") == math.inf


def test_iterations_of_the_ends_bound_every_spectrum_between():
    rng = np.random.default_rng(4)
    for rule in ("heavy_ball", "ema", "classical_nesterov", "sgd"):
        tuning = theory.optimal(0.01, 1.0, rule=rule)
        bound = theory.iterations(*tuning[:2], (0.01, 1.0), 1e-6, rule=rule)
        for _ in range(20):
            h = np.r_[0.01, 10.0 ** rng.uniform(-2, 0, 50), 1.0]
            runs = responses(rule, *tuning[:2], h, bound)
            error = rng.standard_normal(len(h))
            sizes = np.linalg.norm(runs * error, axis=1)
            assert sizes[-1] <= 1e-6 * sizes[0]


def test_iterations_take_two_eigenvalues_for_ends_only_without_an_error():
    lr, mu, h = 0.02, 0.9, np.array([1.0, 3.0])
    runs = responses("classical", lr, mu, h, 600)
    alone = theory.iterations(lr, mu, h, 1e-4, rule="classical", error=[1.0, 1.0])
    assert alone == first_below(np.linalg.norm(runs, axis=1), 1e-4 * math.sqrt(2))
    dense = responses("classical", lr, mu, np.geomspace(1.0, 3.0, 5000), 600)
    bound = theory.iterations(lr, mu, h, 1e-4, rule="classical")
    assert abs(bound - last_crossing(abs(dense).max(axis=1), 1e-4)) <= 1
    assert bound > last_crossing(abs(runs).max(axis=1), 1e-4)


def certificate_by_hand(matrices, r):
    found = []
    for A in matrices:
        P = solve_discrete_lyapunov((A / r).T, np.eye(2))
        start = np.ones(2)
        found.append(max(np.linalg.cond(P), np.linalg.inv(P)[0, 0] * (start @ P @ start)))
    return math.sqrt(max(found))


@pytest.mark.parametrize(("rule", "options"), [form for form in PLAIN if form[0] != "sgd"], ids=form_id)
def test_certificate_is_that_of_the_lyapunov_equation(rule, options):
    rng = np.random.default_rng(5)
    for _ in range(10):
        mu, h = rng.random(), np.array([0.4, 1.0, 1.7])
        lr = rng.uniform(0.1, 0.75) / share(rule, mu, options)
        matrices = [companion(lr * share(rule, mu, options) * each, mu, ahead(rule, options)) for each in h]
        rho = max(np.abs(np.linalg.eigvals(A)).max() for A in matrices)
        r = rho + (1 - rho) * rng.uniform(0.1, 1.5)
        found = theory.certificate(lr, mu, h, r, rule=rule, **options)
        assert found == pytest.approx(certificate_by_hand(matrices, r), rel=1e-6)


@pytest.mark.parametrize(("rule", "options"), [*PLAIN, (QHM, {}), (AGGMO, {})], ids=form_id)
def test_certificate_holds_of_every_run_from_rest(rule, options):
    rng, t = np.random.default_rng(6), np.arange(80)
    tightest = np.inf
    for _ in range(30):
        mu, h = rng.uniform(0, 0.97), np.sort(rng.uniform(0.05, 1.0, 3))
        lr = theory.max_stable_lr(mu, h[-1], rule=rule, **options) * rng.uniform(0.02, 0.99)
        rho = theory.spectral_radius(lr, mu, h, rule=rule, **options).max()
        r = rho + (1 - rho) * 10.0 ** rng.uniform(-2, 0)
        C = theory.certificate(lr, mu, h, r, rule=rule, **options)
        errors = np.abs(theory.response(lr, mu, h, t[:, None], rule=rule, **options))
        weight = np.abs(rng.standard_normal(3))
        runs = np.c_[errors, np.linalg.norm(errors * weight, axis=1) / np.linalg.norm(weight)]
        slack = C * r ** t[:, None] / np.maximum(runs, 1e-300)
        assert slack.min() >= 1 - 1e-9, (lr, mu, h, r)
        tightest = min(tightest, slack.min())
    assert tightest < 5  # a bound so loose that it says nothing would pass, too


@pytest.mark.parametrize("rule", [QHM, AGGMO], ids=str)
def test_certificate_holds_from_rest_where_the_step_before_rest_was_elsewhere(rule):
    lr, mu, r, options = (
        (6.796462907541388, 0.7083918357749056, 0.7116176690518956, {"nu": 0.9507748807038909})
        if rule is QHM
        else (2.964937305962133, 0.8981326149844392, 0.9987773688348298, {"beta2": 0.7343362994227234})
    )
    C = theory.certificate(lr, mu, [1.0], r, rule=rule, **options)
    errors = np.abs(theory.response(lr, mu, 1.0, np.arange(40), rule=rule, **options))
    assert (errors <= C * r ** np.arange(40)).all()


def test_certificate_holds_of_any_two_errors_in_a_row():
    rng = np.random.default_rng(7)
    A = companion(0.01, 0.81)
    for r in (0.901, 0.95, 0.99):
        C = theory.certificate(0.01, 0.81, [1.0], r, rule="heavy_ball")
        x = rng.standard_normal((2, 1000))
        start = np.linalg.norm(x, axis=0)
        for t in range(200):
            assert (np.linalg.norm(x, axis=0) <= C * r**t * start * (1 + 1e-9)).all()
            x = A @ x


@pytest.mark.parametrize("r", [0.5, 0.9 * (1 - 1e-6), 0.85])
def test_certificate_is_refused_at_or_below_the_spectral_radius(r):
    with pytest.raises(ValueError, match="r: expected a rate above the spectral radius, 0.9"):
        theory.certificate(0.01, 0.81, [1.0], r, rule="heavy_ball")
    with pytest.raises(ValueError, match="r: expected a rate above the spectral radius, 0.5;"):
        theory.certificate(0.5, 0.0, [1.0], 0.5, rule="sgd")


def test_certificate_of_the_ends_covers_what_lies_between():
    lr, mu, _ = polyak(1.0, 100.0)
    whole = theory.certificate(lr, mu, (1.0, 100.0), 0.9, rule="classical")
    some = theory.certificate(lr, mu, np.geomspace(1.0, 100.0, 40), 0.9, rule="classical")
    assert whole >= some * (1 - 1e-3)
    assert whole > theory.certificate(lr, mu, [50.0], 0.9, rule="classical")


def test_transient_peak_is_found_thousands_of_steps_away():
    mu = (1 - 2e-4) ** 2
    found = theory.transient_peak(4e-8, mu, 1.0, rule="heavy_ball")
    norms = theory.transient(4e-8, mu, 1.0, np.arange(20_000), rule="heavy_ball")
    assert 4000 < found.t < 6000
    assert found.norm == pytest.approx(norms.max(), rel=1e-9)


@pytest.mark.parametrize("tol", [0.3, 0.5, 0.7])
def test_iterations_are_not_deceived_by_a_slow_oscillation_that_passes_through_zero(tol):
    lr, mu, h = 1e-5, 1 - 1e-4, np.geomspace(1.0, 1.01, 300)
    sizes = np.abs(responses("heavy_ball", lr, mu, h, 30_000)).max(axis=1)
    assert theory.iterations(lr, mu, h, tol, rule="heavy_ball") == last_crossing(sizes, tol)
