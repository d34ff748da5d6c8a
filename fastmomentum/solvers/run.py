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

STOPPED = STUCK + 1
"""The status of a run that the callback has ended."""

ENDINGS = {
    CONVERGED: (0, "converged: the largest element of the prox-gradient is at most gtol"),
    SETTLED: (0, "converged: the objective changes by at most ftol"),
    RUNNING: (1, "maxiter steps are done"),
    DIVERGED: (2, "diverged: fun or its gradient is not finite; a smaller {} may help, unless fun has no lower bound"),
    STUCK: (3, "no shorter step decreases fun: gtol is beyond the precision of fun, or jac is not its gradient"),
    STOPPED: (99, "`callback` raised `StopIteration`"),
}
"""SciPy's status and the message for each status of a run, with a place for the setting that keeps steps short."""


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
    """

    l1: float
    gtol: float
    ftol: float
    noise: float


class Answer(NamedTuple):
    """Hold a point that may be the result of a run.

    Attributes
    ----------
    x, gradient : ndarray
        The point, and the gradient of `fun` there.
    objective : float
        The objective, with the l1 term; inf if it is not finite.
    optimality : float
        The largest element of the prox-gradient.
    """

    x: Floats
    objective: float
    gradient: Floats
    optimality: float


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

    Raises
    ------
    ValueError
        If the objective or its gradient is not finite at the start.
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
        self._settings = Settings(l1, gtol, ftol, 10.0 * float(np.finfo(start.dtype).eps))
        self._terms = Terms(l1 > 0.0, bool(limits))
        self._arrays, self._order = tuple(start.copy() for _ in range(5)), np.arange(5)
        self._numbers = np.array([0.0, np.inf, np.inf, np.inf, 1.0])
        self._counts, self._calls = np.zeros(len(COUNTS), np.int64), np.zeros(2, np.int64)
        value, self._g = objective.checked(False).value_at(start, self._calls, args), self.gradient(start)
        self._numbers[0] = value
        if not np.isfinite(value):
            raise ValueError(f"fun: expected a finite number at x0; got {value}")
        if not np.isfinite(self._g).all():
            k = int(np.argmin(np.isfinite(self._g)))
            raise ValueError(f"jac: expected finite numbers at x0; got {self._g.flat[k]} for parameter {k}")

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
        return float(self._settings.l1 * np.abs(x).sum(dtype=np.float64)) if self._terms.l1 else 0.0

    def gradient(self, x: Floats) -> Floats:
        """Return the gradient at a point."""
        g = np.empty_like(self._arrays[0])
        self.objective.checked(False).evaluate(np.asarray(x, g.dtype), g, self._calls, self.args)
        return g

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
        rule, lr, momentum, restart = step_sizes
        valued = callback is not None or self._settings.ftol > 0.0 or lr is None or restart == "function"
        if rule == "fire":
            own = {"lr": lr, **(settings or {})}
            loop = make_fire_loop(self._array(P), own, self.objective.checked(valued))
        else:
            options = LoopOptions(rule, self._terms, lr is None, restart)
            loop = make_loop(options, self.objective.functions(valued), self.objective.compiled)
        self._rule = rule
        self._lr = StepTable("lr", self.first_lr() if lr is None else lr, ABOVE_ZERO, maxiter)
        self._momentum = StepTable("momentum", momentum, UNIT_INTERVAL, maxiter)
        status, slice_steps = RUNNING, 1
        while status == RUNNING and self.steps < maxiter:
            before, start = self.steps, perf_counter()
            count = min(slice_steps, maxiter - before)
            tables = (table.values_for(self._count("since") + count) for table in (self._lr, self._momentum))
            arrays = tuple(self._arrays[place] for place in self._order)
            state = (arrays, self._g, self._order, self._numbers, self._counts)
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
        lr, momentum = self._lr.at(step) * self._number("scale"), self._momentum.at(step)
        x, objective, gradient, optimality = self._answer(status, lr)
        if status == RUNNING and optimality <= self._settings.gtol:
            status = CONVERGED
        code, message = ENDINGS[status]
        differences = self.objective.jac if isinstance(self.objective.jac, Differences) else None
        return OptimizeResult(
            x=x,
            fun=objective,
            jac=gradient,
            nit=self.steps,
            nfev=int(self._calls[0]) + (differences.evaluations if differences else 0),
            njev=0 if differences else int(self._calls[1]),
            success=code == 0,
            status=code,
            message=message.format("lr, max_dt or max_step" if self._rule == "fire" else "lr"),
            optimality=optimality,
            restarts=self._count("restarts"),
            lr=lr,
            momentum=momentum,
        )

    def _answer(self, status: int, lr: float) -> Answer:
        """Return the last point or, if the run has not converged, the best point if it is better.

        The best point is better if its objective is lower, or if the gradient at the last point is not finite.
        """
        last = self._answer_at(self.point, self._g, lr)
        if status == CONVERGED:
            return last._replace(optimality=self._number("norm"))
        if status in (SETTLED, STOPPED):
            return last
        x = self._array(BEST).copy()
        best = self._answer_at(x, self.gradient(x), lr)
        return last if last.objective <= best.objective and np.isfinite(last.optimality) else best

    def _answer_at(self, x: Floats, g: Floats, lr: float) -> Answer:
        """Return the answer at x or, with a proximal map, at the result of one step of size `lr` from x."""
        l1 = self._settings.l1
        if self._terms.any and np.isfinite(g).all():
            new = np.empty_like(x), np.empty_like(x)
            make_advance(self._rule, self._terms)(new, (x, x), g, lr, 0.0, l1, self.limits)
            x = new[0]
            g = self.gradient(x)
        value = self.objective.checked(False).value_at(x, self._calls, self.args) + self._l1_term(x)
        optimality = float(np.abs(g).max())  # a NaN if one element is, which `measure` would pass over
        if self._terms.any and np.isfinite(optimality):
            measure = make_measure(self._terms, frozenset())
            optimality = measure(np.empty(SCRATCH), x, g, x, x, lr, l1, self.limits)[0] / lr
        return Answer(x, value if np.isfinite(value) else np.inf, g, optimality)
