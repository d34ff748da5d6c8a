"""Validate runs with noise in the gradient: the variance of the parameters, and that of the ema velocity."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation.formulas import RULES, Row

SIGMAS = 4.0
"""The largest deviation from the mean, in standard errors: one right prediction in 16,000 misses it by chance."""

SETTINGS = ((0.1, 0.9), (0.5, 0.5), (1.2, 0.8))
"""The pairs (αh, μ) of the runs: without and with oscillation, and close to the stability limit of Nesterov."""

MOMENTA = (0.5, 0.9, 0.99)


class Estimate(NamedTuple):
    """Hold the mean of independent samples, and its standard error."""

    mean: float
    error: float


def variance(rule: str, lr: float, momentum: float, steps: int, runs: int = 2048) -> Estimate:
    """Return the mean square of p over the second half of independent runs of 2·steps on ½x², with unit noise."""
    rng = np.random.default_rng(0)
    p, grad, total = np.zeros(runs), np.empty(runs), np.zeros(runs)
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=momentum)
    for t in range(2 * steps):
        rng.standard_normal(out=grad)
        grad += p
        opt.step(grad)
        if t >= steps:
            total += p * p
    return _estimate(total / steps)


def ema_variance(momentum: float, runs: int = 100_000) -> Estimate:
    """Return the mean square of the velocity of rule "ema" long after its start, if the gradient is only unit noise."""
    rng = np.random.default_rng(0)
    p, grad = np.zeros(runs), np.empty(runs)
    opt = fm.Momentum(p, rule="ema", lr=0.0, momentum=momentum)
    for _ in range(int(20 * theory.effective_window(momentum))):
        opt.step(rng.standard_normal(out=grad))
    return _estimate(opt.velocity**2)


def rows(steps: int = 1000, runs: int = 2048) -> Iterator[Row]:
    """Compare measured variances with predictions.

    Those of the parameters are predicted by the Lyapunov equation, those of the ema velocity by the sum of its squared
    weights.
    """
    for ah, mu in SETTINGS:
        for rule in RULES:
            lr = ah / (1.0 - mu) if rule.startswith("ema") else ah
            predicted = float(theory.stationary_variance(lr, mu, 1.0, 1.0, rule=rule))
            found = variance(rule, lr, mu, steps, runs)
            group = f"stationary variance, αh = {ah:g}, μ = {mu:g}"
            yield _row(f"{group}, {rule}", predicted, found, group, "stationary variance under noise")
    for mu in MOMENTA:
        predicted = float((theory.ema_weights(mu, int(40 * theory.effective_window(mu))) ** 2).sum())
        what = f"variance of an average of noise, ema, β = {mu:g}: (1 − β)/(1 + β)"
        yield _row(what, predicted, ema_variance(mu, 50 * runs), what, "variance of an average of noise")


def _estimate(samples: npt.NDArray[np.float64]) -> Estimate:
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(samples.size)))


def _row(what: str, predicted: float, found: Estimate, group: str, topic: str) -> Row:
    """Return a row whose error is in standard errors of the measured mean."""
    error = abs(found.mean - predicted) / found.error
    return Row(what, predicted, found.mean, error, SIGMAS, group, f"{topic} (standard errors)")
