"""Schedules that fall, or rise, by a formula of the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from typing import ClassVar

from fastmomentum.ranges import ABOVE_ZERO, Range
from fastmomentum.schedules.base import Schedule, shown


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number at every step: a piece to put others behind.

    Parameters
    ----------
    number : float
        The number.

    Raises
    ------
    TypeError, ValueError
        If it is not finite.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.schedules.Constant(0.1)(1000)
    0.1
    """

    number: float

    def _value(self, t: int) -> float:
        return self.number

    def _formula(self, t: str) -> str:
        return shown(self.number)


@dataclass(frozen=True)
class Cosine(Schedule):
    """end + (start − end)·(1 + cos(π·min(t/steps, 1)))/2: half a cosine.

    Parameters
    ----------
    start, end : float
        The values at step 0 and from `steps` on.
    steps : int
        ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If a value is not finite, or `steps` no whole number ≥ 1.

    Notes
    -----
    Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts; :class:`WarmRestarts` has them. torch's
    CosineAnnealingLR(T_max=steps, eta_min=end) up to T_max, where it turns round and this holds;
    optax.cosine_decay_schedule and Keras's CosineDecay with alpha = end/start.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> falling = fm.schedules.Cosine(0.1, 0.0, steps=3)
    >>> [round(falling(t), 9) for t in range(5)]
    [0.1, 0.075, 0.025, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def _value(self, t: int) -> float:
        return half_cosine(self.start, self.end, min(t, self.steps) / self.steps)

    def _formula(self, t: str) -> str:
        return half_cosine_formula(self.start, self.end, f"min({t}/{self.steps}, 1)")


@dataclass(frozen=True)
class Exponential(Schedule):
    """start·factor^t.

    Parameters
    ----------
    start : float
        The value at step 0.
    factor : float
        What each step multiplies it by, > 0; what has grown beyond double precision is infinite.

    Raises
    ------
    TypeError, ValueError
        If `start` is not finite, or `factor` not finite and > 0.

    Notes
    -----
    torch's ExponentialLR(gamma=factor), optax.exponential_decay and Keras's ExponentialDecay with one step a decay. A
    half-life of n steps is the factor 0.5**(1/n).

    Examples
    --------
    >>> import fastmomentum as fm
    >>> halved = fm.schedules.Exponential(0.8, 0.5)
    >>> [halved(t) for t in range(4)]
    [0.8, 0.4, 0.2, 0.1]
    """

    ranges: ClassVar[Mapping[str, Range]] = {"factor": ABOVE_ZERO}
    start: float
    factor: float

    def _value(self, t: int) -> float:
        return grown(self.start, self.factor, t)

    def _formula(self, t: str) -> str:
        return f"{shown(self.start)}·{shown(self.factor)}^{t}"


@dataclass(frozen=True)
class Step(Schedule):
    """start·factor^⌊t/every⌋: a staircase.

    Parameters
    ----------
    start : float
        The value of the first `every` steps.
    factor : float
        What each stair multiplies it by, > 0; what has grown beyond double precision is infinite.
    every : int
        Steps a stair, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If `start` is not finite, `factor` not finite and > 0, or `every` no whole number ≥ 1.

    Notes
    -----
    torch's StepLR(step_size=every, gamma=factor); optax.exponential_decay and Keras's ExponentialDecay with
    staircase=True. Stairs of unequal length are constants put behind one another with :meth:`Schedule.then`.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> stairs = fm.schedules.Step(0.1, 0.5, every=2)
    >>> [stairs(t) for t in range(5)]
    [0.1, 0.1, 0.05, 0.05, 0.025]
    """

    ranges: ClassVar[Mapping[str, Range]] = {"factor": ABOVE_ZERO}
    start: float
    factor: float
    every: int

    def _value(self, t: int) -> float:
        return grown(self.start, self.factor, t // self.every)

    def _formula(self, t: str) -> str:
        return f"{shown(self.start)}·{shown(self.factor)}^⌊{t}/{self.every}⌋"


def half_cosine(start: float, end: float, share: float) -> float:
    """From start to end as the share goes from 0 to 1; exactly these at both."""
    return end + (start - end) * ((1.0 + cos(pi * share)) / 2.0) if share else start


def half_cosine_formula(start: float, end: float, share: str) -> str:
    """What :func:`half_cosine` computes, written out."""
    return f"{shown(end)} + ({shown(start)} − {shown(end)})·(1 + cos(π·{share}))/2"


def grown(start: float, factor: float, count: int) -> float:
    """start·factor^count, by halves: the power alone may leave double precision where the product does not."""
    try:
        return start * factor ** (count // 2) * factor ** (count - count // 2)
    except OverflowError:  # Python's own way; infinity is what optimisers know to refuse
        return start * inf if start else start
