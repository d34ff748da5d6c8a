"""Restart schemes, and the scope of a reset: which arrays and rows it resets.

With a restart scheme an optimiser resets its state by itself:

    gradient   after an update that went up the gradient, g·(p⁺ − p) > 0
    function   when ``opt.report`` gets an objective that is greater than the one before
    n          after every n updates
    schedule   when a schedule begins a new period (:class:`fastmomentum.schedules.WarmRestarts`)

The first three are those of O'Donoghue and Candès (2015, sections 3.1 and 3.2), whose restarts also begin the momentum
sequence anew. So with these three, functions of the step are called with the number of updates since the last reset of
everything.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastmomentum import checks, schedules
from fastmomentum.backends.base import HostExecutor
from fastmomentum.backends.sums import sum_in_order
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.state import ALL_ROWS

GRADIENT, FUNCTION, SCHEDULE = "gradient", "function", "schedule"
ALL = "all"
"""The scope of a reset of everything."""


def check_restart(groups: Sequence[ParamGroup]) -> str | int | None:
    """Return the restart scheme that these groups share.

    Raises
    ------
    TypeError, ValueError
        If there is no such scheme, or if the scheme "schedule" is given without a schedule.
    """
    value: str | int | None = groups[0].number("restart")
    if value is None or value in (GRADIENT, FUNCTION, SCHEDULE):
        functions = [function for group in groups for _, _, function in group.calls]
        if value == SCHEDULE and not any(isinstance(function, schedules.Schedule) for function in functions):
            raise ValueError("restart: expected an lr or momentum of fastmomentum.schedules for 'schedule'; got none")
        return value
    if isinstance(value, str):
        raise ValueError(
            f"restart: expected 'gradient', 'function', 'schedule', a number of steps or None; got {value!r}"
        )
    return checks.integer("restart", value, least=1)


def epoch(restart: str | int | None, last_reset: int) -> int:
    """Return the number of updates before the one for which functions of the step are called with 0.

    `last_reset` is the number of updates before the last reset of everything.
    """
    return 0 if restart in (None, SCHEDULE) else last_reset


class GradientRestart:
    """Observe whether an update goes up the gradient: whether g·(p⁺ − p), summed over all arrays, is positive."""

    is_uphill = False

    def before_step(self, grads: list[Any], executor: HostExecutor) -> Callable[[], None] | None:
        """Compute the sum from the update that follows, before it is done."""
        sums = executor.measure(grads)
        if sums is None:
            return None
        self.is_uphill = sum_in_order(each.slope for each in sums.values()) > 0.0
        return _do_nothing


def _do_nothing() -> None:
    pass


UPHILL = "gradient scheme: the update went up the gradient"
"""The reason for a restart by the gradient scheme."""


def restart_due(restart: str | int | None, groups: Sequence[ParamGroup], step: int) -> str | None:
    """Return the reason for a restart after the update that brings functions of the step to this `step`, or None.

    Whether the update goes up the gradient, :class:`GradientRestart` finds out during the update.
    """
    if restart == SCHEDULE:
        for _, name, function in [call for group in groups for call in group.calls]:
            if isinstance(function, schedules.Schedule) and function.begins(step):
                return f"{name} begins a new period"
    if isinstance(restart, int) and step >= restart:
        return f"every {restart} steps"
    return None


class Reset(NamedTuple):
    """Hold the record of a reset: the number of updates done before it, the reason, and the scope in words."""

    step: int
    reason: str
    scope: str


class Scope(NamedTuple):
    """Hold the scope of a reset: the numbers of the arrays, their rows, and both in words."""

    which: list[int]
    rows: slice
    text: str


def reset_scope(
    group_of: Sequence[int], groups: int, shapes: Sequence[tuple[int, ...]], group: Any, array: Any, rows: Any
) -> Scope:
    """Return the scope that the arguments `group`, `array` and `rows` of reset() stand for.

    Raises
    ------
    TypeError, ValueError
        If there is no such group, array or range of rows.
    """
    count = len(group_of)
    if rows is not None and array is None and count == 1:
        array = 0
    if rows is not None and (array is None or group is not None):
        raise TypeError("rows: expected with array, the number of the array that has these rows, and without group")
    if group is not None and array is not None:
        raise TypeError("group, array: expected one of them; got both")
    if group is not None:
        number = group_index("group", group, groups)
        return Scope([i for i, owner in enumerate(group_of) if owner == number], ALL_ROWS, f"group {number}")
    if array is None:
        return Scope(list(range(count)), ALL_ROWS, ALL)
    i = group_index("array", array, count)
    if rows is None:
        return Scope([i], ALL_ROWS, f"array {i}")
    shape = shapes[i]
    part = row_slice(rows, shape)
    whole = part == slice(0, shape[0])
    return Scope([i], ALL_ROWS if whole else part, f"array {i}, rows {part.start}:{part.stop}")


def group_index(name: str, value: Any, count: int) -> int:
    """Return `value` as an index below `count`."""
    number = checks.integer(name, value)
    if number >= count:
        raise ValueError(f"{name}: expected a number below {count}; got {number}")
    return number


def row_slice(rows: Any, shape: tuple[int, ...]) -> slice:
    """Return the rows as a slice with 0 ≤ start ≤ stop ≤ length."""
    if not shape:
        raise ValueError("rows: expected an array that has a first axis; got one without dimensions")
    ends = (rows.start, rows.stop, rows.step) if isinstance(rows, slice) else rows
    if isinstance(rows, tuple) and len(rows) == 2:
        ends = (*rows, None)
    if not isinstance(ends, tuple):
        first = checks.integer("rows", rows)
        ends = (first, first + 1, None)
    if len(ends) != 3 or ends[2] not in (None, 1):
        raise ValueError(f"rows: expected a range (start, stop), or a slice without a step; got {rows!r}")
    start = 0 if ends[0] is None else checks.integer("rows", ends[0])
    stop = shape[0] if ends[1] is None else checks.integer("rows", ends[1])
    if not start <= stop <= shape[0]:
        raise ValueError(f"rows: expected 0 <= start <= stop <= {shape[0]}, the array's length; got {start}:{stop}")
    return slice(start, stop)
