"""Check the arguments that users pass: numbers and their ranges, arrays, and memory that arrays share.

A check that fails raises a TypeError or a ValueError that names the argument, what was expected and what came. No check
writes to an array, so a refused call has changed nothing. Parameters, states and gradients may hold NaN and infinities.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt

from fastmomentum.advice import describe as describe
from fastmomentum.advice import how_to_cast, how_to_convert, how_to_convert_tensor, how_to_list, is_tensor

INFINITY = float("inf")


class Range(NamedTuple):
    """Hold the range of a hyper-parameter, low ≤ x ≤ high.

    `above` excludes low, `below` excludes high, and `infinite` admits infinities. ``a & b`` is the range of the numbers
    that are in both.
    """

    low: float
    high: float
    above: bool = False
    infinite: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, float) or not (self.infinite or isfinite(value)):
            return False
        above_low = self.low < value if self.above else self.low <= value
        return above_low and (value < self.high if self.below else value <= self.high)

    def __and__(self, other: "Range") -> "Range":
        low, above = max((self.low, self.above), (other.low, other.above))
        high, closed = min((self.high, not self.below), (other.high, not other.below))
        return Range(low, high, above, self.infinite and other.infinite, not closed)

    def __str__(self) -> str:
        if self.infinite and self.low == -INFINITY:
            return "a number, -inf and inf included"
        if self.low == -INFINITY:
            return "a finite number"
        if self.high == INFINITY:
            return f"a {'' if self.infinite else 'finite '}number {'>' if self.above else '>='} {self.low:g}"
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


FINITE = Range(-INFINITY, INFINITY)
ANY_BOUND = Range(-INFINITY, INFINITY, infinite=True)
AT_LEAST_ZERO = Range(0.0, INFINITY)
ABOVE_ZERO = Range(0.0, INFINITY, above=True)
AT_LEAST_ONE = Range(1.0, INFINITY)
COUNT = Range(1.0, INFINITY, infinite=True)
UNIT_INTERVAL = Range(0.0, 1.0)
BELOW_ONE = Range(0.0, 1.0, below=True)
INSIDE_UNIT = Range(0.0, 1.0, above=True, below=True)

RANGES: Mapping[str, Range] = {
    "lr": AT_LEAST_ZERO,
    "lr_next": AT_LEAST_ZERO,
    "momentum": UNIT_INTERVAL,
    "momentum_next": UNIT_INTERVAL,
    "dampening": UNIT_INTERVAL,
    "weight_decay": AT_LEAST_ZERO,
    "decoupled_weight_decay": AT_LEAST_ZERO,
    "clip_value": ABOVE_ZERO,
    "max_norm": ABOVE_ZERO,
    "clip_norm": ABOVE_ZERO,
    "step": COUNT,
}
"""The ranges of hyper-parameters with common names; the `ranges` of a rule or stage replace them.

A hyper-parameter that is in neither may be any finite number.
"""

Array = npt.NDArray[Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
SERVED = frozenset(DTYPES)
SERVED_WHERE_DENSE = SERVED | {np.dtype(np.complex64), np.dtype(np.complex128)}
"""The dtypes of arrays; ``in`` a set tells a dtype with fields from one without, which ``==`` does not."""


class InDeviceMemory:
    """Mark the class of arrays in device memory, which have the attributes of an ndarray that the checks use."""


def number(name: str, value: object, allowed: Range) -> float:
    """Return `value` as a float, if it is a real number within the range; −0 comes back as +0."""
    if type(value) is float and value in allowed:
        return value + 0.0
    value = unwrap_scalar(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {allowed}; got {describe(value)}")
    try:
        converted = float(value) + 0.0
    except OverflowError:
        converted = float("nan")
    if converted not in allowed:
        raise ValueError(f"{name}: expected {allowed}; got {describe(value)}")
    return converted


def numbers(name: str, value: object, allowed: Range) -> npt.NDArray[np.float64]:
    """Return `value`, a number or an array of numbers, in double precision, if all lie within the range."""
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if isinstance(value, np.ma.MaskedArray) or found.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, each {allowed}; got {describe(value)}")
    converted = found.astype(np.float64)
    for extreme in (converted.min(), converted.max()) if converted.size else ():
        if float(extreme) not in allowed:
            raise ValueError(f"{name}: expected {allowed}; got {float(extreme)!r}")
    return converted


def unwrap_scalar(value: Any) -> Any:
    """Return the number in a 0-d array, and any other value as it is."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def refuse_positional(function: str, values: Sequence[object]) -> None:
    """Check that no setting is passed by its position; `values` are the arguments after those that may be.

    Raises
    ------
    TypeError
        If one is.
    """
    if values:
        given = values[0] if isinstance(values[0], str | int | float) else 0.1
        example = f"{'rule' if isinstance(given, str) else 'lr'}={given!r}"
        got = describe(values[0])
        raise TypeError(f"{function}: expected settings by their names, such as {example}; got {got} without one")


