"""The form of saved states: what each entry of the present schema must be, and states of older schemas.

:mod:`fastmomentum.optim.checkpoint` describes the entries.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.optim.groups import SCHEDULED
from fastmomentum.optim.restart import ALL
from fastmomentum.optim.values import PLAIN
from fastmomentum.rules.elementwise import GIVEN
from fastmomentum.rules.registry import find

SavedState = Mapping[str, Any]

Form = Callable[[str, Any], Iterator[str]]
"""``form(where, value)`` yields a sentence for each way in which the value at `where` does not have the form."""

SCHEMA = 4
READABLE = (1, 2, 3, SCHEMA)

ELEMENTS = "elements"
"""The key of the masks and scales of lr, which is left out if there are none."""

MEMORY = "memory"
"""The key of the numbers that a rule keeps from step to step, which is left out if it keeps none."""

FINGERPRINT = "fingerprint"
"""The key of the checksums of the parameters, which is left out if they were not asked for."""

TORCH = "torch_groups"
"""The key of the entries that torch's groups hold beside settings, which is left out if there are none."""

SCOPES = re.compile(r"all|(group|array) ([0-9]{1,18})(?:, rows [0-9]+:[0-9]+)?")
"""The scopes of resets, as :func:`fastmomentum.optim.restart.reset_scope` writes them."""

NOT_SETTINGS = ("self", "params", "rule", "backend", "threads", "skip_nonfinite", "keep_resets", *GIVEN)
"""The arguments of the constructor of Momentum that a group does not save among its settings."""

ARRAYS = "number of arrays"
"""The key of the number of arrays among a group's saved settings; no hyper-parameter can have this name."""

MOST_LINES = 20
"""The number of differences that a message lists; it counts the others."""


def leaf(words: str, fits: Callable[[Any], bool]) -> Form:
    """Return the form of a value for which ``fits(value)`` holds."""

    def differences(where: str, value: Any) -> Iterator[str]:
        if not fits(value):
            yield f"{where}: expected {words}; got {checks.describe(value)}"

    return differences


def list_of(form: Form) -> Form:
    """Return the form of a list whose entries have this form."""

    def differences(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: expected a list; got {checks.describe(value)}"
            return
        for i, entry in enumerate(value):
            yield from form(f"{where}[{i}]", entry)

    return differences


def dict_of(form: Form, without: Sequence[str] = ()) -> Form:
    """Return the form of a dict with names of settings other than those of `without`, whose values have this form."""

    def differences(where: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping) or not all([isinstance(name, str) for name in value]):
            yield f"{where}: expected a dict with names of settings; got {checks.describe(value)}"
            return
        for name in value:
            if name in without:
                yield f"{where}: expected names of settings; got {name!r}, which is none"
            yield from form(f"{where}[{name!r}]", value[name])

    return differences


def optional(form: Form) -> Form:
    """Return the form of a value that has this form or is None."""
    return lambda where, value: iter(()) if value is None else form(where, value)


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 to 2⁶²."""
    return type(value) is int and 0 <= value <= 2**62


def is_plain(value: Any) -> bool:
    """Return whether JSON can hold a value: a number, a text, None, or a list or a dict by texts of these."""
    if isinstance(value, Mapping):
        return all([type(key) is str and is_plain(entry) for key, entry in value.items()])
    return all(map(is_plain, value)) if isinstance(value, list | tuple) else type(value) in PLAIN


def _is_reset(value: Any) -> bool:
    is_triple = (
        isinstance(value, list | tuple) and len(value) == 3 and all([isinstance(text, str) for text in value[1:]])
    )
    return is_triple and is_count(value[0]) and SCOPES.fullmatch(value[2]) is not None


def _group(where: str, value: Any) -> Iterator[str]:
    yield from _names(where, value)
    if isinstance(value, Mapping):
        yield from count(f"{where}[{ARRAYS!r}]", value.get(ARRAYS))
        for name, setting in value.items():
            if (name in SCHEDULED or type(setting) not in PLAIN) and (why := why_unfit(setting)):
                yield f"{where}: {name}: {why}"


text = leaf("a str", lambda value: isinstance(value, str))
count = leaf("a whole number from 0 to 2**62", is_count)
finite = leaf("a finite float", lambda value: type(value) is float and math.isfinite(value))
skips = leaf("True, False or a whole number from 1", lambda value: type(value) is bool or (is_count(value) and value))
array = leaf("an array", lambda value: type(value) is np.ndarray)
_names = dict_of(lambda where, value: iter(()), without=NOT_SETTINGS)

FORMS: Mapping[str, Form] = {
    "schema": leaf(" or ".join(map(str, READABLE)), lambda value: type(value) is int and value == SCHEMA),
    "rule": text,
    "made_of": text,
    "steps": count,
    "skipped": count,
    "skipped_in_a_row": count,
    "skip_nonfinite": skips,
    "resets": list_of(leaf("(step, reason, scope), the scope 'all', 'group 0' or 'array 0, rows 1:2'", _is_reset)),
    "last_reset": count,
    "value": optional(finite),
    "names": optional(list_of(text)),
    "groups": list_of(_group),
    "functions": dict_of(list_of(optional(count))),
    "values": list_of(dict_of(optional(finite))),
    "updates": list_of(count),
    "state": list_of(list_of(array)),
}
"""The form of each entry of a saved state."""

NOT_ALWAYS: Mapping[str, Form] = {
    ELEMENTS: list_of(
        leaf(f"a dict with {' and '.join(GIVEN)}", lambda value: isinstance(value, Mapping) and {*value} <= {*GIVEN})
    ),
    MEMORY: list_of(dict_of(leaf("a float", lambda value: type(value) is float))),
    FINGERPRINT: list_of(count),
    TORCH: list_of(leaf("a dict", lambda value: isinstance(value, Mapping))),
}
"""The form of the entries that a saved state may lack."""


def check_mapping(saved: object) -> None:
    """Check that a saved state is a mapping."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state_dict: expected a dict from state_dict(); got {checks.describe(saved)}")


