"""Estimated spectra against explicit Hessians, and tunings by estimates against runs."""

import math

import numpy as np
import pytest

from fastmomentum import theory
from tests.helpers.quadratics import REAL, polyak, real
from tests.helpers.runs import steps_taken

EPS = np.finfo(float).eps


def hessian(n, low, high, seed=0):
    """Return a symmetric matrix with n eigenvalues, spread evenly in their logarithm."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (Q * np.geomspace(low, high, n)) @ Q.T


def assert_honest(found, H, extra=0.0):
    """Check that the estimates are within their errors of the truth, plus `extra` of L."""
    values = np.linalg.eigvalsh(H)
    slack = (extra + 8 * len(H) * EPS) * values[-1]
    assert abs(found.m - values[0]) <= found.m_error + slack
    assert abs(found.L - values[-1]) <= found.L_error + slack


@pytest.mark.parametrize("n", [1, 2, 7, 127, 128, 129, 200])
@pytest.mark.parametrize("by", ["grad", "hessp"])
def test_spectrum_of_a_quadratic_is_found_with_honest_errors(n, by):
    H, rng = hessian(n, 0.5, 50.0), np.random.default_rng(1)
    b, x = rng.standard_normal(n), rng.standard_normal(n)
    found = theory.spectrum(
        *((lambda x: H @ x - b, x) if by == "grad" else (None, x)),
        **({} if by == "grad" else {"hessp": lambda x, v: H @ v}),
    )
    assert_honest(found, H)
    values = np.linalg.eigvalsh(H)
    assert (found.m, found.L) == pytest.approx((values[0], values[-1]), rel=1e-6 if n <= 128 else 1e-3)
    assert max(found.m_error, found.L_error) <= (1e-6 if n <= 128 else 1e-2) * values[-1]


@pytest.mark.parametrize("n", [5, 150])
def test_spectrum_from_float32_gradients_has_honest_errors(n):
    H = hessian(n, 1.0, 20.0).astype(np.float32)
    x = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    seen = set()

    def grad(x):
        seen.add(x.dtype)
        return H @ x

    found = theory.spectrum(grad, x)
    assert seen == {np.dtype(np.float32)}
    exact = (H.astype(float) + H.T.astype(float)) / 2
    assert_honest(found, exact)
    assert pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-2) == found.L


def logistic(n, seed=3):
    """Return gradient and Hessian of ridge logistic regression, f = mean log(1 + exp(−yXw)) + ½·0.01·‖w‖²."""
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((4 * n, n)) * np.geomspace(0.3, 2.0, n), rng.choice([-1.0, 1.0], 4 * n)

    def grad(w):
        return -(X.T @ (y / (1 + np.exp(y * (X @ w))))) / len(X) + 0.01 * w

    def second(w):
        s = 1 / (1 + np.exp(-y * (X @ w)))
        return (X.T * (s * (1 - s))) @ X / len(X) + 0.01 * np.eye(n)

    return grad, second


@pytest.mark.parametrize("n", [6, 140])
def test_spectrum_of_logistic_regression_is_that_of_its_hessian(n):
    grad, second = logistic(n)
    w = 0.3 * np.random.default_rng(4).standard_normal(n)
    found = theory.spectrum(grad, w)
    # Central differences at ε = ∛eps(1 + ‖w‖) are off by ε²/6 times the third derivative, some ‖x‖³ here.
    assert_honest(found, second(w), extra=(np.cbrt(EPS) * (1 + np.linalg.norm(w))) ** 2 * 100)
    assert pytest.approx(np.linalg.eigvalsh(second(w))[-1], rel=1e-3) == found.L


def test_spectrum_keeps_the_shape_of_the_point_and_leaves_it_as_it_was():
    h, x = np.arange(1.0, 7.0).reshape(2, 3), np.ones((2, 3))
    found = theory.spectrum(lambda x: h * x, x)
    assert (found.m, found.L) == pytest.approx((1.0, 6.0), abs=1e-8)
    np.testing.assert_array_equal(x, 1.0)
    products = theory.spectrum(None, x, hessp=lambda x, v: h * v)
    assert (products.m, products.L) == pytest.approx((1.0, 6.0), abs=1e-13)


@pytest.mark.parametrize("n", [4, 150])
def test_spectrum_of_a_saddle_has_a_negative_end(n):
    H = np.diag(np.r_[-2.0, np.linspace(1.0, 5.0, n - 1)])
    found = theory.spectrum(lambda x: H @ x, np.ones(n))
    assert (found.m, found.L) == pytest.approx((-2.0, 5.0), abs=1e-2)
    with pytest.raises(ValueError, match="spectrum: expected m above its error"):
        theory.tune(found, rule="heavy_ball")


def test_spectrum_takes_a_gradient_that_writes_to_the_same_array_each_time():
    h, out = np.array([1.0, 2.0, 3.0]), np.empty(3)
    found = theory.spectrum(lambda x: np.multiply(h, x, out=out), np.ones(3))
    assert (found.m, found.L) == pytest.approx((1.0, 3.0), abs=1e-8)


def test_spectrum_of_a_flat_function_is_zero():
    for n in (3, 150):
        found = theory.spectrum(lambda x: 0 * x, np.ones(n))
        assert (found.m, found.L) == (0.0, 0.0)


def test_spectrum_is_the_same_each_time():
    H = hessian(150, 0.1, 10.0)
    assert theory.spectrum(lambda x: H @ x, np.ones(150)) == theory.spectrum(lambda x: H @ x, np.ones(150))


def problem(name):
    if name in REAL:
        return real(name)[:2]
    H = hessian(60, 1e-3, 10.0)
    return H, H @ np.random.default_rng(5).standard_normal(60)


@pytest.mark.parametrize("low", [1.0, 0.99], ids=["exact", "one percent low"])
@pytest.mark.parametrize("name", [*REAL, "kappa 1e4"])
def test_tune_converges_nearly_as_fast_as_the_oracle_though_L_is_estimated_low(name, low):
    H, c = problem(name)
    found = theory.spectrum(lambda x: H @ x - c, np.zeros(len(H)))
    assert_honest(found, H)
    tuned = theory.tune(found._replace(L=low * found.L), 1e-8, rule="classical")
    values = np.linalg.eigvalsh(H)
    lr, momentum, _ = polyak(values[0], values[-1])
    taken = steps_taken(H, c, 1e-8, rule="classical", lr=tuned.lr, momentum=tuned.momentum)
    assert taken <= 1.25 * steps_taken(H, c, 1e-8, rule="classical", lr=lr, momentum=momentum)
    assert taken <= tuned.iterations


@pytest.mark.parametrize("rule", ["heavy_ball", "ema", "pytorch_nesterov", "sgd"])
@pytest.mark.parametrize("margin", [0.0, 0.02, 0.2])
def test_tune_reckons_with_errors_and_margin(rule, margin):
    tuned = theory.tune(theory.Spectrum(1.0, 50.0, 0.1, 2.0), 1e-4, rule=rule, margin=margin)
    assert (tuned.m, tuned.L) == pytest.approx((0.9 * (1 - margin), 52.0 * (1 + margin)), rel=1e-15)
    best = theory.optimal(tuned.m, tuned.L, rule=rule)
    assert (tuned.lr, tuned.momentum, tuned.rate) == best
    assert tuned.iterations == theory.iterations(best.lr, best.momentum, (tuned.m, tuned.L), 1e-4, rule=rule)


@pytest.mark.parametrize("rule", ["heavy_ball", "ema", "pytorch_nesterov", "sgd"])
def test_tune_headroom_is_where_it_diverges(rule):
    tuned = theory.tune((1.0, 100.0), rule=rule)
    assert tuned.headroom > 0
    for factor, converges in ((1 - 1e-6, True), (1 + 1e-6, False)):
        lr = tuned.lr * (1 + tuned.headroom) * factor
        assert (theory.spectral_radius(lr, tuned.momentum, 100.0, rule=rule) < 1) == converges
        L = 100.0 * (1 + tuned.headroom) * factor
        assert (theory.spectral_radius(tuned.lr, tuned.momentum, L, rule=rule) < 1) == converges


def test_tune_without_a_margin_is_the_optimum():
    tuned = theory.tune((1.0, 9.0), rule="heavy_ball", margin=0.0)
    assert (tuned.lr, tuned.momentum, tuned.rate) == pytest.approx((0.25, 0.25, 0.5), rel=1e-15)
    assert tuned.headroom == pytest.approx(2 * 1.25 / 9 / 0.25 - 1, rel=1e-12)
    assert math.isfinite(tuned.iterations)