def boolean(name: str, value: object) -> bool:
    """Return `value` as a bool, if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False; got {describe(value)}")
    return bool(value)


def threads(value: object) -> int | None:
    """Return `value`, if it is a number of threads: a C int from 1, −1 for all, or None for the default."""
    if value is None:
        return None
    if not _is_integer(value) or (not 1 <= value < 2**31 and value != -1):
        kind = ValueError if _is_integer(value) else TypeError
        raise kind(f"threads: expected a whole number from 1 to 2**31 - 1, or -1 for all; got {describe(value)}")
    return int(value)


def integer(name: str, value: object, least: int = 0) -> int:
    """Return `value` as an int, if it is a whole number from `least` to 2⁶²."""
    value = unwrap_scalar(value)
    if not _is_integer(value) or not least <= value <= 2**62:
        kind = ValueError if _is_integer(value) else TypeError
        raise kind(f"{name}: expected a whole number from {least} to 2**62; got {describe(value)}")
    return int(value)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def ends(m: object, L: object) -> tuple[float, float]:
    """Return the ends of a spectrum as floats, if 0 < m ≤ L."""
    low, high = number("m", m, ABOVE_ZERO), number("L", L, ABOVE_ZERO)
    if low > high:
        raise ValueError(f"m, L: expected m <= L, the least and the greatest curvature; got m = {low}, L = {high}")
    return low, high


def dtype(value: object) -> np.dtype[Any]:
    """Return `value` as a dtype, if it is float32 or float64."""
    for known in DTYPES:
        if value is not None and known == value:
            return known
    raise TypeError(f"dtype: expected float32 or float64; got {value!r}")


@lru_cache(64)
def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the real and imaginary parts of a complex dtype, and any other dtype unchanged."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def is_dense(value: Array) -> bool:
    """Return whether the elements of an array fill an interval of memory, each in a place of its own."""
    step = value.itemsize
    for stride, length in sorted((abs(stride), n) for stride, n in zip(value.strides, value.shape) if n > 1):
        if stride != step:
            return value.size == 0
        step *= length
    return True


def same_strides(value: Array, like: Array) -> bool:
    """Return whether two arrays of one shape have the same strides, wherever strides matter."""
    axes = zip(value.shape, value.strides, like.strides)
    return value.strides == like.strides or value.size == 0 or all([n == 1 or one == other for n, one, other in axes])


def reversed_axes(value: Array) -> tuple[int, ...]:
    """Return the axes along which addresses fall."""
    return tuple([axis for axis, stride in enumerate(value.strides) if stride < 0 and value.shape[axis] > 1])


def empty_like(value: Array, dtype: npt.DTypeLike | None = None) -> Array:
    """Return a new array of the same shape and layout, with undefined values, in another dtype if one is given."""
    found = np.empty_like(value, dtype)  # it has the same order of axes, but reverses none
    return found if value.flags.c_contiguous else np.flip(found, reversed_axes(value))


def array(name: str, value: Any, *, like: Array | None = None, write: bool = True, dense: bool = False) -> Array:
    """Return `value` as a plain ndarray on the same memory, if a kernel may work on it.

    Parameters
    ----------
    name : str
        The name of the argument in messages.
    value : object
        The value that the user passed.
    like : ndarray, optional
        The array whose dtype and shape it must have, and whose strides, if `dense`. Strides of axes of length 1, and
        of empty arrays, do not matter.
    write : bool
        Whether the kernel writes to it.
    dense : bool
        Whether it may be complex, and have any layout without holes; otherwise it must be real and C-contiguous.
    """
    if type(value) is not np.ndarray:
        value = _plain(name, value, like, write)
    if like is None:
        fits = value.dtype in (SERVED_WHERE_DENSE if dense else SERVED)
    else:
        fits = _same_dtype(value.dtype, like.dtype) and value.shape == like.shape
    in_order = value.flags.carray and (like is None or not dense)  # usual arrays need no other test: it saves time
    if not (fits and (in_order or _has_layout(value, like, write, dense))):
        _refuse(name, value, like, write, dense)
    return value  # type: ignore[no-any-return]


def _same_dtype(dtype: np.dtype[Any], like: np.dtype[Any]) -> bool:
    """Return whether two dtypes are equal, and the first has no fields."""
    return dtype is like or (dtype == like and dtype.names is None)


def _has_layout(value: Array, like: Array | None, write: bool, dense: bool) -> bool:
    """Return whether an array of the right dtype and shape lies in memory as :func:`array` requires."""
    flags = value.flags
    in_order = (same_strides(value, like) if like is not None else is_dense(value)) if dense else flags.c_contiguous
    return in_order and flags.aligned and (flags.writeable or not write)


def _plain(name: str, value: object, like: Array | None, write: bool) -> Array:
    """Return an array of a subclass of ndarray as a plain ndarray; an array in device memory is returned unchanged."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a plain array; got a masked one, whose mask would be ignored: pass its .data"
        )
    if isinstance(value, InDeviceMemory):
        return value  # type: ignore[return-value]
    if not isinstance(value, np.ndarray):
        expected = "float32 or float64" if like is None else like.dtype
        advice = how_to_convert(value, None if like is None else like.dtype, write)
        raise TypeError(f"{name}: expected a NumPy array of {expected}; got {describe(value)}{advice}")
    return np.asarray(value)


