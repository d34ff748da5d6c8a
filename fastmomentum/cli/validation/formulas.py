"""Compare the theory with published formulas, and hold the results of a comparison in rows.

Theory and kernels both read the functions of the rules, so that they would agree on a rule that is written down
wrongly. The formulas in this file are taken from the literature instead, and would disagree.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from fastmomentum import theory


class Row(NamedTuple):
    """Hold one prediction with its measurement, and the greatest error at which the prediction holds.

    Attributes
    ----------
    what : str
        The name of the quantity and of the run.
    predicted, measured : float
        The value by the theory, and the value measured on the compiled kernels.
    error : float
        The error, in the unit that the topic names.
    limit : float
        The greatest error at which the prediction holds.
    group : str
        The name of the group; the table shows the worst row of each group.
    topic : str
        The kind of the prediction, with the unit of the error; benchmarks/README.md shows the worst row of each topic.
    """

    what: str
    predicted: float
    measured: float
    error: float
    limit: float
    group: str
    topic: str

    @property
    def holds(self) -> bool:
        """Whether the error is within its limit; False if the error is NaN."""
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        """The error divided by its limit; inf if the error is NaN, or above a limit of 0."""
        if not self.holds:
            return self.error / self.limit if self.limit and self.error == self.error else float("inf")
        return self.error / self.limit if self.limit else 0.0


def relative(what: str, predicted: float, measured: float, limit: float, group: str, topic: str) -> Row:
    """Return a row whose error is relative to the predicted value."""
    return Row(what, predicted, measured, abs(measured / predicted - 1.0), limit, group, topic)


def worst(rows: Iterable[Row], key: str = "group") -> list[tuple[Row, int]]:
    """Return the row of greatest severity of each group, or of each topic, and the number of rows in it."""
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(getattr(row, key), []).append(row)
    return [(max(each, key=lambda row: row.severity), len(each)) for each in rows_of.values()]


class Settings(TypedDict):
    """Hold the arguments of Momentum for one run."""

    rule: str
    lr: float
    momentum: float


Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", float, Floats)

HEAVY_BALLS = ("heavy_ball", "classical", "pytorch", "ema")
NESTEROVS = ("pytorch_nesterov", "classical_nesterov", "ema_nesterov", "nesterov_positions")
RULES = ("sgd", *HEAVY_BALLS, *NESTEROVS)

CONDITIONS = (2.0, 1e2, 1e4, 1e6, 1e8)


def lr_factor(rule: str, momentum: Number) -> Number:
    """Return the factor between lr and the effective learning rate α.

    α = (1 − μ)·lr for the ema rules, α = lr for all others
    """
    return 1.0 - momentum if rule.startswith("ema") else 1.0 + 0.0 * momentum


def radius(rule: str, ah: Floats, mu: Floats) -> Floats:
    """Return the spectral radius ρ, which is the largest modulus of the roots of a published polynomial.

    λ² − (1 + μ − αh)λ + μ for heavy ball, λ² − (1 + μ)(1 − αh)λ + μ(1 − αh) for Nesterov's method
    """
    if rule == "sgd":
        return np.abs(1.0 - ah) + 0.0 * mu
    nesterov = rule in NESTEROVS
    sum_of_roots = (1.0 + mu) * (1.0 - ah) if nesterov else 1.0 + mu - ah
    product = mu * (1.0 - ah) if nesterov else mu + 0.0 * ah
    root = np.sqrt((sum_of_roots * sum_of_roots / 4.0 - product).astype(np.complex128))
    return np.maximum(np.abs(sum_of_roots / 2.0 + root), np.abs(sum_of_roots / 2.0 - root))


def critical_momentum(rule: str, ah: Floats) -> Floats:
    """Return the momentum of critical damping, at which the two roots coincide; inf if there is none."""
    root = np.sqrt(ah)
    return np.where(ah < 1.0, (1.0 - root) / (1.0 + root), np.inf) if rule in NESTEROVS else (1.0 - root) ** 2


def published_tuning(rule: str, m: float, L: float) -> tuple[float, float, float]:
    """Return α, μ and 1 − ρ of the optimal tuning for curvatures in [m, L].

    The tunings are Cauchy's for gradient descent, Polyak's (1964) for heavy ball, and that of Lessard, Recht and
    Packard (2016) for Nesterov's method.
    """
    k = L / m
    if rule == "sgd":
        return 2.0 / (L + m), 0.0, 2.0 / (k + 1.0)
    if rule in HEAVY_BALLS:
        return (2.0 / (L**0.5 + m**0.5)) ** 2, ((k**0.5 - 1.0) / (k**0.5 + 1.0)) ** 2, 2.0 / (k**0.5 + 1.0)
    root = (3.0 * k + 1.0) ** 0.5
    return 4.0 / (3.0 * L + m), (root - 2.0) / (root + 2.0), 2.0 / root


def stability_limit(rule: str, mu: float) -> float:
    """Return the αh below which the rule converges."""
    return 2.0 if rule == "sgd" else 2.0 + 2.0 * mu if rule in HEAVY_BALLS else (2.0 + 2.0 * mu) / (1.0 + 2.0 * mu)


def rows() -> Iterator[Row]:
    """Compare optimal tunings and stability limits with the published formulas, as the predicted values of the rows."""
    for rule in RULES:
        for condition in CONDITIONS:
            m, L = 0.3, 0.3 * condition
            alpha, mu, gain = published_tuning(rule, m, L)
            found = theory.optimal(m, L, rule=rule)
            pairs = (
                ("αL", alpha * L, found.lr * lr_factor(rule, found.momentum) * L),
                ("μ", mu, found.momentum),
                ("1 − ρ", gain, 1.0 - found.rate),
            )
            for name, published, ours in pairs:
                error = abs(ours - published) / (published or 1.0)
                topic = "optimal tunings, against the published formulas (relative)"
                what = f"{name} of the optimal tuning, κ = {condition:g}, {rule}"
                yield Row(what, published, ours, error, 1e-7, topic, topic)
        for mu in (0.0, 0.5, 0.99):
            published = stability_limit(rule, mu)
            ours = float(theory.max_stable_lr(mu, 3.0, rule=rule)) * 3.0 * lr_factor(rule, mu if rule != "sgd" else 0.0)
            topic = "stability limits, against the published formulas (relative)"
            yield relative(f"αh at the limit, μ = {mu:g}, {rule}", published, ours, 1e-12, topic, topic)
