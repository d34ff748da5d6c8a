"""Record the steps of an optimiser in a trace."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any
from weakref import ref

from fastmomentum.backends.base import HostExecutor
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.norms import check_on_host
from fastmomentum.optim.series import EMPTY, Row, combine
from fastmomentum.optim.trace import Known, Run, Trace


class Recorder:
    """Observe every update of an optimiser, and record it in a trace."""

    def __init__(self, trace: Trace, engine: Engine) -> None:
        self._trace, self._engine = trace, ref(engine)

    def before_step(self, grads: list[Any], executor: HostExecutor) -> Callable[[], None] | None:
        """Measure the update before it is done, and return the function that records it afterwards.

        All is computed before the update, as functions of the step may raise. From then on to the last assignment of
        the returned function the trace knows nothing of the state. If the handler of a signal raises in between, the
        next step finds nothing to compare the state with, and a gap if the count of steps differs from the trace's.
        """
        trace, engine = self._trace, self._engine()
        assert engine is not None  # it is in a step
        counter, changes, known = engine.state.counter, engine.changes, trace._known
        step, jumps = counter.steps, counter.jumps
        gaps = trace._open_gaps()
        is_new = jumps != known.jumps or not trace.starts
        begins = is_new or bool(gaps)
        unknown = known._replace(left={})
        if not begins and not trace._is_due(step):
            trace._known = unknown
            return partial(trace._add, None, Known(step + 1, jumps, changes))
        sums = executor.measure(grads)
        if sums is None:
            return None
        left = known.left if (step, changes) == (known.step, known.changes) and not begins else {}
        at_rest = is_new and _is_at_rest(engine, engine.schedule_step, sums)
        rows, group_of = _rows(engine, sums), engine.group_of

        def after() -> None:
            if begins and sums:
                trace._begin(step, at_rest)
            trace._compare(step, sums, left, group_of)
            trace._gaps += gaps
            trace._add(rows if sums else None, Known(step + 1, jumps, changes, {**left, **sums}))

        trace._known = unknown
        return after


def _rows(engine: Engine, sums: Mapping[int, StepSums]) -> list[Row]:
    """Return the row of each group."""
    group_of = engine.group_of
    rows = [EMPTY] * len(engine.groups)
    for group, members in groupby(sorted(sums, key=lambda i: (group_of[i], i)), group_of.__getitem__):
        rows[group] = combine([sums[i] for i in members])
    values = [[group.number(name) or 0.0 for name in ("lr", "momentum")] for group in engine.groups]
    return [Row(float(lr), float(momentum), row) for (lr, momentum), row in zip(values, rows)]


def _is_at_rest(engine: Engine, schedule_step: int, sums: Mapping[int, StepSums]) -> bool:
    """Return whether all velocities are zero, though lr, momentum and gradients say that they should not be.

    Only arrays that have had a step count, if any has had one.
    """
    started = engine.state.started
    members = [i for i in sums if started[i] or not any(started)]
    groups = [engine.groups[engine.group_of[i]] for i in members]
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
    recorder = Recorder(trace, engine)
    with one_caller(engine.lock):
        counter = engine.state.counter
        trace._known, trace._first = Known(counter.steps, counter.jumps), counter.steps
        trace._run = Run(counter, engine.state.resets, partial(_end, ref(engine), ref(recorder)))
        engine.observe(recorder, engine.gradient_restart)
    return trace


def _end(engine: "ref[Engine]", recorder: "ref[Recorder]", trace: Trace) -> None:
    """End the recording of an optimiser's run, if the optimiser still lives."""
    owner = engine()
    with nullcontext() if owner is None else one_caller(owner.lock):
        trace._resets, trace._gaps, trace._run = trace.resets, trace.gaps, None
        if owner is not None and owner.observer is recorder():
            owner.observe(None, owner.gradient_restart)