def _refuse(name: str, value: Array, like: Array | None, write: bool, dense: bool) -> NoReturn:
    """Raise the error that says why :func:`array` refuses this array."""
    dtype = value.dtype
    served = SERVED_WHERE_DENSE if dense else SERVED
    if not (dtype in served if like is None else _same_dtype(dtype, like.dtype)):
        kinds = "float32, float64, complex64 or complex128" if dense else "float32 or float64"
        expected = f"an array of {kinds}" if like is None else f"{like.dtype}, as the parameter has"
        got, advice = _dtype_and_advice(value, None if like is None else like.dtype, write, dense)
        raise TypeError(f"{name}: expected {expected}; got {got}{advice}")
    if like is not None and value.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, as the parameter has; got {value.shape}")
    replace = "The array is updated in place: replace it everywhere by" if write else "Pass"
    tensor = _tensor_of(value)
    if dense and like is not None and not same_strides(value, like):
        axes, param = reversed_axes(like), array_of_param(like)
        new = f"numpy.flip(numpy.empty_like({param}), {axes})" if axes else f"numpy.empty_like({param})"
        old = "old" if tensor is None else "old.detach()"
        raise ValueError(
            f"{name}: expected strides {like.strides}, as the parameter has; got {value.strides}. A copy in the "
            f"parameter's layout is new, after new = {new}; new[...] = {old}. {replace} new"
        )
    layout = f"shape {value.shape} with strides {value.strides}"
    if dense and like is None and not is_dense(value):
        extent = sum(abs(stride) * (n - 1) for stride, n in zip(value.strides, value.shape)) + value.itemsize
        advice = f"{replace} numpy.array(...), a copy"
        if write and extent >= value.nbytes:  # elements do not share memory
            advice = "Update p = numpy.array(view), a copy, and write it back after each step: view[...] = p"
        raise ValueError(f"{name}: expected elements that fill an interval of memory; got {layout}. {advice}")
    on_device = isinstance(value, InDeviceMemory)
    if not dense and not value.flags.c_contiguous:
        copy = "a C-contiguous copy" if on_device else "numpy.ascontiguousarray(...)"
        copy = copy if tensor is None else ".detach().contiguous()"
        raise ValueError(
            f"{name}: expected a C-contiguous array; got {layout} (a transposed or strided view?). {replace} {copy}"
        )
    copy = "a copy" if on_device else "numpy.array(...), a copy"
    if not value.flags.aligned:
        got = f"one whose address is no multiple of {dtype.alignment} bytes"
        raise ValueError(f"{name}: expected an aligned array; got {got}. {replace} {copy}")
    advice = f"replace it everywhere by {copy}"
    if not on_device:
        advice = f".flags.writeable = True makes it writeable if its memory is, or {advice}"
    raise ValueError(
        f"{name}: expected a writeable array; got a read-only one. The array is updated in place: {advice}"
    )


