"""Record the steps of an optimiser in a trace."""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from fastmomentum.backends.base import HostExecutor, one_caller
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.norms import check_on_host
from fastmomentum.optim.trace import EMPTY, Row, Trace, combine


class Recorder:
    """Observe every update of an optimiser, and record it in a trace."""

    def __init__(self, trace: Trace, engine: Engine) -> None:
        self._trace, self._engine = trace, engine
        self._loads, self._changes = -1, 0
        self._first = self._next = engine.state.counter.steps

    def before_step(self, grads: list[Any], executor: HostExecutor) -> Callable[[], None] | None:
        """Measure the update before it is done, and return the function that records it afterwards."""
        trace, engine = self._trace, self._engine
        step, loads, changes = engine.state.counter.steps, engine.loads, engine.changes
        schedule_step = engine.schedule_step
        begins = step != self._next or loads != self._loads
        if begins or changes != self._changes:
            trace._left = {}
        trace._done = step
        if not begins and (step - self._first) % trace.every:
            trace._left = {}
            return lambda: self._advance(step, loads, changes)
        sums = executor.measure(grads)
        if sums is None:
            return None

        def after() -> None:
            self._advance(step, loads, changes)
            self._record(step, schedule_step, sums, begins)

        return after

    def _advance(self, step: int, loads: int, changes: int) -> None:
        self._next, self._loads, self._changes = step + 1, loads, changes

    def _record(self, step: int, schedule_step: int, sums: Mapping[int, StepSums], begins: bool) -> None:
        trace, engine = self._trace, self._engine
        if begins and sums:
            trace._begin(step, self._is_at_rest(schedule_step, sums))
        trace._compare(sums, engine.group_of, None, 0.0)
        if sums:
            rows = [EMPTY] * len(engine.groups)
            for group, members in groupby(sorted(sums, key=lambda i: (engine.group_of[i], i)), self._group):
                rows[group] = combine([sums[i] for i in members])
            values = [[group.number(name) or 0.0 for name in ("lr", "momentum")] for group in engine.groups]
            found = [Row(float(lr), float(momentum), row) for (lr, momentum), row in zip(values, rows)]
            trace._add(step, found, sums)

    def _group(self, i: int) -> int:
        return self._engine.group_of[i]

    def _is_at_rest(self, schedule_step: int, sums: Mapping[int, StepSums]) -> bool:
        """Return whether all velocities are zero, though lr, momentum and gradients say that they should not be.

        Only arrays that have had a step count, if any has had one.
        """
        engine = self._engine
        started = engine.state.started
        members = [i for i in sums if started[i] or not any(started)]
        groups = [engine.groups[self._group(i)] for i in members]
        before = [group.value("lr", schedule_step - 1) or 0.0 for group in groups] if schedule_step else []
        has_momentum = any(group.number("momentum") for group in groups)
        if not (has_momentum and all(lr > 0 for lr in before) and keeps_velocity(engine.update)):
            return False
        found = [sums[i] for i in members]
        return not any(each.velocity for each in found) and any(each.gradient and each.step for each in found)


def start_trace(engine: Engine, every: int) -> Trace:
    """Return a new trace that records every n-th step of an optimiser from now on.

    Raises
    ------
    TypeError
        If the arrays are on a device.
    """
    check_on_host("trace", engine.backend)
    trace = Trace(engine.update)
    trace.every, trace._groups = every, [group.settings_now for group in engine.groups]
    trace._engine = engine
    recorder = Recorder(trace, engine)
    with one_caller(engine.lock):
        engine.observe(recorder, engine.gradient_restart)

    def end() -> None:
        with one_caller(engine.lock):
            trace._resets, trace._engine = trace.resets, None
            if engine.observer is recorder:
                engine.observe(None, engine.gradient_restart)

    trace._end = end
    return trace
