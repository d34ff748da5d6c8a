"""Files of an optimiser's run: write a saved state, and make the optimiser anew, with other settings if the user wants.

:mod:`fastmomentum.optim.checkpoint` describes saved states.
"""

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple, TypeVar

from fastmomentum import checks, schedules
from fastmomentum.backends import is_array
from fastmomentum.optim.archive import open_archive, write_archive
from fastmomentum.optim.checkpoint import is_unsaved, restore, unpack_settings, without_arrays
from fastmomentum.optim.group_settings import WHOLE, assign_settings, for_groups
from fastmomentum.optim.groups import SCHEDULED, SHARED
from fastmomentum.optim.matching import match
from fastmomentum.optim.schema import (
    ARRAYS,
    ELEMENTS,
    TORCH,
    SavedState,
    check_form,
    contradictions,
    is_plain,
    refuse,
    upgrade,
)
from fastmomentum.rules.registry import names


class Given(NamedTuple):
    """Hold the settings that the user gives for a saved run, by name and by the number of the group.

    Attributes
    ----------
    passed_again : dict of dict
        The functions of the step that were not saved.
    assigned : dict of dict
        The values that replace what was saved, as if they were assigned after loading.
    """

    passed_again: dict[str, dict[int, Any]]
    assigned: dict[str, dict[int, Any]]


def with_given(saved: SavedState, given: Mapping[str, Any]) -> tuple[dict[str, Any], Given]:
    """Return what was saved of the settings, and what the user gives in addition or in its place.

    A function of the step that was not saved, and that a number replaces, is saved as its last value.

    Parameters
    ----------
    saved : mapping
        The saved state.
    given : mapping
        By the names of settings a value for all groups, or a list with a value, or None, for each group. A function of
        the step that is no schedule is for those groups alone that had one that was not saved, if there are any.

    Returns
    -------
    settings : dict
        The entries groups, functions and values of the saved state.
    given : Given
        The given values.

    Raises
    ------
    TypeError, ValueError
        If the state is malformed, a list has another length than there are groups, or a function of the step is missing
        that was not saved.
    """
    check_form(saved)
    refuse(contradictions(saved))
    count = len(saved["groups"])
    groups, values = list(map(dict, saved["groups"])), list(map(dict, saved["values"]))
    functions = {name: list(numbers) for name, numbers in saved["functions"].items()}
    found = Given({}, {})
    for name in dict.fromkeys((*given, *SCHEDULED, *functions)):
        numbers, value = functions.get(name, [None] * count), given.get(name)
        unsaved = [i for i, group in enumerate(groups) if is_unsaved(name, group, numbers[i])]
        entries = for_groups(name, value, count) if name in given else {}
        if unsaved and callable(value) and not schedules.is_packable(value):
            if len({numbers[i] for i in unsaved}) > 1:
                raise TypeError(f"{name}: expected a list of {count}, as groups had different functions of the step")
            entries = dict.fromkeys(unsaved, value)
        for i in unsaved:
            if i not in entries:
                raise TypeError(
                    f"{name}: expected the function of the step that the saved run had in group {i}, or another value; "
                    f"got {checks.describe(value)}"
                )
            if callable(entries[i]):
                found.passed_again.setdefault(name, {})[i] = entries.pop(i)
            else:
                groups[i][name], numbers[i] = values[i].pop(name, entries[i]), None
        if entries:
            found.assigned[name] = entries
    return {"groups": groups, "functions": functions, "values": values}, found


def constructor_arguments(
    saved: SavedState, params: Any, rule: Any, functions: Mapping[str, Mapping[int, Any]]
) -> dict[str, Any]:
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
    functions : mapping of mapping
        By the names of settings, then by the numbers of groups, the functions of the step that were not saved.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not go with the groups or the names of the state, or the rule is missing.
    """
    groups = [unpack_settings(settings) for settings in saved["groups"]]
    for name, entries in functions.items():
        for number, function in entries.items():
            groups[number][name] = function
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
    """Write a saved state to a file, and replace the file that exists; a warning lists entries that it cannot hold."""
    arrays = {f"state_{i}_{j}": slot for i, state in enumerate(saved["state"]) for j, slot in enumerate(state)}
    elements = saved.get(ELEMENTS, [])
    arrays |= {f"{name}_{i}": values for i, given in enumerate(elements) for name, values in given.items()}
    meta = {name: value for name, value in saved.items() if name not in ("state", ELEMENTS, TORCH)}
    meta["slots"] = [len(state) for state in saved["state"]]
    if elements:
        meta[ELEMENTS] = [list(given) for given in elements]
    groups = saved.get(TORCH, [])
    kept = [{key: value for key, value in group.items() if is_plain({key: value})} for group in groups]
    write_archive(path, arrays, meta | ({TORCH: kept} if any(kept) else {}))
    if lost := sorted({str(key) for group, own in zip(groups, kept) for key in group.keys() - own.keys()}):
        warnings.warn(
            f"path: the file lacks entries of torch's groups that JSON cannot hold: {', '.join(lost)}. "
            "opt.state_dict() has them",
            stacklevel=3,
        )


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

    `given` has the settings that the user gives, by name (see :func:`with_given`); `executor` has the backend and the
    number of threads. :meth:`fastmomentum.Optimizer.load` describes the other arguments.
    """
    whole = {name: value for name, value in given.items() if name in WHOLE}
    with open_archive(path, "Momentum", _join) as file:
        settings, (passed_again, assigned) = with_given(
            file.outline, {name: value for name, value in given.items() if name not in WHOLE}
        )
        outline = {**file.outline, **settings}
        found: Any = cls(**{**constructor_arguments(outline, params, rule, passed_again), **executor})
        match(outline, without_arrays(found._engine), found._engine.state, cast)  # before the arrays are read
        restore({**file.read(), **settings}, found._engine, cast)
    assign_settings(found._engine, whole, assigned)
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
