"""Every check of a user's arguments, in one place.

A refused argument gets a TypeError or a ValueError that names it, says what was expected and what came. Nothing here
writes to an array, so a step refused here has changed nothing. NaN and infinite *gradients* are data and pass.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt

from fastmomentum import hints
from fastmomentum.parts import Part
from fastmomentum.ranges import ABOVE_ZERO, Range
from fastmomentum.records import Update

Array = npt.NDArray[Any]
REST = {"zero": "numpy.zeros_like(param)", "param": "param.copy()"}  # how users make it
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def number(name: str, value: object, allowed: Range) -> float:
    """`value` as a float, if it is a real number within the range; −0 comes back as +0."""
    value = held(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {allowed}; got {shown(value)}")
    try:
        converted = float(value) + 0.0
    except OverflowError:
        converted = float("nan")
    if converted not in allowed:
        raise ValueError(f"{name}: expected {allowed}; got {shown(value)}")
    return converted


def numbers(name: str, value: Any, allowed: Range) -> npt.NDArray[np.float64]:
    """`value`, a number or an array of them, in double precision, if all lie within the range."""
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if isinstance(value, np.ma.MaskedArray) or found.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, each {allowed}; got {shown(value)}")
    converted = found.astype(np.float64)
    for extreme in (converted.min(), converted.max()) if converted.size else ():
        if float(extreme) not in allowed:
            raise ValueError(f"{name}: expected {allowed}; got {float(extreme)!r}")
    return converted


def held(value: Any) -> Any:
    """The number in a 0-d array; anything else as it is."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def switch(name: str, value: object) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False; got {shown(value)}")
    return bool(value)


def threads(value: object) -> int | None:
    """`value`, if it is a number of threads: a whole number from 1, −1 for all, or None for the default."""
    if value is None:
        return None
    if not _is_whole(value) or (value < 1 and value != -1):
        kind = ValueError if _is_whole(value) else TypeError
        raise kind(f"threads: expected a whole number >= 1, or -1 for all; got {shown(value)}")
    return int(value)


def whole(name: str, value: object, least: int = 0) -> int:
    """`value` as an int, if it is a whole number from `least` to 2⁶²."""
    value = held(value)
    if not _is_whole(value) or not least <= value <= 2**62:
        kind = ValueError if _is_whole(value) else TypeError
        raise kind(f"{name}: expected a whole number from {least} to 2**62; got {shown(value)}")
    return int(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def ends(m: object, L: object) -> tuple[float, float]:
    """The ends of a spectrum, 0 < m ≤ L, as floats."""
    low, high = number("m", m, ABOVE_ZERO), number("L", L, ABOVE_ZERO)
    if low > high:
        raise ValueError(f"m, L: expected m <= L, the least and the greatest curvature; got m = {low}, L = {high}")
    return low, high


def dtype(value: Any) -> np.dtype[Any]:
    """`value` as a dtype, if arrays may have it."""
    for known in DTYPES:
        if value is not None and known == value:
            return known
    raise TypeError(f"dtype: expected float32 or float64; got {value!r}")


def hyper(rule: Part, given: Mapping[str, object], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """What `rule`'s function takes behind the gradient, cast to `dtype`, from the users' hyper-parameters.

    Defaults are filled in, derived ones are computed in double precision, and every value must lie in its range both
    before and after the cast.
    """
    values = settings(rule, given)
    for name, value in values.items():
        allowed = rule.range_of(name)
        with np.errstate(over="ignore"):
            cast = dtype.type(value)
        if float(cast) not in allowed:
            raise ValueError(f"{name}: expected {allowed}; got {value!r}, which is {cast} in {dtype}")
    arguments = rule.arguments(values)
    with np.errstate(over="ignore"):
        row = tuple(dtype.type(value) for value in arguments)
    for name, value, cast in zip(rule.hyper, arguments, row, strict=True):
        lost = np.isnan(cast) or (np.isinf(cast) and not np.isinf(list(values.values())).any())
        if lost or (name in rule.ranges and float(cast) not in rule.range_of(name)):
            raise ValueError(f"{name}: expected a number that {dtype} can hold; got {value!r}, derived from {values}")
    return row


def settings(rule: Part, given: Mapping[str, object], check: Callable[..., Any] = number) -> dict[str, Any]:
    """Every hyper-parameter that users give to `rule`, by name, defaults filled in, each put through `check`."""
    for name in given:
        if name not in rule.parameters:
            takes = f"it takes {', '.join(rule.parameters)}{hints.meant(name, rule.parameters)}"
            raise TypeError(f"{name}: rule {rule} takes no such hyper-parameter; {takes}")
    return {name: check(name, _given_or_default(rule, name, given), rule.range_of(name)) for name in rule.parameters}


def _given_or_default(rule: Part, name: str, given: Mapping[str, object]) -> object:
    if name in given:
        return given[name]
    if name not in rule.defaults:
        raise TypeError(f"{name}: rule {rule} needs this hyper-parameter; it was not given")
    default = rule.defaults[name]
    return _given_or_default(rule, default, given) if isinstance(default, str) else default


def array(name: str, value: Any, *, like: Array | None = None, write: bool = True) -> Array:
    """`value` as a plain ndarray on the same memory, if a kernel may work on it.

    Parameters
    ----------
    name : str
        What messages call it.
    value : object
        What the user passed.
    like : ndarray, optional
        The array whose dtype and shape it must have.
    write : bool
        Whether the kernel writes to it.
    """
    if type(value) is not np.ndarray:
        value = _plain(name, value)
    alike = value.dtype in DTYPES if like is None else value.dtype == like.dtype and value.shape == like.shape
    flags = value.flags
    if not alike or not (flags.carray or (flags.c_contiguous and flags.aligned and not write)):
        _refuse(name, value, like)
    return value  # type: ignore[no-any-return]


def _plain(name: str, value: object) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a plain array; got a masked one, whose mask would be ignored: pass its .data"
        )
    if hasattr(value, "look"):  # an array in device memory, which tells of itself as an ndarray does
        return value  # type: ignore[return-value]
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array of float32 or float64; got {shown(value)}. {hints.way_to_array(value)}"
        )
    return np.asarray(value)


