"""Make the loop of a minimiser, whose steps update the point, measure the update, decide on it, and evaluate `fun`.

The loop is compiled if the user's functions are, else it runs in Python. Each decision that a step may need
(backtracking, a restart) is a function; a loop calls only the functions that its options need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable

from fastmomentum.backends.cpu.kernel_cache import kept_on_disk
from fastmomentum.backends.cpu.kernels import STRICT
from fastmomentum.rules.assemble import Function, Wrap, identity
from fastmomentum.rules.cache import bounded
from fastmomentum.solvers.passes import SCRATCH, Terms, make_advance, make_measure

SHORTER, LONGER = 0.5, 1.05
"""The factors by which backtracking shortens a learning rate that is too long, and lengthens one that is not."""

MIN_SCALE = 1e-30
"""The scale of the learning rate below which backtracking ends the run, as it does if rounding of p hides the step."""

STALL_STEPS = 10
"""The number of consecutive steps that must change the objective by at most ftol to end a run. One such step is no
sign of convergence, since momentum changes the objective little when the motion reverses."""

RUNNING, CONVERGED, SETTLED, DIVERGED, STUCK = range(5)
"""The statuses that a loop returns."""

NUMBERS = ("value", "objective", "best_merit", "norm", "scale")
"""The numbers that a loop passes from step to step: `fun` at p, or 0 if it is not evaluated; the objective after the
last step, for restarts and ftol; the merit of the best point, which is its objective or, if values are not computed,
the norm of its prox-gradient; the largest element of the last prox-gradient; the scale of the learning rate."""

COUNTS = ("since", "restarts", "stalled", "done")
"""The numbers of steps since the last restart, of restarts, of consecutive steps that changed the objective by at most
ftol, and of all steps."""

P, Q, NEXT_P, NEXT_Q, BEST = range(5)
"""The roles of the five arrays: p, q, the next p and q, and the best p so far. `order` maps each role to an array."""


class ObjectiveFunctions(NamedTuple):
    """The smooth function to minimise, as a loop calls it.

    Attributes
    ----------
    evaluate : function
        ``evaluate(x, g, calls, args) -> f`` writes the gradient at x to g, and returns the value if `valued`, else 0.
        It adds to `calls`, the numbers of values and of gradients.
    value_at : function
        ``value_at(x, calls, args) -> f``.
    valued : bool
        Whether `evaluate` returns the value.
    """

    evaluate: Callable[..., float]
    value_at: Callable[..., float]
    valued: bool


class LoopOptions(NamedTuple):
    """The options for which a loop is made.

    Attributes
    ----------
    rule : str
        "heavy_ball" or "nesterov_positions".
    terms : Terms
        The terms of the objective besides `fun`.
    backtracking : bool
        Whether backtracking finds the learning rate.
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
        needed = {"absolute": True, "slope": self.restart == "gradient"}
        needed |= dict.fromkeys(("squares", "descent"), self.backtracking)
        needed |= dict.fromkeys(("size", "size_next"), self.terms.l1)
        return frozenset(name for name, wanted in needed.items() if wanted)


def make_loop(options: LoopOptions, functions: ObjectiveFunctions, compiled: bool) -> Callable[..., int]:
    """Return ``loop(steps, arrays, g, order, numbers, counts, lrs, mus, settings, limits, calls, args) -> status``.

    Parameters
    ----------
    options : LoopOptions
        The options of the loop.
    functions : ObjectiveFunctions
        The function to minimise.
    compiled : bool
        Whether `functions` are compiled, and the loop is to be compiled.

    Notes
    -----
    The loop does at most `steps` steps. `g` is the gradient at p. `lrs` and `mus` hold lr and momentum for each step
    since a restart; their last entries hold for all later steps. `settings` are l1, gtol, ftol, and the relative error
    of values of `fun`. The loop returns one plain number, because a signal that arrives while Numba makes any other
    Python object would end the process.
    """
    return _compiled_loop(options, functions) if compiled else _make_loop(options, functions, identity)


@bounded(64)
def _compiled_loop(options: LoopOptions, functions: ObjectiveFunctions) -> Callable[..., int]:
    loop: Callable[..., int] = kept_on_disk(njit(**STRICT)(_make_loop(options, functions, register_jitable)))
    return loop


