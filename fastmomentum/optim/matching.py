"""Match a saved state to the arrays and settings of an optimiser: by names if there are any, else by position."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from fastmomentum import checks, schedules
from fastmomentum.optim.groups import SCHEDULED
from fastmomentum.optim.schema import ARRAYS, ELEMENTS, FINGERPRINT, MEMORY, SavedState, contradictions, refuse
from fastmomentum.optim.state import State
from fastmomentum.rules.convert import can_convert
from fastmomentum.rules.registry import names


def match(saved: SavedState, like: SavedState, state: State, cast: bool = False) -> SavedState:
    """Return a saved state of the right form in the order of an optimiser's names, after checking that it fits.

    Parameters
    ----------
    saved : mapping
        The saved state.
    like : mapping
        The optimiser's own saved state, without arrays.
    state : State
        The optimiser's arrays.
    cast : bool
        Whether saved arrays of another precision fit, too.

    Raises
    ------
    ValueError
        If it does not fit; the message lists all differences.
    """
    if not [*contradictions(saved)]:
        saved = in_order_of(state.names, saved)
    refuse([*contradictions(saved), *_differences(saved, like, state, cast)])
    return saved


def in_order_of(names: Sequence[str] | None, saved: SavedState) -> SavedState:
    """Return the saved state with its arrays in the order of these names, if both have names.

    Raises
    ------
    ValueError
        If the names are not the saved ones.
    """
    if names is None or saved["names"] is None or list(names) == list(saved["names"]):
        return saved
    place = {name: i for i, name in enumerate(saved["names"])}
    missing, unknown = [name for name in names if name not in place], place.keys() - set(names)
    refuse([f"{name}: no state was saved for it" for name in missing] + [f"{name}: no such array" for name in unknown])
    order = [place[name] for name in names]
    keys = [key for key in ("updates", "state", ELEMENTS, MEMORY, FINGERPRINT) if key in saved]
    return {**saved, "names": list(names)} | {key: [saved[key][i] for i in order] for key in keys}


def _differences(saved: SavedState, like: SavedState, state: State, cast: bool) -> Iterator[str]:
    """Yield a sentence for each way in which a saved state does not fit an optimiser."""
    yield from rule_differences(saved, like)
    is_other = saved["made_of"] != like["made_of"] and saved["rule"] != like["rule"]
    if is_other and can_convert(saved["rule"], like["rule"]):
        yield (
            f"to go on with a run of {saved['rule']!r} as one of {like['rule']!r}, load it with its own rule, then "
            f"opt = opt.convert({like['rule']!r})"
        )
    for key, wanted in (("groups", like["groups"]), ("state", state.slots), ("updates", state.slots)):
        if len(saved[key]) != len(wanted):
            yield f"{key}: expected {len(wanted)} entries; got {len(saved[key])}"
    for number, (given, own) in enumerate(zip(saved["groups"], like["groups"])):
        if given.get(ARRAYS) != own[ARRAYS]:
            yield f"groups[{number}]: expected {own[ARRAYS]} arrays; got {given.get(ARRAYS)}"
        for name, functions in saved["functions"].items():
            is_old = name in SCHEDULED and name in given and given[name] is None
            own_functions = like["functions"].get(name)
            is_passed = isinstance(own.get(name), Mapping) or (own_functions and own_functions[number] is not None)
            if (is_old or functions[number : number + 1] not in ([], [None])) and not is_passed:
                yield f"groups[{number}]: {name} was a function of the step, to be passed again; got {own.get(name)}"
    yield from _memory_differences(saved.get(MEMORY), like.get(MEMORY), state)
    for number, (slots, own_slots) in enumerate(zip(saved["state"], state.slots)):
        yield from array_differences(f"state[{number}]", slots, own_slots, cast)


def _memory_differences(saved: Any, like: Any, state: State) -> Iterator[str]:
    """Yield a sentence if the numbers that a rule keeps from step to step have other names, or differ if shared."""
    if like is None and saved is not None:
        yield f"{MEMORY}: expected none, as the rule keeps no numbers from step to step; got {checks.describe(saved)}"
    if like is None:
        return
    wanted = ", ".join(like[0]) if like else ""
    if saved is None or any([", ".join(kept) != wanted for kept in saved]):
        got = "none" if saved is None else next(str([*kept]) for kept in saved if ", ".join(kept) != wanted)
        yield f"{MEMORY}: expected for each array the numbers {wanted}; got {got}"
    elif state.shares_memory and len({repr(kept) for kept in saved}) > 1:
        yield f"{MEMORY}: expected the same numbers for all arrays, as they share them (scope='all'); got others"


def array_differences(where: str, saved: Any, like: Any, cast: bool = False) -> Iterator[str]:
    """Yield a sentence if an array, or a list of arrays, differs from `like` in dtypes or shapes.

    With `cast`, arrays of another precision do not differ.
    """
    (given, saved_kinds), (wanted, kinds) = _describe(saved), _describe(like)
    can_cast = saved_kinds == kinds
    if given != wanted and not (cast and can_cast):
        yield f"{where}: expected {wanted}; got {given}" + "; cast=True converts them" * can_cast


def _describe(arrays: Any) -> tuple[str, list[Any]]:
    """Return a text with dtypes and shapes, and these without the precision of the dtypes."""
    if not isinstance(arrays, list | tuple):
        return f"an array of {arrays.dtype}, shape {tuple(arrays.shape)}", [arrays.dtype, tuple(arrays.shape)]
    words = [_describe(array)[0] for array in arrays]
    return f"[{', '.join(words)}]", [(array.dtype.kind, tuple(array.shape)) for array in arrays]


def rule_differences(saved: SavedState, like: SavedState) -> Iterator[str]:
    """Yield a sentence for each difference between the rules of two saved states."""
    # For a rule without a name, the text in "rule" has changed between versions: only "made_of" is compared.
    is_named = like["rule"] in names() or saved["rule"] in names()
    for key in ("rule", "made_of") if is_named else ("made_of",):
        if saved[key] != like[key]:
            yield f"{key}: expected {like[key]!r}; got {checks.describe(saved[key])}"


def number_functions(values: Sequence[Any]) -> list[int | None]:
    """Return a number for each function that cannot be saved, equal for equal functions; None for other values."""
    functions = [value if callable(value) and not schedules.is_packable(value) else None for value in values]
    seen: list[Any] = []
    for function in functions:
        if function is not None and not any([_are_equal(function, other) for other in seen]):
            seen.append(function)
    places = [[_are_equal(function, other) for other in seen] for function in functions]
    return [None if function is None else place.index(True) for function, place in zip(functions, places)]


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether two functions are the same one, or say that they are equal."""
    try:
        return one is other or bool(one == other)
    except Exception:  # a comparison of arrays has no truth value
        return False