def check_form(saved: SavedState) -> None:
    """Check that a saved state has the form that :func:`to_dict` gives it; :func:`upgrade` has been done."""
    refuse(malformed(saved))


def refuse(differences: Iterable[str], what: str = "this optimiser") -> None:
    """Raise a ValueError that lists the differences, if there are any."""
    if listed := list(differences):
        more = len(listed) - MOST_LINES
        lines = listed[:MOST_LINES] + [f"and {more} more"] * (more > 0)
        raise ValueError(f"state_dict does not fit {what}:\n  " + "\n  ".join(lines))


def wrong_entries(saved: SavedState, forms: Mapping[str, Form], not_always: Mapping[str, Form] = {}) -> list[str]:
    """Return a sentence for each entry that is missing, unknown, or does not have the form given by its key."""
    found = [f"{key}: missing" for key in forms if key not in saved]
    found += [f"{key}: unknown" for key in saved if key not in forms and key not in not_always]
    for key, form in {**forms, **not_always}.items():
        if key in saved:
            found += form(key, saved[key])
    return found


def malformed(saved: SavedState) -> list[str]:
    """Return a sentence for each entry that does not have the form that :func:`to_dict` gives it."""
    return wrong_entries(saved, FORMS, NOT_ALWAYS)


def contradictions(saved: SavedState) -> Iterator[str]:
    """Yield a sentence for each two entries of a saved state that do not go together."""
    groups, arrays, names = len(saved["groups"]), len(saved["state"]), saved["names"]
    lengths = [(f"functions[{name!r}]", numbers, groups) for name, numbers in saved["functions"].items()]
    lengths += [("values", saved["values"], groups)]
    lengths += [(key, saved[key], arrays) for key in ("updates", ELEMENTS, MEMORY, FINGERPRINT) if key in saved]
    for where, value, length in lengths:
        if len(value) != length:
            yield f"{where}: expected {length} entries; got {len(value)}"
    if len(saved.get(TORCH, ())) > groups:
        yield f"{TORCH}: expected at most {groups} entries, one for each group; got {len(saved[TORCH])}"
    if (members := sum([group[ARRAYS] for group in saved["groups"]])) != arrays:
        yield f"state: expected {members} entries, the number of arrays of all groups; got {arrays}"
    if names is not None and (len(names) != arrays or len({*names}) != arrays):
        yield f"names: expected a name of its own for each of {arrays} arrays; got {names}"
    if saved["last_reset"] > saved["steps"]:
        yield f"last_reset: expected at most the number of steps, {saved['steps']}; got {saved['last_reset']}"
    if saved["skipped_in_a_row"] > saved["skipped"]:
        yield f"skipped_in_a_row: expected at most skipped, {saved['skipped']}; got {saved['skipped_in_a_row']}"
    counts = {"group": groups, "array": arrays}
    for i, (_, _, scope) in enumerate(saved["resets"]):
        found = SCOPES.fullmatch(scope)
        if found and found[1] and int(found[2]) >= counts[found[1]]:
            yield f"resets[{i}]: expected one of {counts[found[1]]} {found[1]}s, numbered from 0; got {scope!r}"
    yield from _wrong_functions(saved)


