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
from typing import Any

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.advice import did_you_mean
from fastmomentum.optim.archive import read_archive, write_archive
from fastmomentum.optim.checkpoint import reattach_functions, rule_differences
from fastmomentum.optim.row_settings import NOT_NUMBERS, RowSettings, is_function, prepare
from fastmomentum.optim.schema import SavedState, check_mapping, refuse, why_unfit
from fastmomentum.optim.step_products import StepProducts
from fastmomentum.rules.registry import find
from fastmomentum.theory.linear import Floats

SCHEMA = 2
ADDED_IN_2 = ("values", "products")
KEYS = ("schema", "rule", "made_of", "settings", "values", "steps", "seen", "state", "products")


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


def reattach(saved: SavedState, functions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the functions of the step that were not saved, by name, from those that the user passes again.

    Raises
    ------
    TypeError
        If a function is missing, or if one is passed for a setting that was saved.
    """
    settings = saved["settings"]
    for name in functions:
        if name not in settings:
            hint = did_you_mean(name, settings)
            raise TypeError(f"{name}: expected a setting of the saved run, {', '.join(settings)}{hint}")
    found = {}
    for name, value in settings.items():
        number = 0 if value is None else None
        kept = schedules.unpack(value) if isinstance(value, Mapping) else value
        function = reattach_functions(name, functions.get(name), [number], [kept])[0]
        if number is not None:
            found[name] = function
    return found


def check_saved(saved: SavedState, like: SavedState, own: Mapping[str, Any], products: StepProducts) -> None:
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

    Raises
    ------
    TypeError, ValueError
        If it does not fit; the message lists all differences.
    """
    check_keys(saved)
    refuse(_differences(saved, like, own, products), "these rows")


def check_keys(saved: SavedState) -> None:
    """Check that a saved state is a mapping that has the keys of its schema."""
    check_mapping(saved)
    required = [key for key in KEYS if saved.get("schema") != 1 or key not in ADDED_IN_2]
    missing = [f"{key}: missing" for key in required if key not in saved]
    refuse(missing + [f"{key}: unknown" for key in saved if key not in required], "these rows")


def _differences(saved: SavedState, like: SavedState, own: Mapping[str, Any], products: StepProducts) -> Iterator[str]:
    """Yield a sentence for each way in which a saved state with the right keys does not fit."""
    if saved["schema"] not in (1, SCHEMA):
        yield f"schema: expected 1 or {SCHEMA}; got {checks.describe(saved['schema'])}"
    yield from rule_differences(saved, like)
    settings = saved["settings"]
    if not isinstance(settings, Mapping) or "rule" in settings:
        yield f"settings: expected a dict of settings without the rule; got {checks.describe(settings)}"
    elif saved["schema"] != 1:
        yield from _unfit_settings(settings, saved["values"], own)
    steps = saved["steps"]
    if type(steps) is not int or not 0 <= steps <= 2**62:
        yield f"steps: expected a whole number from 0 to 2**62; got {checks.describe(steps)}"
        steps = 2**62
    for key in ("seen", "state"):
        expected, given = _form(like[key]), _form(saved[key])
        if given != expected:
            yield f"{key}: expected {expected}; got {given}"
        elif key == "seen" and not ((saved[key] >= 0) & (saved[key] <= steps)).all():
            yield f"seen: expected numbers from 0 to steps; got {saved[key].min()} to {saved[key].max()}"
        elif key == "seen" and saved["schema"] != 1:
            yield from products.differences(saved["products"], saved["seen"], steps)


def _unfit_settings(settings: Mapping[str, Any], values: object, own: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each saved setting, or saved value of a function, that is none."""
    for name, setting in settings.items():
        if name in NOT_NUMBERS:
            continue
        if why := why_unfit(setting):
            yield f"settings: {name}: {why}"
        elif setting is None and not callable(own.get(name)):
            yield f"settings: {name} was a function of the step, to be passed again; got {own.get(name)}"
    functions = [name for name, value in settings.items() if value is None or isinstance(value, Mapping)]
    if not isinstance(values, Mapping) or [*values] != functions or not all(type(x) is float for x in values.values()):
        yield f"values: expected a dict with a float for each of {functions}; got {checks.describe(values)}"


def _form(value: Any) -> str:
    """Return a text with the dtype and shape of an array, or of each array in a list."""
    return f"[{', '.join(map(checks.describe, value))}]" if isinstance(value, list) else checks.describe(value)


def write_file(path: str | PathLike[str], saved: SavedState) -> None:
    """Write a saved state to a file, as a whole or not at all, and replace the file that exists."""
    arrays = {"seen": saved["seen"], **{f"state_{i}": slot for i, slot in enumerate(saved["state"])}}
    arrays |= {f"products_{name}": np.array(numbers) for name, numbers in saved["products"].items()}
    write_archive(path, arrays, {key: saved[key] for key in saved if key not in ("seen", "state", "products")})


def read_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the saved state in a file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or holds no saved state.
    """
    return read_archive(path, "SparseRows", _join)


def _join(arrays: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state that :func:`write_file` took apart."""
    seen, prefix = arrays.pop("seen"), "products_"
    products = {name.removeprefix(prefix): arrays.pop(name) for name in [*arrays] if name.startswith(prefix)}
    return {**meta, "seen": seen, "state": [arrays[f"state_{i}"] for i in range(len(arrays))], "products": products}