def _refuse(name: str, value: Array, like: Array | None) -> NoReturn:
    dtype = value.dtype
    if dtype not in DTYPES:
        order = "" if dtype.isnative else " in another byte order than this machine's"
        came = f"{dtype.name}{order}. .astype(numpy.float32) makes one"
        raise TypeError(f"{name}: expected an array of float32 or float64; got {came}")
    if like is not None and dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype}, as the parameter has; got {dtype}")
    if like is not None and value.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, as the parameter has; got {value.shape}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected a C-contiguous array; got shape {value.shape} with strides {value.strides} "
            "(a transposed or strided view?). Pass a contiguous copy, of numpy.ascontiguousarray say"
        )
    if not value.flags.aligned:
        raise ValueError(f"{name}: expected an aligned array; got one whose address no {dtype} may have")
    raise ValueError(f"{name}: expected a writeable array; got a read-only one. numpy.array(...) makes a copy that is")


def sequence(name: str, value: object, length: int) -> list[Any]:
    """What a list, tuple or other sequence of this length holds, read once, as a list of our own."""
    if not isinstance(value, list | tuple | Sequence):
        raise TypeError(f"{name}: expected a sequence of {length}; got {shown(value)}")
    items = list(value)
    if len(items) != length:
        raise ValueError(f"{name}: expected a sequence of {length}; got one of {len(items)}")
    return items


def state(rule: Update, value: object, like: Array) -> tuple[Array, ...]:
    """The state slots of one parameter, as `rule` declares them: None, an array, or a tuple of arrays."""
    slots = rule.slots
    if len(slots) == 1 and value is not None and not isinstance(value, tuple):
        return (array("state", value, like=like),)
    given: tuple[object, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
    if len(given) != len(slots):
        expected = ("None", "an array", f"a tuple of {len(slots)} arrays")[min(len(slots), 2)]
        each = ", ".join(f"{slot} ({REST[at]} at rest)" for slot, at in rule.state)
        meaning = f", like param in dtype and shape: {each}" if slots else ""
        raise TypeError(f"state: rule {rule} expects {expected}{meaning}; got {shown(value)}")
    return tuple(array(f"state[{i}]", slot, like=like) for i, slot in enumerate(given))


def shown(value: object) -> str:
    """What came, for a message."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple | list) else kind
