"""What a saved state must look like (:mod:`fastmomentum.checkpoint` has the form), and what is said of others."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.groups import SCHEDULED

SCHEMA = 3
READ = (1, 2, SCHEMA)  # in 1 schedules were functions like any other; 1 and 2 knew no restart schemes
KEYS = (
    *("schema", "rule", "made_of", "steps", "skipped", "skip_nonfinite"),
    *("resets", "value", "groups", "functions", "started", "state"),
)
LATER = {"value": SCHEMA}
"""Keys that came with a later schema."""
ARRAYS = "number of arrays"  # among a group's settings, where no hyper-parameter can be called so


def check_fits(saved: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Refuse a saved state that another optimiser than this one made; `like` is what this one would save.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If it does not fit; the message lists all differences.
    """
    check_mapping(saved)
    check_outline(saved)
    refuse(_differences(saved, like))


def check_mapping(saved: object) -> None:
    """Refuse what is no saved state at all."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state_dict: expected a dict from state_dict(); got {checks.shown(saved)}")


def check_outline(saved: Mapping[str, Any]) -> None:
    """Refuse what is not of the form that pack() gives, of this schema."""
    if (schema := saved.get("schema", SCHEMA)) not in READ:
        refuse([f"schema: expected {' or '.join(map(str, READ))}; got {schema!r}"])
    refuse(
        [f"{key}: missing" for key in KEYS if key not in saved and LATER.get(key, 1) <= schema]
        + [f"{key}: unknown" for key in saved if key not in KEYS]
    )
    refuse(_malformed(saved))


def refuse(differences: Iterable[str], what: str = "this optimiser") -> None:
    """Refuse a saved state that does not fit, with all differences, if there are any."""
    if listed := list(differences):
        raise ValueError(f"state_dict does not fit {what}:\n  " + "\n  ".join(listed))


def _malformed(saved: Mapping[str, Any]) -> Iterator[str]:
    """What is not of the form that pack() gives."""
    for key in ("steps", "skipped"):
        if type(saved[key]) is not int or saved[key] < 0:
            yield f"{key}: expected a whole number >= 0; got {checks.shown(saved[key])}"
    forms: dict[str, Callable[[Any], bool]] = {
        "resets": lambda reset: isinstance(reset, tuple) and list(map(type, reset)) == [int, str, str],
        "groups": lambda group: (
            isinstance(group, Mapping) and {ARRAYS, *SCHEDULED} <= group.keys() and "rule" not in group
        ),
        "started": lambda started: isinstance(started, bool),
        "state": lambda state: isinstance(state, list) and all(type(slot) is np.ndarray for slot in state),
    }
    value = saved.get("value")
    if value is not None and type(value) is not float:
        yield f"value: expected a float or None; got {checks.shown(value)}"
    functions = saved["functions"]
    if not isinstance(functions, Mapping) or not all(isinstance(functions.get(name), list) for name in SCHEDULED):
        yield f"functions: expected a list for each of {', '.join(SCHEDULED)}; got {checks.shown(functions)}"
    for key, is_right in forms.items():
        if not isinstance(saved[key], list) or not all(map(is_right, saved[key])):
            yield f"{key}: expected a list as state_dict() gives it; got {checks.shown(saved[key])}"
        elif key == "groups":
            for number, group in enumerate(saved[key]):
                yield from (f"groups[{number}]: {name}: {why}" for name in SCHEDULED if (why := _unfit(group[name])))


def _unfit(value: Any) -> str:
    """Why this can be no saved lr or momentum; nothing if it can."""
    if isinstance(value, Mapping):
        try:
            found = schedules.unpack(value)
        except ValueError as error:
            return str(error)
        return "" if callable(found) else f"expected a function of the step; got {found!r}, which gives two"
    if isinstance(value, bool) or not (value is None or isinstance(value, Real)):
        return f"expected a number, None or a schedule's dict; got {checks.shown(value)}"
    return ""


def _differences(saved: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[str]:
    for key in ("rule", "made_of"):
        if saved[key] != like[key]:
            yield f"{key}: expected {like[key]!r}; got {saved[key]!r}"
    if saved["rule"] != like["rule"]:
        yield (
            f"a run of {saved['rule']!r} goes on as one of {like['rule']!r} by loading it with its own rule, and then "
            f"opt = opt.convert({like['rule']!r})"
        )
    for key in ("groups", "started", "state"):
        if len(saved[key]) != len(like[key]):
            yield f"{key}: expected {len(like[key])} entries; got {len(saved[key])}"
    for number, (theirs, ours) in enumerate(zip(saved["groups"], like["groups"], strict=False)):
        if theirs.get(ARRAYS) != ours[ARRAYS]:
            yield f"groups[{number}]: expected {ours[ARRAYS]} arrays; got {theirs.get(ARRAYS)}"
        for name in SCHEDULED:
            if theirs.get(name) is None and isinstance(ours[name], Real):
                yield f"groups[{number}]: {name} was a function of the step, and is to be given again; got {ours[name]}"
    for number, (theirs, ours) in enumerate(zip(saved["state"], like["state"], strict=False)):
        forms = [[(slot.dtype.name, slot.shape) for slot in map(np.asarray, state)] for state in (ours, theirs)]
        if forms[0] != forms[1]:
            yield f"state[{number}]: expected {forms[0]}; got {forms[1]}"
