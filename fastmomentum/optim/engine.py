"""The engine of an optimiser: it plans a step or a change, which may raise errors, then carries the plan out.

Planning reads and checks everything, and calls the user's functions; it writes nothing. Carrying out a plan only
writes. A plain step is one call of compiled code, so no signal can interrupt it; Ctrl-C during longer writes takes
effect after them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends.base import ArrayUpdate, Executor, Observer, one_caller, uninterrupted
from fastmomentum.backends.cpu import threads as cpu_threads
from fastmomentum.optim.groups import Layout, ParamGroup, StepRows
from fastmomentum.optim.restart import ALL, GRADIENT, GradientRestart, check_restart, epoch, restart_due
from fastmomentum.optim.state import ALL_ROWS, State
from fastmomentum.rules.base import Rule

Record = tuple[int, str, str]
"""The record of a reset: the number of updates done before it, the reason, the scope."""

PointRow = tuple[int, tuple[Any, ...]]
"""A parameter's number, and the lr and momentum from which its look-ahead point is computed."""


class StepPlan(NamedTuple):
    """Hold all that is decided before a step is carried out.

    Attributes
    ----------
    active : list of bool
        The parameters that have a gradient.
    rows : StepRows
        The hyper-parameters.
    first : set of int
        The parameters that take their first step from rest, if the first step has other hyper-parameters.
    corrections : list of (slot, values)
        The state of parameters without gradient, rescaled to the next lr.
    points : list of (int, row)
        The look-ahead points of parameters without gradient, for the next lr and momentum.
    restart_points : list of (int, row)
        The look-ahead points of all parameters, in case a restart is due after the update.
    starts : bool
        Whether a parameter has its first step.
    is_scheduled : bool
        Whether the hyper-parameters are functions of the step.
    """

    active: list[bool]
    rows: StepRows
    first: set[int]
    corrections: list[tuple[Any, Any]]
    points: list[PointRow]
    restart_points: list[PointRow]
    starts: bool
    is_scheduled: bool


