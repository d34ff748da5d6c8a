"""Sequences of momentum that theory, or long practice, has given."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import log, sqrt
from typing import ClassVar

from fastmomentum.ranges import UNIT_INTERVAL, Range
from fastmomentum.schedules.base import Schedule, shown


@dataclass(frozen=True)
class Nesterov(Schedule):
    """μ_k = (t_k − 1)/t_{k+1}, t_{k+1} = (1 + √(1 + 4t_k²))/2, t_0 = 1, where k is the step.

    Notes
    -----
    Nesterov 1983; Beck and Teboulle 2009 (FISTA), equations 4.2 and 4.3, where k counts from 1. With the rule
    nesterov_positions, which extrapolates at the end of its update, this is FISTA. The rules with a velocity, folded or
    with a look-ahead, multiply by a step's momentum what the step before it has left, so there it is
    ``Constant(0.0).then(Nesterov(), after=1)``.

    For convex functions without strong convexity, and lr = 1/L: f(x_k) − f* ≤ 2L‖x_0 − x*‖²/(k + 1)² after k updates.
    The values are right to 3e-16 at every step, and the millionth is found as fast as the hundredth.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print([round(fm.schedules.Nesterov()(k), 6) for k in (0, 1, 2, 1_000_000)])
    [0.0, 0.281754, 0.434043, 0.999997]
    """

    def _value(self, t: int) -> float:
        now = _nesterov_t(t)
        return (now - 1.0) / _following(now)

    def _formula(self, t: str) -> str:
        return f"(t_k − 1)/t_(k + 1), t_(k + 1) = (1 + √(1 + 4t_k²))/2, t_0 = 1, k = {t}"


@dataclass(frozen=True)
class NesterovSimple(Schedule):
    """(k − 1)/(k + 2) for the k-th update, k = t + 1: t/(t + 3), the simple form of Nesterov's sequence.

    Notes
    -----
    Su, Boyd and Candès 2016, with the bound f(x_k) − f* ≤ 2L‖x_0 − x*‖²/(k + 1)² of :class:`Nesterov`, and like it for
    nesterov_positions as it stands; Tseng 2008. The limit of small steps is ẍ + (3/t)ẋ + ∇f = 0.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> [fm.schedules.NesterovSimple()(t) for t in (0, 1, 3, 9)]
    [0.0, 0.25, 0.5, 0.75]
    """

    def _value(self, t: int) -> float:
        return t / (t + 3)

    def _formula(self, t: str) -> str:
        return f"{t}/({t} + 3)"


@dataclass(frozen=True)
class Sutskever(Schedule):
    """min(1 − 2^(−1 − log₂(⌊t/every⌋ + 1)), limit): 1/2, 3/4, 5/6, 7/8, … up to the limit.

    Parameters
    ----------
    limit : float
        μ_max, in [0, 1]; 0.999, 0.995, 0.99 and 0.9 in the paper.
    every : int
        Steps a stair, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If `limit` is out of range, or `every` no whole number ≥ 1.

    Notes
    -----
    Sutskever, Martens, Dahl and Hinton 2013, equation 5. They go down to 0.9 for the last 1000 steps:
    ``Sutskever(0.999).then(Constant(0.9), after=n - 1000)``.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> capped = fm.schedules.Sutskever(0.9)
    >>> [round(capped(t), 3) for t in (0, 249, 250, 750, 5000)]
    [0.5, 0.5, 0.75, 0.875, 0.9]
    """

    ranges: ClassVar[Mapping[str, Range]] = {"limit": UNIT_INTERVAL}
    limit: float = 0.999
    every: int = 250

    def _value(self, t: int) -> float:
        return min(1.0 - 0.5 / (t // self.every + 1), self.limit)

    def _formula(self, t: str) -> str:
        return f"min(1 − 2^(−1 − log₂(⌊{t}/{self.every}⌋ + 1)), {shown(self.limit)})"


def _following(t: float) -> float:
    return (1.0 + sqrt(1.0 + 4.0 * t * t)) / 2.0


def _beyond(t: float) -> float:
    """2t − φ(t) for φ(t) = 2t − log(t)/2 − 1/192t² − 1/576t³ + O(t⁻⁴), which each step raises by 1.

    The coefficients are those with which φ((1 + √(1 + 4t²))/2) − φ(t) = 1 as a series in 1/t.
    """
    return log(t) / 2.0 + (1.0 / 192.0 + 1.0 / (576.0 * t)) / (t * t)


_FIRST = tuple(accumulate(range(255), lambda t, _: _following(t), initial=1.0))
"""t_0 … t_255, by the recurrence. From there on, where t > 130, the series' next term, t⁻⁴/3840, moves μ by 3e-17."""

_OFFSET = 2.0 * _FIRST[-1] - _beyond(_FIRST[-1]) - (len(_FIRST) - 1)
"""φ(t_k) − k, the same for all k."""


def _nesterov_t(k: int) -> float:
    if k < len(_FIRST):
        return _FIRST[k]
    t = k / 2.0
    for _ in range(5):  # the error, of 2 or so where t is least, falls by 4t > 500 each time
        t = (k + _OFFSET + _beyond(t)) / 2.0
    return t