def _wrong_functions(saved: SavedState) -> Iterator[str]:
    """Yield a sentence for each entry about a function of the step that does not go with the saved setting."""
    known = {name for group in saved["groups"] for name in group} | {*SCHEDULED}
    for name in saved["functions"].keys() - known:
        yield f"functions[{name!r}]: expected names of settings; no group has this one"
    for i, (group, values) in enumerate(zip(saved["groups"], saved["values"])):
        for name, numbers in saved["functions"].items():
            if numbers[i : i + 1] not in ([], [None]) and group.get(name, 0.0) is not None:
                yield f"functions[{name!r}][{i}]: expected None, as the setting was no such function"
        for name in values:
            if not isinstance(group.get(name, 0.0), Mapping | None):
                yield f"values[{i}]: expected functions of the step; got {name!r}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def why_unfit(value: Any) -> str:
    """Return why this cannot be the saved value of a setting; an empty text if it can."""
    if isinstance(value, Mapping):
        try:
            found = schedules.unpack(value)
        except ValueError as error:
            return str(error)
        return "" if callable(found) else f"expected a schedule of one number; got {found!r}, which has several"
    if not _is_number(value):
        return f"expected a number, None or a schedule's dict; got {checks.describe(value)}"
    return ""


def upgrade(saved: SavedState) -> dict[str, Any]:
    """Return a saved state of any schema in the form of the present one."""
    schema = saved.get("schema", SCHEMA)
    if type(schema) is not int or schema == SCHEMA or schema not in READABLE:
        return dict(saved)
    known = {name: value for name, value in saved.items() if name != "started"}
    started, steps = saved.get("started"), saved.get("steps")
    updates = [steps if each else 0 for each in started] if isinstance(started, list) else started
    resets: Any = saved.get("resets")
    are_resets = not [*FORMS["resets"]("resets", resets)]
    last_reset = max((step for step, _, scope in resets if scope == ALL), default=0) if are_resets else 0
    added = {"skipped_in_a_row": 0, "last_reset": last_reset, "value": None, "names": None, "updates": updates}
    groups = saved.get("groups")
    values: list[dict[str, Any]] = [{} for _ in groups] if isinstance(groups, list) else []
    found = added | {"values": values} | known | {"schema": SCHEMA}
    if saved.get("made_of") == EMA_CORRECTED and not malformed(found) and not [*contradictions(found)]:
        return _without_weights(found)
    return found


EMA_CORRECTED = (
    "ema_corrected(lr, momentum, keep) from {'keep': ('momentum',)}, defaults {}, "
    "state [('velocity', 'zero'), ('weight', 'zero')]"
)
"""The description of the rule "ema_corrected" up to schema 3, where an array held the weight 1 − β^t."""


def _without_weights(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state of the rule "ema_corrected" with counts of updates in place of arrays of weights."""
    counts, states = [], []
    betas = [group.get("momentum") for group in saved["groups"] for _ in range(group.get(ARRAYS, 0))]
    for most, beta, (velocity, weight) in zip(saved["updates"], betas, saved["state"]):
        left = 1.0 - float(weight.reshape(-1)[0]) if weight.size else 0.0
        is_known = isinstance(beta, float) and 0 < beta < 1 and 0 < left < 1
        counts.append(min(most, round(math.log(left) / math.log(beta))) if is_known else most)
        states.append([velocity])
    return {**saved, "updates": counts, "state": states, "made_of": find("ema_corrected").description}
