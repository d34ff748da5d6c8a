"""View, copy, zero and fetch arrays in host memory: the operations other than updates.

The NumPy and the CPU backend share them; ``backends.cuda.arrays`` has the same functions for device memory.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule

Array = npt.NDArray[np.floating]


def view(name: str, value: Any) -> Any:
    """Return `value` unchanged; later checks refuse it if it is not an array."""
    return value


def one_device(names: Sequence[str], arrays: Sequence[Array]) -> int:
    """Return the number of the device that holds all arrays: 0, the host."""
    return 0


def on(device: int) -> AbstractContextManager[None]:
    """Return a context that does nothing: only CUDA devices must be made current."""
    return nullcontext()


def number(value: float) -> float:
    """Return the value of a setting as a float."""
    return float(value)


def point(rule: Rule, arrays: tuple[Array, ...], row: tuple[np.floating, ...], stream: None) -> None:
    """Write the look-ahead point, at which the next gradient is taken, to the last of (p, velocity, point)."""
    param, velocity, target = arrays
    with np.errstate(all="ignore"):
        *_, target[...] = point_rule(rule).update(param, velocity, target, param, *row)


def empty_like(array: Array) -> Array:
    """Return a new array of the same shape and dtype, with undefined values."""
    return np.empty_like(array)


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
