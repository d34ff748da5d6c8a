"""Decide what the loop of a minimiser does in a step: functions of a few numbers, of which each option chooses some.

A loop calls only the functions that its options need; the others are replaced by :func:`never`, or by one that changes
nothing.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

LONGER = 1.05
"""The factor by which backtracking lengthens a learning rate that is not too long."""


@register_jitable
def value_before(x: Any, g: Any, value: Any, calls: Any, args: Any) -> Any:
    """Return f at p; a loop calls it if no option needs the value at x⁺."""
    return value


@register_jitable
def size_before(size: Any, size_next: Any) -> Any:
    """Return Σ|x| at p."""
    return size


@register_jitable
def size_of_state(size: Any, size_next: Any) -> Any:
    """Return Σ|x| at x⁺."""
    return size_next


@register_jitable
def too_long(value: Any, smooth: Any, descent: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return whether f(x⁺) is not finite or exceeds its bound by more than rounding.

    bound = f(p) − ⟨g, p − x⁺⟩ + ‖p − x⁺‖²/(2·lr)        (Beck and Teboulle 2009, (2.5) and section 4)
    """
    return not (np.isfinite(smooth) and smooth <= value - descent + squares / (2.0 * lr) + noise * abs(value))


@register_jitable
def hidden_by_rounding(value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return whether the decrease that a step promises is below the rounding of values of `fun`."""
    return squares / (2.0 * lr) <= noise * abs(value)


@register_jitable
def lengthen(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return a greater scale for the next step, or the same one if rounding hides whether a step is too long."""
    return scale * LONGER if squares / (2.0 * lr) > 100.0 * noise * abs(value) else scale


@register_jitable
def unchanged(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return the scale unchanged."""
    return scale


@register_jitable
def not_defined(value: Any) -> Any:
    """Return whether a value is a NaN or +inf, by which functions say that they are not defined at a point."""
    return not value < np.inf


@register_jitable
def goes_uphill(slope: Any, next_objective: Any, objective: Any) -> Any:
    """Return whether the step goes up the gradient (the gradient scheme of O'Donoghue and Candès 2015)."""
    return slope > 0.0


@register_jitable
def increases(slope: Any, next_objective: Any, objective: Any) -> Any:
    """Return whether the objective increases (the function scheme of O'Donoghue and Candès 2015)."""
    return next_objective > objective


@register_jitable
def never(*arguments: Any) -> Any:
    """Return False for any arguments."""
    return False


@register_jitable
def merit_by_objective(objective: Any, norm: Any) -> Any:
    """Return the objective as the merit of a point."""
    return objective


@register_jitable
def merit_by_norm(objective: Any, norm: Any) -> Any:
    """Return the norm of the prox-gradient as the merit of a point, for loops that do not compute values."""
    return norm


@register_jitable
def step_of_state(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """Return (after, before) of the minimising sequence, if the state q holds it."""
    return next_q, q


@register_jitable
def step_of_point(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """Return (after, before) of the minimising sequence, if the parameter p holds it."""
    return next_p, p
