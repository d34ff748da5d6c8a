"""Define the base class of schedules, and compose schedules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from fastmomentum import checks
from fastmomentum.checks import FINITE, Range


@dataclass(frozen=True)
class Schedule(ABC):
    """Give a value for each step: the base class of all schedules.

    A subclass is a frozen dataclass that defines `_value` and `_formula`. Its float fields must be finite numbers,
    within :attr:`ranges` if the field has an entry there; its int fields must be whole numbers ≥ 1. Both are checked,
    and converted to Python's numbers, when the schedule is made.

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
    """The ranges of float fields, by name; a field without an entry may be any finite number."""

    def __post_init__(self) -> None:
        for field in fields(self):
            allowed = self.ranges.get(field.name, FINITE)
            value = _check_field(field.name, field.type, getattr(self, field.name), allowed)
            object.__setattr__(self, field.name, value)

    def __call__(self, step: int) -> float:
        """Return the value for an update, given its number, counted from 0.

        Raises
        ------
        TypeError, ValueError
            If `step` is not a whole number from 0 to 2⁶².
        """
        if type(step) is int and 0 <= step <= 2**62:  # as in every step of a run, without the cost of another call
            return self._value(step)
        return self._value(checks.integer("step", step))

    def __str__(self) -> str:
        return self._formula("t")

    @property
    def keeps_velocity(self) -> bool:
        """Whether a momentum of 0 is part of a method that uses the velocity of that step later.

        With other momenta of 0 the rules of torch leave the velocity alone; ``Momentum`` describes it.
        """
        return False

    def begins(self, step: int) -> bool:
        """Return whether a new period, other than the first, begins at this step.

        ``Momentum(restart="schedule")`` resets the state at these steps.

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
        """Return the value at step t ≥ 0."""

    @abstractmethod
    def _formula(self, t: str) -> str:
        """Return the formula as text, in which `t` stands for the step: a name, or a difference in brackets."""

    def then(self, second: "Schedule", *, after: int) -> "Then":
        """Return a schedule that follows this one for `after` steps, then `second` from its own step 0.

        self(t) for t < after, then second(t − after)

        Parameters
        ----------
        second : Schedule
            The second schedule.
        after : int
            The number of steps of this schedule, ≥ 1.

        Raises
        ------
        TypeError, ValueError
            If `second` is not a schedule, or `after` is not a whole number ≥ 1.

        Notes
        -----
        Equivalent to torch.optim.lr_scheduler.SequentialLR and optax.join_schedules.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> drop = fm.schedules.Constant(0.1).then(fm.schedules.Constant(0.01), after=30)
        >>> drop(29), drop(30)
        (0.1, 0.01)
        """
        return Then(self, second, after)

    def warmup(self, steps: int, start: float = 0.0) -> "Then":
        """Return this schedule with a linear warm-up before it.

        start + (self(0) − start)·t/steps for t < steps, then self(t − steps)

        Parameters
        ----------
        steps : int
            The number of steps of the warm-up, ≥ 1; the next step has the value self(0).
        start : float
            The value at step 0.

        Raises
        ------
        TypeError, ValueError
            If `steps` is not a whole number ≥ 1, or `start` is not finite.

        Notes
        -----
        Equivalent to optax.warmup_cosine_decay_schedule, except that optax counts the warm-up as part of the
        cosine, and to LinearLR with SequentialLR in torch. A learning rate of 0 at step 0 wastes an update; the
        warm-up s(0)·(t + 1)/n of a schedule s is ``s.warmup(n - 1, start=s(0) / n)``.

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
    """Change linearly from one value to another, then keep the last value.

    start + (end − start)·min(t/steps, 1)

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
    Hinton (2010, section 9) advises a momentum of 0.5 at first and 0.9 later. Equivalent to optax.linear_schedule,
    torch's LinearLR with the factors start/lr and end/lr, and Keras's PolynomialDecay with power 1.

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
        start, end = format_number(self.start), format_number(self.end)
        return f"{start} + ({end} − {start})·min({t}/{self.steps}, 1)"


@dataclass(frozen=True)
class Then(Schedule):
    """Join two schedules, the second after the first; :meth:`Schedule.then` returns such a schedule.

    first(t) for t < after, then second(t − after)

    Parameters
    ----------
    first, second : Schedule
        The two schedules.
    after : int
        The number of steps of the first one, ≥ 1.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.Constant(0.1).then(fm.schedules.Exponential(0.1, 0.5), after=10))
    0.1 for t < 10, then 0.1·0.5^(t − 10)
    """

    first: Schedule
    second: Schedule
    after: int

    @property
    def keeps_velocity(self) -> bool:
        """Whether one of the two schedules needs the velocity of steps with momentum 0."""
        return self.first.keeps_velocity or self.second.keeps_velocity

    def begins(self, step: int) -> bool:
        """Return whether a new period of the current schedule, other than its first, begins at this step.

        The step at which the second schedule takes over does not count.

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


def format_number(number: float) -> str:
    """Return a number as text for a formula: with all digits that it needs, and 1.0 as 1."""
    return repr(number).removesuffix(".0")


def _check_field(name: str, kind: type | str, value: object, allowed: Range) -> object:
    """Return the value of a field, converted to the field's type, if the field may have it."""
    if kind in (float, "float"):  # the type is a string in a module with `from __future__ import annotations`
        return checks.number(name, value, allowed)
    if kind in (int, "int"):
        return checks.integer(name, value, least=1)
    if isinstance(kind, type) and not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}; got {checks.describe(value)}")
    return value
