"""What a saved state must look like (:mod:`fastmomentum.checkpoint` has the form), and what is said of others.

What a run needs to continue with the same bits: taking it from an optimiser, and giving it back.

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

Saved states as files: uncompressed .npz, without pickle, written whole or not at all.

A flipped bit in an .npz raises, as every member has a checksum; what is read is held against what was written in full.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from secrets import token_hex
from shutil import copymode
from typing import Any

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.backends import is_array
from fastmomentum.optim.engine import Engine, one_caller
from fastmomentum.optim.groups import SCHEDULED, WHOLE, ParamGroup
from fastmomentum.optim.restart import check_restart, epoch
from fastmomentum.optim.state import State
from fastmomentum.rules.registry import find, names

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
        raise TypeError(f"state_dict: expected a dict from state_dict(); got {checks.describe(saved)}")


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
            yield f"{key}: expected a whole number >= 0; got {checks.describe(saved[key])}"
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
        yield f"value: expected a float or None; got {checks.describe(value)}"
    functions = saved["functions"]
    if not isinstance(functions, Mapping) or not all(isinstance(functions.get(name), list) for name in SCHEDULED):
        yield f"functions: expected a list for each of {', '.join(SCHEDULED)}; got {checks.describe(functions)}"
    for key, is_right in forms.items():
        if not isinstance(saved[key], list) or not all(map(is_right, saved[key])):
            yield f"{key}: expected a list as state_dict() gives it; got {checks.describe(saved[key])}"
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
        return f"expected a number, None or a schedule's dict; got {checks.describe(value)}"
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


def to_dict(engine: Engine) -> dict[str, Any]:
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
        "functions": {name: number_functions([group.settings[name] for group in engine.groups]) for name in SCHEDULED},
        "started": list(engine.started),
        "state": engine.held.fetch(),
    }


def load_dict(saved: Mapping[str, Any], engine: Engine) -> None:
    """Give what is saved back to an engine.

    Raises
    ------
    TypeError, ValueError
        If it does not fit; the message lists all differences, and nothing has been changed.
    """
    with one_caller(engine.lock):
        check_fits(saved, like=to_dict(engine))
        skip = checks.boolean("skip_nonfinite", saved["skip_nonfinite"])
        groups = [merge_settings(group, settings) for group, settings in zip(engine.groups, saved["groups"])]
        for name in WHOLE:
            if len({repr(group.settings.get(name)) for group in groups}) > 1:
                raise ValueError(f"state_dict: expected one {name} for all groups; got several")
        if any(group.update.state != engine.update.state for group in groups):
            raise ValueError(
                "state_dict: expected the state of this optimiser's rule; got lookahead where it has none, or none"
            )
        engine.check_groups(groups, saved["steps"] - epoch(check_restart(groups), saved["resets"]))
        engine.load(saved, groups, skip)


def merge_settings(group: ParamGroup, saved: Mapping[str, Any]) -> ParamGroup:
    """A group with the saved settings and no others, but for the rule, functions of the step and device scalars.

    A scalar in device memory stands for a number, not for a schedule, whose values it would not have.
    """
    theirs = unpack_settings(saved)
    mine = {"rule": group.settings["rule"]}
    for name in SCHEDULED:
        if theirs[name] is None or (hasattr(group.settings[name], "owner") and not callable(theirs[name])):
            mine[name] = group.settings[name]
    return ParamGroup(theirs | mine)


def unpack_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings from what was saved of them, schedules among them."""
    settings = {name: value for name, value in saved.items() if name != ARRAYS}
    for name in SCHEDULED:
        if isinstance(settings[name], Mapping):
            settings[name] = schedules.unpack(settings[name])
    return settings


def constructor_arguments(saved: Mapping[str, Any], params: Any, *, rule: Any, **again: Any) -> dict[str, Any]:
    """The arguments that make an optimiser for these parameters as the saved one was.

    `rule`, and the functions of the step in `again`, are those that could not be saved; a schedule may be among them.
    """
    check_outline(saved)
    groups = [unpack_settings(settings) for settings in saved["groups"]]
    for name, given in again.items():
        kept = [settings[name] for settings in groups]
        for settings, function in zip(groups, reattach_functions(name, given, saved["functions"][name], kept)):
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


def reattach_functions(name: str, given: Any, numbers: Sequence[int | None], kept: Sequence[Any]) -> list[Any]:
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
            came = function if isinstance(function, schedules.Schedule) else checks.describe(function)
            raise TypeError(f"{name}: expected {expected}; got {came}")
    return functions


def number_functions(values: Sequence[Any]) -> list[int | None]:
    """A number for each function among the values that cannot be saved, equal for the same; None for what can."""
    functions = [value if callable(value) and not schedules.is_packable(value) else None for value in values]
    seen: list[Any] = []
    for function in functions:
        if function is not None and function not in seen:
            seen.append(function)
    return [None if function is None else seen.index(function) for function in functions]


def _settings(group: ParamGroup, held: State) -> dict[str, Any]:
    saved = {name: value for name, value in group.settings.items() if name != "rule"}
    return {name: _kept(value, held) for name, value in saved.items()}


def _kept(value: Any, held: State) -> Any:
    if schedules.is_packable(value):
        return schedules.pack(value)
    return None if callable(value) else held.number(value)


META = "meta"


def write_file(path: str | PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a saved state (see :mod:`fastmomentum.checkpoint`) in place of what the path held."""
    path = Path(os.path.realpath(path))  # of a link, what it points to
    arrays = {f"state_{i}_{j}": slot for i, state in enumerate(saved["state"]) for j, slot in enumerate(state)}
    meta = {name: value for name, value in saved.items() if name != "state"}
    meta["slots"] = [len(state) for state in saved["state"]]
    arrays[META] = np.frombuffer(json.dumps(meta, default=_as_number).encode(), np.uint8)
    part = path.with_name(f".{token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_file(path: str | PathLike[str]) -> dict[str, Any]:
    """The saved state in a file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not whole, or no saved state.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                damaged = members.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                meta = json.loads(arrays[META].tobytes())
                slots = meta.pop("slots")
                state = [[arrays[f"state_{i}_{j}"] for j in range(count)] for i, count in enumerate(slots)]
                if len(arrays.files) != 1 + sum(slots):
                    raise ValueError("it holds more than its table of contents says")
        except Exception as error:  # what a damaged archive raises is anybody's guess: it is refused all the same
            raise ValueError(
                f"{os.fspath(path)}: expected a whole file from Momentum.save; got one of which {error!r}"
            ) from error
    return {**meta, "state": state, "resets": [tuple(reset) for reset in meta["resets"]]}


def _as_number(value: Any) -> Any:
    """A number of NumPy's, or another, as one of Python's that JSON has."""
    item = value.item() if isinstance(value, np.generic) else value
    return item if isinstance(item, bool | int | float) else float(item)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too, on systems where folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
