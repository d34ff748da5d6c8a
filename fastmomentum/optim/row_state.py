"""Saved states of SparseRows: a dict of everything, except the table, that a run needs to continue with the same bits.

A saved state is a dict:

    schema          2; schema 1 is read, too: all its settings are numbers, and it has neither values nor products
    rule            the name of the rule
    made_of         names and defaults of its functions, to tell it from another rule of the same name
    settings        all settings except the rule; a schedule is saved as the dict that
                    :func:`fastmomentum.schedules.pack` returns; None stands for another function of the step, which
                    must be passed again
    values          for each setting that is a schedule or another function, its value in the next update, or the last
                    value of a function that has no more
    steps           the number of updates done
    seen            an array with the number of updates done of each row
    state           a list of the state slots (copies)
    products        the numbers of :class:`fastmomentum.optim.step_products.StepProducts`, by which late rows catch up,
                    as nested lists: all but seen and state can be written as JSON

In a file each of seen, the state slots and the lists of products is an array, and "meta" holds the rest as JSON.
"""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, TypeVar

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.optim.archive import open_archive, write_archive
from fastmomentum.optim.matching import array_differences, rule_differences
from fastmomentum.optim.row_settings import NOT_NUMBERS, RowSettings, is_function, prepare
from fastmomentum.optim.run_file import choose_rule
from fastmomentum.optim.schema import (
    Form,
    SavedState,
    array,
    check_mapping,
    count,
    dict_of,
    finite,
    leaf,
    list_of,
    refuse,
    text,
    why_unfit,
    wrong_entries,
)
from fastmomentum.optim.step_products import StepProducts
from fastmomentum.rules.registry import find
from fastmomentum.theory.linear import Floats

SCHEMA = 2

NOT_SETTINGS = ("self", "param", "rule", "backend")
"""The arguments of the constructor of SparseRows that are not saved among its settings."""

ANY: Form = leaf("a value", lambda value: True)
FIRST: Mapping[str, Form] = {
    "schema": leaf(f"1 or {SCHEMA}", lambda value: type(value) is int and value in (1, SCHEMA)),
    "rule": text,
    "made_of": text,
    "settings": dict_of(ANY, without=NOT_SETTINGS),
    "steps": count,
    "seen": array,
    "state": list_of(array),
}
"""The form of each entry of a saved state of schema 1."""

FORMS: Mapping[str, Form] = {**FIRST, "values": dict_of(finite), "products": ANY}
"""The form of each entry of a saved state of the present schema; `StepProducts` checks the products."""


def describe_settings(settings: RowSettings, step: int) -> dict[str, Any]:
    """Return the entries of a saved state that describe the rule and its settings before the update of this number."""
    given, now, rule = settings.given, settings.last_values(step), find(settings.given["rule"])
    return {
        "schema": SCHEMA,
        "rule": rule.name or str(rule),
        "made_of": rule.description,
        "settings": {name: _pack(name, value) for name, value in given.items() if name != "rule"},
        "values": {name: now[name] for name, value in given.items() if is_function(name, value)},
    }


def _pack(name: str, value: Any) -> Any:
    """Return a setting as it is saved: a number as it is, a schedule as a dict, and None for another function."""
    if not is_function(name, value):
        return value
    return schedules.pack(value) if schedules.is_packable(value) else None


def restore_settings(saved: SavedState, own: RowSettings, dtype: np.dtype[Any]) -> RowSettings:
    """Return saved settings with the rule of `own`, and with its functions of the step in the place of None.

    Functions are not called, as those of a run that has ended may have no more values.

    Raises
    ------
    TypeError, ValueError
        If a value is refused, or the rule keeps another state than that of `own`.
    """
    values = saved.get("values", {})
    given: dict[str, Any] = {"rule": own.given["rule"]}
    for name, value in saved["settings"].items():
        if name in values:
            given[name] = own.given[name] if value is None else schedules.unpack(value)
        elif value is not None:  # in schema 1, None is the value of an option that is off
            given[name] = value
    given = prepare(given)
    found = RowSettings(given, {name: values.get(name, value) for name, value in given.items()}, dtype, None)
    found.check_state(own)
    return found


def restore_products(saved: SavedState, own: StepProducts, matrix: Floats) -> StepProducts:
    """Return the saved products; those of schema 1 are powers of the matrix of its settings."""
    return own.with_lists(saved["products"]) if saved["schema"] != 1 else own.with_matrix(matrix)


def check_saved(
    saved: SavedState, like: SavedState, own: Mapping[str, Any], products: StepProducts, cast: bool = False
) -> None:
    """Check that a saved state fits rows whose own saved state is `like`.

    Parameters
    ----------
    saved : mapping
        The saved state.
    like : mapping
        The saved state of these rows.
    own : mapping
        The settings of these rows.
    products : StepProducts
        The products of these rows.
    cast : bool
        Whether a state of another precision fits.

    Raises
    ------
    TypeError, ValueError
        If it does not fit; the message lists all differences.
    """
    check_form(saved)
    refuse(_differences(saved, like, own, products, cast), "these rows")


