"""Restart schemes: when momentum does more harm than good, and is put to rest.

    gradient   behind an update whose displacement opposed the gradient, g·(p⁺ − p) > 0
    function   behind an objective greater than the one before, as told to ``opt.report``
    n          behind every n updates
    schedule   where lr or momentum begins a new period (:class:`fastmomentum.schedules.WarmRestarts`)

The first three are O'Donoghue and Candès's (2015, sections 3.1 and 3.2), in which the sequence of momentum begins anew
as well: functions of the step are called with the number of updates since the last reset of the whole.

Putting state to rest, on purpose and on the record: all of it, a group's, an array's or that of some rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastmomentum import checks, schedules
from fastmomentum.backends.base import HostExecutor, in_order
from fastmomentum.optim.groups import SCHEDULED, ParamGroup
from fastmomentum.optim.state import ALL_ROWS

GRADIENT, FUNCTION, SCHEDULE = "gradient", "function", "schedule"
ALL = "all"
"""The scope of a reset of everything."""


def check_restart(groups: Sequence[ParamGroup]) -> str | int | None:
    """The scheme that these groups, which share it, ask for.

    Raises
    ------
    TypeError, ValueError
        If there is no such scheme, or no schedule for it.
    """
    value = groups[0].settings.get("restart")
    if value is None or value in (GRADIENT, FUNCTION, SCHEDULE):
        named = [group.settings[name] for group in groups for name in SCHEDULED]
        if value == SCHEDULE and not any(isinstance(each, schedules.Schedule) for each in named):
            raise ValueError("restart: expected an lr or momentum of fastmomentum.schedules for 'schedule'; got none")
        return value
    if isinstance(value, str):
        raise ValueError(
            f"restart: expected 'gradient', 'function', 'schedule', a number of steps or None; got {value!r}"
        )
    return checks.integer("restart", value, least=1)


def epoch(restart: str | int | None, resets: Sequence[tuple[int, str, str]]) -> int:
    """The number of updates done when functions of the step began, or began anew with a reset of the whole."""
    if restart in (None, SCHEDULE):
        return 0
    return max((step for step, _, scope in resets if scope == ALL), default=0)


class GradientRestart:
    """Whether an update goes up the gradient: the sign of g·(p⁺ − p), of all arrays together."""

    rises = False

    def begin(self, grads: list[Any], launch: HostExecutor) -> Callable[[], None] | None:
        """See :class:`fastmomentum.launch.Observer`; it is known before the update, lest a signal come between."""
        motions = launch.look(grads)
        if motions is None:
            return None
        self.rises = in_order(motion.slope for motion in motions.values()) > 0.0
        return _nothing


def _nothing() -> None:
    pass


def restart_due(
    restart: str | int | None, groups: Sequence[ParamGroup], time: int, slope: GradientRestart | None
) -> str | None:
    """Why the update done, which brought functions of the step to this `time`, is one to restart behind, if it is."""
    if slope is not None and slope.rises:
        return "gradient scheme: the update went up the gradient"
    if restart == SCHEDULE:
        for name in SCHEDULED:
            if any(_begins(group.settings[name], time) for group in groups):
                return f"{name} begins a new period"
    if isinstance(restart, int) and time >= restart:
        return f"every {restart} steps"
    return None


def _begins(value: Any, time: int) -> bool:
    return isinstance(value, schedules.Schedule) and value.begins(time)


class Reset(NamedTuple):
    """One reset on the record: the number of updates done before it, why, and of what."""

    step: int
    reason: str
    scope: str


class Scope(NamedTuple):
    """What is reset: the numbers of the arrays, which of their rows, and how that is said."""

    which: list[int]
    rows: slice
    said: str


def _scope(group_of: Sequence[int], shapes: Sequence[tuple[int, ...]], group: Any, array: Any, rows: Any) -> Scope:
    """What these arguments of reset() mean."""
    count = len(group_of)
    if rows is not None and array is None and count == 1:
        array = 0
    if rows is not None and (array is None or group is not None):
        raise TypeError("rows: expected with array, the number of the one array whose rows they are, and without group")
    if group is not None and array is not None:
        raise TypeError("group, array: expected one of them; got both")
    if group is not None:
        number = group_index("group", group, 1 + max(group_of, default=0))
        return Scope([i for i, mine in enumerate(group_of) if mine == number], ALL_ROWS, f"group {number}")
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
        raise ValueError(f"{name}: expected a number below {count}, as there are so many; got {number}")
    return number


def row_slice(rows: Any, shape: tuple[int, ...]) -> slice:
    """The rows as a slice from 0 ≤ start ≤ stop ≤ the length, if there are such."""
    if not shape:
        raise ValueError("rows: expected an array that has a first axis; got one of no dimensions")
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
