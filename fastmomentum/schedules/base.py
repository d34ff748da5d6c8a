"""What every schedule is, and how schedules are put together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fastmomentum import checks
from fastmomentum.checks import FINITE, Range


@dataclass(frozen=True)
class Schedule(ABC):
    """A value for each step, as a formula: what all schedules have in common.

    Every schedule is a frozen dataclass. Its float fields are finite numbers, in :attr:`ranges` where that says more,
    its int fields whole numbers from 1; both are checked, and kept as Python's own, when it is made.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Halving(fm.schedules.Schedule):
    ...     start: float
    ...     def _value(self, t):
    ...         return self.start / 2**t
    ...     def _formula(self, t):
    ...         return f"{self.start}/2^{t}"
    >>> print(Halving(0.5).warmup(2))
    0 + (0.5 − 0)·min(t/2, 1) for t < 2, then 0.5/2^(t − 2)
    """

    ranges: ClassVar[Mapping[str, Range]] = {}
    """The ranges of float fields that may not be any finite number."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _checked(field.name, field.type, getattr(self, field.name), self.ranges.get(field.name, FINITE))
            object.__setattr__(self, field.name, value)

    def __call__(self, step: int) -> float:
        """The value for the update with this number, from 0.

        Raises
        ------
        TypeError, ValueError
            If `step` is no whole number from 0 to 2⁶².
        """
        is_plain = type(step) is int and 0 <= step <= 2**62  # in every step of a run: not worth a call
        return self._value(step if is_plain else checks.integer("step", step))

    def __str__(self) -> str:
        return self._formula("t")

    def begins(self, step: int) -> bool:
        """Whether a period begins at this step, behind another: where ``Momentum(restart="schedule")`` restarts.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> warm = fm.schedules.WarmRestarts(0.1, 0.0, period=4)
        >>> [t for t in range(10) if warm.begins(t)]
        [4, 8]
        """
        return False

    @abstractmethod
    def _value(self, t: int) -> float:
        """The value at step t ≥ 0."""

    @abstractmethod
    def _formula(self, t: str) -> str:
        """The formula, with the step called `t`: a name, or a difference in brackets."""

    def then(self, second: "Schedule", *, after: int) -> "Then":
        """s(t) for t < after, then second(t − after): the second begins at its own beginning.

        Parameters
        ----------
        second : Schedule
            What comes then.
        after : int
            The number of steps of this one, ≥ 1.

        Raises
        ------
        TypeError, ValueError
            If `second` is no schedule, or `after` no whole number ≥ 1.

        Notes
        -----
        torch.optim.lr_scheduler.SequentialLR, optax.join_schedules.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> drop = fm.schedules.Constant(0.1).then(fm.schedules.Constant(0.01), after=30)
        >>> drop(29), drop(30)
        (0.1, 0.01)
        """
        return Then(self, second, after)

    def warmup(self, steps: int, start: float = 0.0) -> "Then":
        """start + (s(0) − start)·t/steps for t < steps, then s(t − steps): s begins at its own beginning.

        Parameters
        ----------
        steps : int
            Steps of the warm-up, ≥ 1; the first after them has s(0).
        start : float
            The value at step 0.

        Raises
        ------
        TypeError, ValueError
            If `steps` is no whole number ≥ 1, or `start` not finite.

        Notes
        -----
        optax.warmup_cosine_decay_schedule, but for its counting the warm-up among the steps of the cosine; in torch
        LinearLR and SequentialLR. A learning rate that starts from 0 wastes an update; s(0)·(t + 1)/n is
        ``s.warmup(n - 1, start=s(0) / n)``.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> warm = fm.schedules.Constant(0.5).warmup(4)
        >>> [warm(t) for t in range(6)]
        [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
        """
        return Linear(start, self(0), steps).then(self, after=steps)


@dataclass(frozen=True)
class Linear(Schedule):
    """start + (end − start)·min(t/steps, 1).

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
    Momentum of 0.5 at first and 0.9 later is Hinton's advice (2010, section 9). optax.linear_schedule; torch's LinearLR
    with the factors start/lr and end/lr; Keras's PolynomialDecay with power 1.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> annealed = fm.schedules.Linear(0.5, 0.9, steps=4)
    >>> [round(annealed(t), 9) for t in range(6)]
    [0.5, 0.6, 0.7, 0.8, 0.9, 0.9]
    """

    start: float
    end: float
    steps: int

    def _value(self, t: int) -> float:
        return self.start + (self.end - self.start) * (t / self.steps) if t < self.steps else self.end

    def _formula(self, t: str) -> str:
        start, end = shown(self.start), shown(self.end)
        return f"{start} + ({end} − {start})·min({t}/{self.steps}, 1)"


@dataclass(frozen=True)
class Then(Schedule):
    """first(t) for t < after, then second(t − after): what :meth:`Schedule.then` makes.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.Constant(0.1).then(fm.schedules.Exponential(0.1, 0.5), after=10))
    0.1 for t < 10, then 0.1·0.5^(t − 10)
    """

    first: Schedule
    second: Schedule
    after: int

    def begins(self, step: int) -> bool:
        """See :class:`Schedule`; going over to the second is no new period.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> warm = fm.schedules.WarmRestarts(0.1, 0.0, period=4).warmup(3)
        >>> [t for t in range(12) if warm.begins(t)]
        [7, 11]
        """
        return self.first.begins(step) if step < self.after else self.second.begins(step - self.after)

    def _value(self, t: int) -> float:
        return self.first._value(t) if t < self.after else self.second._value(t - self.after)

    def _formula(self, t: str) -> str:
        first, second = self.first._formula(t), self.second._formula(f"({t} − {self.after})")
        return f"{f'[{first}]' if ' for ' in first else first} for {t} < {self.after}, then {second}"


def shown(number: float) -> str:
    """A number as formulas have it: 1 for 1.0, and no digit less than it needs."""
    return repr(number).removesuffix(".0")


def _checked(name: str, kind: Any, value: Any, allowed: Range) -> Any:
    if kind in (float, "float"):  # as text where annotations are left as they were written
        return checks.number(name, value, allowed)
    if kind in (int, "int"):
        return checks.integer(name, value, least=1)
    if isinstance(kind, type) and not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}; got {checks.describe(value)}")
    return value
