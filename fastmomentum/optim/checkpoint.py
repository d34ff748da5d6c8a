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
    fingerprint     for each array a checksum of the parameter; only there if it was asked for. It tells whether arrays
                    without names are in another order than when they were saved
    torch_groups    for each group of the torch.optim.SGD from which a run came, the entries that have no meaning here
                    and that JSON can hold; only there if there are some
    elements        for each array a dict of its mask and its scale of lr; only there if an array has one. They replace
                    those of the optimiser that loads the state; without the key it keeps its own

:mod:`fastmomentum.optim.archive` writes it to a file and reads it.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

from fastmomentum import checks, schedules
from fastmomentum.backends import is_array
from fastmomentum.backends.base import one_caller
from fastmomentum.optim import changes
from fastmomentum.optim.archive import open_archive, write_archive
from fastmomentum.optim.elements import Elements, read_elements
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.group_settings import WHOLE, set_numbers
from fastmomentum.optim.groups import SCHEDULED, SHARED, ParamGroup, restored_group
from fastmomentum.optim.matching import (
    cast_slots,
    checksum,
    match,
    number_functions,
    reattach_functions,
    warn_of_another_order,
)
from fastmomentum.optim.schema import (
    ARRAYS,
    ELEMENTS,
    FINGERPRINT,
    SCHEMA,
    TORCH,
    SavedState,
    check_form,
    check_mapping,
    contradictions,
    is_plain,
    refuse,
    upgrade,
)
from fastmomentum.optim.state import State
from fastmomentum.optim.values import PLAIN, skips
from fastmomentum.rules.registry import find, names


def to_dict(engine: Engine, fingerprint: bool = False) -> dict[str, Any]:
    """Return the saved state of an optimiser, as a copy."""
    elements = [{name: given.given(name) for name in given.names} for given in engine.state.elements]
    found = without_arrays(engine) | {"state": engine.state.fetch_slots()}
    kept = [{name: value for name, value in group.items() if is_plain(value)} for group in engine.state.torch_groups]
    found |= {TORCH: kept} if any(kept) else {}
    found |= {FINGERPRINT: [*map(checksum, engine.state.fetch_params())]} if fingerprint else {}
    return found | ({ELEMENTS: elements} if any(elements) else {})