class Engine:
    """Plan and carry out the steps of an optimiser, and every other change of it.

    If only the gradients have changed since the last step, a step takes the fast path: one call of compiled code, which
    checks all arrays and does the update. If other arrays than in the last step have a gradient, or hyper-parameters
    are new, the step is planned. If the executor finds that an array is not as it was, everything is checked again.

    Attributes
    ----------
    groups : list of ParamGroup
        The settings.
    group_of : list of int
        For each parameter the number of its group.
    state : State
        The parameters, their state, and the other values that a checkpoint holds.
    restart : str, int or None
        The restart scheme.
    backend : str
        The name of the backend.
    threads : int
        The number of threads asked for.
    skip_nonfinite : bool
        Whether an update is skipped if any gradient holds a NaN or an infinity.
    observer : Observer or None
        The observer of every update that records a trace.
    gradient_restart : GradientRestart or None
        The observer of every update that the gradient scheme needs.
    loads, changes : int
        The number of times that a saved state was loaded, and that state was changed other than by a step.
    lock : Lock
        The lock that is held in a step and in every other change, by :func:`~fastmomentum.backends.base.one_caller`.
    """

    def __init__(self, layout: Layout, backend: str | None, threads: int | None, skip_nonfinite: bool) -> None:
        self.groups, self.group_of = layout.groups, layout.group_of
        self.backend = backends.choose(backend, layout.params)
        self.threads = cpu_threads.threads_by_default if threads is None else threads
        self.skip_nonfinite = skip_nonfinite
        self.lock = Lock()
        self.loads = self.changes = 0
        self.observer: Observer | None = None
        self.gradient_restart: GradientRestart | None = None
        self.restart: str | int | None = None
        self._epoch = 0
        self._stream: object = None
        self._executor: Executor
        self._fast: Callable[[list[Any]], bool] | None = None
        self._active: list[bool] = []
        self.state = State(layout, self.backend)
        self._check_and_build([None] * len(self.group_of))
        self.check_groups(self.groups, 0)
        points = self._points(self._all, self.groups, 0)
        self.state.initialise(self.update, self._all, ALL_ROWS)
        self._set_groups(self.groups)
        self._write([], points)

    @property
    def _all(self) -> range:
        """The numbers of all parameters."""
        return range(len(self.group_of))

    @property
    def update(self) -> Rule:
        """The rule of the first group; the rules of all groups have the same state slots."""
        return self.groups[0].update

    @property
    def schedule_step(self) -> int:
        """The number with which functions of the step are called for the next update."""
        return self.state.counter.steps - self._epoch

    def step(self, grads: list[Any], stream: object = None) -> None:
        """Do one update, or change nothing if it raises an error.

        No other code may change the list of gradients meanwhile: it keeps them alive while a kernel runs without GIL.
        """
        with one_caller(self.lock):
            if stream is not self._stream:
                self._executor.use_stream(stream)
                self._stream = stream
            fast = self._fast
            if fast is None or len(grads) != len(self.group_of) or not fast(grads):
                if len(grads) != len(self.group_of):
                    grads = checks.sequence("grads", grads, len(self.group_of))
                is_usual = all([grad is None or type(grad) is np.ndarray for grad in grads])
                read = grads if is_usual else self.state.read(grads)
                if read is grads or fast is None or not fast(read):
                    self._carry_out_step(read, self._plan_step(read))

    def _plan_step(self, grads: list[Any]) -> StepPlan:
        """Return the plan of a step with other arrays or hyper-parameters than the last one."""
        self._fast = None
        active = [grad is not None for grad in grads]
        scheduled = self._is_scheduled
        step = self.schedule_step if scheduled else 0  # reading the step may wait for a device
        rows = StepRows(self.groups, step)
        waiting = [i for i, (started, a) in enumerate(zip(self.state.started, active)) if a and not started]
        first = {i for i in waiting if rows.differ(self.group_of[i]) and not self.state.is_moving(i, self.update)}
        corrections: list[tuple[Any, Any]] = []
        points: list[PointRow] = []
        restart_points: list[PointRow] = []
        if scheduled and not all(active):
            idle = [i for i, a in enumerate(active) if not a]
            corrections = self._lr_corrections(idle, self.groups, step + 1)
            points = self._points(idle, self.groups, step + 1)
        if self.restart is not None:
            restart_points = self._points(self._all, self.groups, self._step_after_reset(self.state.counter.steps + 1))
        return StepPlan(active, rows, first, corrections, points, restart_points, bool(waiting), scheduled)

    def _carry_out_step(self, grads: list[Any], plan: StepPlan) -> None:
        """Do the update of a plan, and the writes that follow it."""
        follows = bool(plan.corrections or plan.points) or self.restart is not None
        # Asking whether an update was skipped waits for a device, so it is done only if the writes depend on it.
        asks = self.skip_nonfinite and (self.backend != "cuda" or plan.starts or plan.is_scheduled)
        before = self.state.counter.skipped if asks else 0
        with uninterrupted() if follows or plan.starts else nullcontext():
            at_first = self._executor_checks and self._run_plan(grads, plan)
            if not at_first and not self._run_plan(self._check_and_build(grads), plan):
                raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
            if asks and self.state.counter.skipped != before:
                return
            if plan.starts:
                self.state.started = [started or a for started, a in zip(self.state.started, plan.active)]
            if follows:
                self._follow_up(plan)
        if at_first and not plan.is_scheduled and self.restart is None and not plan.first and any(plan.active):
            self._fast = self._run if self._measures else self._executor.run

    def _run_plan(self, grads: list[Any], plan: StepPlan) -> bool:
        if plan.active != self._active:
            self._active = []  # if a signal interrupts the selection, the next step selects again
            self._executor.select(plan.active)
            self._active = plan.active
        self._executor.set_hyper(plan.rows, plan.first)
        return self._run(grads)

    def _run(self, grads: list[Any]) -> bool:
        """Do and count one update, or skip it; return False, with nothing written, if it cannot be done."""
        if self._measures:
            return self._executor.run_clipped(grads, self.groups[0].max_norm, self.skip_nonfinite)
        return self._executor.run(grads)

    def _follow_up(self, plan: StepPlan) -> None:
        """Write the corrections and points of parameters without gradient, and restart if a restart is due."""
        self._write(plan.corrections, plan.points)
        reason = restart_due(self.restart, self.groups, self.schedule_step, self.gradient_restart)
        if reason:
            self._reset(self._all, ALL_ROWS, (self.state.counter.steps, reason, ALL), plan.restart_points)

    def _check_and_build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays, make an executor for them, and return the gradients as plain arrays."""
        plain, written = self.state.check_arrays(grads)
        jobs = [ArrayUpdate(self.state.arrays_of(i), self.groups[k].update, k) for i, k in enumerate(self.group_of)]
        self._active, self._fast, self._executor_checks = [], None, False  # until the new executor is complete
        self._executor = backends.make_executor(
            self.backend, jobs, written, self.state.counter, self.threads, self.state.device
        )
        self._executor.use_stream(self._stream)
        self._executor.observe_with(self._observers)
        # Kernels check arrays themselves, but they see only our views of other objects.
        are_plain = self.backend == "cuda" or all(type(param) is np.ndarray for param in self.state.given)
        self._executor_checks = self._executor.checks and are_plain
        return plain

    def check_arrays(self) -> None:
        """Check that all arrays can be written.

        Raises
        ------
        TypeError, ValueError
            If an array cannot be written.
        """
        self.state.check_arrays([None] * len(self.group_of))

    def check_groups(self, groups: Sequence[ParamGroup], step: int) -> None:
        """Check that the kernels of all arrays can take these settings at this step.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value.
        """
        if groups[0].settings.get("restart") is not None and check_restart(groups) == GRADIENT:
            self.check_observable("restart")
        used = {(number, checks.real_dtype(param.dtype)) for number, param in zip(self.group_of, self.state.params)}
        for number, group in enumerate(groups):
            if self.backend != "cuda":
                group.refuse_device_scalars()
            scheduled = group.scheduled_values(step)
            for dtype in {dtype for used_by, dtype in used if used_by == number} or checks.DTYPES:
                group.row(dtype, scheduled)

    def reset(self, which: Sequence[int], rows: slice, record: Record) -> None:
        """Write the initial state to these rows of these parameters; the next step of a whole array is a first step."""
        self.check_arrays()
        step = self._step_after_reset(record[0]) if record[2] == ALL else self.schedule_step
        points = self._points(which, self.groups, step)
        with uninterrupted():
            self._reset(which, rows, record, points)

    def _step_after_reset(self, steps: int) -> int:
        """Return the schedules' step after a reset of everything that follows `steps` updates."""
        return steps - epoch(self.restart, [(steps, "", ALL)])

    def _reset(self, which: Sequence[int], rows: slice, record: Record, points: Sequence[PointRow]) -> None:
        self._fast = None
        self.changes += 1
        self.state.initialise(self.update, which, rows)
        if rows is ALL_ROWS:
            self.state.started = [started and i not in which for i, started in enumerate(self.state.started)]
        self.state.resets = [*self.state.resets, record]
        self._epoch = epoch(self.restart, self.state.resets)
        self._write([], points)

    def set_setting(self, name: str, values: Sequence[Any]) -> None:
        """Use these values, one for each group, from the next update on; rescale state to lr if correct=True."""
        groups = [group.with_setting(name, value) for group, value in zip(self.groups, values)]
        step = self.schedule_step if self._is_scheduled or any([group.is_scheduled for group in groups]) else 0
        self.check_groups(groups, step)
        corrections = self._lr_corrections(self._all, groups, step)
        points = self._points(self._all, groups, step)
        if corrections:
            self.check_arrays()
        self._fast = None
        with uninterrupted() if corrections or points else nullcontext():
            self._write(corrections, points)
            self.groups = groups

    @property
    def _is_scheduled(self) -> bool:
        return any([group.is_scheduled for group in self.groups])

    def _write(self, corrections: Sequence[tuple[Any, Any]], points: Sequence[PointRow]) -> None:
        """Write state that is rescaled to another lr, then look-ahead points."""
        if corrections:
            self.changes += 1
            self.state.write(corrections)
        if points:
            self.state.write_points(self.update, points, self._stream)

    def _lr_corrections(self, which: Iterable[int], groups: Sequence[ParamGroup], step: int) -> list[tuple[Any, Any]]:
        """Return the state of these parameters, rescaled to the lr that `groups` have at this step."""
        found: list[tuple[Any, Any]] = []
        if not any([group.correct for group in self.groups]):
            return found
        for i in which:
            before, after = self.groups[self.group_of[i]], groups[self.group_of[i]]
            if before.correct:
                lr, lr_next = before.value("lr", self.schedule_step), after.value("lr", step)
                found += self.state.lr_corrections(i, before.update, lr, lr_next)
        return found

    def _points(self, which: Iterable[int], groups: Sequence[ParamGroup], step: int) -> list[PointRow]:
        """Return the values that the look-ahead points of these parameters are computed from; [] without look-ahead."""
        if groups[0].update.gradient_slot == "p":
            return []
        return self.state.point_rows(which, groups, self.group_of, step)

    def _set_groups(self, groups: list[ParamGroup]) -> None:
        """Use these settings, which have been checked."""
        if [group.update.structure for group in groups] != [group.update.structure for group in self.groups]:
            self._executor_checks = False  # the next step makes an executor anew
        self._fast, self.groups = None, groups
        if self.restart is not None or groups[0].settings.get("restart") is not None:
            restart = check_restart(groups)
            self.observe(self.observer, GradientRestart() if restart == GRADIENT else None)
            self.restart = restart
            self._epoch = epoch(restart, self.state.resets)
        self._measures = self.skip_nonfinite or groups[0].max_norm is not None

    def load(self, saved: Mapping[str, Any], groups: list[ParamGroup], skip_nonfinite: bool) -> None:
        """Continue from a saved state, which has been checked, with these settings."""
        has_restart = groups[0].settings.get("restart") is not None
        step = saved["steps"] - (epoch(check_restart(groups), saved["resets"]) if has_restart else 0)
        self.check_groups(groups, step)
        self.check_arrays()
        state = self.state
        slots = [pair for own, given in zip(state.slots, saved["state"]) for pair in zip(own, given)]
        with uninterrupted():
            self.loads += 1
            state.counter.steps, state.counter.skipped = saved["steps"], saved["skipped"]
            state.resets, state.started = list(saved["resets"]), list(saved["started"])
            state.value, self.skip_nonfinite = saved.get("value"), skip_nonfinite
            self._set_groups(groups)
            state.write(slots)

    def write_points(self) -> None:
        """Compute and write all look-ahead points."""
        self.state.write_points(self.update, self._points(self._all, self.groups, self.schedule_step), self._stream)

    def report(self, value: float, record: Record) -> bool:
        """Store the objective and return whether it has risen; if it has, reset everything, with this record."""
        risen = self.state.value is not None and value > self.state.value
        points: list[PointRow] = []
        if risen:
            self.check_arrays()
            points = self._points(self._all, self.groups, self._step_after_reset(record[0]))
        with uninterrupted():
            if risen:
                self._reset(self._all, ALL_ROWS, record, points)
            self.state.value = value
        return risen

    @property
    def _observers(self) -> list[Observer]:
        return [observer for observer in (self.gradient_restart, self.observer) if observer is not None]

    def check_observable(self, name: str) -> None:
        """Check that updates can be observed, as the argument or method `name` needs.

        Raises
        ------
        TypeError
            If the arrays are on a device.
        """
        if self.backend == "cuda":
            raise TypeError(
                f"{name}: expected arrays on the host; got some on a device, which a step does not wait for"
            )

    def observe(self, observer: Observer | None, gradient_restart: GradientRestart | None) -> None:
        """Let these observers, or none, see every update from now on."""
        self.observer, self.gradient_restart = observer, gradient_restart
        self._executor.observe_with(self._observers)
        self._active, self._fast = [], None

    def __getstate__(self) -> dict[str, Any]:
        if self.backend == "cuda":
            raise TypeError("an optimiser of arrays on a device cannot be copied or pickled; save() writes its state")
        left_out = ("_executor", "_active", "_fast", "_executor_checks", "_stream", "lock", "observer")
        with one_caller(self.lock):
            return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self.lock, self._stream, self.observer = Lock(), None, None
        self._check_and_build([None] * len(self.group_of))
