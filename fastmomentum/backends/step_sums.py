"""Define the sums that are measured of a step before it is done: norms and products of velocity, gradient and step."""

from typing import Any, NamedTuple

from fastmomentum.rules.assemble import Function, Wrap, identity
from fastmomentum.rules.base import Rule


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

BLOCK = 2048
"""The number of bytes of v, of p⁺ − p and of v⁺ that a kernel computes before it adds their products.

Measured at 10⁷ elements: blocks four times as large take a third longer to twice as long.
"""


def make_step_vectors(rule: Rule, wrap: Wrap = identity) -> Function:
    """Return a function that computes the velocity, the step and the next velocity, and writes nothing.

        step_vectors((p, *state), g, hyper) -> (v, p⁺ − p, v⁺)

    It takes scalars or whole arrays, and computes in their dtype. The velocity v is the state slot "velocity", or the
    sum of the slots velocity_1, velocity_2, … if there are several (the step then uses their mean). If a rule stores
    the previous position q instead, then v = q − p, which has the sign of a velocity (p ← p − v). If it stores neither,
    then v = 0.
    """
    update, velocity = wrap(rule.build(wrap)), make_velocity(rule, wrap)

    def step_vectors(before: Any, g: Any, hyper: Any) -> Any:
        after = update(*before, g, *hyper)
        return velocity(*before), after[0] - before[0], velocity(*after)

    return wrap(step_vectors)


def velocities_of(rule: Rule) -> list[int]:
    """Return the indices of the velocities in (p, *state)."""
    return [i for i, slot in enumerate(rule.slots, 1) if slot == "velocity" or slot.startswith("velocity_")]


def keeps_velocity(rule: Rule) -> bool:
    """Return whether the state of the rule holds a velocity, or a previous position."""
    return bool(velocities_of(rule)) or "previous" in rule.slots


def make_velocity(rule: Rule, wrap: Wrap) -> Function:
    """Return ``velocity(p, *state) -> v``, with v as :func:`make_step_vectors` defines it."""
    velocities = velocities_of(rule)
    if velocities:
        return _make_sum(velocities, wrap)
    if "previous" in rule.slots:
        index = rule.slots.index("previous")
        return wrap(lambda p, *state: state[index] - p)
    return wrap(lambda p, *state: p - p)


def _make_sum(indices: list[int], wrap: Wrap) -> Function:
    """Return a function that adds up its arguments at these indices."""
    *others, last = indices
    if not others:
        return wrap(lambda *values: values[last])
    sum_of_others = _make_sum(others, wrap)
    return wrap(lambda *values: sum_of_others(*values) + values[last])
