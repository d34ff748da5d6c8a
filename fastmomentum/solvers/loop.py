"""The loop of a minimiser: update, measure, decide, evaluate; compiled if the user's functions are, else in Python.

Each decision that a step may need (backtracking, a restart) is a function. A loop that does not need it does not hold
it.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable

from fastmomentum.backends.cpu.kernels import STRICT
from fastmomentum.rules.assemble import Wrap, identity
from fastmomentum.solvers.passes import SCRATCH, Terms, make_advance, make_measure

SHORTER, LONGER, LEAST = 0.5, 1.05, 1e-30
"""The factors by which backtracking shortens a learning rate that is too long and lengthens another one, and the scale
at which it gives up; it also gives up if the step is lost in the rounding of p."""


@register_jitable
def no_value(x: Any, value: Any, size: Any, size_next: Any, calls: Any, args: Any) -> Any:
    """Return f and Σ|x| at p, if no option needs their values at x⁺."""
    return value, size


@register_jitable
def too_long(value: Any, smooth: Any, descent: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return whether f(x⁺) exceeds f(p) − ⟨g, p − x⁺⟩ + ‖p − x⁺‖²/2lr by more than rounding, or is not finite.

    Beck and Teboulle 2009, (2.5) and section 4.
    """
    return not (np.isfinite(smooth) and smooth <= value - descent + squares / (2.0 * lr) + noise * abs(value))


