"""What a minimiser decides in a step, a function each: a loop is made of those that it needs."""

from typing import Any

import numpy as np
from numba.extending import register_jitable

SHORTER, LONGER, LEAST = 0.5, 1.05, 1e-30
"""What backtracking multiplies the learning rate by, where it is too long and where not; and where it gives up, as it
does where the step is lost in the rounding of p."""


@register_jitable
def stay(x: Any, value: Any, size: Any, size_next: Any, calls: Any, args: Any) -> Any:
    """f and the size at p, where nothing asks for those at x⁺."""
    return value, size


@register_jitable
def exceeds(value: Any, smooth: Any, descent: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Whether f(x⁺) is above f(p) − ⟨g, p − x⁺⟩ + ‖p − x⁺‖²/2lr by more than rounding, or no finite number.

    Beck and Teboulle 2009, (2.5) and section 4.
    """
    return not (np.isfinite(smooth) and smooth <= value - descent + squares / (2.0 * lr) + noise * abs(value))


@register_jitable
def grown(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """A longer step next time, unless rounding hides what is too long."""
    return scale * LONGER if squares / (2.0 * lr) > 100.0 * noise * abs(value) else scale


@register_jitable
def unchanged(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """The same step next time."""
    return scale


@register_jitable
def not_finite(value: Any) -> Any:
    """Whether p lies where `fun` is no number."""
    return not np.isfinite(value)


@register_jitable
def climbs(slope: Any, there: Any, objective: Any) -> Any:
    """O'Donoghue and Candès's gradient scheme: the step goes up the gradient."""
    return slope > 0.0


@register_jitable
def rises(slope: Any, there: Any, objective: Any) -> Any:
    """Their function scheme."""
    return there > objective


@register_jitable
def never(*told: Any) -> Any:
    """No, whatever is told."""
    return False


@register_jitable
def by_objective(objective: Any, norm: Any) -> Any:
    """What makes a point better than another, where values are known."""
    return objective


@register_jitable
def by_norm(objective: Any, norm: Any) -> Any:
    """What does, where they are not."""
    return norm


@register_jitable
def of_state(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """The step of the minimising sequence, where the state is that."""
    return next_q, q


@register_jitable
def of_point(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """The same, where p is."""
    return next_p, p
