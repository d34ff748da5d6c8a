"""View, copy, zero and fetch arrays in host memory: the operations other than updates.

The NumPy and the CPU backend share them; ``backends.cuda.arrays`` has the same functions for device memory.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.advice import describe, how_to_convert, is_tensor
from fastmomentum.backends import tensors
from fastmomentum.checks import empty_like as empty_like
from fastmomentum.checks import real_dtype, reversed_axes
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule

Array = npt.NDArray[np.floating]


def view(name: str, value: Any) -> Any:
    """Return a torch tensor as an ndarray on the same memory, which is to be updated, and any other value unchanged.

    Later checks refuse a value that is not an array.
    """
    return value if type(value) is np.ndarray or not is_tensor(value) else tensors.view(name, value)


def one_device(names: Sequence[str], arrays: Sequence[Array]) -> int:
    """Return the number of the device that holds all arrays: 0, the host."""
    return 0


def on(device: int) -> AbstractContextManager[None]:
    """Return a context that does nothing: only CUDA devices must be made current."""
    return nullcontext()


def number(value: float) -> float:
    """Return the value of a setting as a float."""
    return float(value)


def flat_view(array: npt.NDArray[Any]) -> Array:
    """Return a 1-D view of the memory of a dense array, in the order of addresses; complex numbers are pairs of floats.

    Arrays of the same strides have their elements in the same order.

    Examples
    --------
    >>> flat_view(np.array([[1.0, 2.0], [3.0, 4.0]]).T), flat_view(np.array([1.0, 2.0])[::-1])
    (array([1., 2., 3., 4.]), array([1., 2.]))
    >>> flat_view(np.array([1.0 + 2.0j]))
    array([1., 2.])
    """
    if not array.flags.c_contiguous:
        array = np.flip(array, reversed_axes(array))
        array = array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
    flat = array if array.ndim == 1 else array.reshape(-1)
    return flat.view(real_dtype(flat.dtype)) if flat.dtype.kind == "c" else flat


def read(name: str, value: Any, like: Any = None) -> Any:
    """Return an array of another library in host memory as an ndarray on the same memory, which is only to be read.

    A NumPy scalar becomes a 0-d array. Any other value is returned unchanged; later checks refuse it.

    Parameters
    ----------
    name : str
        The name of the argument in messages.
    value : object
        The value that the user passed.
    like : ndarray, optional
        The array whose dtype and layout it should have, for messages.

    Raises
    ------
    TypeError, ValueError
        If the array is one that NumPy cannot read: in device memory, for example, or of a dtype that NumPy lacks.
    """
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value) if isinstance(value, np.generic) else value
    try:
        if is_tensor(value):
            found = value.detach().numpy()
            if like is None or (found.dtype == like.dtype and found.strides == like.strides):
                return found
            return np.asarray(tensors.TensorMemory(value))  # later checks find the tensor, for their advice
        try:
            return np.asarray(memoryview(value))
        except (TypeError, ValueError, BufferError):  # no buffer, or one of a format that NumPy does not have
            return np.from_dlpack(value) if hasattr(type(value), "__dlpack__") else value
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        for bit in ("conj", "neg"):
            if is_tensor(value) and getattr(value, f"is_{bit}")():
                raise ValueError(
                    f"{name}: expected a plain tensor; got one with the {bit} bit, whose memory holds other values. "
                    f"Pass .resolve_{bit}(), a copy"
                ) from error
        advice = how_to_convert(value, None if like is None else like.dtype, write=False) or f": {error}"
        raise TypeError(
            f"{name}: expected an array in host memory, of a dtype that NumPy has; got {describe(value)}{advice}"
        ) from error


def point(rule: Rule, arrays: tuple[Array, ...], row: tuple[np.floating, ...], stream: None) -> None:
    """Write the look-ahead point, at which the next gradient is taken, to the last of (p, velocity, point)."""
    param, velocity, target = map(flat_view, arrays)
    with np.errstate(all="ignore"):
        *_, target[...] = point_rule(rule).update(param, velocity, target, param, *row)


def copy(target: Array, source: Array, rows: slice = slice(None)) -> None:
    """Copy these rows of `source` to the same rows of `target`."""
    part_of(target, rows)[...] = part_of(source, rows)


def zero(target: Array, rows: slice = slice(None)) -> None:
    """Set these rows of `target` to zero."""
    part_of(target, rows)[...] = 0.0


def part_of(array: Any, rows: slice) -> Any:
    """Return a view of these rows of an array of any library; of a 0-d array, the whole array."""
    return array[rows] if array.ndim else array


def is_moving(values: Array) -> bool:
    """Return whether any element is not zero."""
    return bool(values.any())


def fetch(values: Array) -> Array:
    """Return a copy in host memory."""
    return values.copy()
