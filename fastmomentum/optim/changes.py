"""Change the settings, the arrays and the counts of an optimiser between two steps.

Every change checks everything before it writes anything, so that a refused change leaves the optimiser as it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.optim.elements import Elements, check_elements, check_rules, split_by_array
from fastmomentum.optim.engine import Engine, Record
from fastmomentum.optim.groups import ParamGroup
from fastmomentum.optim.norms import check_groups, plan_settings
from fastmomentum.optim.params import Layout
from fastmomentum.optim.plan import PointRow, lr_corrections
from fastmomentum.optim.restart import ALL, epoch
from fastmomentum.optim.schema import MEMORY, TORCH
from fastmomentum.optim.state import ALL_ROWS, State
from fastmomentum.optim.values import values_at


def set_value(engine: Engine, number: int, name: str, value: float) -> bool:
    """Use a number for a setting of one group from the next update on; return False if that needs more.

    The next step computes the hyper-parameters of all groups.
    """
    group = engine.groups[number]
    values = group.with_value(name, value)
    if values is None or engine.follows_settings:
        return False
    fast, engine._fast = engine._fast, None  # a step that is interrupted here plans the next one
    group.values = values
    if fast is not None:
        engine.use_assigned()
    return True


def set_setting(engine: Engine, numbers: Sequence[int], name: str, values: Sequence[Any]) -> None:
    """Use these values of a setting in the groups with these numbers, from the next update on, or in none of them.

    If correct=True, state that holds lr is rescaled.

    Raises
    ------
    TypeError, ValueError
        If a value has a wrong type or is out of range.
    """
    if len(numbers) == 1 and set_value(engine, numbers[0], name, values[0]):
        return
    groups = list(engine.groups)
    found = [groups[number].with_value(name, value) for number, value in zip(numbers, values)]
    plain = [own for own in found if own is not None]
    if len(plain) < len(found) or engine.follows_settings:
        step = engine.schedule_step
        for number, value in zip(numbers, values):
            groups[number] = groups[number].with_settings({name: value}, step)
        use_groups(engine, groups)
        return
    fast, engine._fast = engine._fast, None
    with uninterrupted():
        for number, own in zip(numbers, plain):
            groups[number].values = own
        if fast is not None:
            engine.use_assigned()


def use_groups(engine: Engine, groups: list[ParamGroup]) -> None:
    """Use these settings from the next update on, after checking them; rescale state to lr if correct=True.

    Raises
    ------
    TypeError, ValueError
        If a setting has a wrong type or value, or the rule keeps other state with it.
    """
    step = engine.schedule_step if engine.follows_settings else 0
    check_groups(engine.backend, groups)
    _check_rules(engine, groups, engine.state.elements)
    for group in groups:
        if group.update.state != engine.update.state:
            raise ValueError(
                f"expected settings under which the rule keeps the state {engine.update.slots}; got {group.update}, "
                f"which keeps {group.update.slots}"
            )
    then = values_at(groups, step)
    if engine.follows_settings:
        engine.check_arrays()
    corrections = lr_corrections(
        engine.groups, engine.group_of, engine.state, engine.all_params, values_at(engine.groups, step), then
    )
    points = engine.points(engine.all_params, then)
    plan = plan_settings(groups, engine.skip_nonfinite)
    with uninterrupted():
        engine.use_settings(plan)
        engine.write_state(corrections, points)


def add_group(engine: Engine, layout: Layout) -> None:
    """Update the arrays of one more group, the last one of `layout`, from the next step on.

    Raises
    ------
    TypeError, ValueError
        If a setting or an array is refused; nothing has been changed then.
    """
    new, groups = range(len(engine.group_of), len(layout.group_of)), layout.groups
    state = engine.state.with_arrays(layout)
    state.initialise(engine.update, new, ALL_ROWS)
    if engine.update.gradient_slot != "p":
        then = values_at(groups, engine.schedule_step)
        state.write_points(engine.update, state.point_rows(new, layout.group_of, then))
    _use_state(engine, state, groups, layout.group_of)


def replace(engine: Engine, i: int, param: Any) -> None:
    """Update this array in place of parameter i, whose state goes along."""
    _use_state(engine, engine.state.with_param(i, param), engine.groups, engine.group_of)


def _use_state(engine: Engine, state: State, groups: list[ParamGroup], group_of: list[int]) -> None:
    """Use another state with these groups, or go on as before if an array or a setting is refused."""
    if engine.observer is not None:
        raise RuntimeError("expected no trace in progress, as it records the arrays of before; call its stop()")
    used = [group.with_dtypes(state.dtypes_of(group_of, number)) for number, group in enumerate(groups)]
    check_groups(engine.backend, used)
    plan = plan_settings(used, engine.skip_nonfinite)
    before = engine.state, engine.groups, engine.group_of
    with uninterrupted():
        try:
            engine.state, engine.groups, engine.group_of = state, used, group_of
            engine.check_and_build([None] * len(group_of))
        except BaseException:
            engine.state, engine.groups, engine.group_of = before
            engine._fast, engine._executor_checks, engine._row_of = None, False, None
            raise
        engine.use_settings(plan)


def set_elements(engine: Engine, numbers: Sequence[int], name: str, values: Sequence[Any]) -> None:
    """Use these masks, or these scales of lr, in the groups with these numbers, from the next update on.

    Raises
    ------
    TypeError, ValueError
        If a value does not fit the arrays or the rule of its group; nothing has been changed then.
    """
    engine.check_arrays()  # so that the memory of now is read
    state = engine.state
    elements = list(state.elements)
    for number, value in zip(numbers, values):
        members = [i for i in engine.all_params if engine.group_of[i] == number]
        keys = None if state.names is None else [state.names[i] for i in members]
        for i, each, where in zip(members, *split_by_array(name, value, len(members), keys)):
            values_of = check_elements(name, where, each, state.params[i], engine.backend)
            elements[i] = elements[i]._replace(**{name: values_of})
    _check_rules(engine, engine.groups, elements)
    points = engine.points_at(engine.all_params, engine.schedule_step)
    with uninterrupted():
        _use_elements(engine, elements)
        engine.write_state([], points)


def _use_elements(engine: Engine, elements: list[Elements]) -> None:
    """Use these masks and scales of lr, which have been checked; the next step makes an executor anew."""
    engine._fast, engine._executor_checks = None, False
    engine.state.elements = elements


def _check_rules(engine: Engine, groups: Sequence[ParamGroup], elements: Sequence[Elements]) -> None:
    """Check that the rules of these groups can take the masks and the scales of lr of their arrays."""
    check_rules(elements, [groups[number].update for number in engine.group_of])


def set_skips(engine: Engine, skip_nonfinite: bool | int) -> None:
    """Skip updates with gradients that are not finite, or not, from the next update on."""
    plan = plan_settings(engine.groups, engine.check_skips(skip_nonfinite))
    with uninterrupted():
        engine.use_settings(plan)


def set_steps(engine: Engine, steps: int) -> None:
    """Continue as if this number of updates had been done; rescale state to lr if correct=True.

    Raises
    ------
    TypeError, ValueError
        If a function of the step has no value there that the state can be rescaled to.
    """
    state, last_reset = engine.state, min(engine.state.last_reset, steps)
    new_epoch = epoch(engine.restart, last_reset)
    corrections: list[tuple[Any, Any]] = []
    points: list[PointRow] = []
    if engine.follows_settings:
        then = values_at(engine.groups, steps - new_epoch)
        now = values_at(engine.groups, engine.schedule_step)
        engine.check_arrays()
        corrections = lr_corrections(engine.groups, engine.group_of, state, engine.all_params, now, then)
        points = engine.points(engine.all_params, then)
    engine._fast, updates = None, state.updates
    with uninterrupted():
        engine.changes += 1
        state.counter.steps, state.last_reset, engine._epoch = steps, last_reset, new_epoch
        state.updates = updates
        engine.write_state(corrections, points)


def load(
    engine: Engine,
    saved: Mapping[str, Any],
    groups: list[ParamGroup],
    skip_nonfinite: bool | int,
    elements: list[Elements] | None = None,
) -> None:
    """Continue from a saved state, which has been checked, with these settings; None keeps masks and scales."""
    state = engine.state
    elements = state.elements if elements is None else elements
    check_groups(engine.backend, groups)
    _check_rules(engine, groups, elements)
    engine.check_arrays()
    plan = plan_settings(groups, engine.check_skips(skip_nonfinite))
    resets, updates = [(step, reason, scope) for step, reason, scope in saved["resets"]], list(saved["updates"])
    torch_groups = [dict(group) for group in saved.get(TORCH, ())]
    slots = [pair for own, given in zip(state.slots, saved["state"]) for pair in zip(own, given)]
    with uninterrupted():
        engine.changes += 1
        state.counter.steps, state.counter.skipped = saved["steps"], saved["skipped"]
        state.counter.in_a_row = saved["skipped_in_a_row"]
        state.resets.clear()  # in place, as a trace reads it
        state.resets.extend(resets)
        state.last_reset = saved["last_reset"]
        state.updates, state.torch_groups = updates, torch_groups
        for kept, values in zip(state.memory, saved.get(MEMORY, ())):
            kept[:] = values.values()
        state.value = saved["value"]
        engine.use_settings(plan)
        if elements is not state.elements:
            _use_elements(engine, elements)
        state.write(slots)


def reset(engine: Engine, which: Sequence[int], rows: slice, record: Record) -> None:
    """Write the initial state to these rows of these parameters; the next step of a whole array is a first step."""
    engine.check_arrays()
    step = engine.step_after_reset(record[0]) if record[2] == ALL else engine.schedule_step
    points = engine.points_at(which, step)
    with uninterrupted():
        engine.write_reset(which, rows, record, points)


def report(engine: Engine, value: float, record: Record) -> bool:
    """Store the objective and return whether it has risen; if it has, reset everything, with this record."""
    risen = engine.state.value is not None and value > engine.state.value
    points: list[PointRow] = []
    if risen:
        engine.check_arrays()
        points = engine.points_at(engine.all_params, engine.step_after_reset(record[0]))
    with uninterrupted():
        if risen:
            engine.write_reset(engine.all_params, ALL_ROWS, record, points)
        engine.state.value = value
    return risen


def write_points(engine: Engine) -> None:
    """Compute and write all look-ahead points."""
    points = engine.points_at(engine.all_params, engine.schedule_step)
    engine.state.write_points(engine.update, points, engine._stream)
