"""A minimiser under way: its arrays and numbers, taken on slice by slice, and what it comes to."""

from collections.abc import Callable
from inspect import signature
from time import perf_counter
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from fastmomentum import checks
from fastmomentum.backends.descent import CONVERGED, DIVERGED, RUNNING, SETTLED, STUCK, Numbers, Plan, make_run
from fastmomentum.backends.passes import Terms, make_advance
from fastmomentum.objectives import Objective
from fastmomentum.paces import Pace, Table
from fastmomentum.ranges import ABOVE_ZERO, UNIT_INTERVAL

SLICE = 0.05
"""Seconds that compiled code works before Python is asked for signals and told how it goes."""

STOPPED = STUCK + 1

ENDINGS = {
    CONVERGED: (0, "the largest element of the prox-gradient is within gtol"),
    SETTLED: (0, "the objective changes by no more than ftol"),
    RUNNING: (1, "maxiter steps are done"),
    DIVERGED: (2, "diverged: fun or its gradient is not finite; the best point is kept; a smaller lr may help"),
    STUCK: (3, "no step is short enough for fun to fall as its gradient says; is jac the gradient of fun?"),
    STOPPED: (99, "`callback` raised `StopIteration`"),
}
"""What a loop ends with: SciPy's status, and what is said of it."""