def check_form(saved: SavedState) -> None:
    """Check that a saved state is a mapping whose entries have the form of its schema."""
    check_mapping(saved)
    refuse(wrong_entries(saved, FIRST if saved.get("schema") == 1 else FORMS), "these rows")


def check_arrays(saved: SavedState, like: SavedState, cast: bool) -> None:
    """Check that the arrays of a saved state have the shapes and dtypes of those of `like`."""
    refuse(_array_differences(saved, like, cast), "these rows")


def _array_differences(saved: SavedState, like: SavedState, cast: bool) -> Iterator[str]:
    yield from array_differences("seen", saved["seen"], like["seen"])
    yield from array_differences("state", saved["state"], like["state"], cast)


def _differences(
    saved: SavedState, like: SavedState, own: Mapping[str, Any], products: StepProducts, cast: bool
) -> Iterator[str]:
    """Yield a sentence for each way in which a saved state of the right form does not fit."""
    yield from rule_differences(saved, like)
    if saved["schema"] != 1:
        yield from _unfit_settings(saved["settings"], saved["values"], own)
    if wrong := [*_array_differences(saved, like, cast)]:
        yield from wrong
        return
    seen, steps = saved["seen"], saved["steps"]
    if not ((seen >= 0) & (seen <= steps)).all():
        yield f"seen: expected numbers from 0 to steps; got {seen.min()} to {seen.max()}"
    elif saved["schema"] != 1:
        yield from products.differences(saved["products"], seen, steps)


def with_given(saved: SavedState, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what was saved of the settings, and what the user gives in addition or in its place.

    A function of the step that was not saved, and that a number replaces, is saved as its last value.

    Returns
    -------
    saved : dict
        The entries settings and values of the saved state.
    passed_again : dict
        By name the functions of the step that were not saved.
    assigned : dict
        By name the values that replace what was saved, as if they were assigned after loading.

    Raises
    ------
    TypeError, ValueError
        If the state is malformed, or a function of the step is missing that was not saved.
    """
    check_form(saved)
    settings, values, assigned = dict(saved["settings"]), dict(saved["values"]), dict(given)
    passed_again = {}
    for name in [name for name, value in settings.items() if value is None]:
        if callable(assigned.get(name)):
            passed_again[name] = assigned.pop(name)
        elif name in assigned and name in values:
            settings[name] = values.pop(name)
        else:
            raise TypeError(
                f"{name}: expected the function of the step that the saved run had, or another value; "
                f"got {checks.describe(given.get(name))}"
            )
    return {"settings": settings, "values": values}, passed_again, assigned


def _unfit_settings(settings: Mapping[str, Any], values: Mapping[str, float], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each saved setting, or saved value of a function, that is none."""
    for name, setting in settings.items():
        if name in NOT_NUMBERS:
            continue
        if why := why_unfit(setting):
            yield f"settings: {name}: {why}"
        elif setting is None and not callable(own.get(name)):
            yield f"settings: {name} was a function of the step, to be passed again; got {own.get(name)}"
    functions = [name for name, value in settings.items() if value is None or isinstance(value, Mapping)]
    if [*values] != functions:
        yield f"values: expected a dict with a float for each of {functions}; got {checks.describe(values)}"


def write_file(path: str | PathLike[str], saved: SavedState) -> None:
    """Write a saved state to a file, as a whole or not at all, and replace the file that exists."""
    arrays = {"seen": saved["seen"], **{f"state_{i}": slot for i, slot in enumerate(saved["state"])}}
    arrays |= {f"products_{name}": np.array(numbers) for name, numbers in saved["products"].items()}
    write_archive(path, arrays, {key: saved[key] for key in saved if key not in ("seen", "state", "products")})


Kind = TypeVar("Kind")


def load_file(
    cls: type[Kind],
    path: str | PathLike[str],
    param: Any,
    given: Mapping[str, Any],
    cast: bool,
    rule: Any,
    backend: str | None,
) -> Kind:
    """Return the object of class `cls` that is saved in a file, for this table.

    `given` has the settings that the user gives, by name. :meth:`fastmomentum.SparseRows.load` describes the others.
    """
    with open_archive(path, "SparseRows", _join) as file:
        saved, passed_again, assigned = with_given(file.outline, given)
        own = {**saved["settings"], **saved["values"]}
        found: Any = cls(param, rule=choose_rule(file.outline, rule), backend=backend, **own)  # type: ignore[call-arg]
        found._settings.given = {**found._settings.given, **passed_again}
        check_arrays(file.outline, found.state_dict(), cast)  # before the arrays are read
        found.load_state_dict({**file.read(), **saved}, cast=cast)
    found.change(**assigned)
    return found  # type: ignore[no-any-return]


def _join(arrays: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state that :func:`write_file` took apart."""
    seen, prefix = arrays.pop("seen"), "products_"
    products = {name.removeprefix(prefix): arrays.pop(name) for name in [*arrays] if name.startswith(prefix)}
    return {**meta, "seen": seen, "state": [arrays[f"state_{i}"] for i in range(len(arrays))], "products": products}
