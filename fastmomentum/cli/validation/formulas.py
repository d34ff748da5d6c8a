"""One line of the validation's table.

The formulas as they are printed, apart from the rules' own functions, which theory and kernels both read.

Were a rule written down wrongly, theory and kernels would agree on it; these would not.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import theory


class Row(NamedTuple):
    """What was predicted, what was measured, and how far apart they may be.

    Attributes
    ----------
    what : str
        The quantity, and of which run.
    predicted, measured : float
        By the theory, and on the compiled kernels.
    error : float
        In the measure that the topic names.
    limit : float
        Up to which error the prediction holds.
    group : str
        What rows it is shown together with: the table has the worst of each group.
    topic : str
        What it is an instance of, with the measure of the error: the summary has the worst of each topic.
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
        """The verdict; an error that is not a number is a miss."""
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        """The error in units of its limit; nothing is worse than what is no number."""
        if not self.holds:
            return self.error / self.limit if self.limit and self.error == self.error else float("inf")
        return self.error / self.limit if self.limit else 0.0


def relative(what: str, predicted: float, measured: float, limit: float, group: str, topic: str) -> Row:
    """A row whose error is relative to what was predicted."""
    return Row(what, predicted, measured, abs(measured / predicted - 1.0), limit, group, topic)


def worst(rows: Iterable[Row], key: str = "group") -> list[tuple[Row, int]]:
    """Of every group or topic the row that is nearest to its limit, or furthest beyond it, and how many there are."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(getattr(row, key), []).append(row)
    return [(max(each, key=lambda row: row.severity), len(each)) for each in together.values()]


Floats = npt.NDArray[np.float64]

HEAVY_BALLS = ("heavy_ball", "classical", "pytorch", "ema")
NESTEROVS = ("pytorch_nesterov", "classical_nesterov", "ema_nesterov", "nesterov_positions")
RULES = ("sgd", *HEAVY_BALLS, *NESTEROVS)

CONDITIONS = (2.0, 1e2, 1e4, 1e6, 1e8)


def effective(rule: str, momentum: Any) -> Any:
    """What lr is multiplied with to give the effective learning rate α."""
    return 1.0 - momentum if rule.startswith("ema") else 1.0 + 0.0 * momentum


def radius(rule: str, ah: Floats, mu: Floats) -> Floats:
    """The larger root of λ² − (1 + μ − αh)λ + μ, or of λ² − (1 + μ)(1 − αh)λ + μ(1 − αh) for Nesterov's method."""
    if rule == "sgd":
        return np.abs(1.0 - ah) + 0.0 * mu
    nesterov = rule in NESTEROVS
    trace = (1.0 + mu) * (1.0 - ah) if nesterov else 1.0 + mu - ah
    product = mu * (1.0 - ah) if nesterov else mu + 0.0 * ah
    root = np.sqrt((trace * trace / 4.0 - product).astype(np.complex128))
    return np.maximum(np.abs(trace / 2.0 + root), np.abs(trace / 2.0 - root))


def critical(rule: str, ah: Floats) -> Floats:
    """The momentum at which the two roots are one; inf where there is none."""
    root = np.sqrt(ah)
    return np.where(ah < 1.0, (1.0 - root) / (1.0 + root), np.inf) if rule in NESTEROVS else (1.0 - root) ** 2


def printed_tuning(rule: str, m: float, L: float) -> tuple[float, float, float]:
    """α, μ and 1 − ρ: Cauchy's, Polyak's, or that of Lessard, Recht and Packard 2016."""
    k = L / m
    if rule == "sgd":
        return 2.0 / (L + m), 0.0, 2.0 / (k + 1.0)
    if rule in HEAVY_BALLS:
        return (2.0 / (L**0.5 + m**0.5)) ** 2, ((k**0.5 - 1.0) / (k**0.5 + 1.0)) ** 2, 2.0 / (k**0.5 + 1.0)
    root = (3.0 * k + 1.0) ** 0.5
    return 4.0 / (3.0 * L + m), (root - 2.0) / (root + 2.0), 2.0 / root


def limit(rule: str, mu: float) -> float:
    """The αh below which it converges."""
    return 2.0 if rule == "sgd" else 2.0 + 2.0 * mu if rule in HEAVY_BALLS else (2.0 + 2.0 * mu) / (1.0 + 2.0 * mu)


def rows() -> Iterator[Row]:
    """Optimal tunings and stability limits, against the table; predicted is what is printed."""
    for rule in RULES:
        for condition in CONDITIONS:
            m, L = 0.3, 0.3 * condition
            alpha, mu, gain = printed_tuning(rule, m, L)
            found = theory.optimal(m, L, rule=rule)
            pairs = (
                ("αL", alpha * L, found.lr * effective(rule, found.momentum) * L),
                ("μ", mu, found.momentum),
                ("1 − ρ", gain, 1.0 - found.rate),
            )
            for name, printed, ours in pairs:
                error = abs(ours - printed) / (printed or 1.0)
                topic = "optimal tunings, against the printed formulas (relative)"
                yield Row(
                    f"{name} of the optimal tuning, κ = {condition:g}, {rule}", printed, ours, error, 1e-7, topic, topic
                )
        for mu in (0.0, 0.5, 0.99):
            printed = limit(rule, mu)
            ours = float(theory.max_stable_lr(mu, 3.0, rule=rule)) * 3.0 * effective(rule, mu if rule != "sgd" else 0.0)
            topic = "stability limits, against the printed formulas (relative)"
            yield Row(
                f"αh at the limit, μ = {mu:g}, {rule}", printed, ours, abs(ours / printed - 1.0), 1e-12, topic, topic
            )
