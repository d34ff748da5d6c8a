"""Noise in the gradient: the variance that a run keeps, and how momentum averages."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation.formulas import RULES, Row

SIGMAS = 4.0
"""Half the width of the confidence intervals, in standard errors of the mean: one in 16,000 would miss by chance."""

SETTINGS = ((0.1, 0.9), (0.5, 0.5), (1.2, 0.8))
"""Pairs (αh, μ) of long stochastic runs: monotone noise, oscillation, and close to the limit of the Nesterov forms."""

MOMENTA = (0.5, 0.9, 0.99)


class Estimate(NamedTuple):
    """A mean of independent figures, and its standard error."""

    mean: float
    error: float


def variance(rule: str, lr: float, momentum: float, steps: int, runs: int = 2048) -> Estimate:
    """The mean square of p over the second half of so many independent runs on ½x², with unit noise."""
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


def averaged(momentum: float, runs: int = 100_000) -> Estimate:
    """The mean square of the velocity of rule "ema" long after its start, where the gradient is unit noise alone."""
    rng = np.random.default_rng(0)
    p, grad = np.zeros(runs), np.empty(runs)
    opt = fm.Momentum(p, rule="ema", lr=0.0, momentum=momentum)
    for _ in range(int(20 * theory.effective_window(momentum))):
        opt.step(rng.standard_normal(out=grad))
    return _estimate(opt.velocity**2)


def rows(steps: int = 1000, runs: int = 2048) -> Iterator[Row]:
    """Variances against the Lyapunov equation's, and of the average against the sum of its squared weights."""
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
        yield _row(what, predicted, averaged(mu, 50 * runs), what, "variance of an average of noise")


def _estimate(figures: np.ndarray) -> Estimate:
    return Estimate(float(figures.mean()), float(figures.std(ddof=1) / np.sqrt(figures.size)))


def _row(what: str, predicted: float, found: Estimate, group: str, topic: str) -> Row:
    """The error is in standard errors of what was measured."""
    error = abs(found.mean - predicted) / found.error
    return Row(what, predicted, found.mean, error, SIGMAS, group, f"{topic} (standard errors)")