def cast_slots(saved: Sequence[Sequence[Any]], params: Sequence[Any]) -> list[list[Any]]:
    """Return the saved slots in the precision of the parameters.

    Raises
    ------
    ValueError
        If a number is too large for it.
    """
    found = []
    for i, (slots, param) in enumerate(zip(saved, params)):
        with np.errstate(over="ignore"):
            found.append([slot.astype(param.dtype, order="C") for slot in slots])
        for slot, cast in zip(slots, found[-1]):
            if not np.array_equal(np.isfinite(slot), np.isfinite(cast)):
                raise ValueError(f"state[{i}]: expected numbers that {param.dtype} can hold; got larger ones")
    return found


def checksum(param: Any) -> int:
    """Return a checksum of an array in single precision, in C order: that of its cast to another precision is equal."""
    single = np.complex64 if param.dtype.kind == "c" else np.float32
    with np.errstate(all="ignore"):
        return crc32(param.astype(single, order="C", copy=False).reshape(-1).view(np.uint8).data)


def warn_of_another_order(saved: SavedState, state: State) -> None:
    """Warn if arrays that are matched by position hold what other arrays held when the state was saved."""
    if FINGERPRINT not in saved or (state.names is not None and saved["names"] is not None):
        return
    then, now = saved[FINGERPRINT], [*map(checksum, state.fetch_params())]
    changed = [(i, param.shape) for i, param in enumerate(state.params) if now[i] != then[i]]
    moved = [i for i, shape in changed if any([now[i] == then[j] and shape == other for j, other in changed])]
    if moved:
        before, names = "before you save", ["weight", "bias"]
        if saved["names"] is not None:
            before, names = "as they had when the run was saved", saved["names"]
        example = ", ".join([f"{name!r}: ..." for name in names[:2]])
        warnings.warn(
            f"params: the arrays {', '.join(map(str, moved))} hold the values that other arrays had when the run was "
            "saved, so they seem to be in another order; their states were matched by position. Give the arrays names, "
            f"params={{{example}}}, {before}, and their order will not matter",
            stacklevel=5,
        )
