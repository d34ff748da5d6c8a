"""Read the argument `params` of an optimiser: its arrays, their names, and their groups."""

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from numbers import Number
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.advice import how_to_convert, how_to_pass
from fastmomentum.backends import is_array
from fastmomentum.optim.elements import split_by_array
from fastmomentum.optim.groups import FIXED, SHARED, ParamGroup, make_group
from fastmomentum.rules.elementwise import GIVEN
from fastmomentum.rules.options import OFF, SWITCHES


class Layout(NamedTuple):
    """Hold the arrays and groups of the argument `params`.

    Attributes
    ----------
    params : list of arrays
        All groups' arrays, in order.
    names : list of str
        The names of the arrays in messages.
    keys : list of str or None
        The names that the user gave to the arrays; None if there are none.
    groups : list of ParamGroup
        The groups.
    group_of : list of int
        The number of each array's group.
    single : bool
        Whether the user passed one array.
    elements : list of dict
        For each array the values of the settings mask and lr_scale, each with its name in messages; not checked yet.
    slots : list of tuple of arrays, or None
        The state slots of each array, if they are given; None if the optimiser makes them.
    """

    params: list[Any]
    names: list[str]
    keys: list[str] | None
    groups: list[ParamGroup]
    group_of: list[int]
    single: bool
    elements: list[dict[str, tuple[Any, str]]]
    slots: list[tuple[Any, ...]] | None = None


OF_GROUPS = ("lr", "momentum", *OFF, *SWITCHES, *GIVEN)
"""The names of settings by which a dict with "params" is known to be a group, and no dict of arrays."""


def parse_params(params: Any, shared: Mapping[str, Any]) -> Layout:
    """Return the arrays and groups of the argument `params`; `shared` has the other arguments.

    Raises
    ------
    TypeError, ValueError
        If `params` is none of an array, a sequence or mapping of arrays, and a sequence of groups, or if a setting is
        refused.
    """
    given, shared = _without_elements(shared)
    if is_array(params):
        group = make_group(shared, dtypes=_dtypes_of([params]))
        return Layout([params], ["params"], None, [group], [0], True, _elements("", given, 1, None))
    params = to_list(params)
    if isinstance(params, Mapping | Sequence) and not len(params):
        raise ValueError("params: expected at least one array, or a group; got none")
    if isinstance(params, Mapping):
        if "params" in params and any([name in params for name in OF_GROUPS]):
            raise TypeError("params: expected groups in a list; got one group. Pass [{'params': ..., ...}]")
        arrays, names, keys = read_arrays("params", params)
        group = make_group(shared, dtypes=_dtypes_of(arrays))
        elements = _elements("", given, len(arrays), keys)
        return Layout(arrays, names, keys, [group], [0] * len(arrays), False, elements)
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(
            "params: expected an array, a sequence or a dict of arrays, or a sequence of dicts with 'params'; "
            f"got {checks.describe(params)}{how_to_pass(params)}"
        )
    if not any(isinstance(entry, Mapping) for entry in params):
        _refuse_entries("params", params, params)
        names = [f"params[{i}]" for i in range(len(params))]
        group = make_group(shared, dtypes=_dtypes_of(params))
        elements = _elements("", given, len(params), None)
        return Layout(list(params), names, None, [group], [0] * len(params), False, elements)
    for name in given:
        raise TypeError(
            f"{name}: expected in the groups, beside their 'params', or assigned later, opt.groups[i][{name!r}] = value"
            ", as it belongs to the arrays of one group"
        )
    layout = Layout([], [], None, [], [], False, [])
    for number, entry in enumerate(params):
        layout = with_group(layout, f"params[{number}]", entry, shared)
    return layout


