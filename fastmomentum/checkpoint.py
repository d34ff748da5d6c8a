"""What a run needs to continue with the same bits: taking it from an optimiser, and giving it back.

A saved state is a dict:

    schema          3; of 1, where schedules were functions like any other, and of 2, which knew no restart schemes, a
                    run is taken up too
    rule            the rule's name
    made_of         names and defaults of its functions: another rule of the same name is told from it
    steps, skipped  updates done, and left out
    skip_nonfinite  whether updates may be left out
    resets          a list of (step, reason, scope)
    value           the objective last reported, or None
    groups          for each group, its settings and how many arrays it has; a schedule is the dict that
                    :func:`fastmomentum.schedules.pack` makes of it; None stands for another function of the step,
                    which is to be given again
    functions       for lr and momentum, for each group, the number of that other function, or None: equal numbers were
                    the same function
    started         for each array, whether it has had its first step
    state           for each array, a list of its state slots (copies), the look-ahead point among them
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastmomentum import checks, schedules
from fastmomentum.backends import is_array
from fastmomentum.engine import Engine
from fastmomentum.groups import SCHEDULED, WHOLE, Group
from fastmomentum.holdings import Holdings
from fastmomentum.outline import ARRAYS, SCHEMA, check_fits, check_outline
from fastmomentum.restarts import began, check_restart
from fastmomentum.rules import find, names
from fastmomentum.turns import free


def pack(engine: Engine) -> dict[str, Any]:
    """The dict described above, of copies."""
    engine.finish()
    return {
        "schema": SCHEMA,
        "rule": engine.groups[0].name,
        "made_of": find(engine.groups[0].settings["rule"]).description,
        "steps": engine.steps,
        "skipped": engine.skipped,
        "skip_nonfinite": engine.skip_nonfinite,
        "resets": [tuple(reset) for reset in engine.resets],
        "value": engine.value,
        "groups": [
            _settings(group, engine.held) | {ARRAYS: engine.group_of.count(number)}
            for number, group in enumerate(engine.groups)
        ],
        "functions": {name: _numbered([group.settings[name] for group in engine.groups]) for name in SCHEDULED},
        "started": list(engine.started),
        "state": engine.held.fetch(),
    }


def unpack(saved: Mapping[str, Any], engine: Engine) -> None:
    """Give what is saved back to an engine.

    Raises
    ------
    TypeError, ValueError
        If it does not fit; the message lists all differences, and nothing has been changed.
    """
    with free(engine.lock):
        check_fits(saved, like=pack(engine))
        skip = checks.switch("skip_nonfinite", saved["skip_nonfinite"])
        groups = [_continued(group, settings) for group, settings in zip(engine.groups, saved["groups"])]
        for name in WHOLE:
            if len({repr(group.settings.get(name)) for group in groups}) > 1:
                raise ValueError(f"state_dict: expected one {name} for all groups; got several")
        if any(group.update.state != engine.update.state for group in groups):
            raise ValueError(
                "state_dict: expected the state of this optimiser's rule; got lookahead where it has none, or none"
            )
        engine.check_groups(groups, saved["steps"] - began(check_restart(groups), saved["resets"]))
        engine.load(saved, groups, skip)


def _continued(group: Group, saved: Mapping[str, Any]) -> Group:
    """A group with the saved settings and no others, but for the rule, functions of the step and device scalars.

    A scalar in device memory stands for a number, not for a schedule, whose values it would not have.
    """
    theirs = _loaded(saved)
    mine = {"rule": group.settings["rule"]}
    for name in SCHEDULED:
        if theirs[name] is None or (hasattr(group.settings[name], "owner") and not callable(theirs[name])):
            mine[name] = group.settings[name]
    return Group(theirs | mine)


def _loaded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings from what was saved of them, schedules among them."""
    settings = {name: value for name, value in saved.items() if name != ARRAYS}
    for name in SCHEDULED:
        if isinstance(settings[name], Mapping):
            settings[name] = schedules.unpack(settings[name])
    return settings


def settings_for(saved: Mapping[str, Any], params: Any, *, rule: Any, **again: Any) -> dict[str, Any]:
    """The arguments that make an optimiser for these parameters as the saved one was.

    `rule`, and the functions of the step in `again`, are those that could not be saved; a schedule may be among them.
    """
    check_outline(saved)
    groups = [_loaded(settings) for settings in saved["groups"]]
    for name, given in again.items():
        kept = [settings[name] for settings in groups]
        for settings, function in zip(groups, _functions(name, given, saved["functions"][name], kept)):
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


def _functions(name: str, given: Any, numbers: Sequence[int | None], kept: Sequence[Any]) -> list[Any]:
    """One function or None for each group, from what the user passes again; `kept` is what was saved."""
    distinct = set(numbers) - {None}
    if isinstance(given, list):
        functions = checks.sequence(name, given, len(numbers))
    elif len(distinct) > 1:
        raise TypeError(f"{name}: expected a list of {len(numbers)}, as groups had different functions of the step")
    else:
        had = [number is not None for number in numbers] if distinct else list(map(callable, kept))
        functions = [given if mine or not any(had) else None for mine in had]
    for number, function, ours in zip(numbers, functions, kept):
        if number is not None:
            expected, right = "the function of the step that the saved run had", callable(function)
        elif callable(ours):
            expected, right = f"nothing, or {ours}, which was saved", function is None or function == ours
        else:
            expected, right = "nothing, as it was saved", function is None
        if not right:
            came = function if isinstance(function, schedules.Schedule) else checks.shown(function)
            raise TypeError(f"{name}: expected {expected}; got {came}")
    return functions


def _numbered(values: Sequence[Any]) -> list[int | None]:
    """A number for each function among the values that cannot be saved, equal for the same; None for what can."""
    functions = [value if callable(value) and not schedules.is_packable(value) else None for value in values]
    seen: list[Any] = []
    for function in functions:
        if function is not None and function not in seen:
            seen.append(function)
    return [None if function is None else seen.index(function) for function in functions]


def _settings(group: Group, held: Holdings) -> dict[str, Any]:
    saved = {name: value for name, value in group.settings.items() if name != "rule"}
    return {name: _kept(value, held) for name, value in saved.items()}


def _kept(value: Any, held: Holdings) -> Any:
    if schedules.is_packable(value):
        return schedules.pack(value)
    return None if callable(value) else held.number(value)
