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
from fastmomentum.rules.assemble import Wrap, identity
from fastmomentum.rules.cache import bounded
from fastmomentum.solvers.decisions import (
    goes_uphill,
    hidden_by_rounding,
    increases,
    lengthen,
    merit_by_norm,
    merit_by_objective,
    never,
    not_defined,
    size_before,
    size_of_state,
    step_of_point,
    step_of_state,
    too_long,
    unchanged,
    value_before,
)
from fastmomentum.solvers.passes import SCRATCH, Terms, make_advance, make_measure, secant_is_within

SHORTER = 0.5
"""The factor by which backtracking shortens a learning rate that is too long."""

MIN_SCALE = 1e-30
"""The scale of the learning rate below which backtracking ends the run, as it does if rounding of p hides the step."""

STALL_STEPS = 10
"""The number of consecutive steps that must change the objective by at most ftol to end a run. One such step is no
sign of convergence, since momentum changes the objective little when the motion reverses."""

RUNNING, CONVERGED, SETTLED, DIVERGED, STUCK = range(5)
"""The statuses that a loop returns."""

PATIENCE = 100
"""The number of steps without a new least prox-gradient, besides three times those before the least one, after which
steps whose effect rounding hides end a run: `jac` then has errors of this size, or is not the gradient."""

PROGRESS = 0.5
"""The factor by which a prox-gradient must be less than the least one to count as a new one. With a factor near 1,
random errors of gradients would set a new one in most intervals of this length, and the run would not end."""

NUMBERS = ("value", "objective", "best_merit", "norm", "scale", "magnitude", "least_norm", "least_objective")
"""The numbers that a loop passes from step to step: `fun` at p, or 0 if it is not evaluated; the objective after the
last step, for restarts and ftol; the merit of the best point, which is its objective or, if values are not computed,
the norm of its prox-gradient; the largest element of the last prox-gradient; the scale of the learning rate; the
largest |fun| at the points x⁺; the least norm so far, and the objective there."""

