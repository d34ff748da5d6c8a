"""Define the sums that are measured of a step before it is done: norms and products of velocity, gradient and step."""

from functools import reduce
from operator import add
from typing import Any, NamedTuple

from fastmomentum.rules.assemble import Function, Wrap, identity
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import MASK, moving, widen


class StepSums(NamedTuple):
    """Hold sums over the elements of one array: parameter p, gradient g, velocity v, and p⁺ and v⁺ after the step.

    Attributes
    ----------
    velocity, gradient : float
        Σv² and Σg², before the step.
    along : float
        Σv·g.
    step : float
        Σ(p⁺ − p)².
    slope : float
        Σg·(p⁺ − p): the change of the function by this step, to first order.
    left : float
        Σv⁺². The next step's `velocity` has the same bits, unless other code writes to the state in between.
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
"""The number of sums of one array."""

PAIRS = ((0, 0), (1, 1), (0, 1), (2, 2), (1, 2), (3, 3), (4, 4))
"""For each field of StepSums the two indices in (v, g, p⁺ − p, v⁺, p) whose products are summed."""


def make_step_summands(rule: Rule, wrap: Wrap = identity) -> Function:
    """Return ``summands(p, *state, g, *given, *hyper)``: for each field of StepSums what is summed of one element.

    The step is computed in the dtype of the arrays, and the products in double precision. The function takes scalars,
    whole arrays or symbols, and writes nothing. The gradient of a frozen element counts as 0.

    The velocity v is the state slot "velocity", or the sum of the slots velocity_1, velocity_2, … if there are several
    (the step then uses their mean). If a rule stores the previous position q instead, then v = q − p, which has the
    sign of a velocity (p ← p − v). If it stores neither, then v = 0.
    """
    update, velocity, wide = rule.build(wrap), make_velocity(rule), wrap(widen, 1)
    moving_gradient, g_at = make_moving_gradient(rule, wrap), 1 + len(rule.slots)

    def summands(*values: Any) -> tuple[Any, ...]:
        before, after = values[:g_at], update(*values)
        vectors = (
            *(velocity(*before), moving_gradient(*values)),
            *(after[0] - before[0], velocity(*after), before[0]),
        )
        factors = [wide(vector) for vector in vectors]
        return tuple(factors[one] * factors[other] for one, other in PAIRS)

    return summands


def make_square(rule: Rule, wrap: Wrap = identity) -> Function:
    """Return ``square(p, *state, g, *given, *hyper)``: g² in double precision, 0 for a frozen element."""
    moving_gradient, wide = make_moving_gradient(rule, wrap), wrap(widen, 1)

    def square(*values: Any) -> tuple[Any, ...]:
        g = wide(moving_gradient(*values))
        return (g * g,)

    return square


def make_moving_gradient(rule: Rule, wrap: Wrap) -> Function:
    """Return ``moving_gradient(p, *state, g, *given, *hyper)``: g, or 0 if the element is frozen."""
    g_at = 1 + len(rule.slots)
    if MASK not in rule.given:
        return lambda *values: values[g_at]
    mask_at, choose = g_at + 1 + rule.given.index(MASK), wrap(moving, 2)
    return lambda *values: choose(values[mask_at], values[g_at])


def velocities_of(rule: Rule) -> list[int]:
    """Return the indices of the velocities in (p, *state)."""
    return [i for i, slot in enumerate(rule.slots, 1) if slot == "velocity" or slot.startswith("velocity_")]


def keeps_velocity(rule: Rule) -> bool:
    """Return whether the state of the rule holds a velocity, or a previous position."""
    return bool(velocities_of(rule)) or "previous" in rule.slots


def make_velocity(rule: Rule) -> Function:
    """Return ``velocity(p, *state) -> v``, with v as :func:`make_step_summands` defines it."""
    velocities = velocities_of(rule)
    if velocities:
        return lambda *values: reduce(add, [values[i] for i in velocities])
    if "previous" in rule.slots:
        index = 1 + rule.slots.index("previous")
        return lambda *values: values[index] - values[0]
    return lambda *values: values[0] - values[0]
