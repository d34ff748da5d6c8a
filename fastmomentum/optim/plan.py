"""Decide what a step of an optimiser does, before it writes anything."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastmomentum.backends.base import NO_ROW
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.state import State
from fastmomentum.optim.values import Values, live_number

PointRow = tuple[int, tuple[Any, ...]]
"""A parameter's number, and the lr and momentum from which its look-ahead point is computed."""


class RowKey(NamedTuple):
    """Identify a row of hyper-parameters that parameters share.

    Attributes
    ----------
    group : int
        The number of the group.
    offset : int
        What to add to the number of updates done to get the number of a parameter's update since its state was at rest;
        0 for a rule that does not use it.
    first : bool
        Whether the parameters take their first step from rest, and the rule has other values for it.
    """

    group: int
    offset: int
    first: bool


class Rows:
    """Hold the rows of hyper-parameters of one step.

    Attributes
    ----------
    numbers : list of tuple of float
        The rows.
    keys : list of RowKey
        The key of each row.
    groups : list of ParamGroup
        The groups that the keys refer to.
    """

    __slots__ = ("groups", "keys", "numbers")

    def __init__(self, keys: Sequence[RowKey], groups: Sequence[ParamGroup]) -> None:
        self.numbers: list[tuple[float, ...]] = []
        self.keys, self.groups = keys, groups

    def compute(self, values: Sequence[Sequence[float]], steps: int) -> bool:
        """Compute the rows from the values of all groups, after this number of updates.

        Return False if a value needs more than a check of its range: an option goes on or off, for example.
        """
        numbers = []
        for group, offset, _ in self.keys:
            row = self.groups[group].row(values[group], steps + offset)
            if row is None:
                return False
            numbers.append(row)
        self.numbers = numbers
        return True

    def compute_exactly(self, values: Sequence[Sequence[float]], steps: int) -> None:
        """Compute the rows, and check every value exactly.

        Raises
        ------
        TypeError, ValueError
            If a value is missing or out of range.
        """
        self.numbers = [
            self.groups[group].exact_row(values[group], steps + at, first) for group, at, first in self.keys
        ]

    def values(self, row: int) -> dict[str, Any]:
        """Return the values of a row by the names that users give."""
        return self.groups[self.keys[row].group].values_by_name(self.keys[row].first)


class StepPlan(NamedTuple):
    """Hold all that is decided before a step is carried out.

    Attributes
    ----------
    groups : list of ParamGroup
        The groups, with the rules of this step.
    values : list of list of float
        The values of each group's live settings.
    row_of : list of int
        For each parameter the number of its row of hyper-parameters, or NO_ROW if it has no gradient.
    rows : Rows
        The rows of hyper-parameters.
    corrections : list of (slot, values)
        The state of parameters without gradient, rescaled to the next lr.
    points : list of (int, row)
        The look-ahead points of parameters without gradient, for the next lr and momentum.
    restart_reason : str or None
        The reason for a restart after the update, apart from an update that goes up the gradient.
    restart_points : list of (int, row)
        The look-ahead points of all parameters, in case a restart is due after the update.
    """

    groups: list[ParamGroup]
    values: list[list[float]]
    row_of: list[int]
    rows: Rows
    corrections: list[tuple[Any, Any]]
    points: list[PointRow]
    restart_reason: str | None
    restart_points: list[PointRow]


class FunctionCalls:
    """Call the functions of the step of all groups, each once.

    Attributes
    ----------
    groups : sequence of ParamGroup
        The groups.
    kept : list of list of float or None
        Values that a step has asked for and not used yet: the next call returns them.
    """

    def __init__(self, groups: Sequence[ParamGroup]) -> None:
        self.groups = groups
        self.kept: list[list[float]] | None = None
        found: dict[int, tuple[Callable[[int], Any], str, list[tuple[int, int]]]] = {}
        for number, group in enumerate(groups):
            for place, name, function in group.calls:
                found.setdefault(id(function), (function, name, []))[2].append((number, place))
        self._calls = list(found.values())

    def __call__(self, step: int) -> list[list[float]]:
        """Return the values of the live settings of all groups at this step; nothing is written."""
        if self.kept is not None:
            values, self.kept = self.kept, None
            return values
        values = []
        for group in self.groups:  # a comprehension would be one more call in every step
            values.append(group.values.copy())
        for function, name, places in self._calls:
            value = function(step)
            if type(value) is not float:
                value = live_number(name, value)
            for number, place in places:
                values[number][place] = value
        return values


def groups_at(
    groups: Sequence[ParamGroup], values: Sequence[list[float]], step: int
) -> tuple[list[ParamGroup], list[list[float]]]:
    """Return the groups with the rules that they have at these values, and all values that their rows depend on.

    Raises
    ------
    TypeError, ValueError
        If a value decides on an option, and is out of range.
    """
    found, followed = [], []
    for group, own in zip(groups, values):
        following = group.ask_next(own, step) if group.needs_next else own
        if group.row(following, 1) is None:  # an option goes on or off, or a value must be checked exactly
            group = group.at(own)
            following = group.ask_next(group.values, step)
        found.append(group)
        followed.append(following)
    return found, followed


def assign_rows(
    groups: Sequence[ParamGroup], group_of: Sequence[int], grads: Sequence[Any], state: State, keys: dict[RowKey, int]
) -> list[int]:
    """Return for each parameter the number of its row, whose key is added to `keys`; NO_ROW without a gradient."""
    updates, steps, found = state.updates, state.counter.steps, []
    for i, (number, grad) in enumerate(zip(group_of, grads)):
        if grad is None:
            found.append(NO_ROW)
            continue
        group = groups[number]
        offset = updates[i] + 1 - steps if group.uses_step else 0
        first = not updates[i] and group.differs_at_first and not state.is_moving(i, group.update)
        found.append(keys.setdefault(RowKey(number, offset, first), len(keys)))
    return found


def lr_corrections(
    groups: Sequence[ParamGroup], group_of: Sequence[int], state: State, which: Iterable[int], now: Values, then: Values
) -> list[tuple[Any, Any]]:
    """Return the state of these parameters, rescaled from the lr of now to that of then if their group has correct."""
    found: list[tuple[Any, Any]] = []
    if any([group.correct for group in groups]):
        for i in which:
            number = group_of[i]
            if groups[number].correct:
                found += state.lr_corrections(i, groups[number].update, now(number, "lr"), then(number, "lr"))
    return found