def with_group(layout: Layout, where: str, entry: Any, shared: Mapping[str, Any], step: int = 0) -> Layout:
    """Return the layout with one more group, a dict with "params" and settings; `where` is its name in messages.

    Functions of the step are asked for their values at this step.

    Raises
    ------
    TypeError, ValueError
        If the group is malformed, if only some groups have names, or if two arrays have one name.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where}: expected a dict with 'params', as the others are; got {checks.describe(entry)}")
    if "params" not in entry:
        raise TypeError(f"{where}: expected a dict with 'params', its array or arrays; got one with {list(entry)}")
    for name in entry:
        if not isinstance(name, str):
            raise TypeError(f"{where}: expected names of settings; got {name!r}")
        if name in SHARED or name == "keep_resets":
            advice = "pass it as an argument of the constructor"
            if name not in (*FIXED, "keep_resets"):
                advice += f", or assign it to the optimiser: opt.{name} = value"
            raise TypeError(f"{where}: expected no {name}, as all groups share it: {advice}")
    arrays, names, keys = read_arrays(f"{where}['params']", entry["params"])
    if layout.groups and (keys is None) != (layout.keys is None) and arrays and layout.params:
        raise TypeError(f"{where}['params']: expected names for the arrays of all groups, or of none")
    all_keys = None if keys is None and layout.keys is None else [*(layout.keys or ()), *(keys or ())]
    if all_keys is not None and len(set(all_keys)) != len(all_keys):
        twice = next(key for key in all_keys if all_keys.count(key) > 1)
        raise ValueError(f"{where}['params']: expected a name of its own for each array; got {twice!r} twice")
    given, own = _without_elements(entry)
    settings = {**_without_elements(shared)[1], **{name: value for name, value in own.items() if name != "params"}}
    group = make_group(settings, step, _dtypes_of(arrays))
    if layout.groups and group.update.state != layout.groups[0].update.state:
        raise ValueError(f"{where}: expected settings under which the rule keeps the same state as in the other groups")
    return Layout(
        [*layout.params, *arrays],
        [*layout.names, *names],
        all_keys,
        [*layout.groups, group],
        [*layout.group_of, *[len(layout.groups)] * len(arrays)],
        False,
        [*layout.elements, *_elements(where, given, len(arrays), keys)],
    )


def _without_elements(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of mask and lr_scale that are not None, and the other settings."""
    given = {name: settings[name] for name in GIVEN if settings.get(name) is not None}
    return given, {name: value for name, value in settings.items() if name not in GIVEN}


def _elements(
    where: str, given: Mapping[str, Any], count: int, keys: Sequence[str] | None
) -> list[dict[str, tuple[Any, str]]]:
    """Return for each array of a group its mask and its scale of lr, each with its name in messages."""
    found: list[dict[str, tuple[Any, str]]] = [{} for _ in range(count)]
    for name, value in given.items():
        for own, each, called in zip(
            found, *split_by_array(f"{where}[{name!r}]" if where else name, value, count, keys)
        ):
            own[name] = (each, called)
    return found


def read_arrays(where: str, arrays: Any) -> tuple[list[Any], list[str], list[str] | None]:
    """Return the arrays of one group, their names in messages, and the names that the user gave them, or None.

    Raises
    ------
    TypeError
        If it is none of an array, a sequence and a mapping of arrays.
    """
    if isinstance(arrays, Mapping):
        for key in arrays:
            if not isinstance(key, str):
                raise TypeError(f"{where}: expected names of arrays; got {key!r}")
        _refuse_entries(where, arrays, list(arrays.values()))
        return list(arrays.values()), [f"{where}[{key!r}]" for key in arrays], list(arrays) or None
    found = [arrays] if is_array(arrays) else to_list(arrays)
    if not isinstance(found, Sequence) or isinstance(found, str):
        got = f"{checks.describe(found)}{how_to_pass(found)}"
        raise TypeError(f"{where}: expected an array, a sequence or a dict of them; got {got}")
    _refuse_entries(where, found, found)
    return list(found), [f"{where}[{i}]" for i in range(len(found))], None


def _refuse_entries(where: str, given: object, entries: Sequence[Any]) -> None:
    """Check that the entries of `given`, a sequence or mapping, are neither numbers, nor pairs with names, nor nested.

    Raises
    ------
    TypeError
        If they are. What else they are, is checked where the arrays are read.
    """
    if entries and all(isinstance(entry, Number) for entry in entries):
        got = f"numbers{how_to_convert(given)}"
    elif entries and all(isinstance(entry, tuple) and [*map(type, entry[:-1])] == [str] for entry in entries):
        got = "pairs of a name and a value. Pass a dict of them, dict(pairs)"
    elif any(isinstance(entry, Mapping) or _holds_arrays(entry) for entry in entries):
        got = "nested ones. Pass all arrays in one list, or in one dict with names such as 'layer.weight'"
    else:
        return
    raise TypeError(f"{where}: expected arrays; got {got}")


def _holds_arrays(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) > 1 and any(hasattr(value, "dtype") for value in entry)


def _dtypes_of(arrays: Sequence[Any]) -> Sequence[np.dtype[Any]]:
    """Return the dtypes of these arrays, as far as they can be told before the arrays are checked."""
    found = {checks.real_dtype(array.dtype) for array in arrays if isinstance(array, np.ndarray)}
    return [dtype for dtype in checks.DTYPES if dtype in found] or checks.DTYPES


def to_list(params: Any) -> Any:
    """Return an iterator, or the values of a dict, as a list, and anything else as it is."""
    return list(params) if isinstance(params, Iterator | ValuesView) else params
