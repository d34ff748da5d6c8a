"""What is measured of a step before it is done: the velocity, the gradient, and where the step will lead."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fastmomentum.rules.assemble import Wrap, identity
from fastmomentum.rules.base import Rule


class StepSums(NamedTuple):
    """Sums over the elements of an array that has a gradient g, of p, the velocity v, and what a step makes of them.

    Attributes
    ----------
    velocity, gradient : float
        Σv² and Σg², as the step finds them.
    along : float
        Σv·g.
    step : float
        Σ(p⁺ − p)².
    slope : float
        Σg·(p⁺ − p): what the step changes the function by, to first order.
    left : float
        Σv⁺²: `velocity` of the next step, to the bit, unless something else writes to the state between.
    size : float
        Σp².
    """

    velocity: float
    gradient: float
    along: float
    step: float
    slope: float
    left: float
    size: float


WIDTH = len(StepSums._fields)

PAIRS = ((0, 0), (1, 1), (0, 1), (2, 2), (1, 2), (3, 3), (4, 4))
"""Which of v, g, p⁺ − p, v⁺ and p are multiplied in the fields of a Motion."""

BLOCK = 2048
"""Bytes of v, p⁺ − p and v⁺ that lie in scratch until their products are added. Measured at 10⁷ elements: a quarter to
a half of the time of a look is won over four times as much, after which memory has stood idle for too long."""


def make_step_sums(rule: Rule, wrap: Wrap = identity) -> Callable[..., Any]:
    """``motion((p, *state), g, hyper) -> (v, p⁺ − p, v⁺)``, of scalars or whole arrays, in their own precision.

    The velocity is the slot of this name, or the sum of several (velocity_1, velocity_2, …), of which the step takes
    the mean; where a rule keeps the position before, it is the way from there, q − p, signed as velocities are
    (p ← p − v); where it keeps neither, 0.
    """
    update, velocity = wrap(rule.build(wrap)), make_velocity(rule, wrap)

    def motion(now: Any, g: Any, hyper: Any) -> Any:
        after = update(*now, g, *hyper)
        return velocity(*now), after[0] - now[0], velocity(*after)

    return wrap(motion)


def velocities_of(rule: Rule) -> list[int]:
    """Which of (p, *state) are velocities."""
    return [i for i, slot in enumerate(rule.slots, 1) if slot == "velocity" or slot.startswith("velocity_")]


def keeps_velocity(rule: Rule) -> bool:
    """Whether the rule has any."""
    return bool(velocities_of(rule)) or "previous" in rule.slots


def make_velocity(rule: Rule, wrap: Wrap) -> Callable[..., Any]:
    """``velocity(p, *state)``: see :func:`make_motion`."""
    found = velocities_of(rule)
    if found:
        return _summed(found, wrap)
    if "previous" in rule.slots:
        at = rule.slots.index("previous")
        return wrap(lambda p, *state: state[at] - p)
    return wrap(lambda p, *state: p - p)


def _summed(places: list[int], wrap: Wrap) -> Callable[..., Any]:
    """The sum of these of its arguments."""
    *before, at = places
    if not before:
        return wrap(lambda *everything: everything[at])
    others = _summed(before, wrap)
    return wrap(lambda *everything: others(*everything) + everything[at])
