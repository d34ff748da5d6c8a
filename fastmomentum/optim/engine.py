"""The engine of an optimiser: it plans a step or a change, which may raise errors, then carries the plan out.

Planning reads and checks everything, and calls the user's functions; it writes nothing. Carrying out a plan only
writes. A plain step is one call of compiled code, so no signal can interrupt it; Ctrl-C during longer writes takes
effect after them.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.advice import is_tensor
from fastmomentum.backends.base import NO_ROW, ArrayUpdate, Executor, Observer
from fastmomentum.backends.cpu import threads as cpu_threads
from fastmomentum.backends.interrupts import one_caller, uninterrupted
from fastmomentum.backends.sums import Skips
from fastmomentum.optim.elements import check_rules
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.live_step import LiveStep
from fastmomentum.optim.norms import SettingsPlan, check_groups, plan_settings
from fastmomentum.optim.params import Layout
from fastmomentum.optim.plan import (
    FunctionCalls,
    PointRow,
    RowKey,
    Rows,
    StepPlan,
    assign_rows,
    groups_at,
    lr_corrections,
)
from fastmomentum.optim.restart import ALL, GRADIENT, UPHILL, GradientRestart, epoch, restart_due
from fastmomentum.optim.state import ALL_ROWS, State
from fastmomentum.optim.values import Values, next_values_in, values_at, values_in
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import with_given

Record = tuple[int, str, str]
"""The record of a reset: the number of updates done before it, the reason, the scope."""


class Engine:
    """Plan and carry out the steps of an optimiser; :mod:`fastmomentum.optim.changes` has its other changes.

    If only gradients and the values of settings have changed since the last step, a step takes the fast path: the new
    hyper-parameters are computed, and one call of compiled code checks all arrays and does the update. If other arrays
    than in the last step have a gradient, or an option goes on or off, the step is planned. If the executor finds that
    an array is not as it was, everything is checked again.

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
    skip_nonfinite : bool or int
        Whether an update is skipped if any gradient holds a NaN or an infinity; a number limits the skips in a row.
    observer : Observer or None
        The observer of every update that records a trace.
    gradient_restart : GradientRestart or None
        The observer of every update that the gradient scheme needs.
    changes : int
        The number of times that state was changed other than by a step.
    _read : callable or None
        The function that turns gradients of other libraries into arrays; None for that of the state.
    lock : Lock
        The lock that is held in a step and in every other change, by :func:`~fastmomentum.backends.base.one_caller`.
    """

    def __init__(
        self,
        layout: Layout,
        backend: str | None,
        threads: int | None,
        skip_nonfinite: bool | int,
        keep_resets: int | None = None,
        read: Callable[[list[Any]], list[Any]] | None = None,
    ) -> None:
        self.groups, self.group_of = layout.groups, layout.group_of
        self.backend = backends.choose(backend, layout.params)
        self.threads = cpu_threads.threads_by_default if threads is None else threads
        self.skip_nonfinite = self.check_skips(skip_nonfinite)
        self.lock, self.changes = Lock(), 0
        self.observer: Observer | None = None
        self.gradient_restart: GradientRestart | None = None
        self.restart: str | int | None = None
        self._epoch = 0
        self._stream: object = None
        self._executor: Executor
        self._fast: Callable[[list[Any]], bool] | None = None
        self._row_of: list[int] | None = None
        self._ask: FunctionCalls | None = None
        self._live: LiveStep | None = None
        self.state, self._read = State(layout, self.backend, keep_resets), read
        self.groups = [
            group.with_dtypes(self.state.dtypes_of(self.group_of, number)) for number, group in enumerate(self.groups)
        ]
        self.check_and_build([None] * len(self.group_of))
        check_groups(self.backend, self.groups)
        points = self.points_at(self.all_params, 0)
        if layout.slots is None:
            self.state.initialise(self.update, self.all_params, ALL_ROWS)
        self.use_settings(plan_settings(self.groups, self.skip_nonfinite))
        self.write_state([], points)

    @property
    def all_params(self) -> range:
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
                try:
                    self._step_slowly(grads, fast)
                finally:
                    if self._ask is not None:
                        self._ask.kept = None

    def _step_slowly(self, grads: list[Any], fast: Callable[[list[Any]], bool] | None) -> None:
        """Read gradients of other libraries and try again, or plan the step."""
        grads = checks.sequence("grads", grads, len(self.group_of))
        read = grads if self._executor.reads_tensors else self._read_grads(grads)
        if read is grads or fast is None or not fast(read):
            self._carry_out_step(read, self._plan_step(read))

    def _read_grads(self, grads: list[Any]) -> list[Any]:
        """Return the gradients as NumPy arrays, or as they are if they are on a device."""
        is_usual = all([grad is None or type(grad) is np.ndarray for grad in grads])
        return grads if is_usual else (self._read or self.state.read)(grads)

    def _plan_step(self, grads: list[Any]) -> StepPlan:
        """Return the plan of a step with other arrays or hyper-parameters than the last one."""
        self._fast = None
        scheduled = any([bool(group.calls) for group in self.groups])
        steps = self.state.counter.steps
        step = steps - self._epoch
        self._ask = self._ask or FunctionCalls(self.groups)
        groups, values = groups_at(self.groups, self._ask(step), step)
        if groups != self.groups:
            check_rules(self.state.elements, [groups[number].update for number in self.group_of])
        keys: dict[RowKey, int] = {}
        row_of = assign_rows(groups, self.group_of, grads, self.state, keys)
        rows = Rows([*keys], groups)
        if any(key.first for key in keys) or not rows.compute(values, steps):
            rows.compute_exactly(values, steps)
        corrections: list[tuple[Any, Any]] = []
        points: list[PointRow] = []
        restart_points: list[PointRow] = []
        if scheduled and NO_ROW in row_of:
            idle = [i for i, row in enumerate(row_of) if row == NO_ROW]
            if self.follows_settings:  # their memory may have become another one
                self.check_arrays()
            now, then = values_in(groups, values), next_values_in(groups, values)
            corrections = lr_corrections(self.groups, self.group_of, self.state, idle, now, then)
            points = self.points(idle, then)
        reason = None
        if self.restart is not None:
            reason = restart_due(self.restart, groups, step + 1)
            restart_points = self.points(self.all_params, values_at(groups, self.step_after_reset(steps + 1)))
        own_values = [own[: len(group.live)] for group, own in zip(groups, values)]
        return StepPlan(groups, own_values, row_of, rows, corrections, points, reason, restart_points)

    def _carry_out_step(self, grads: list[Any], plan: StepPlan) -> None:
        """Do the update of a plan, and the writes that follow it."""
        follows = bool(plan.corrections or plan.points) or self.restart is not None
        before = self.state.counter.skipped if self.skip_nonfinite and follows else 0
        is_active = [row != NO_ROW for row in plan.row_of]
        with uninterrupted() if follows else nullcontext():
            if [group.code for group in plan.groups] != [group.code for group in self.groups]:
                self._executor_checks = False  # so that a new executor is made below
            self._use_values(plan.groups, plan.values, self.skip_nonfinite)
            self.state.count_updates_of(
                [active and plan.groups[number].keeps_state for active, number in zip(is_active, self.group_of)]
            )
            at_first = self._executor_checks and self._run_plan(grads, plan)
            if not at_first and not self._run_plan(self.check_and_build(self._read_grads(grads)), plan):
                raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
            if self.skip_nonfinite and follows and self.state.counter.skipped != before:
                return
            if follows:
                self._follow_up(plan)
        repeats = self.restart is None and not any(group.needs_next for group in self.groups)
        if at_first and repeats and any(is_active) and not any(key.first for key in plan.rows.keys):
            self._ask = self._ask or FunctionCalls(self.groups)
            counter = self.state.counter
            self._live = LiveStep(self._ask, plan.rows, self._executor, counter, self._epoch, self._skips)
            self._fast = self._live.with_new_values if self.is_live else self._live.with_same_values

    def _run_plan(self, grads: list[Any], plan: StepPlan) -> bool:
        if plan.row_of != self._row_of:
            self._row_of = None  # if a signal interrupts the selection, the next step selects again
            self._executor.select(plan.row_of)
            self._row_of = plan.row_of
        self._executor.set_hyper(plan.rows)
        return self._run(grads)

    def use_assigned(self) -> None:
        """Let the next step use the numbers that have been assigned to settings, without a plan if it needs none."""
        if self._live is not None:
            self._fast = self._live.with_new_values if self.is_live else self._live.use_assigned()

    def _use_values(self, groups: list[ParamGroup], values: Sequence[list[float]], skip_nonfinite: bool | int) -> None:
        """Use these groups, which have been checked, with these values."""
        for group, own in zip(groups, values):
            group.values = own
        if self._ask is not None and self._ask.groups != groups:
            self._ask = None
        self.groups = groups
        self.is_live = any([bool(group.calls) or group.uses_step for group in groups])
        # Whether state has to be written when lr or momentum changes.
        self.follows_settings = self.update.gradient_slot != "p" or any([group.correct for group in groups])
        # None if a step needs no sums before the update.
        needs_sums = bool(skip_nonfinite) or any([bool(group.update.summing_links) for group in groups])
        most = 2**62 if skip_nonfinite is True else int(skip_nonfinite)
        self._skips = Skips(bool(skip_nonfinite), most) if needs_sums else None

    def _run(self, grads: list[Any]) -> bool:
        """Do and count one update, or skip it; return False, with nothing written, if it cannot be done."""
        return self._executor.run(grads) if self._skips is None else self._executor.run_summed(grads, self._skips)

    def _follow_up(self, plan: StepPlan) -> None:
        """Write the corrections and points of parameters without gradient, and restart if a restart is due."""
        self.write_state(plan.corrections, plan.points)
        is_uphill = self.gradient_restart is not None and self.gradient_restart.is_uphill
        reason = UPHILL if is_uphill else plan.restart_reason
        if reason:
            self.write_reset(self.all_params, ALL_ROWS, (self.state.counter.steps, reason, ALL), plan.restart_points)

    def check_and_build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays, make an executor for them, and return the gradients as plain arrays."""
        plain, written = self.state.check_arrays(grads)
        jobs = [
            ArrayUpdate(self.state.arrays_of(i), with_given(self.groups[k].update, own.names), k, own.arrays, memory)
            for i, (k, own, memory) in enumerate(zip(self.group_of, self.state.elements, self.state.memory))
        ]
        self._row_of, self._fast, self._executor_checks = None, None, False  # until the new executor is complete
        self._executor = backends.make_executor(
            self.backend, jobs, written, self.state.counter, self.threads, self.state.device
        )
        self._executor.use_stream(self._stream)
        self._executor.observe_with(self._observers)
        # Kernels check arrays themselves, but they see only our views of other objects; those of tensors are checked.
        are_plain = self.backend == "cuda" or all(type(p) is np.ndarray or is_tensor(p) for p in self.state.given)
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

    def step_after_reset(self, steps: int) -> int:
        """Return the schedules' step after a reset of everything that follows `steps` updates."""
        return steps - epoch(self.restart, steps)

    def write_reset(self, which: Sequence[int], rows: slice, record: Record, points: Sequence[PointRow]) -> None:
        """Write the initial state to these rows, then look-ahead points, and keep the record of the reset."""
        self._fast = None
        self.changes += 1
        self.state.initialise(self.update, which, rows)
        state = self.state
        if rows is ALL_ROWS:
            updates = list(state.updates)
            for i in which:
                updates[i] = 0
            state.updates = updates
        state.resets.append(record)
        if record[2] == ALL:
            state.last_reset = record[0]
        self._epoch = epoch(self.restart, state.last_reset)
        self.write_state([], points)

    def write_state(self, corrections: Sequence[tuple[Any, Any]], points: Sequence[PointRow]) -> None:
        """Write state that is rescaled to another lr, then look-ahead points."""
        if corrections:
            self.changes += 1
            self.state.write(corrections)
        if points:
            self.state.write_points(self.update, points, self._stream)

    def points_at(self, which: Iterable[int], step: int) -> list[PointRow]:
        """Return the values of :meth:`points` for functions of the step at this step."""
        return [] if self.update.gradient_slot == "p" else self.points(which, values_at(self.groups, step))

    def points(self, which: Iterable[int], then: Values) -> list[PointRow]:
        """Return the values that the look-ahead points of these parameters are computed from; [] without look-ahead."""
        return [] if self.update.gradient_slot == "p" else self.state.point_rows(which, self.group_of, then)

    def use_settings(self, plan: SettingsPlan) -> None:
        """Use these settings from the next update on."""
        if [group.code for group in plan.groups] != [group.code for group in self.groups]:
            self._executor_checks = False  # the next step makes an executor anew
        self._fast = None
        self.skip_nonfinite = plan.skip_nonfinite
        self._use_values(plan.groups, [group.values for group in plan.groups], plan.skip_nonfinite)
        if plan.restart is not None or self.restart is not None:
            self.observe(self.observer, GradientRestart() if plan.restart == GRADIENT else None)
            self._epoch = epoch(plan.restart, self.state.last_reset)
        self.restart = plan.restart

    @property
    def _observers(self) -> list[Observer]:
        return [observer for observer in (self.gradient_restart, self.observer) if observer is not None]

    def check_skips(self, skip_nonfinite: bool | int) -> bool | int:
        """Return the argument, after checking that skips in a row can be limited: not on a device.

        Raises
        ------
        TypeError
            If they cannot.
        """
        if self.backend == "cuda" and type(skip_nonfinite) is int:
            raise TypeError("skip_nonfinite: expected True or False, as the arrays are on a device; got a number")
        return skip_nonfinite

    def observe(self, observer: Observer | None, gradient_restart: GradientRestart | None) -> None:
        """Let these observers, or none, see every update from now on."""
        self.observer, self.gradient_restart = observer, gradient_restart
        self._executor.observe_with(self._observers)
        self._row_of, self._fast = None, None

    def __getstate__(self) -> dict[str, Any]:
        if self.backend == "cuda":
            raise TypeError("an optimiser of arrays on a device cannot be copied or pickled; save() writes its state")
        left_out = (
            "_executor",
            "_row_of",
            "_live",
            "_ask",
            "_fast",
            "_executor_checks",
            "_stream",
            "lock",
            "observer",
        )
        with one_caller(self.lock):
            return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self.lock, self._stream, self.observer, self._live, self._ask = Lock(), None, None, None, None
        self.check_and_build([None] * len(self.group_of))
