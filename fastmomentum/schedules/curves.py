"""Define schedules that follow a curve: constant, cosine, exponential, staircase, warm restarts, 1cycle."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, inf, pi
from typing import ClassVar, NamedTuple

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, INSIDE_UNIT, UNIT_INTERVAL, Range
from fastmomentum.schedules.base import Schedule, format_number


@dataclass(frozen=True)
class Constant(Schedule):
    """Give one number at every step, for example as a part of a joined schedule.

    Parameters
    ----------
    number : float
        The value.

    Raises
    ------
    TypeError, ValueError
        If the number is not finite.

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
        return format_number(self.number)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Change along half a cosine from one value to another, then keep the last value.

    end + (start − end)·(1 + cos(π·min(t/steps, 1)))/2

    Parameters
    ----------
    start, end : float
        The values at step 0 and from step `steps` on.
    steps : int
        The number of steps between them, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If a value is not finite, or `steps` is not a whole number ≥ 1.

    Notes
    -----
    Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts, which :class:`WarmRestarts` has. Equivalent to
    torch's CosineAnnealingLR(T_max=steps, eta_min=end) up to T_max (later torch's value rises again, while this one
    stays), to optax.cosine_decay_schedule and to Keras's CosineDecay with alpha = end/start.

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
        return half_cosine(self.start, self.end, t / self.steps) if t < self.steps else self.end

    def _formula(self, t: str) -> str:
        return half_cosine_formula(self.start, self.end, f"min({t}/{self.steps}, 1)")


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiply the value by one factor at every step.

    start·factor^t

    Parameters
    ----------
    start : float
        The value at step 0.
    factor : float
        The factor from one step to the next, > 0. A value beyond double precision becomes infinite.

    Raises
    ------
    TypeError, ValueError
        If `start` is not finite, or `factor` is not finite and > 0.

    Notes
    -----
    Equivalent to torch's ExponentialLR(gamma=factor), to optax.exponential_decay with transition_steps=1, and to
    Keras's ExponentialDecay with decay_steps=1. The factor for a half-life of n steps is 0.5**(1/n).

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
        return exponential(self.start, self.factor, t)

    def _formula(self, t: str) -> str:
        return f"{format_number(self.start)}·{format_number(self.factor)}^{t}"


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply the value by one factor every few steps, as a staircase.

    start·factor^⌊t/every⌋

    Parameters
    ----------
    start : float
        The value of the first `every` steps.
    factor : float
        The factor from one stair to the next, > 0. A value beyond double precision becomes infinite.
    every : int
        The number of steps of each stair, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If `start` is not finite, `factor` is not finite and > 0, or `every` is not a whole number ≥ 1.

    Notes
    -----
    Equivalent to torch's StepLR(step_size=every, gamma=factor), and to optax.exponential_decay and Keras's
    ExponentialDecay with staircase=True. For stairs of unequal lengths, join constants by :meth:`Schedule.then`.

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
        return exponential(self.start, self.factor, t // self.every)

    def _formula(self, t: str) -> str:
        return f"{format_number(self.start)}·{format_number(self.factor)}^⌊{t}/{self.every}⌋"


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Fall along half a cosine in every period, and start again at the next period.

    end + (start − end)·(1 + cos(π·u/T))/2

    u is the number of steps since the period began, and T is the period's length. The next period has growth·T steps.

    Parameters
    ----------
    start, end : float
        The value at the beginning of each period, and the value that it falls towards.
    period : int
        The number of steps of the first period, ≥ 1.
    growth : int
        The factor from a period's length to the next one's, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If a value is not finite, or `period` or `growth` is not a whole number ≥ 1.

    Notes
    -----
    Loshchilov and Hutter 2017 (SGDR), equation 5. Equivalent to torch's CosineAnnealingWarmRestarts(T_0=period,
    T_mult=growth), optax.sgdr_schedule and Keras's CosineDecayRestarts.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> restarted = fm.schedules.WarmRestarts(0.1, 0.0, period=2, growth=2)
    >>> [round(restarted(t), 3) for t in range(7)]
    [0.1, 0.05, 0.1, 0.085, 0.05, 0.015, 0.1]
    """

    start: float
    end: float
    period: int
    growth: int = 1

    def begins(self, step: int) -> bool:
        """Return whether a new period, other than the first, begins at this step.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> [t for t in range(20) if fm.schedules.WarmRestarts(0.1, 0.0, period=2, growth=2).begins(t)]
        [2, 6, 14]
        """
        return step > 0 and self._place_in_period(step)[0] == 0

    def _value(self, t: int) -> float:
        t, period = self._place_in_period(t)
        return half_cosine(self.start, self.end, t / period)

    def _place_in_period(self, t: int) -> tuple[int, int]:
        """Return the number of steps since the current period began, and the length of the period."""
        period = self.period
        if self.growth == 1:
            t %= period
        while t >= period:
            t, period = t - period, period * self.growth
        return t, period

    def _formula(self, t: str) -> str:
        if self.growth == 1:
            return half_cosine_formula(self.start, self.end, f"({t} mod {self.period})/{self.period}")
        lengths = ", ".join(str(self.period * self.growth**k) for k in range(3))
        formula = f"{half_cosine_formula(self.start, self.end, 'u/T')}, u steps into a period of T = {lengths}, …"
        return formula if t == "t" else f"{formula} from {t} = 0"


@dataclass(frozen=True)
class Cycle(Schedule):
    """Change along half a cosine from start to peak, then along another one from peak to end.

    The value is `peak` at step rise·steps − 1, and `end` from step steps − 1 on.

    Parameters
    ----------
    start, peak, end : float
        The three values. The peak may be lower than both others. It lies between two steps if rise·steps is not a whole
        number.
    steps : int
        The number of all steps, ≥ 2.
    rise : float
        The fraction of steps before the peak, in (0, 1), more than 1/steps.

    Raises
    ------
    TypeError, ValueError
        If a value is not finite, `steps` is not a whole number ≥ 2, or `rise` is out of its range.

    Notes
    -----
    :func:`one_cycle` returns two of these, for learning rate and momentum.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> up_and_down = fm.schedules.Cycle(0.1, 1.0, 0.0, steps=7, rise=3 / 7)
    >>> [round(up_and_down(t), 9) for t in range(9)]
    [0.1, 0.55, 1.0, 0.853553391, 0.5, 0.146446609, 0.0, 0.0, 0.0]
    """

    ranges: ClassVar[Mapping[str, Range]] = {"rise": INSIDE_UNIT}
    start: float
    peak: float
    end: float
    steps: int
    rise: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"steps: expected a whole number >= 2; got {self.steps}")
        if not 0.0 < self.turn < self.steps - 1:
            raise ValueError(f"rise: expected a number between 1/steps = 1/{self.steps} and 1; got {self.rise!r}")

    @property
    def turn(self) -> float:
        """Return the position of the peak, in steps from 0; it need not be a whole number."""
        return self.rise * self.steps - 1.0

    def _value(self, t: int) -> float:
        turn, last = self.turn, self.steps - 1
        if t <= turn:
            return half_cosine(self.start, self.peak, t / turn)
        return half_cosine(self.peak, self.end, (min(t, last) - turn) / (last - turn))

    def _formula(self, t: str) -> str:
        turn, last = format_number(self.turn), self.steps - 1
        up = half_cosine_formula(self.start, self.peak, f"{t}/{turn}")
        down = half_cosine_formula(self.peak, self.end, f"min(({t} − {turn})/({last} − {turn}), 1)")
        return f"{up} for {t} ≤ {turn}, then {down}"


class Pair(NamedTuple):
    """Hold the schedules of a learning rate and a momentum that belong together."""

    lr: Schedule
    momentum: Schedule


def one_cycle(
    peak: float,
    *,
    steps: int,
    rise: float = 0.3,
    start_ratio: float = 25.0,
    end_ratio: float = 1e4,
    low_momentum: float = 0.85,
    high_momentum: float = 0.95,
) -> Pair:
    """Return the schedules of learning rate and momentum of the 1cycle policy.

    lr: peak/25 → peak → peak/25/10⁴; momentum: 0.95 → 0.85 → 0.95; each along half cosines

    Parameters
    ----------
    peak : float
        The greatest learning rate, > 0.
    steps : int
        The number of all updates, ≥ 2; later both schedules keep their last values.
    rise : float
        The fraction of steps before the peak, in (0, 1), more than 1/steps.
    start_ratio, end_ratio : float
        The peak divided by the first learning rate, and the first learning rate divided by the last; > 0.
    low_momentum, high_momentum : float
        The momentum at the peak of the learning rate, and at both ends, in [0, 1].

    Returns
    -------
    Pair
        (lr, momentum), each a :class:`Cycle`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range.

    Notes
    -----
    Smith 2018 (arXiv:1803.09820), in the form of torch's OneCycleLR(max_lr=peak, total_steps=steps, pct_start=rise,
    div_factor=start_ratio, final_div_factor=end_ratio, base_momentum=low_momentum, max_momentum=high_momentum). It
    follows cosines, while Smith used straight lines. optax.cosine_onecycle_schedule peaks and ends one step later, at
    ⌊rise·steps⌋ and at `steps`.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> cycle = fm.schedules.one_cycle(0.5, steps=1000)
    >>> [(round(cycle.lr(t), 6), round(cycle.momentum(t), 6)) for t in (0, 299, 999)]
    [(0.02, 0.95), (0.5, 0.85), (2e-06, 0.95)]
    >>> opt = fm.Momentum(np.ones(3), lr=cycle.lr, momentum=cycle.momentum)
    """
    first = checks.number("peak", peak, ABOVE_ZERO) / checks.number("start_ratio", start_ratio, ABOVE_ZERO)
    last = first / checks.number("end_ratio", end_ratio, ABOVE_ZERO)
    low = checks.number("low_momentum", low_momentum, UNIT_INTERVAL)
    high = checks.number("high_momentum", high_momentum, UNIT_INTERVAL)
    if low > high:
        raise ValueError(f"low_momentum: expected a number up to high_momentum, {high}; got {low}")
    return Pair(Cycle(first, peak, last, steps, rise), Cycle(high, low, high, steps, rise))


def half_cosine(start: float, end: float, fraction: float) -> float:
    """Return the value of half a cosine from start to end, at a fraction from 0 to 1 of its length.

    end + (start − end)·(1 + cos(π·fraction))/2, exact at both ends
    """
    return end + (start - end) * ((1.0 + cos(pi * fraction)) / 2.0) if fraction else start


def half_cosine_formula(start: float, end: float, fraction: str) -> str:
    """Return the formula of :func:`half_cosine` as text."""
    return f"{format_number(end)} + ({format_number(start)} − {format_number(end)})·(1 + cos(π·{fraction}))/2"


def exponential(start: float, factor: float, count: int) -> float:
    """Return start·factor^count, or an infinity if it exceeds double precision."""
    try:  # The power is multiplied in two halves, as the whole power may overflow although the product does not.
        return start * factor ** (count // 2) * factor ** (count - count // 2)
    except OverflowError:  # An optimiser refuses an infinite setting, with a message that names it.
        return start * inf if start else start