class Descent:
    """One run of a minimiser.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    start : ndarray
        Where; within the limits.
    args : tuple
        What the objective takes beside x.
    limits : tuple of two ndarray, or ()
        Bounds.
    l1, gtol, ftol : float
        As :func:`fastmomentum.minimize` takes them.

    Raises
    ------
    ValueError
        If the objective or its gradient is not finite at the start.
    """

    def __init__(
        self, objective: Objective, start: Any, args: Any, limits: tuple[Any, ...], l1: float, gtol: float, ftol: float
    ) -> None:
        self.args, self.limits = args, limits
        self.counts = np.zeros(2, np.int64)
        self.steps = 0
        self._objective, self._forms = objective, objective.forms(False)
        self._settings = (l1, gtol, ftol, 10.0 * float(np.finfo(start.dtype).eps))
        value, g = self._forms.value_at(start, self.counts, args), self._gradient(start)
        if not np.isfinite(value):
            raise ValueError(f"fun: expected a finite number at x0; got {value}")
        if not np.isfinite(g).all():
            raise ValueError("jac: expected finite numbers at x0; got some that are not")
        self._arrays: Any = (*(start.copy() for _ in range(5)), g)
        self._numbers = Numbers(value, np.inf, np.inf, np.inf, 1.0, 0, 0, 0)

    def gradient(self, x: Any) -> Any:
        """The gradient at another point."""
        return self._gradient(np.asarray(x, self._arrays[0].dtype))

    def _gradient(self, x: Any) -> Any:
        g = np.empty_like(x)
        self._forms.evaluate(x, g, self.counts, self.args)
        return g

    def first_lr(self) -> float:
        """1/‖change of the gradient over a step against it‖: the learning rate that backtracking begins with."""
        x, *_, g = self._arrays
        length = float(np.linalg.norm(g))
        if length == 0.0:
            return 1.0
        size = 1e-4 * (1.0 + float(np.linalg.norm(x)))
        there = x - g * (size / length)
        if self.limits:
            there = np.clip(there, *self.limits)
        change = float(np.linalg.norm(self.gradient(there) - g))
        way = float(np.linalg.norm(there - x))
        return way / change if 0.0 < way < np.inf and 0.0 < change < np.inf else size / length

    def run(self, pace: Pace, maxiter: int, told: "Told | None" = None, often: bool = False) -> int:
        """Go on until something ends it; `told` hears of it, at each step where `often`, and may end it by True."""
        l1, _, ftol, _ = self._settings
        backtracking = pace.lr is None
        valued = told is not None or ftol > 0.0 or backtracking or pace.restart == "function"
        self._forms = forms = self._objective.forms(valued)
        self._plan = Plan(pace.rule, Terms(l1 > 0.0, bool(self.limits)), backtracking, pace.restart, forms.valued)
        loop = make_run(self._plan, forms.evaluate, forms.value_at, self._objective.compiled)
        first = self.first_lr() if pace.lr is None else pace.lr
        self._lr = Table("lr", first, ABOVE_ZERO, maxiter)
        self._momentum = Table("momentum", pace.momentum, UNIT_INTERVAL, maxiter)
        status, most = RUNNING, 1 if often else 16
        while status == RUNNING and self.steps < maxiter:
            count = min(most, maxiter - self.steps)
            begun = perf_counter()
            tables = (table.upto(self._numbers.since + count) for table in (self._lr, self._momentum))
            given = (self._settings, self.limits, self.counts, self.args)
            status, done, self._arrays, self._numbers = loop(count, self._arrays, self._numbers, *tables, *given)
            self.steps += done
            if perf_counter() - begun < SLICE and not often:
                most *= 2
            if done and told is not None and told(self):
                return STOPPED
        return int(status)

    @property
    def point(self) -> Any:
        """Where the gradient was last taken."""
        return self._arrays[0].copy()

    @property
    def value(self) -> float:
        """The objective there, where values are known."""
        return float(self._numbers.value + self._settings[0] * np.abs(self._arrays[0]).sum(dtype=np.float64))

    def result(self, status: int) -> OptimizeResult:
        """What it came to."""
        numbers = self._numbers
        lr, momentum = (table.at(max(numbers.since - 1, 0)) for table in (self._lr, self._momentum))
        lr *= numbers.scale
        code, message = ENDINGS[status]
        x, value = self._answer(status, lr)
        g = self.gradient(x)
        return OptimizeResult(
            x=x,
            fun=value,
            jac=g,
            nit=self.steps,
            nfev=int(self.counts[0]),
            njev=int(self.counts[1]),
            success=code == 0,
            status=code,
            message=message,
            optimality=float(numbers.norm),
            restarts=int(numbers.restarts),
            lr=lr,
            momentum=momentum,
        )

    def _answer(self, status: int, lr: float) -> tuple[Any, float]:
        """The proximal point of the last point, or, where nothing converged, the best there is; and its objective."""
        p, q, next_p, next_q, best, g = self._arrays
        if self._plan.terms.any:
            advance = make_advance(self._plan.rule, self._plan.terms)
            advance((next_p, next_q), (p, q), g, lr, 0.0, self._settings[0], self.limits)
            p = next_p
        here = (p.copy(), self._objective_at(p))
        if status in (CONVERGED, SETTLED, STOPPED):
            return here
        there = (best.copy(), self._objective_at(best))
        return here if here[1] <= there[1] else there

    def _objective_at(self, x: Any) -> float:
        value = self._forms.value_at(x, self.counts, self.args)
        return float(value + self._settings[0] * np.abs(x).sum(dtype=np.float64))


Told = Callable[[Descent], bool]


def told_of(callback: Callable[..., Any] | None, disp: bool) -> Told | None:
    """What hears of a run: SciPy's two forms of callback, and lines that are printed about each second."""
    if callback is None and not disp:
        return None
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function; got {checks.shown(callback)}")
    whole = callback is not None and set(signature(callback).parameters) == {"intermediate_result"}
    last = perf_counter()

    def told(run: Descent) -> bool:
        nonlocal last
        if disp and perf_counter() - last > 1.0:
            last = perf_counter()
            print(f"step {run.steps:,}: objective {run.value:.10g}")
        if callback is None:
            return False
        try:
            if whole:
                callback(intermediate_result=OptimizeResult(x=run.point, fun=run.value, nit=run.steps))
            else:
                callback(run.point)
        except StopIteration:
            return True
        return False

    return told
