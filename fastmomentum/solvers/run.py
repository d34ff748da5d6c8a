"""Run a minimiser in slices of about 0.05 seconds, and make its result."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult

from fastmomentum.checks import ABOVE_ZERO, UNIT_INTERVAL
from fastmomentum.solvers.fire import make_fire_loop
from fastmomentum.solvers.loop import (
    BEST,
    CONVERGED,
    COUNTS,
    DIVERGED,
    NUMBERS,
    RUNNING,
    SETTLED,
    STUCK,
    LoopOptions,
    P,
    make_loop,
)
from fastmomentum.solvers.objective import Differences, Objective
from fastmomentum.solvers.passes import SCRATCH, Floats, Limits, Terms, make_advance, make_measure
from fastmomentum.solvers.step_sizes import StepSizes, StepTable

LEAST_LR = 1e-300
"""The least learning rate that backtracking starts from, since 0 is not allowed."""

SLICE = 0.05
"""The seconds that compiled code works before Python handles signals and calls the callback."""

STOPPED, FIXED, UNDEFINED = range(STUCK + 1, STUCK + 4)
"""The statuses of a run that the callback has ended, of one whose bounds fix all parameters, and of one whose start has
a value or a gradient that is not finite."""

ENDINGS = {
    CONVERGED: (0, "converged: the largest element of the prox-gradient is at most gtol"),
    SETTLED: (0, "converged: the objective changes by at most ftol"),
    FIXED: (0, "All independent variables were fixed by bounds."),  # SciPy's words, as programs look for them
    RUNNING: (1, "Maximum number of iterations has been exceeded: maxiter steps are done"),  # so do these begin
    DIVERGED: (2, "diverged: x, fun or jac is not finite; a smaller {} may help, unless fun has no lower bound"),
    UNDEFINED: (2, "no step can be taken: at x0, {}"),
    STUCK: (3, "no shorter step decreases fun: gtol is beyond the precision of fun, or jac is not its gradient"),
    STOPPED: (99, "`callback` raised `StopIteration`"),
}
"""SciPy's status and the message for each status of a run, with a place for the setting that keeps steps short, or for
the value that is not finite."""


class Settings(NamedTuple):
    """Hold the settings of a loop.

    Attributes
    ----------
    l1 : float
        The weight of the l1 term.
    gtol, ftol : float
        The tolerances of :func:`fastmomentum.minimize`.
    noise : float
        The relative error of values of `fun`.
    distrust : float
        The part of the largest |fun| below which differences of values are not trusted, as they have lost half of
        their digits or more; gradients decide there.
    """

    l1: float
    gtol: float
    ftol: float
    noise: float
    distrust: float


class Answer(NamedTuple):
    """Hold a point that may be the result of a run.

    Attributes
    ----------
    x, gradient : ndarray
        The point, and the gradient of `fun` there.
    objective : float
        The objective, with the l1 term.
    optimality : float
        The largest element of the prox-gradient.
    """

    x: Floats
    objective: float
    gradient: Floats
    optimality: float

    @property
    def order(self) -> tuple[bool, float]:
        """The key by which better answers come first: finite ones by their objective, then others."""
        is_finite = bool(np.isfinite(self.objective) and np.isfinite(self.optimality))
        return not is_finite, self.objective if np.isfinite(self.objective) else np.inf


class MinimizeRun:
    """One run of a minimiser.

    Parameters
    ----------
    objective : Objective
        The function to minimise.
    start : ndarray
        The start, within the limits.
    args : tuple
        Further arguments of the objective.
    limits : tuple of two ndarray, or ()
        The bounds.
    l1, gtol, ftol : float
        As for :func:`fastmomentum.minimize`.

    Attributes
    ----------
    status : int
        RUNNING, or the status of a run that takes no step: FIXED or UNDEFINED.
    """

    def __init__(
        self,
        objective: Objective,
        start: Floats,
        args: tuple[object, ...],
        limits: Limits,
        l1: float,
        gtol: float,
        ftol: float,
    ) -> None:
        self.objective, self.args, self.limits = objective, args, limits
        epsilon = float(np.finfo(start.dtype).eps)
        self._settings = Settings(l1, gtol, ftol, 10.0 * epsilon, epsilon**0.5)
        self._terms = Terms(l1 > 0.0, bool(limits))
        self._arrays, self._order = tuple(start.copy() for _ in range(5)), np.arange(5)
        self._counts, self._calls = np.zeros(len(COUNTS), np.int64), np.zeros(2, np.int64)
        self._rule, self._valued = "", True
        self._lr: StepTable | None = None
        self._momentum: StepTable | None = None
        value, self._g = self._evaluate(start)
        self._numbers = np.array([value, np.inf, np.inf, np.inf, 1.0, abs(value), np.inf, value])
        finite = np.isfinite(self._g)
        self._fault = ""
        if not np.isfinite(value):
            self._fault = f"fun is {value}"
        elif not finite.all():
            k = int(np.argmin(finite))
            self._fault = f"jac is {self._g.flat[k]} for parameter {k}"
        is_fixed = bool((limits[0] == limits[1]).all()) if limits else False
        self.status = UNDEFINED if self._fault else FIXED if is_fixed else RUNNING

    @property
    def point(self) -> Floats:
        """A copy of p, the point at which the last gradient was taken."""
        return self._array(P).copy()

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return self._count("done")

    @property
    def value(self) -> float:
        """The objective at :attr:`point`, if the loop computes values."""
        return self._number("value") + self._l1_term(self.point)

    def _array(self, role: int) -> Floats:
        return self._arrays[int(self._order[role])]

    def _number(self, name: str) -> float:
        return float(self._numbers[NUMBERS.index(name)])

    def _count(self, name: str) -> int:
        return int(self._counts[COUNTS.index(name)])

    def _l1_term(self, x: Floats) -> float:
        return self._settings.l1 * float(np.abs(x).sum(dtype=np.float64)) if self._terms.l1 else 0.0

    def gradient(self, x: Floats) -> Floats:
        """Return the gradient at a point."""
        g = np.empty_like(self._arrays[0])
        self.objective.checked(False).evaluate(np.asarray(x, g.dtype), g, self._calls, self.args)
        return g

    def _evaluate(self, x: Floats) -> tuple[float, Floats]:
        """Return the value of `fun` and its gradient at a point."""
        g = np.empty_like(self._arrays[0])
        return self.objective.checked(True).evaluate(x, g, self._calls, self.args), g

    def first_lr(self) -> float:
        """Return the learning rate from which backtracking starts.

        ‖x − y‖∞/‖∇f(x) − ∇f(y)‖∞, with y the end of a small step from x against the gradient
        """
        x, largest = self._array(P), float(np.abs(self._g).max())
        if largest == 0.0:
            return 1.0
        y = x - self._g / largest * (1e-4 * (1.0 + float(np.abs(x).max())))
        if self.limits:
            y = np.clip(y, *self.limits)
        distance, change = float(np.abs(y - x).max()), float(np.abs(self.gradient(y) - self._g).max())
        if 0.0 < distance < np.inf and 0.0 < change < np.inf:
            return max(distance / change, LEAST_LR)
        return max((1.0 + float(np.abs(x).max())) / largest * 1e-4, LEAST_LR)

    def run(
        self,
        step_sizes: StepSizes,
        maxiter: int,
        callback: Callable[["MinimizeRun"], bool] | None = None,
        every_step: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> int:
        """Run until a condition ends the run, and return its status.

        `settings` are those that the rule has besides lr and momentum.
        `callback` is called after each slice, or after each step if `every_step`; it ends the run by returning True.
        """
        if self.status != RUNNING:
            return self.status
        rule, lr, momentum, restart = step_sizes
        valued = callback is not None or self._settings.ftol > 0.0 or lr is None or restart == "function"
        options = LoopOptions(rule, self._terms, lr is None, restart)
        if rule == "fire":
            own = {"lr": lr, **(settings or {})}
            functions = self.objective.checked(valued)
            loop = make_fire_loop(self._array(P), own, functions)
        else:
            functions = self.objective.functions(valued)
            loop = make_loop(options, functions, self.objective.compiled)
        gradients = self._g, np.empty_like(self._g) if options.looks_ahead else self._g
        if lr is None:
            lr = self.first_lr() if maxiter > 0 else 1.0
        self._rule, self._valued = rule, functions.valued
        self._lr = lrs = StepTable("lr", lr, ABOVE_ZERO, maxiter)
        self._momentum = momenta = StepTable("momentum", momentum, UNIT_INTERVAL, maxiter)
        status, slice_steps = RUNNING, 1
        while status == RUNNING and self.steps < maxiter:
            before, start = self.steps, perf_counter()
            count = min(slice_steps, maxiter - before)
            tables = (table.values_for(self._count("since") + count) for table in (lrs, momenta))
            arrays = tuple(self._arrays[place] for place in self._order)
            state = (arrays, gradients, self._order, self._numbers, self._counts)
            status = loop(count, *state, *tables, tuple(self._settings), self.limits, self._calls, self.args)
            seconds = perf_counter() - start
            if not every_step and seconds < SLICE / 2.0:
                slice_steps *= 2
            elif not every_step and seconds > 2.0 * SLICE:
                slice_steps = max(1, slice_steps // 2)
            if self.steps > before and callback is not None and callback(self):
                return STOPPED
        return int(status)

    def result(self, status: int) -> OptimizeResult:
        """Return the result of a run that has ended with this status."""
        step = max(self._count("since") - 1, 0)
        lr = self._lr.at(step) * self._number("scale") if self._lr else np.nan
        momentum = self._momentum.at(step) if self._momentum else np.nan
        status, (x, objective, gradient, optimality) = self._answer(status, lr if self._lr else 1.0)
        code, message = ENDINGS[status]
        shortening = "lr, max_dt or max_step" if self._rule == "fire" else "lr"
        differences = self.objective.jac if isinstance(self.objective.jac, Differences) else None
        if differences and differences.fixed.any():
            gradient[differences.fixed] = np.nan  # as in SciPy: to compute it needs points outside of the bounds
        return OptimizeResult(
            x=x,
            fun=objective,
            jac=gradient,
            nit=self.steps,
            nfev=int(self._calls[0]) + (differences.evaluations if differences else 0),
            njev=int(self._calls[1]),
            success=code == 0,
            status=code,
            message=message.format(self._fault if status == UNDEFINED else shortening),
            optimality=optimality,
            restarts=self._count("restarts"),
            lr=lr,
            momentum=momentum,
        )

    def _answer(self, status: int, lr: float) -> tuple[int, Answer]:
        """Return the status, and the last point or, if the run has not converged, the best point if it is better.

        The best point is better if its objective is lower, or if the last point or its gradient is not finite.
        """
        x, is_start, gtol = self.point, self.steps == 0, self._settings.gtol
        answers = []
        if np.isfinite(x).all():
            value = self._number("value") if self._valued or is_start else None
            last = self._answer_at(x, self._g.copy(), value, lr, status == CONVERGED or not is_start)
            if status == CONVERGED:
                last = last._replace(optimality=self._number("norm"))
            elif status == RUNNING and last.optimality <= gtol:
                status = CONVERGED
            if status in (CONVERGED, SETTLED) and not np.isfinite(last.objective):
                status = DIVERGED  # a run that does not compute objectives meets this value at its end alone
            is_best = self._valued and not self._terms.any and last.order <= (False, self._number("best_merit"))
            if is_start or is_best or status in (CONVERGED, SETTLED, STOPPED):
                return status, last
            answers = [last]
        x = self._array(BEST).copy()
        value, g = self._evaluate(x)
        found = min([*answers, self._answer_at(x, g, value, lr, True)], key=lambda answer: answer.order)
        return CONVERGED if status == RUNNING and found.optimality <= gtol else status, found

    def _answer_at(self, x: Floats, g: Floats, value: float | None, lr: float, is_mapped: bool) -> Answer:
        """Return the answer at x or, if `is_mapped`, at the result of a step of size `lr` with the proximal map."""
        l1 = self._settings.l1
        if is_mapped and self._terms.any and np.isfinite(g).all():
            new = np.empty_like(x), np.empty_like(x)
            make_advance(self._rule, self._terms)(new, (x, x), g, lr, 0.0, l1, self.limits)
            if np.array_equal(new[0], x):
                x = new[0]  # zeros may have another sign
            else:
                new_value, new_g = self._evaluate(new[0])
                if np.isfinite(new_value) and np.isfinite(new_g).all():
                    x, value, g = new[0], new_value, new_g
        if value is None:
            value = self.objective.checked(False).value_at(x, g, self._calls, self.args)
        optimality = float(np.abs(g).max())  # a NaN if one element is, which `measure` would pass over
        if self._terms.any and np.isfinite(optimality):
            measure = make_measure(self._terms, frozenset())
            optimality = measure(np.empty(SCRATCH), x, g, x, x, lr, l1, self.limits)[0] / lr
        return Answer(x, value + self._l1_term(x), g, optimality)
