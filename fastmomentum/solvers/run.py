"""One run of a minimiser: its arrays and numbers, advanced slice by slice, and its result."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult

from fastmomentum.checks import ABOVE_ZERO, UNIT_INTERVAL
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
    make_run,
)
from fastmomentum.solvers.objective import Differences, Objective
from fastmomentum.solvers.passes import SCRATCH, Terms, make_advance, make_measure
from fastmomentum.solvers.step_sizes import StepSizes, StepTable

LEAST = 1e-300
"""The least learning rate, as 0 is not one."""

SLICE = 0.05
"""The seconds that compiled code works before Python handles signals and calls the callback."""

STOPPED = STUCK + 1

ENDINGS = {
    CONVERGED: (0, "the largest element of the prox-gradient is within gtol"),
    SETTLED: (0, "the objective changes by no more than ftol"),
    RUNNING: (1, "maxiter steps are done"),
    DIVERGED: (2, "diverged: fun or its gradient is not finite; a smaller lr may help, unless fun has no lower bound"),
    STUCK: (3, "no shorter step makes fun fall: gtol is beyond the precision of fun, or jac is not its gradient"),
    STOPPED: (99, "`callback` raised `StopIteration`"),
}
"""For each status of a loop SciPy's status and message."""


class Settings(NamedTuple):
    """The weight of the l1 term, the tolerances of :func:`fastmomentum.minimize`, and the relative error of `fun`."""

    l1: float
    gtol: float
    ftol: float
    noise: float


Callback = Callable[["MinimizeRun"], bool]
"""A function that is called with a run after each of its slices, and ends the run by returning True."""


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
        Bounds.
    l1, gtol, ftol : float
        As for :func:`fastmomentum.minimize`.

    Raises
    ------
    ValueError
        If the objective or its gradient is not finite at the start.
    """

    def __init__(
        self, objective: Objective, start: Any, args: Any, limits: tuple[Any, ...], l1: float, gtol: float, ftol: float
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
            raise ValueError("jac: expected finite numbers at x0; got some that are not")

    @property
    def point(self) -> Any:
        """A copy of p, the point of the last gradient."""
        return self._arrays[self._order[P]].copy()

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return int(self._callback("done"))

    @property
    def value(self) -> float:
        """The objective at :attr:`point`, if values are known."""
        return self._callback("value") + self._size(self.point)

    def _callback(self, name: str) -> float:
        return float(self._numbers[NUMBERS.index(name)] if name in NUMBERS else self._counts[COUNTS.index(name)])

    def _size(self, x: Any) -> float:
        return float(self._settings.l1 * np.abs(x).sum(dtype=np.float64)) if self._terms.l1 else 0.0

    def gradient(self, x: Any) -> Any:
        """Return the gradient at a point."""
        g = np.empty_like(self._arrays[0])
        self.objective.checked(False).evaluate(np.asarray(x, g.dtype), g, self._calls, self.args)
        return g

    def first_lr(self) -> float:
        """Return ‖x − y‖/‖∇f(x) − ∇f(y)‖ for a small step against the gradient: the first lr of backtracking."""
        x, largest = self._arrays[self._order[P]], float(np.abs(self._g).max())
        if largest == 0.0:
            return 1.0
        there = x - self._g / largest * (1e-4 * (1.0 + float(np.abs(x).max())))
        if self.limits:
            there = np.clip(there, *self.limits)
        way, change = float(np.abs(there - x).max()), float(np.abs(self.gradient(there) - self._g).max())
        if 0.0 < way < np.inf and 0.0 < change < np.inf:
            return max(way / change, LEAST)
        return max((1.0 + float(np.abs(x).max())) / largest * 1e-4, LEAST)

    def run(self, pace: StepSizes, maxiter: int, callback: Callback | None = None, often: bool = False) -> int:
        """Run to the end; `callback` is called after slices, or each step if `often`, and ends the run by True."""
        backtracking = pace.lr is None
        valued = callback is not None or self._settings.ftol > 0.0 or backtracking or pace.restart == "function"
        compiled = self.objective.compiled
        loop = make_run(
            LoopOptions(pace.rule, self._terms, backtracking, pace.restart), self.objective.forms(valued), compiled
        )
        self._rule = pace.rule
        self._lr = StepTable("lr", self.first_lr() if pace.lr is None else pace.lr, ABOVE_ZERO, maxiter)
        self._momentum = StepTable("momentum", pace.momentum, UNIT_INTERVAL, maxiter)
        status, most = RUNNING, 1
        while status == RUNNING and self.steps < maxiter:
            before, begun = self.steps, perf_counter()
            count = min(most, maxiter - before)
            tables = (table.upto(int(self._callback("since")) + count) for table in (self._lr, self._momentum))
            arrays = tuple(self._arrays[place] for place in self._order)
            kept = (arrays, self._g, self._order, self._numbers, self._counts)
            status = loop(count, *kept, *tables, tuple(self._settings), self.limits, self._calls, self.args)
            spent = perf_counter() - begun
            if not often:
                most = most * 2 if spent < SLICE / 2.0 else max(1, most // 2) if spent > 2.0 * SLICE else most
            if self.steps > before and callback is not None and callback(self):
                return STOPPED
        return int(status)

    def result(self, status: int) -> OptimizeResult:
        """Return the result."""
        step = max(int(self._callback("since")) - 1, 0)
        lr, momentum = self._lr.at(step) * self._callback("scale"), self._momentum.at(step)
        x, value, g, optimality = self._answer(status, lr)
        if status == RUNNING and optimality <= self._settings.gtol:
            status = CONVERGED
        code, message = ENDINGS[status]
        differences = self.objective.jac if isinstance(self.objective.jac, Differences) else None
        return OptimizeResult(
            x=x,
            fun=value,
            jac=g,
            nit=self.steps,
            nfev=int(self._calls[0]) + (differences.asked if differences else 0),
            njev=0 if differences else int(self._calls[1]),
            success=code == 0,
            status=code,
            message=message,
            optimality=optimality,
            restarts=int(self._callback("restarts")),
            lr=lr,
            momentum=momentum,
        )

    def _answer(self, status: int, lr: float) -> tuple[Any, float, Any, float]:
        """Return x, objective, gradient and optimality: of the last point or, without convergence, of a better one.

        With a proximal map, x is the result of the map at the point.
        """
        last = self._settled(self.point, self._g, lr)
        if status == CONVERGED:
            return *last[:3], self._callback("norm")
        if status in (SETTLED, STOPPED):
            return last
        best = self._arrays[self._order[BEST]].copy()
        other = self._settled(best, self.gradient(best), lr)
        return last if last[1] <= other[1] else other

    def _settled(self, x: Any, g: Any, lr: float) -> tuple[Any, float, Any, float]:
        l1 = self._settings.l1
        if self._terms.any and np.isfinite(g).all():
            new = np.empty_like(x), np.empty_like(x)
            make_advance(self._rule, self._terms)(new, (x, x), g, lr, 0.0, l1, self.limits)
            x = new[0]
            g = self.gradient(x)
        value = self.objective.checked(False).value_at(x, self._calls, self.args) + self._size(x)
        largest = make_measure(self._terms, frozenset())(np.empty(SCRATCH), x, g, x, x, lr, l1, self.limits)[0]
        return x, value if np.isfinite(value) else np.inf, g, largest / lr