COUNTS = ("since", "restarts", "stalled", "done", "least_at")
"""The numbers of steps since the last restart, of restarts, of consecutive steps that changed the objective by at most
ftol, of all steps, and of steps before the least norm."""

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
        ``value_at(x, g, calls, args) -> f``. It writes the gradient to g if `fun` returns both.
    gradient_at : function
        ``gradient_at(x, g, f, calls, args)`` writes the gradient at x to g, if ``value_at(x, g, ...)`` has returned f.
    valued : bool
        Whether `evaluate` returns the value.
    """

    evaluate: Callable[..., float]
    value_at: Callable[..., float]
    gradient_at: Callable[..., None]
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
    def looks_ahead(self) -> bool:
        """Whether a loop evaluates `fun` at x⁺ before it takes the step."""
        return self.rule == "nesterov_positions" and (self.backtracking or self.restart == "function")

    @property
    def sums(self) -> frozenset[str]:
        """The names of the sums to measure in each step."""
        needed = {"absolute": True, "slope": self.restart == "gradient"}
        needed |= dict.fromkeys(("squares", "descent"), self.backtracking)
        needed |= dict.fromkeys(("size", "size_next"), self.terms.l1)
        return frozenset(name for name, wanted in needed.items() if wanted)


def make_loop(options: LoopOptions, functions: ObjectiveFunctions, compiled: bool) -> Callable[..., int]:
    """Return ``loop(steps, arrays, gradients, order, numbers, counts, lrs, mus, settings, limits, calls, args)``.

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
    The loop does at most `steps` steps, and returns its status. `gradients` are the gradient at p, and memory for the
    gradient at x⁺, which is used if the options look ahead. `lrs` and `mus` hold lr and momentum for each step since a
    restart; their last entries hold for all later steps. `settings` are l1, gtol, ftol, the relative error of values of
    `fun`, and the part of the largest value below which differences of values are not trusted. The status is a plain
    number, because a signal that arrives while Numba makes any other Python object would end the process.
    """
    return _compiled_loop(options, functions) if compiled else _make_loop(options, functions, identity)


@bounded(64)
def _compiled_loop(options: LoopOptions, functions: ObjectiveFunctions) -> Callable[..., int]:
    loop: Callable[..., int] = kept_on_disk(njit(**STRICT)(_make_loop(options, functions, register_jitable)))
    return loop


def _make_loop(options: LoopOptions, functions: ObjectiveFunctions, wrap: Wrap) -> Callable[..., int]:
    advance, measure = make_advance(options.rule, options.terms), make_measure(options.terms, options.sums)
    evaluate, value_at, gradient_at = functions.evaluate, functions.value_at, functions.gradient_at

    def value_of_state(x: Any, g: Any, value: Any, calls: Any, args: Any) -> Any:
        return value_at(x, g, calls, args)

    def evaluate_point(
        p: Any, g: Any, x: Any, x_g: Any, smooth: Any, x_g_known: Any, mu: Any, calls: Any, args: Any
    ) -> Any:
        return evaluate(p, g, calls, args)

    def evaluate_point_or_state(
        p: Any, g: Any, x: Any, x_g: Any, smooth: Any, x_g_known: Any, mu: Any, calls: Any, args: Any
    ) -> Any:
        if mu != 0.0:
            return evaluate(p, g, calls, args)
        if not x_g_known:  # without momentum p is x⁺, where `fun` has been evaluated
            gradient_at(x, x_g, smooth, calls, args)
        assign(g, x_g)
        return smooth

    def curvature_allows(
        p: Any, x: Any, g: Any, x_g: Any, smooth: Any, lr: Any, noise: Any, calls: Any, args: Any
    ) -> Any:
        gradient_at(x, x_g, smooth, calls, args)
        return secant_is_within(p, x, g, x_g, 1.0 / lr, noise)

    # With "nesterov_positions" the state q is the result x⁺ of the last gradient step.
    step_of = step_of_state if options.rule == "nesterov_positions" else step_of_point
    value_after, size_after, value_at_next = value_before, size_before, wrap(evaluate_point)
    if options.looks_ahead:
        value_after, size_after, value_at_next = wrap(value_of_state), size_of_state, wrap(evaluate_point_or_state)
    step_too_long, allowed_by_gradient, step_is_hidden, next_scale, value_lost = never, never, never, unchanged, never
    if options.backtracking:
        step_too_long, allowed_by_gradient, step_is_hidden = too_long, wrap(curvature_allows), hidden_by_rounding
        next_scale, value_lost = lengthen, not_defined
    must_restart = {"gradient": goes_uphill, "function": increases, "never": never}[options.restart]
    merit_of = merit_by_objective if functions.valued else merit_by_norm

    def loop(
        steps: Any,
        arrays: Any,
        gradients: Any,
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
        g, next_g = gradients
        value, objective, best_merit, norm, scale = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
        magnitude, least_norm, least_objective = numbers[5], numbers[6], numbers[7]
        since, restarts, stalled, before, least_at, done = counts[0], counts[1], counts[2], counts[3], counts[4], 0
        l1, gtol, ftol, noise, distrust = settings
        lanes, status = np.empty(SCRATCH), RUNNING
        # `fun` has been evaluated at the x⁺ that this lr gives; −1 if it has not since p has changed.
        evaluated_lr, smooth, is_long, by_gradient = -1.0, value, False, False
        while status == RUNNING and done < steps:
            if since > 0 and value_lost(value):
                # `fun` is not defined at the extrapolated point; the run goes on from the accepted point before it.
                assign(p, q)
                since, restarts, evaluated_lr = 0, restarts + 1, -1.0
                value = value_at_next(p, g, q, next_g, smooth, by_gradient, 1.0, calls, args)
                continue
            lr, mu = scale * float(lrs[min(since, lrs.size - 1)]), float(mus[min(since, mus.size - 1)])
            advance((next_p, next_q), (p, q), g, lr, mu, l1, limits)
            after, origin = step_of(next_p, next_q, p, q)
            largest, absolute, squares, slope, descent, size, size_next = measure(
                lanes, p, g, after, origin, lr, l1, limits
            )
            if not np.isfinite(absolute) or not np.isfinite(value):
                status = DIVERGED
                break
            norm, objective_at_p = largest / lr, value + l1 * size
            if norm <= gtol:
                status = CONVERGED
                break
            if norm < PROGRESS * least_norm:
                least_norm, least_objective, least_at = norm, objective_at_p, before + done
            is_patient = before + done <= PATIENCE + 4 * least_at
            if not is_patient and step_is_hidden(value, squares, lr, noise):
                status = STUCK
                break
            merit, hidden = merit_of(objective_at_p, norm), distrust * magnitude
            if lr != evaluated_lr:
                evaluated_lr, smooth = lr, value_after(next_q, next_g, value, calls, args)
                if smooth == -np.inf:
                    status = DIVERGED
                    break
                is_long, by_gradient = step_too_long(value, smooth, descent, squares, lr, noise), False
                # Where rounding can hide the change of `fun`, gradients decide on steps that it refuses, and on hidden
                # ones that make no progress, by which an lr that is too long shows. A wrong gradient may do so while
                # the objective rises by no more than rounding hides.
                if (
                    (is_long or (norm > least_norm and step_is_hidden(value, squares, lr, noise)))
                    and is_patient
                    and max(abs(smooth - value), squares / (2.0 * lr)) <= hidden
                    and smooth + l1 * size_next <= least_objective + hidden
                ):
                    by_gradient = allowed_by_gradient(p, next_q, g, next_g, smooth, lr, noise, calls, args)
                    is_long = not by_gradient
            if is_long:
                scale *= SHORTER
                if scale < MIN_SCALE or largest <= noise * max_absolute(p):
                    status = STUCK if np.isfinite(smooth) else DIVERGED
                continue
            next_objective = smooth + l1 * size_after(size, size_next)
            if since > 0 and must_restart(slope, next_objective, objective):
                # The step is repeated from the rule's initial state.
                assign(q, p)
                since, restarts = 0, restarts + 1
                continue
            stalled = stalled + 1 if abs(next_objective - objective) <= ftol * max(abs(next_objective), 1.0) else 0
            if ftol > 0.0 and stalled >= STALL_STEPS:
                status = SETTLED
                break
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
            since, done, evaluated_lr, magnitude = since + 1, done + 1, -1.0, max(magnitude, abs(smooth))
            value = value_at_next(p, g, q, next_g, smooth, by_gradient, mu, calls, args)
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = value, objective, best_merit, norm, scale
        numbers[5], numbers[6], numbers[7] = magnitude, least_norm, least_objective
        counts[0], counts[1], counts[2], counts[3], counts[4] = since, restarts, stalled, before + done, least_at
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
