"""Restart schemes: when momentum does more harm than good, and is put to rest.

    gradient   behind an update whose displacement opposed the gradient, g·(p⁺ − p) > 0
    function   behind an objective greater than the one before, as told to ``opt.report``
    n          behind every n updates
    schedule   where lr or momentum begins a new period (:class:`fastmomentum.schedules.WarmRestarts`)

The first three are O'Donoghue and Candès's (2015, sections 3.1 and 3.2), in which the sequence of momentum begins anew
as well: functions of the step are called with the number of updates since the last reset of the whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fastmomentum import checks, schedules
from fastmomentum.groups import SCHEDULED, Group
from fastmomentum.launch import HostLaunch, in_order

GRADIENT, FUNCTION, SCHEDULE = "gradient", "function", "schedule"
WHOLE = "all"
"""The scope of a reset of everything."""


def check_restart(groups: Sequence[Group]) -> str | int | None:
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
    return checks.whole("restart", value, least=1)


def began(restart: str | int | None, resets: Sequence[tuple[int, str, str]]) -> int:
    """The number of updates done when functions of the step began, or began anew with a reset of the whole."""
    if restart in (None, SCHEDULE):
        return 0
    return max((step for step, _, scope in resets if scope == WHOLE), default=0)


class Slope:
    """Whether an update goes up the gradient: the sign of g·(p⁺ − p), of all arrays together."""

    rises = False

    def begin(self, grads: list[Any], launch: HostLaunch) -> Callable[[], None] | None:
        """See :class:`fastmomentum.launch.Observer`; it is known before the update, lest a signal come between."""
        motions = launch.look(grads)
        if motions is None:
            return None
        self.rises = in_order(motion.slope for motion in motions.values()) > 0.0
        return _nothing


def _nothing() -> None:
    pass


def reason_for(restart: str | int | None, groups: Sequence[Group], time: int, slope: Slope | None) -> str | None:
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
