"""The form of saved states: the keys of the present schema, checks of it, and states of older schemas.

:mod:`fastmomentum.optim.checkpoint` describes the keys.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
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

SCHEMA = 4
READABLE = (1, 2, 3, SCHEMA)
KEYS = (
    *("schema", "rule", "made_of", "steps", "skipped", "skipped_in_a_row", "skip_nonfinite"),
    *("resets", "last_reset", "value", "names", "groups", "functions", "values", "updates", "state"),
)

ELEMENTS = "elements"
"""The key of the masks and scales of lr, which is left out if there are none."""

ARRAYS = "number of arrays"
"""The key of the number of arrays among a group's saved settings; no hyper-parameter can have this name."""


def check_mapping(saved: object) -> None:
    """Check that a saved state is a mapping."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state_dict: expected a dict from state_dict(); got {checks.describe(saved)}")


def check_form(saved: SavedState) -> None:
    """Check that a saved state has the form that :func:`to_dict` gives it; :func:`upgrade` has been done."""
    if (schema := saved.get("schema", SCHEMA)) != SCHEMA:
        refuse([f"schema: expected {' or '.join(map(str, READABLE))}; got {schema!r}"])
    refuse(
        [f"{key}: missing" for key in KEYS if key not in saved]
        + [f"{key}: unknown" for key in saved if key not in (*KEYS, ELEMENTS)]
    )
    refuse(malformed(saved))


def refuse(differences: Iterable[str], what: str = "this optimiser") -> None:
    """Raise a ValueError that lists the differences, if there are any."""
    if listed := list(differences):
        raise ValueError(f"state_dict does not fit {what}:\n  " + "\n  ".join(listed))


def malformed(saved: SavedState) -> Iterator[str]:
    """Yield a sentence for each entry that does not have the form that :func:`to_dict` gives it."""
    for key in ("steps", "skipped", "skipped_in_a_row", "last_reset"):
        if not _is_count(saved[key]):
            yield f"{key}: expected a whole number from 0 to 2**62; got {checks.describe(saved[key])}"
    forms: dict[str, Callable[[Any], bool]] = {
        "resets": lambda reset: _are_resets([reset]),
        "groups": lambda group: isinstance(group, Mapping) and ARRAYS in group and "rule" not in group,
        "values": lambda values: isinstance(values, Mapping) and all(map(_is_value, values.values())),
        "updates": _is_count,
        "state": lambda state: isinstance(state, list) and all(type(slot) is np.ndarray for slot in state),
        "names": lambda name: isinstance(name, str),
        ELEMENTS: lambda given: isinstance(given, Mapping) and {*given} <= {*GIVEN},
    }
    value = saved["value"]
    if value is not None and type(value) is not float:
        yield f"value: expected a float or None; got {checks.describe(value)}"
    functions = saved["functions"]
    groups = len(saved["groups"]) if isinstance(saved["groups"], list) else 0
    if not isinstance(functions, Mapping) or not all(map(isinstance, functions, repeat(str))):
        yield f"functions: expected a dict with names of settings; got {checks.describe(functions)}"
    elif not all(map(_are_numbers, functions.values(), repeat(groups))):
        yield f"functions: expected for each name a list of {groups}, a number or None for each group"
    if _is_count(saved["steps"]) and _is_count(saved["last_reset"]) and saved["last_reset"] > saved["steps"]:
        yield f"last_reset: expected at most the number of steps, {saved['steps']}; got {saved['last_reset']}"
    names = saved["names"]
    if isinstance(names, list) and not len({*map(repr, names)}) == len(names) == len(saved["updates"] or ()):
        yield "names: expected a name of its own for each array"
    if names is not None and isinstance(saved["state"], list) and len(saved["state"]) != len(names):
        yield f"state: expected {len(names)} entries, one for each name; got {len(saved['state'])}"
    for key, is_right in forms.items():
        if saved.get(key) is None and key in ("names", ELEMENTS):
            continue
        if not isinstance(saved[key], list) or not all(map(is_right, saved[key])):
            yield f"{key}: expected a list as state_dict() gives it; got {checks.describe(saved[key])}"
        elif key == "groups":
            for number, group in enumerate(saved[key]):
                others = [name for name in group if name in SCHEDULED or type(group[name]) not in PLAIN]
                yield from (f"groups[{number}]: {name}: {why}" for name in others if (why := why_unfit(group[name])))


def _are_resets(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(reset, tuple) and list(map(type, reset)) == [int, str, str] for reset in value
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 2**62


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(n is None or _is_count(n) for n in value)


def _is_value(value: Any) -> bool:
    return value is None or type(value) is float


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
    if (schema := saved.get("schema", SCHEMA)) == SCHEMA or schema not in READABLE:
        return dict(saved)
    known = {name: value for name, value in saved.items() if name != "started"}
    started, steps = saved.get("started"), saved.get("steps")
    updates = [steps if each else 0 for each in started] if isinstance(started, list) else started
    resets: Any = saved.get("resets")
    last_reset = max((step for step, _, scope in resets if scope == ALL), default=0) if _are_resets(resets) else 0
    added = {"skipped_in_a_row": 0, "last_reset": last_reset, "value": None, "names": None, "updates": updates}
    groups = saved.get("groups")
    values: list[dict[str, Any]] = [{} for _ in groups] if isinstance(groups, list) else []
    found = added | {"values": values} | known | {"schema": SCHEMA}
    if saved.get("made_of") == EMA_CORRECTED and not [*malformed(found)]:
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
