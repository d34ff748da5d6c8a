"""The engine of an optimiser: it plans a step or a change, which may raise errors, then carries the plan out.

Planning reads and checks everything, and calls the user's functions; it writes nothing. Carrying out a plan only
writes. A plain step is one call of compiled code, so no signal can interrupt it; Ctrl-C during longer writes takes
effect after them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from math import inf
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends.base import (
    NO_ROW,
    ArrayUpdate,
    Executor,
    NormLimits,
    Observer,
    one_caller,
    uninterrupted,
)
from fastmomentum.backends.cpu import threads as cpu_threads
from fastmomentum.optim.elements import Elements, check_elements, split_by_array
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.params import Layout
from fastmomentum.optim.plan import FunctionCalls, PointRow, RowKey, Rows, StepPlan
from fastmomentum.optim.restart import ALL, GRADIENT, GradientRestart, check_restart, epoch, restart_due
from fastmomentum.optim.state import ALL_ROWS, State
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import with_given

Record = tuple[int, str, str]
"""The record of a reset: the number of updates done before it, the reason, the scope."""


class Engine:
    """Plan and carry out the steps of an optimiser, and every other change of it.

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
    loads, changes : int
        The number of times that a saved state was loaded, and that state was changed other than by a step.
    lock : Lock
        The lock that is held in a step and in every other change, by :func:`~fastmomentum.backends.base.one_caller`.
    """

    def __init__(self, layout: Layout, backend: str | None, threads: int | None, skip_nonfinite: bool | int) -> None:
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
        self._row_of: list[int] = []
        self._ask: FunctionCalls | None = None
        self._asked: list[list[float]] | None = None
        self.state = State(layout, self.backend)
        self.groups = [group.with_dtypes(self._dtypes_of(number)) for number, group in enumerate(self.groups)]
        self._check_and_build([None] * len(self.group_of))
        self.check_groups(self.groups)
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
                self._carry_out_step(grads, self._plan_step(grads))

    def _plan_step(self, grads: list[Any]) -> StepPlan:
        """Return the plan of a step with other arrays or hyper-parameters than the last one."""
        self._fast = None
        scheduled = self._is_scheduled
        steps = self.state.counter.steps
        step = steps - self._epoch
        asked, self._asked = self._asked, None
        self._ask = self._ask or FunctionCalls(self.groups)
        values = self._ask(step) if asked is None else asked
        groups, followed = [], []
        for group, own in zip(self.groups, values):
            following = group.ask_next(own, step) if group.needs_next else own
            if group.row(following, 1) is None:  # an option goes on or off, or a value must be checked exactly
                group = group.at(own)
                following = group.ask_next(group.values, step)
            groups.append(group)
            followed.append(following)
        if groups != self.groups:
            self._check_elements(groups, self.state.elements)
        keys: dict[RowKey, int] = {}
        row_of = self._rows_of(groups, grads, steps, keys)
        rows = Rows([*keys], groups)
        if any(key.first for key in keys) or not rows.compute(followed, steps):
            rows.compute_exactly(followed, steps)
        corrections: list[tuple[Any, Any]] = []
        points: list[PointRow] = []
        restart_points: list[PointRow] = []
        if scheduled and NO_ROW in row_of:
            idle = [i for i, row in enumerate(row_of) if row == NO_ROW]
            corrections = self._lr_corrections(idle, groups, step + 1)
            points = self._points(idle, groups, step + 1)
        if self.restart is not None:
            restart_points = self._points(self._all, groups, self._step_after_reset(steps + 1))
        own_values = [following[: len(group.live)] for group, following in zip(groups, followed)]
        return StepPlan(groups, own_values, row_of, rows, corrections, points, restart_points)

    def _rows_of(
        self, groups: Sequence[ParamGroup], grads: Sequence[Any], steps: int, keys: dict[RowKey, int]
    ) -> list[int]:
        """Return for each parameter the number of its row, and add the row to `keys`; NO_ROW without a gradient."""
        updates, found = self.state.updates, []
        for i, (number, grad) in enumerate(zip(self.group_of, grads)):
            if grad is None:
                found.append(NO_ROW)
                continue
            group = groups[number]
            offset = updates[i] + 1 - steps if group.uses_step else 0
            first = not updates[i] and group.differs_at_first and not self.state.is_moving(i, self.update)
            found.append(keys.setdefault(RowKey(number, offset, first), len(keys)))
        return found

    def _carry_out_step(self, grads: list[Any], plan: StepPlan) -> None:
        """Do the update of a plan, and the writes that follow it."""
        follows = bool(plan.corrections or plan.points) or self.restart is not None
        # Asking whether an update was skipped waits for a device, so it is done only if the writes depend on it.
        before = self.state.counter.skipped if self.skip_nonfinite and follows else 0
        is_active = [row != NO_ROW for row in plan.row_of]
        with uninterrupted() if follows else nullcontext():
            if [group.update.structure for group in plan.groups] != [group.update.structure for group in self.groups]:
                self._executor_checks = False  # makes an executor anew
            self._use_values(plan.groups, plan.values)
            self.state.count_updates_of(
                [active and plan.groups[number].keeps_state for active, number in zip(is_active, self.group_of)]
            )
            at_first = self._executor_checks and self._run_plan(grads, plan)
            if not at_first and not self._run_plan(self._check_and_build(grads), plan):
                raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
            if self.skip_nonfinite and follows and self.state.counter.skipped != before:
                return
            if follows:
                self._follow_up(plan)
        repeats = self.restart is None and not any(group.needs_next for group in self.groups)
        if at_first and repeats and any(is_active) and not any(key.first for key in plan.rows.keys):
            self._rows = plan.rows
            self._fast = self._run_with_new_values if self._is_live else self._run_again

    def _run_plan(self, grads: list[Any], plan: StepPlan) -> bool:
        if plan.row_of != self._row_of:
            self._row_of = []  # if a signal interrupts the selection, the next step selects again
            self._executor.select(plan.row_of)
            self._row_of = plan.row_of
        self._executor.set_hyper(plan.rows)
        return self._run(grads)

    @property
    def _run_again(self) -> Callable[[list[Any]], bool]:
        """The function that does another step with the hyper-parameters of the last one."""
        return self._run if self._measures else self._executor.run

    def _run_with_new_values(self, grads: list[Any]) -> bool:
        """Do one update in which only the values of settings are new; return False if it must be planned."""
        steps = self.state.counter.steps
        self._ask = self._ask or FunctionCalls(self.groups)
        values = self._asked = self._ask(steps - self._epoch)
        rows = self._rows
        if not rows.compute(values, steps):
            return False
        for group, own in zip(self.groups, values):
            group.values = own
        if self._limits.clip_norms or self._limits.scales:
            self._update_limits()
        self._executor.set_hyper(rows)
        done = self._run(grads) if self._measures else self._executor.run(grads)
        if done:
            self._asked = None
            if not self._is_live:
                self._fast = self._run_again
        return done

    def _use_values(self, groups: list[ParamGroup], values: Sequence[list[float]]) -> None:
        """Use these groups, which have been checked, with these values."""
        for group, own in zip(groups, values):
            group.values = own
        if groups is not self.groups or not hasattr(self, "_is_live"):
            self.groups, self._ask = groups, None
            self._is_live = any([bool(group.calls) or group.uses_step for group in groups])
            # Whether state has to be written when lr or momentum changes.
            self._follows_settings = self.update.gradient_slot != "p" or any([group.correct for group in groups])
        self._update_limits()

    def _run(self, grads: list[Any]) -> bool:
        """Do and count one update, or skip it; return False, with nothing written, if it cannot be done."""
        if self._measures:
            max_norm = self.groups[0].number("max_norm")
            return self._executor.run_clipped(grads, self._limits._replace(max_norm=max_norm))
        return self._executor.run(grads)

    def _update_limits(self) -> None:
        """Work out what an update needs to know about the norms of gradients."""
        max_norm, skips = self.groups[0].number("max_norm"), self.skip_nonfinite
        clip_norms = [inf if (norm := group.number("clip_norm")) is None else norm for group in self.groups]
        clips = max_norm is not None or any([norm != inf for norm in clip_norms])
        scales = [group.scale if clips else 1.0 for group in self.groups]
        self._limits = NormLimits(
            max_norm,
            clip_norms if any([norm != inf for norm in clip_norms]) else None,
            scales if any([scale != 1.0 for scale in scales]) else None,
            bool(skips),
            2**62 if skips is True else int(skips),
        )
        self._measures = clips or bool(skips)

    def _follow_up(self, plan: StepPlan) -> None:
        """Write the corrections and points of parameters without gradient, and restart if a restart is due."""
        self._write(plan.corrections, plan.points)
        reason = restart_due(self.restart, self.groups, self.schedule_step, self.gradient_restart)
        if reason:
            self._reset(self._all, ALL_ROWS, (self.state.counter.steps, reason, ALL), plan.restart_points)

    def _check_and_build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays, make an executor for them, and return the gradients as plain arrays."""
        plain, written = self.state.check_arrays(grads)
        jobs = [
            ArrayUpdate(
                self.state.arrays_of(i), with_given(self.groups[group].update, given.names), group, given.arrays
            )
            for i, (group, given) in enumerate(zip(self.group_of, self.state.elements))
        ]
        self._row_of, self._fast, self._executor_checks = [], None, False  # until the new executor is complete
        self._executor = backends.make_executor(
            self.backend, jobs, written, self.state.counter, self.threads, self.state.device
        )
        self._executor.use_stream(self._stream)
        self._executor.observe_with(self._observers)
        # Kernels check arrays themselves, but they see only our views of other objects.
        are_plain = self.backend == "cuda" or all(type(param) is np.ndarray for param in self.state.given)
        self._executor_checks = self._executor.checks and are_plain
        return plain

    def _dtypes_of(self, group: int) -> list[np.dtype[Any]]:
        """Return the dtypes of a group's arrays."""
        found = {param.dtype for number, param in zip(self.group_of, self.state.params) if number == group}
        return [dtype for dtype in checks.DTYPES if dtype in found]

    def check_arrays(self) -> None:
        """Check that all arrays can be written.

        Raises
        ------
        TypeError, ValueError
            If an array cannot be written.
        """
        self.state.check_arrays([None] * len(self.group_of))

    def check_groups(self, groups: Sequence[ParamGroup]) -> None:
        """Check that the kernels of all arrays can take these settings.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value.
        """
        if groups[0].number("restart") is not None and check_restart(groups) == GRADIENT:
            self.check_observable("restart")
        for group in groups:
            group.check()
            group.check_device_scalars(self.backend != "cuda")
            if self.backend == "cuda" and group.number("clip_norm") is not None:
                raise TypeError("clip_norm: expected None, as the arrays are on a device; max_norm clips there")
        self._check_elements(groups, self.state.elements)

    def _check_elements(self, groups: Sequence[ParamGroup], elements: Sequence[Elements]) -> None:
        """Check that the rules of these groups can take the masks and the scales of lr of their arrays.

        Raises
        ------
        ValueError
            If a rule cannot.
        """
        for number, given in zip(self.group_of, elements):
            with_given(groups[number].update, given.names)

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
            self.state.updates = [0 if i in which else count for i, count in enumerate(self.state.updates)]
        self.state.resets = [*self.state.resets, record]
        self._epoch = epoch(self.restart, self.state.resets)
        self._write([], points)

    def set_setting(self, numbers: Sequence[int], name: str, values: Sequence[Any]) -> None:
        """Use these values of a setting in the groups with these numbers, from the next update on, or in none of them.

        If correct=True, state that holds lr is rescaled.

        Raises
        ------
        TypeError, ValueError
            If a value has a wrong type or is out of range.
        """
        groups = self.groups
        plain = [groups[number].with_value(name, value) for number, value in zip(numbers, values)]
        if None in plain or self._follows_settings:
            groups = list(groups)
            step = self.schedule_step
            for number, value in zip(numbers, values):
                groups[number] = groups[number].with_settings({name: value}, step)
            self.use_groups(groups)
            return
        fast, self._fast = self._fast, None
        with uninterrupted() if len(plain) > 1 else nullcontext():
            for number, own in zip(numbers, plain):
                groups[number].values = own or groups[number].values
        if fast is not None:
            self._fast = self._run_with_new_values

    def set_elements(self, numbers: Sequence[int], name: str, values: Sequence[Any]) -> None:
        """Use these masks, or these scales of lr, in the groups with these numbers, from the next update on.

        Raises
        ------
        TypeError, ValueError
            If a value does not fit the arrays or the rule of its group; nothing has been changed then.
        """
        state = self.state
        elements = list(state.elements)
        for number, value in zip(numbers, values):
            members = [i for i in self._all if self.group_of[i] == number]
            keys = None if state.names is None else [state.names[i] for i in members]
            for i, each, where in zip(members, *split_by_array(name, value, len(members), keys)):
                values_of = check_elements(name, where, each, state.params[i], self.backend)
                elements[i] = elements[i]._replace(**{name: values_of})
        self._check_elements(self.groups, elements)
        points = self._points(self._all, self.groups, self.schedule_step)
        with uninterrupted():
            self._use_elements(elements)
            self._write([], points)

    def _use_elements(self, elements: list[Elements]) -> None:
        """Use these masks and scales of lr, which have been checked; the next step makes an executor anew."""
        self._fast, self._executor_checks = None, False
        self.state.elements = elements

    def set_skips(self, skip_nonfinite: bool | int) -> None:
        """Skip updates with gradients that are not finite, or not, from the next update on."""
        self._fast, self.skip_nonfinite = None, skip_nonfinite
        self._update_limits()

    def set_steps(self, steps: int) -> None:
        """Continue as if this number of updates had been done."""
        self._fast = None
        updates = self.state.updates
        with uninterrupted():
            self.state.counter.steps = steps
            self.state.updates = updates
        self.changes += 1

    def use_groups(self, groups: list[ParamGroup]) -> None:
        """Use these settings from the next update on, after checking them; rescale state to lr if correct=True.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value, or the rule keeps other state with it.
        """
        step = self.schedule_step if self._follows_settings else 0
        self.check_groups(groups)
        for group in groups:
            if group.update.state != self.update.state:
                raise ValueError(
                    f"expected settings under which the rule keeps the state {self.update.slots}; got {group.update}, "
                    f"which keeps {group.update.slots}"
                )
        corrections = self._lr_corrections(self._all, groups, step)
        points = self._points(self._all, groups, step)
        if corrections:
            self.check_arrays()
        self._fast = None
        with uninterrupted():
            self._write(corrections, points)
            self._set_groups(groups)

    @property
    def _is_scheduled(self) -> bool:
        return any([bool(group.calls) for group in self.groups])

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
        self._fast = self._asked = None
        self._use_values(groups, [group.values for group in groups])
        if self.restart is not None or groups[0].number("restart") is not None:
            restart = check_restart(groups)
            self.observe(self.observer, GradientRestart() if restart == GRADIENT else None)
            self.restart = restart
            self._epoch = epoch(restart, self.state.resets)

    def load(
        self,
        saved: Mapping[str, Any],
        groups: list[ParamGroup],
        skip_nonfinite: bool | int,
        elements: list[Elements] | None = None,
    ) -> None:
        """Continue from a saved state, which has been checked, with these settings; None keeps masks and scales."""
        state = self.state
        elements = state.elements if elements is None else elements
        self.check_groups(groups)
        self._check_elements(groups, elements)
        self.check_arrays()
        slots = [pair for own, given in zip(state.slots, saved["state"]) for pair in zip(own, given)]
        with uninterrupted():
            self.loads += 1
            state.counter.steps, state.counter.skipped = saved["steps"], saved["skipped"]
            state.counter.in_a_row = saved["skipped_in_a_row"]
            state.resets, state.updates = list(saved["resets"]), saved["updates"]
            state.value, self.skip_nonfinite = saved["value"], skip_nonfinite
            self._set_groups(groups)
            if elements is not state.elements:
                self._use_elements(elements)
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
        self._row_of, self._fast = [], None

    def __getstate__(self) -> dict[str, Any]:
        if self.backend == "cuda":
            raise TypeError("an optimiser of arrays on a device cannot be copied or pickled; save() writes its state")
        left_out = (
            "_executor",
            "_row_of",
            "_rows",
            "_ask",
            "_fast",
            "_executor_checks",
            "_stream",
            "_asked",
            "lock",
            "observer",
        )
        with one_caller(self.lock):
            return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self.lock, self._stream, self.observer, self._asked, self._ask = Lock(), None, None, None, None
        self._check_and_build([None] * len(self.group_of))
