"""Saved states: a dict of everything, except the parameters, that a run needs to continue with the same bits.

A saved state is a dict:

    schema          4; schemas 1 (schedules were saved like any other function), 2 (no restart schemes) and 3 (functions
                    of the step for lr and momentum alone) are read, too
    rule            the name of the rule
    made_of         names and defaults of its functions, to tell it from another rule of the same name
    steps, skipped  the numbers of updates done and skipped
    skipped_in_a_row  the number of updates skipped since the last one that was done
    skip_nonfinite  whether updates may be skipped, or how many in a row at most
    resets          a list of (step, reason, scope)
    last_reset      the number of updates done before the last reset of everything
    value           the objective last reported, or None
    names           the names of the arrays, or None
    groups          for each group its settings and the number of its arrays; a schedule is saved as the dict that
                    :func:`fastmomentum.schedules.pack` returns; None stands for another function of the step, which
                    must be passed again
    functions       for lr and momentum, and every other setting that is such a function in a group, for each group the
                    number of the function, or None; groups with equal numbers had the same function
    values          for each group the last values of its functions of the step
    updates         for each array the number of updates since its state was at rest
    state           for each array a list of its state slots (copies), the look-ahead point among them
    memory          for each array a dict of the numbers that its rule keeps from step to step; only there if it keeps
                    some
    fingerprint     for each array a checksum of the parameter in single precision; only there if it was asked for. It
                    tells whether arrays without names are in another order than when they were saved
    torch_groups    for each group of the torch.optim.SGD from which a run came, the entries that have no meaning here;
                    only there if there are some. A file has those that JSON can hold
    elements        for each array a dict of its mask and its scale of lr; only there if an array has one. They replace
                    those of the optimiser that loads the state; without the key it keeps its own

:mod:`fastmomentum.optim.run_file` writes it to a file and reads it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

from fastmomentum import schedules
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.optim import changes
from fastmomentum.optim.elements import Elements, read_elements
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.groups import SCHEDULED, SHARED, ParamGroup, restored_group
from fastmomentum.optim.matching import (
    cast_slots,
    checksum,
    match,
    number_functions,
    warn_of_another_order,
)
from fastmomentum.optim.schema import (
    ARRAYS,
    ELEMENTS,
    FINGERPRINT,
    MEMORY,
    SCHEMA,
    TORCH,
    SavedState,
    check_form,
    check_mapping,
    upgrade,
)
from fastmomentum.optim.state import State
from fastmomentum.optim.values import PLAIN, skips
from fastmomentum.rules.registry import find


def to_dict(engine: Engine, fingerprint: bool = False) -> dict[str, Any]:
    """Return the saved state of an optimiser, as a copy."""
    elements = [{name: given.given(name) for name in given.names} for given in engine.state.elements]
    found = without_arrays(engine) | {"state": engine.state.fetch_slots()}
    kept = copies_of(engine.state.torch_groups)
    found |= {TORCH: kept} if any(kept) else {}
    if fingerprint:
        with suppress(TypeError, ValueError):  # tensors may have moved to where they cannot be read
            found[FINGERPRINT] = [*map(checksum, engine.state.fetch_params())]
    return found | ({ELEMENTS: elements} if any(elements) else {})


def copies_of(groups: Sequence[Mapping[Any, Any]]) -> list[dict[Any, Any]]:
    """Return copies of the entries of torch's groups, a number for a tensor with one.

    An entry that cannot be copied, such as a lock or a tensor that is the result of an operation, is kept itself.
    """
    return [{name: _copy_of(value) for name, value in group.items()} for group in groups]


def _copy_of(value: Any) -> Any:
    try:
        return deepcopy(plain_number(value))
    except Exception:
        return value


def plain_number(value: Any) -> Any:
    """Return the number in a tensor, which torch accepts as lr and weight_decay; another value as it is."""
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        return value


def without_arrays(engine: Engine) -> dict[str, Any]:
    """Return all entries of a saved state but those that hold arrays."""
    state, groups = engine.state, engine.groups
    settings = [group.settings for group in groups]
    scheduled = dict.fromkeys((*SCHEDULED, *(name for group in groups for _, name, _ in group.calls)))
    names = [*engine.update.core.memory]
    memory = {MEMORY: [dict(zip(names, values)) for values in state.memory]} if names else {}
    return memory | {
        "schema": SCHEMA,
        "rule": groups[0].name,
        "made_of": find(settings[0]["rule"]).description,
        "steps": state.counter.steps,
        "skipped": state.counter.skipped,
        "skipped_in_a_row": state.counter.in_a_row,
        "skip_nonfinite": engine.skip_nonfinite,
        "resets": [tuple(reset) for reset in state.resets],
        "last_reset": state.last_reset,
        "value": state.value,
        "names": None if state.names is None else list(state.names),
        "groups": [
            pack_settings(own, state) | {ARRAYS: engine.group_of.count(number)} for number, own in enumerate(settings)
        ],
        "functions": {name: number_functions([own.get(name) for own in settings]) for name in scheduled},
        "values": [{name: group.number(name) for _, name, _ in group.calls} for group in groups],
        "updates": list(state.updates),
    }


def load_dict(saved: SavedState, engine: Engine, cast: bool = False) -> None:
    """Let an optimiser continue from a saved state, after checking that the state fits.

    With `cast`, saved arrays of another precision are converted.

    Raises
    ------
    TypeError, ValueError
        If the saved state does not fit; the message lists all differences, and nothing has been changed.
    """
    check_mapping(saved)
    saved = upgrade(saved)
    check_form(saved)
    restore(saved, engine, cast)


def restore(saved: SavedState, engine: Engine, cast: bool = False) -> None:
    """Let an optimiser continue from a saved state of the present schema, whose form has been checked."""
    with one_caller(engine.lock):
        saved = match(saved, without_arrays(engine), engine.state, cast)
        if cast:
            saved = {**saved, "state": cast_slots(saved["state"], engine.state.params)}
        warn_of_another_order(saved, engine.state)
        saved = {**saved, TORCH: copies_of(saved.get(TORCH, ()))}
        skip_nonfinite = skips(saved["skip_nonfinite"])
        groups = []
        for number, group in enumerate(engine.groups):
            packed = saved["groups"][number]
            settings = merge_settings(group, packed, {name: of[number] for name, of in saved["functions"].items()})
            is_new = bool(group.calls) or settings != group.settings
            values = saved["values"][number]
            groups.append(restored_group(settings, values, saved["steps"], group) if is_new else group)
        for name in SHARED if len(groups) > 1 else ():
            if len({repr(group.number(name)) for group in groups}) > 1:
                raise ValueError(f"state_dict: expected one {name} for all groups; got several")
        if any([group.update.state != engine.update.state for group in groups]):
            raise ValueError("state_dict: expected the same lookahead as that of this optimiser; got another")
        changes.load(engine, saved, groups, skip_nonfinite, _saved_elements(saved, engine))


def _saved_elements(saved: SavedState, engine: Engine) -> list[Elements] | None:
    """Return the masks and scales of lr of a saved state, checked for these arrays; None if it has none.

    Raises
    ------
    TypeError, ValueError
        If they do not fit.
    """
    if ELEMENTS not in saved:
        return None
    return read_elements(
        [
            {name: (value, f"state_dict['{ELEMENTS}'][{i}][{name!r}]") for name, value in given.items()}
            for i, given in enumerate(saved[ELEMENTS])
        ],
        engine.state.params,
        engine.backend,
    )


def merge_settings(group: ParamGroup, packed: Mapping[str, Any], functions: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the saved settings, with those settings of `group` that cannot be saved.

    These are the rule, functions of the step other than schedules, and scalars in device memory. A scalar replaces a
    saved number, but not a saved schedule.
    """
    unpacked, own = unpack_settings(packed), group.settings
    unsaved = {"rule": own["rule"]}
    for name, value in unpacked.items():
        if is_unsaved(name, packed, functions.get(name)) or (hasattr(own.get(name), "owner") and not callable(value)):
            unsaved[name] = own.get(name, value)
    return unpacked | unsaved


def pack_settings(settings: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Return a group's settings as they are saved: numbers, schedules as dicts, None for other functions."""

    def pack(value: Any) -> Any:
        if schedules.is_packable(value):
            return schedules.pack(value)
        return None if callable(value) else state.number(value)

    own = {name: value for name, value in settings.items() if name != "rule"}
    return {name: value if type(value) in PLAIN else pack(value) for name, value in own.items()}


def unpack_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's settings from what was saved of them, schedules among them."""
    return {
        name: schedules.unpack(value) if isinstance(value, Mapping) else value
        for name, value in saved.items()
        if name != ARRAYS
    }


def is_unsaved(name: str, group: Mapping[str, Any], number: int | None) -> bool:
    """Return whether a setting of a saved group was a function of the step that could not be saved.

    `number` is the number of the function in the saved state; the first schemas had none.
    """
    return number is not None or (name in SCHEDULED and name in group and group[name] is None)