def without_arrays(engine: Engine) -> dict[str, Any]:
    """Return all entries of a saved state but those that hold arrays."""
    state, groups = engine.state, engine.groups
    settings = [group.settings for group in groups]
    scheduled = dict.fromkeys((*SCHEDULED, *(name for group in groups for _, name, _ in group.calls)))
    return {
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
        was_function = functions.get(name) is not None or (value is None and name in SCHEDULED)
        if was_function or (hasattr(own.get(name), "owner") and not callable(value)):
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


def with_numbers(saved: SavedState, given: Mapping[str, Any]) -> tuple[SavedState, dict[str, Any], dict[str, Any]]:
    """Return the saved state, with numbers that the user gives in the place of functions that were not saved.

    Parameters
    ----------
    saved : mapping
        The saved state.
    given : mapping
        By the names of settings a number, a function of the step, or a list with one of them, or None, for each group.

    Returns
    -------
    saved : mapping
        The saved state, with the last value of each function that a number replaces.
    numbers, functions : dict
        The numbers among the given values, for each group one or None, and the functions.

    Raises
    ------
    TypeError, ValueError
        If the state is malformed, or a list has another length than there are groups.
    """
    check_form(saved)
    refuse(contradictions(saved))
    count = len(saved["groups"])
    numbers: dict[str, Any] = {}
    functions: dict[str, Any] = {}
    groups, kinds, values = [list(map(dict, saved["groups"])), {**saved["functions"]}, list(map(dict, saved["values"]))]
    for name, value in given.items():
        if name in WHOLE:
            numbers[name] = value
            continue
        entries = checks.sequence(name, value, count) if isinstance(value, list) else [value] * count
        is_number = [entry is not None and not callable(entry) for entry in entries]
        if not any(is_number):
            functions[name] = value
            continue
        numbers[name] = [entry if each else None for entry, each in zip(entries, is_number)]
        if not all(is_number):
            functions[name] = [None if each else entry for entry, each in zip(entries, is_number)]
        was_function = kinds.get(name, [None] * count)
        kinds[name] = [None if each else kind for kind, each in zip(was_function, is_number)]
        for i, kind in enumerate(was_function):
            if is_number[i] and kind is not None:
                groups[i][name] = values[i].pop(name, entries[i])
    return {**saved, "groups": groups, "functions": kinds, "values": values}, numbers, functions


def constructor_arguments(saved: SavedState, params: Any, *, rule: Any, **functions: Any) -> dict[str, Any]:
    """Return the arguments of the constructor that make an optimiser like the saved one, for these parameters.

    The form of the saved state has been checked.

    Parameters
    ----------
    saved : mapping
        The saved state.
    params : array, or sequence or mapping of arrays
        All groups' parameters, in order or by name.
    rule : Rule or None
        The rule, if no rule is registered under the saved name.
    **functions
        For a setting the functions of the step that the user passes again; a saved schedule may be among them.

    Raises
    ------
    TypeError, ValueError
        If the state is malformed, or something that could not be saved was not passed.
    """
    groups = [unpack_settings(settings) for settings in saved["groups"]]
    for name in dict.fromkeys((*functions, *saved["functions"])):
        values = [settings.get(name) for settings in groups]
        numbers = saved["functions"].get(name, [None] * len(groups))
        for settings, function in zip(groups, reattach_functions(name, functions.get(name), numbers, values)):
            if function is not None:
                settings[name] = function
    shared = {"rule": choose_rule(saved, rule), "skip_nonfinite": saved["skip_nonfinite"]}
    if len(groups) == 1:
        return {"params": params, **shared, **groups[0]}
    arrays = [params] if is_array(params) else params
    counts = [settings[ARRAYS] for settings in saved["groups"]]
    if isinstance(arrays, Mapping):
        if saved["names"] is None or set(saved["names"]) != set(arrays):
            raise ValueError(f"params: expected a dict with the saved names, {saved['names']}; got {[*arrays]}")
        rest = iter([(name, arrays[name]) for name in saved["names"]])
        members: list[Any] = [dict([next(rest) for _ in range(count)]) for count in counts]
    else:
        rest = iter(checks.sequence("params", arrays, sum(counts)))
        members = [[next(rest) for _ in range(count)] for count in counts]
    parts = [
        {"params": own} | {name: value for name, value in settings.items() if name not in SHARED}
        for own, settings in zip(members, groups)
    ]
    shared |= {name: groups[0][name] for name in SHARED if name in groups[0]}
    return {"params": parts, "lr": groups[0].get("lr"), **shared}


def choose_rule(saved: SavedState, rule: Any) -> Any:
    """Return the rule that the user passed, or the name of the saved one if it is registered.

    Raises
    ------
    TypeError
        If there is neither.
    """
    if rule is None and saved["rule"] not in names():
        raise TypeError(
            f"rule: expected the rule that was saved as {saved['rule']}, as no rule has this name; got None"
        )
    return saved["rule"] if rule is None else rule


def write_file(path: str | PathLike[str], saved: SavedState) -> None:
    """Write a saved state to a file, and replace the file that exists."""
    arrays = {f"state_{i}_{j}": slot for i, state in enumerate(saved["state"]) for j, slot in enumerate(state)}
    elements = saved.get(ELEMENTS, [])
    arrays |= {f"{name}_{i}": values for i, given in enumerate(elements) for name, values in given.items()}
    meta = {name: value for name, value in saved.items() if name not in ("state", ELEMENTS)}
    meta["slots"] = [len(state) for state in saved["state"]]
    if elements:
        meta[ELEMENTS] = [list(given) for given in elements]
    write_archive(path, arrays, meta)


Kind = TypeVar("Kind")


def load_file(
    cls: type[Kind],
    path: str | PathLike[str],
    params: Any,
    given: Mapping[str, Any],
    cast: bool,
    rule: Any,
    executor: Mapping[str, Any],
) -> Kind:
    """Return the optimiser of class `cls` that is saved in a file, for these parameters.

    `given` has the settings that the user gives, by name (see :func:`with_numbers`), or None; `executor` has the
    backend and the number of threads. :meth:`fastmomentum.Optimizer.load` describes the other arguments.
    """
    given = {name: value for name, value in given.items() if value is not None}
    with open_archive(path, "Momentum", _join) as file:
        outline, numbers, functions = with_numbers(file.outline, given)
        found: Any = cls(**{**constructor_arguments(outline, params, rule=rule, **functions), **executor})
        match(outline, without_arrays(found._engine), found._engine.state, cast)  # before the arrays are read
        restore(with_numbers(file.read(), given)[0], found._engine, cast)
    for name, values in numbers.items():
        set_numbers(found._engine, name, values)
    return found  # type: ignore[no-any-return]


def _join(arrays: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state that :func:`write_file` took apart."""
    slots = meta.pop("slots")
    state = [[arrays[f"state_{i}_{j}"] for j in range(count)] for i, count in enumerate(slots)]
    if ELEMENTS in meta:
        names = meta[ELEMENTS]
        meta[ELEMENTS] = [{name: arrays[f"{name}_{i}"] for name in given} for i, given in enumerate(names)]
    if len(arrays) != sum(slots) + sum(map(len, meta.get(ELEMENTS, []))):
        raise ValueError("it holds more members than its table of contents says")
    return upgrade({**meta, "state": state})