def _dtype_and_advice(value: Array, wanted: np.dtype[Any] | None, write: bool, dense: bool) -> tuple[str, str]:
    """Return the dtype of an array that :func:`array` refuses, and the end of the message: how to cast it."""
    if (tensor := _tensor_of(value)) is not None:
        return str(tensor.dtype), how_to_convert_tensor(tensor, wanted, write)
    fields = f" with fields {', '.join(value.dtype.names)}" if value.dtype.names else ""
    order = "" if value.dtype.isnative else " in another byte order than this machine's"
    is_complex_served = dense or wanted is not None
    return f"{value.dtype.name}{fields}{order}", how_to_cast(value.dtype, wanted, write, is_complex_served)


def _tensor_of(value: Any) -> Any:
    """Return the torch tensor that the user passed, if this array is a view of its memory; else None."""
    owner = getattr(value, "owner", getattr(getattr(value, "base", None), "tensor", None))
    return owner if is_tensor(owner) else None


def array_of_param(param: Array) -> str:
    """Return the expression for this array in advice, where the user's own parameter is called param."""
    return "param" if _tensor_of(param) is None else "param.detach().numpy()"


def sequence(name: str, value: object, length: int) -> list[Any]:
    """Return the items of a sequence of this length as a new list; the sequence is read once."""
    if not isinstance(value, list | tuple | Sequence):
        raise TypeError(
            f"{name}: expected a sequence of {length}; got {describe(value)}{how_to_list(value, length, name)}"
        )
    items = list(value)
    if len(items) != length:
        raise ValueError(f"{name}: expected a sequence of {length}; got one of {len(items)}")
    return items


def disjoint_intervals(names: Sequence[str], arrays: Sequence[Any], read: int = 0) -> npt.NDArray[np.int64]:
    """Return the intervals of memory that are written, after checking that no two dense arrays share memory.

    The last `read` arrays are only read, and may share memory with each other.

    Returns
    -------
    ndarray of int64, shape (m, 2)
        Begin and end of the memory of each array that is written, in ascending order; empty arrays are left out.
    """
    writes = len(arrays) - read
    spans = [(start := address(a), start + a.nbytes, i) for i, a in enumerate(arrays) if a.size]
    spans.sort()
    last: dict[bool, tuple[int, int]] = {}  # of the written and of the read arrays: the greatest stop, and whose it is
    for start, stop, i in spans:
        is_written = i < writes
        for others_written in (True, False) if is_written else (True,):
            end, other = last.get(others_written, (0, 0))
            if end > start:
                first, second = sorted((i, other))
                raise ValueError(
                    f"{names[second]}: expected memory of its own; got memory that it shares with {names[first]}"
                )
        last[is_written] = max(last.get(is_written, (0, 0)), (stop, i))
    return np.array([span[:2] for span in spans if span[2] < writes], np.int64).reshape(-1, 2)


def address(value: Any) -> int:
    """Return the address at which the memory of an array begins."""
    if not isinstance(value, np.ndarray):
        return int(value.address)
    first: int = value.__array_interface__["data"][0]
    if not value.flags.c_contiguous:
        first += sum([(value.shape[axis] - 1) * value.strides[axis] for axis in reversed_axes(value)])
    return first