def _make_loop(options: LoopOptions, functions: ObjectiveFunctions, wrap: Wrap) -> Callable[..., int]:
    advance, measure = make_advance(options.rule, options.terms), make_measure(options.terms, options.sums)
    evaluate, value_at = functions.evaluate, functions.value_at
    # With "nesterov_positions" the state q is the result x⁺ of the last gradient step.
    positions = options.rule == "nesterov_positions"
    step_of = step_of_state if positions else step_of_point
    value_after: Function = value_before
    if positions and (options.backtracking or options.restart == "function"):
        value_after = wrap(lambda x, value, size, size_next, *where: (value_at(x, *where), size_next))
    step_too_long, next_scale, value_lost = never, unchanged, never
    if options.backtracking:
        step_too_long, next_scale, value_lost = too_long, lengthen, not_finite
    must_restart = {"gradient": goes_uphill, "function": increases, "never": never}[options.restart]
    merit_of = merit_by_objective if functions.valued else merit_by_norm

    def loop(
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
        value, objective, best_merit, norm, scale = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
        since, restarts, stalled, done = counts[0], counts[1], counts[2], 0
        l1, gtol, ftol, noise = settings
        lanes, status = np.empty(SCRATCH), RUNNING
        while status == RUNNING and done < steps:
            if since > 0 and value_lost(value):
                # `fun` is not finite at the extrapolated point; the run goes on from the accepted point before it.
                assign(p, q)
                since, restarts = 0, restarts + 1
                value = evaluate(p, g, calls, args)
                continue
            lr, mu = scale * float(lrs[min(since, lrs.size - 1)]), float(mus[min(since, mus.size - 1)])
            advance((next_p, next_q), (p, q), g, lr, mu, l1, limits)
            after, before = step_of(next_p, next_q, p, q)
            largest, absolute, squares, slope, descent, size, size_next = measure(
                lanes, p, g, after, before, lr, l1, limits
            )
            if not np.isfinite(absolute) or not np.isfinite(value):
                status = DIVERGED
                break
            norm, objective_at_p = largest / lr, value + l1 * size
            if norm <= gtol:
                status = CONVERGED
                break
            smooth, size = value_after(next_q, value, size, size_next, calls, args)
            next_objective = smooth + l1 * size
            if step_too_long(value, smooth, descent, squares, lr, noise):
                scale *= SHORTER
                if scale < MIN_SCALE or largest <= noise * max_absolute(p):
                    status = STUCK
                continue
            if since > 0 and must_restart(slope, next_objective, objective):
                # The step is repeated from the rule's initial state.
                assign(q, p)
                since, restarts = 0, restarts + 1
                continue
            stalled = stalled + 1 if abs(next_objective - objective) <= ftol * max(abs(next_objective), 1.0) else 0
            if ftol > 0.0 and stalled >= STALL_STEPS:
                status = SETTLED
                break
            merit = merit_of(objective_at_p, norm)
            if merit < best_merit:
                best_merit = merit
                best, p, next_p = p, next_p, best
                order[BEST], order[P], order[NEXT_P] = order[P], order[NEXT_P], order[BEST]
            else:
                p, next_p = next_p, p
                order[P], order[NEXT_P] = order[NEXT_P], order[P]
            q, next_q = next_q, q
            order[Q], order[NEXT_Q] = order[NEXT_Q], order[Q]
            objective, scale = next_objective, next_scale(scale, value, squares, lr, noise)
            since, done = since + 1, done + 1
            value = evaluate(p, g, calls, args)
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = value, objective, best_merit, norm, scale
        counts[0], counts[1], counts[2], counts[3] = since, restarts, stalled, counts[3] + done
        return status

    return loop


def assign(array: Any, values: Any) -> None:
    """Write a point or a gradient to an array."""
    array[:] = values


@overload(assign)
def _assign(array: Any, values: Any) -> Callable[..., Any]:
    if not isinstance(values, types.Array) or values.ndim != 1:
        return assign

    def assign_elements(array: Any, values: Any) -> None:  # Numba's own assignment takes several seconds to compile
        if values.size != array.size:
            raise ValueError("jac: expected it to return an array of the shape of x0; got an array of another size")
        for i in range(array.size):
            array[i] = values[i]

    return assign_elements


def max_absolute(array: Any) -> Any:
    """Return the largest absolute value of an array of finite numbers."""
    return np.abs(array).max()


@overload(max_absolute)
def _max_absolute(array: Any) -> Callable[..., Any]:
    def max_of_elements(array: Any) -> Any:  # Numba's own max takes 1.3 s to compile
        found = abs(array[0])
        for i in range(1, array.size):
            found = max(found, abs(array[i]))
        return found

    return max_of_elements


@register_jitable
def value_before(x: Any, value: Any, size: Any, size_next: Any, calls: Any, args: Any) -> Any:
    """Return f and Σ|x| at p; a loop calls it if no option needs the values at x⁺."""
    return value, size


@register_jitable
def too_long(value: Any, smooth: Any, descent: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return whether f(x⁺) is not finite or exceeds its bound by more than rounding.

    bound = f(p) − ⟨g, p − x⁺⟩ + ‖p − x⁺‖²/(2·lr)        (Beck and Teboulle 2009, (2.5) and section 4)
    """
    return not (np.isfinite(smooth) and smooth <= value - descent + squares / (2.0 * lr) + noise * abs(value))


@register_jitable
def lengthen(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return a greater scale for the next step, or the same one if rounding hides whether a step is too long."""
    return scale * LONGER if squares / (2.0 * lr) > 100.0 * noise * abs(value) else scale


@register_jitable
def unchanged(scale: Any, value: Any, squares: Any, lr: Any, noise: Any) -> Any:
    """Return the scale unchanged."""
    return scale


@register_jitable
def not_finite(value: Any) -> Any:
    """Return whether the value of `fun` is not finite."""
    return not np.isfinite(value)


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
