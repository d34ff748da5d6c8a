"""Which values a hyper-parameter may take."""

from collections.abc import Mapping
from typing import NamedTuple

INFINITY = float("inf")


class Range(NamedTuple):
    """The values that a hyper-parameter may take: low ≤ x ≤ high; `above` and `below` leave out low and high."""

    low: float
    high: float
    above: bool = False
    infinite: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, float) or (not self.infinite and value - value != 0.0):
            return False
        enough = self.low < value if self.above else self.low <= value
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.infinite:
            return "a number, -inf and inf included"
        if self.low == -INFINITY:
            return "a finite number"
        if self.high == INFINITY:
            return f"a finite number {'>' if self.above else '>='} {self.low:g}"
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


FINITE = Range(-INFINITY, INFINITY)
ANY_BOUND = Range(-INFINITY, INFINITY, infinite=True)
AT_LEAST_ZERO = Range(0.0, INFINITY)
ABOVE_ZERO = Range(0.0, INFINITY, above=True)
AT_LEAST_ONE = Range(1.0, INFINITY)
UNIT_INTERVAL = Range(0.0, 1.0)
BELOW_ONE = Range(0.0, 1.0, below=True)
INSIDE_UNIT = Range(0.0, 1.0, above=True, below=True)

RANGES: Mapping[str, Range] = {
    "lr": AT_LEAST_ZERO,
    "lr_next": AT_LEAST_ZERO,
    "momentum": UNIT_INTERVAL,
    "momentum_next": UNIT_INTERVAL,
    "dampening": UNIT_INTERVAL,
    "weight_decay": AT_LEAST_ZERO,
    "decoupled_weight_decay": AT_LEAST_ZERO,
    "clip_value": ABOVE_ZERO,
    "max_norm": ABOVE_ZERO,
}
"""The ranges of the names that the field has fixed; other names are finite unless their record says more."""