@register_jitable
def lengthen(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return the scale of a longer next step, unless rounding hides whether it is too long."""
    return scale * LONGER if squares / (2.0 * lr) > 100.0 * noise * abs(value) else scale


@register_jitable
def unchanged(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return the scale unchanged."""
    return scale


@register_jitable
def not_finite(value: Any) -> Any:
    """Return whether `fun` is not finite at p."""
    return not np.isfinite(value)


@register_jitable
def goes_uphill(slope: Any, there: Any, objective: Any) -> Any:
    """Return whether the step goes up the gradient (O'Donoghue and Candès's gradient scheme)."""
    return slope > 0.0


@register_jitable
def increases(slope: Any, there: Any, objective: Any) -> Any:
    """Return whether the objective rises (O'Donoghue and Candès's function scheme)."""
    return there > objective


@register_jitable
def never(*told: Any) -> Any:
    """Return False for any arguments."""
    return False


@register_jitable
def by_objective(objective: Any, norm: Any) -> Any:
    """Return the objective, by which points are compared if values are known."""
    return objective


@register_jitable
def by_norm(objective: Any, norm: Any) -> Any:
    """Return the norm of the prox-gradient, by which points are compared if values are not known."""
    return norm


@register_jitable
def of_state(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """Return the step of the minimising sequence, if the state is that sequence."""
    return next_q, q


@register_jitable
def of_point(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    """Return the step of the minimising sequence, if p is that sequence."""
    return next_p, p


Function = Callable[..., Any]

RUNNING, CONVERGED, SETTLED, DIVERGED, STUCK = range(5)
ENOUGH = 10
"""The number of consecutive steps that must change the objective by at most ftol; a single one may by chance."""


class ObjectiveFunctions(NamedTuple):
    """The smooth function to minimise, as a loop calls it.

    Attributes
    ----------
    evaluate : function
        ``evaluate(x, g, calls, args) -> f``: writes the gradient at x to g, and returns the value if `valued`, else 0.
        `calls` counts values and gradients.
    value_at : function
        ``value_at(x, calls, args) -> f``.
    valued : bool
        Whether `evaluate` returns the value.
    """

    evaluate: Function
    value_at: Function
    valued: bool


class LoopOptions(NamedTuple):
    """The options for which a loop is made.

    Attributes
    ----------
    rule : str
        "heavy_ball" or "nesterov_positions".
    terms : Terms
        The terms beside `fun`.
    backtracking : bool
        Whether the learning rate is found by backtracking.
    restart : str
        "gradient", "function" or "never".
    """

    rule: str
    terms: Terms
    backtracking: bool
    restart: str

    @property
    def sums(self) -> frozenset[str]:
        """The names of the sums to measure in each step."""
        asked = {"absolute": True, "slope": self.restart == "gradient"}
        asked |= dict.fromkeys(("squares", "descent"), self.backtracking)
        asked |= dict.fromkeys(("size", "size_next"), self.terms.l1)
        return frozenset(name for name, wanted in asked.items() if wanted)


NUMBERS = ("value", "objective", "least", "norm", "scale")
COUNTS = ("since", "restarts", "quiet", "done")
"""The numbers that a loop passes from step to step: `fun` at p, or 0 if it is not evaluated; the last step's objective,
for restarts and ftol; the merit of the best point, its objective or, if values are unknown, the norm of its
prox-gradient; the largest element of the last prox-gradient; the scale of the learning rate. The counts: steps since
the last restart, restarts, consecutive steps that changed the objective little, steps done."""

P, Q, NEXT_P, NEXT_Q, BEST = range(5)
"""The arrays p, q, the next p and q, and the best p so far; `order` says which array plays which part."""


def make_run(plan: LoopOptions, forms: ObjectiveFunctions, compiled: bool) -> Any:
    """Return ``run(steps, arrays, g, order, numbers, counts, lrs, mus, settings, limits, calls, args) -> status``.

    Parameters
    ----------
    plan : LoopOptions
        The options of the loop.
    forms : ObjectiveFunctions
        The function to minimise.
    compiled : bool
        Whether `forms` are compiled, and the loop is to be compiled.

    Notes
    -----
    `g` is the gradient at p; `lrs` and `mus` hold lr and momentum by the number of steps since a restart, the last
    entry for all later steps; `settings` are l1, gtol, ftol, and the relative error of values of `fun`. It returns a
    number and nothing else, because of signals, as :func:`fastmomentum.solvers.passes.make_measure` explains.
    """
    return _compiled(plan, forms) if compiled else _make_run(plan, forms, identity)


@lru_cache(maxsize=64)
def _compiled(plan: LoopOptions, forms: ObjectiveFunctions) -> Any:
    return njit(**STRICT)(_make_run(plan, forms, register_jitable))


def _make_run(plan: LoopOptions, forms: ObjectiveFunctions, wrap: Wrap) -> Callable[..., int]:
    advance, measure = make_advance(plan.rule, plan.terms), make_measure(plan.terms, plan.sums)
    evaluate, value_at = forms.evaluate, forms.value_at
    positions = plan.rule == "nesterov_positions"  # the state is x⁺ then
    follows = positions and (plan.backtracking or plan.restart == "function")
    look = wrap(lambda x, value, size, size_next, *asked: (value_at(x, *asked), size_next)) if follows else no_value
    is_too_far, grown, is_lost = never, unchanged, never
    if plan.backtracking:
        is_too_far, grown, is_lost = too_long, lengthen, not_finite
    is_astray = {"gradient": goes_uphill, "function": increases, "never": never}[plan.restart]
    merit = by_objective if forms.valued else by_norm
    moved = of_state if positions else of_point

    def run(
        steps: Any,
        arrays: Any,
        g: Any,
        order: Any,
        numbers: Any,
        counts: Any,
        lrs: Any,
        mus: Any,
        settings: Any,
        limits: Any,
        calls: Any,
        args: Any,
    ) -> Any:
        p, q, next_p, next_q, best = arrays
        value, objective, least, norm, scale = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
        since, restarts, quiet, done = counts[0], counts[1], counts[2], 0
        l1, gtol, ftol, noise = settings
        lanes, status = np.empty(SCRATCH), RUNNING
        while status == RUNNING and done < steps:
            if since > 0 and is_lost(value):
                # `fun` is not finite at the extrapolated point; the point before it was accepted.
                p[:] = q
                since, restarts = 0, restarts + 1
                value = evaluate(p, g, calls, args)
                continue
            lr, mu = scale * float(lrs[min(since, lrs.size - 1)]), float(mus[min(since, mus.size - 1)])
            advance((next_p, next_q), (p, q), g, lr, mu, l1, limits)
            after, before = moved(next_p, next_q, p, q)
            largest, absolute, squares, slope, descent, size, size_next = measure(
                lanes, p, g, after, before, lr, l1, limits
            )
            if not np.isfinite(absolute) or not np.isfinite(value):
                status = DIVERGED
                break
            norm, here = largest / lr, value + l1 * size
            if norm <= gtol:
                status = CONVERGED
                break
            smooth, size = look(next_q, value, size, size_next, calls, args)
            there = smooth + l1 * size
            if is_too_far(value, smooth, descent, squares, lr, noise):
                scale *= SHORTER
                if scale < LEAST or largest <= noise * np.abs(p).max():
                    status = STUCK
                continue
            if since > 0 and is_astray(slope, there, objective):
                # The step is repeated from the initial state.
                q[:] = p
                since, restarts = 0, restarts + 1
                continue
            quiet = quiet + 1 if abs(there - objective) <= ftol * max(abs(there), 1.0) else 0
            if ftol > 0.0 and quiet >= ENOUGH:
                status = SETTLED
                break
            worth = merit(here, norm)
            if worth < least:
                least = worth
                best, p, next_p = p, next_p, best
                order[BEST], order[P], order[NEXT_P] = order[P], order[NEXT_P], order[BEST]
            else:
                p, next_p = next_p, p
                order[P], order[NEXT_P] = order[NEXT_P], order[P]
            q, next_q = next_q, q
            order[Q], order[NEXT_Q] = order[NEXT_Q], order[Q]
            objective, scale, since, done = there, grown(scale, value, squares, lr, noise), since + 1, done + 1
            value = evaluate(p, g, calls, args)
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = value, objective, least, norm, scale
        counts[0], counts[1], counts[2], counts[3] = since, restarts, quiet, counts[3] + done
        return status

    return run
