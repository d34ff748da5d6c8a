"""Every check of a user's arguments, in one place.

A refused argument gets a TypeError or a ValueError that names it, says what was expected and what came. Nothing here
writes to an array, so a step refused here has changed nothing. NaN and infinite *gradients* are data and pass.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.ranges import Range
from fastmomentum.records import Update

Array = npt.NDArray[Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def number(name: str, value: object, allowed: Range) -> float:
    """`value` as a float, if it is a real number within the range; −0 comes back as +0."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {allowed}; got {_shown(value)}")
    try:
        converted = float(value) + 0.0
    except OverflowError:
        converted = float("nan")
    if converted not in allowed:
        raise ValueError(f"{name}: expected {allowed}; got {value!r}")
    return converted


def switch(name: str, value: object) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False; got {_shown(value)}")
    return bool(value)


def threads(value: object) -> None:
    """Refuse what is no number of threads: a whole number from 1, or −1 for all."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"threads: expected a whole number >= 1, or -1 for all; got {_shown(value)}")
    if value < 1 and value != -1:
        raise ValueError(f"threads: expected a whole number >= 1, or -1 for all; got {value}")


def hyper(rule: Update, given: Mapping[str, object], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """What `rule`'s function takes behind the gradient, cast to `dtype`, from the users' hyper-parameters.

    Defaults are filled in, derived ones are computed in double precision, and every value must lie in its range both
    before and after the cast.
    """
    for name in given:
        if name not in rule.parameters:
            raise TypeError(f"{name}: rule {rule} takes no such hyper-parameter; it takes {', '.join(rule.parameters)}")
    values: dict[str, float] = {}
    for name in rule.parameters:
        allowed = rule.range_of(name)
        values[name] = number(name, _given_or_default(rule, name, given), allowed)
        with np.errstate(over="ignore"):
            cast = dtype.type(values[name])
        if float(cast) not in allowed:
            raise ValueError(f"{name}: expected {allowed}; got {values[name]!r}, which is {cast} in {dtype}")
    arguments = rule.arguments(values)
    with np.errstate(over="ignore"):
        row = tuple(dtype.type(value) for value in arguments)
    for name, value, cast in zip(rule.hyper, arguments, row, strict=True):
        if np.isnan(cast) or (np.isinf(cast) and name not in values):
            raise ValueError(f"{name}: {value!r}, derived from {values}, is {cast} in {dtype}")
    return row


def _given_or_default(rule: Update, name: str, given: Mapping[str, object]) -> object:
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
    dtype = value.dtype
    if dtype not in DTYPES:
        order = "" if dtype.isnative else " in another byte order than this machine's"
        raise TypeError(f"{name}: expected an array of float32 or float64; got {dtype.name}{order}")
    if like is not None:
        if dtype != like.dtype:
            raise TypeError(f"{name}: expected {like.dtype}, as the parameter has; got {dtype}")
        if value.shape != like.shape:
            raise ValueError(f"{name}: expected shape {like.shape}, as the parameter has; got {value.shape}")
    flags = value.flags
    if not (flags.carray or (flags.c_contiguous and flags.aligned and not write)):
        _refuse_layout(name, value)
    return value  # type: ignore[no-any-return]


def _plain(name: str, value: object) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array; got a masked one, whose mask would be ignored: pass its .data")
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array of float32 or float64; got {_shown(value)}. "
            "numpy.array(..., dtype=numpy.float32) makes one"
        )
    return np.asarray(value)


def _refuse_layout(name: str, value: Array) -> None:
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected a C-contiguous array; got shape {value.shape} with strides {value.strides} "
            "(a transposed or strided view?). numpy.ascontiguousarray makes a contiguous copy"
        )
    if not value.flags.aligned:
        raise ValueError(f"{name}: expected an aligned array; got one whose address no {value.dtype} may have")
    raise ValueError(f"{name}: expected a writeable array; got a read-only one")


def state(rule: Update, value: object, like: Array) -> tuple[Array, ...]:
    """The state slots of one parameter, as `rule` declares them: None, an array, or a tuple of arrays."""
    slots = rule.slots
    if len(slots) == 1 and isinstance(value, np.ndarray):
        return (array("state", value, like=like),)
    given: tuple[object, ...] = value if isinstance(value, tuple) else () if value is None else (value,)
    if len(given) != len(slots):
        expected = ("None", "an array", f"a tuple of {len(slots)} arrays")[min(len(slots), 2)]
        meaning = f" ({', '.join(slots)}), like param in dtype and shape" if slots else ""
        raise TypeError(f"state: rule {rule} expects {expected}{meaning}; got {_shown(value)}")
    return tuple(array(f"state[{i}]", slot, like=like) for i, slot in enumerate(given))


def apart(rule: Update, arrays: Sequence[Array], grad: Array) -> None:
    """Refuse the arrays of one parameter, all contiguous, if two of them share memory."""
    for first, second in combinations((*arrays, grad), 2):
        if np.may_share_memory(first, second):  # exact for contiguous arrays
            names = ("param", *rule.slots, "grad")
            ours, theirs, *_ = (names[i] for i, one in enumerate((*arrays, grad)) if one is first or one is second)
            raise ValueError(f"{ours}: expected memory of its own; got memory that it shares with {theirs}")


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
