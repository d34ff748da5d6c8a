"""What a run needs to continue with the same bits: taking it from an optimiser, and giving it back.

A saved state is a dict:

    schema          1
    rule            the rule's name
    made_of         names and defaults of its functions: another rule of the same name is told from it
    steps, skipped  updates done, and left out
    skip_nonfinite  whether updates may be left out
    resets          a list of (step, reason, scope)
    groups          for each group, its settings and how many arrays it has; None stands for a function of the step,
                    which is to be given again
    functions       for lr and momentum, for each group, the number of its function of the step, or None: equal numbers
                    were the same function
    started         for each array, whether it has had its first step
    state           for each array, a list of its state slots (copies), the look-ahead point among them
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.backends import is_array
from fastmomentum.engine import Engine
from fastmomentum.groups import SCHEDULED, WHOLE, Group
from fastmomentum.holdings import Holdings
from fastmomentum.rules import find, names
from fastmomentum.turns import free

SCHEMA = 1
KEYS = (
    *("schema", "rule", "made_of", "steps", "skipped", "skip_nonfinite"),
    *("resets", "groups", "functions", "started", "state"),
)
ARRAYS = "number of arrays"  # among a group's settings, where no hyper-parameter can be called so


def pack(engine: Engine, resets: Sequence[tuple[int, str, str]]) -> dict[str, Any]:
    """The dict described above, of copies."""
    engine.finish()
    return {
        "schema": SCHEMA,
        "rule": engine.groups[0].name,
        "made_of": find(engine.groups[0].settings["rule"]).description,
        "steps": engine.steps,
        "skipped": engine.skipped,
        "skip_nonfinite": engine.skip_nonfinite,
        "resets": [tuple(reset) for reset in resets],
        "groups": [
            _settings(group, engine.held) | {ARRAYS: engine.group_of.count(number)}
            for number, group in enumerate(engine.groups)
        ],
        "functions": {name: _numbered([group.settings[name] for group in engine.groups]) for name in SCHEDULED},
        "started": list(engine.started),
        "state": engine.held.fetch(),
    }


def unpack(saved: Mapping[str, Any], engine: Engine) -> list[tuple[int, str, str]]:
    """Give what is saved back to an engine, and the resets to the caller.

    Raises
    ------
    TypeError, ValueError
        If it does not fit; the message lists all differences, and nothing has been changed.
    """
    check_fits(saved, like=pack(engine, ()))
    skip = checks.switch("skip_nonfinite", saved["skip_nonfinite"])
    groups = [_continued(group, settings) for group, settings in zip(engine.groups, saved["groups"])]
    for name in WHOLE:
        if len({repr(group.settings.get(name)) for group in groups}) > 1:
            raise ValueError(f"state_dict: expected one {name} for all groups; got several")
    if any(group.update.state != engine.update.state for group in groups):
        raise ValueError(
            "state_dict: expected the state of this optimiser's rule; got lookahead where it has none, or none"
        )
    engine.check_groups(groups, saved["steps"])
    before = engine.steps, engine.skipped, engine.skip_nonfinite
    with free(engine.lock):
        engine.check_arrays()
        engine.steps, engine.skipped, engine.skip_nonfinite = saved["steps"], saved["skipped"], skip
        try:
            engine.take_groups(groups)
        except BaseException:
            engine.steps, engine.skipped, engine.skip_nonfinite = before
            raise
        engine.held.write(saved["state"])
        engine.started = list(saved["started"])
    return list(saved["resets"])


def _continued(group: Group, saved: Mapping[str, Any]) -> Group:
    """A group with the saved settings and no others, but for the rule, functions of the step and device scalars."""
    kept = [name for name in SCHEDULED if saved[name] is None or hasattr(group.settings[name], "owner")]
    mine = {name: group.settings[name] for name in ("rule", *kept)}
    return Group({name: value for name, value in saved.items() if name != ARRAYS} | mine)


def settings_for(saved: Mapping[str, Any], params: Any, *, rule: Any, **again: Any) -> dict[str, Any]:
    """The arguments that make an optimiser for these parameters as the saved one was.

    `rule`, and the functions of the step in `again`, are those that could not be saved.
    """
    _check_outline(saved)
    groups = [{name: value for name, value in settings.items() if name != ARRAYS} for settings in saved["groups"]]
    for name, given in again.items():
        for settings, function in zip(groups, _functions(name, given, saved["functions"][name])):
            settings[name] = settings[name] if function is None else function
    whole = {"rule": saved["rule"] if rule is None else rule, "skip_nonfinite": saved["skip_nonfinite"]}
    if rule is None and whole["rule"] not in names():
        raise TypeError(
            f"rule: expected the one that was saved as {saved['rule']}, which is no name known here; got None"
        )
    if len(groups) == 1:
        return {"params": params, **whole, **groups[0]}
    arrays = [params] if is_array(params) else params
    counts = [settings[ARRAYS] for settings in saved["groups"]]
    rest = iter(checks.sequence("params", arrays, sum(counts)))
    parts = [
        {"params": [next(rest) for _ in range(count)]}
        | {name: value for name, value in settings.items() if name not in WHOLE}
        for count, settings in zip(counts, groups)
    ]
    whole |= {name: groups[0][name] for name in WHOLE if name in groups[0]}
    return {"params": parts, "lr": groups[0]["lr"], **whole}


def _functions(name: str, given: Any, numbers: Sequence[int | None]) -> list[Any]:
    """One function or None for each group, from what the user passes again."""
    distinct = set(numbers) - {None}
    if isinstance(given, list):
        functions = checks.sequence(name, given, len(numbers))
    elif len(distinct) > 1:
        raise TypeError(f"{name}: expected a list of {len(numbers)}, as groups had different functions of the step")
    else:
        functions = [None if number is None and distinct else given for number in numbers]
    for number, function in zip(numbers, functions):
        if (number is None) != (function is None) or not (function is None or callable(function)):
            expected = (
                "nothing, as it was saved" if number is None else "the function of the step that the saved run had"
            )
            raise TypeError(f"{name}: expected {expected}; got {checks.shown(function)}")
    return functions


def _numbered(values: Sequence[Any]) -> list[int | None]:
    """A number for each function among the values, equal for the same; None for what is none."""
    seen: list[Any] = []
    for value in values:
        if callable(value) and value not in seen:
            seen.append(value)
    return [seen.index(value) if callable(value) else None for value in values]


def _settings(group: Group, held: Holdings) -> dict[str, Any]:
    saved = {name: value for name, value in group.settings.items() if name != "rule"}
    return {name: None if callable(value) else held.number(value) for name, value in saved.items()}


def check_fits(saved: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Refuse a saved state that another optimiser than this one made; `like` is what this one would save.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If it does not fit; the message lists all differences.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(f"state_dict: expected a dict from state_dict(); got {checks.shown(saved)}")
    _check_outline(saved)
    _refuse(_differences(saved, like))


def _check_outline(saved: Mapping[str, Any]) -> None:
    """Refuse what is not of the form that pack() gives, of this schema."""
    _refuse([f"schema: expected {SCHEMA}; got {saved['schema']!r}"] if saved.get("schema", SCHEMA) != SCHEMA else ())
    _refuse(
        [f"{key}: missing" for key in KEYS if key not in saved]
        + [f"{key}: unknown" for key in saved if key not in KEYS]
    )
    _refuse(_malformed(saved))


def _refuse(differences: Iterable[str]) -> None:
    if listed := list(differences):
        raise ValueError("state_dict does not fit this optimiser:\n  " + "\n  ".join(listed))


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
    functions = saved["functions"]
    if not isinstance(functions, Mapping) or not all(isinstance(functions.get(name), list) for name in SCHEDULED):
        yield f"functions: expected a list for each of {', '.join(SCHEDULED)}; got {checks.shown(functions)}"
    for key, is_right in forms.items():
        if not isinstance(saved[key], list) or not all(map(is_right, saved[key])):
            yield f"{key}: expected a list as state_dict() gives it; got {checks.shown(saved[key])}"


def _differences(saved: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[str]:
    for key in ("rule", "made_of"):
        if saved[key] != like[key]:
            yield f"{key}: expected {like[key]!r}; got {saved[key]!r}"
    for key in ("groups", "started", "state"):
        if len(saved[key]) != len(like[key]):
            yield f"{key}: expected {len(like[key])} entries; got {len(saved[key])}"
    for number, (theirs, ours) in enumerate(zip(saved["groups"], like["groups"], strict=False)):
        if theirs.get(ARRAYS) != ours[ARRAYS]:
            yield f"groups[{number}]: expected {ours[ARRAYS]} arrays; got {theirs.get(ARRAYS)}"
        for name in SCHEDULED:
            if theirs.get(name) is None and ours[name] is not None:
                yield f"groups[{number}]: {name} was a function of the step, and is to be given again; got {ours[name]}"
    for number, (theirs, ours) in enumerate(zip(saved["state"], like["state"], strict=False)):
        forms = [[(slot.dtype.name, slot.shape) for slot in map(np.asarray, state)] for state in (ours, theirs)]
        if forms[0] != forms[1]:
            yield f"state[{number}]: expected {forms[0]}; got {forms[1]}"
