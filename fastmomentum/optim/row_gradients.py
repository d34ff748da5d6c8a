"""Check row numbers, and add the gradients of rows that come several times in a step."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum import checks

Array = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def gradients_by_row(rows: Any, grads: Any, param: Array) -> tuple[Ints, Array]:
    """Return the different rows of a table and their gradients, from the arguments of a step.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value.
    """
    found = row_numbers(rows, len(param))
    shape = (found.size, param.shape[1])
    if isinstance(grads, np.ndarray) and grads.shape != shape:
        raise ValueError(f"grads: expected shape {shape}, a row for each of rows; got {grads.shape}")
    return sum_duplicate_rows(found, checks.array("grads", grads, like=np.empty(shape, param.dtype), write=False))


def sum_duplicate_rows(rows: Ints, grads: Array) -> tuple[Ints, Array]:
    """Return the different rows and their gradients; gradients of a repeated row are added in the order given."""
    different, first, place = np.unique(rows, return_index=True, return_inverse=True)
    total, repeated = grads[first], np.ones(rows.size, bool)
    repeated[first] = False
    np.add.at(total, place[repeated], grads[repeated])
    return different, total


def row_numbers(rows: Any, count: int) -> Ints:
    """Return `rows` as an array, if they are row numbers of a table of `count` rows."""
    try:
        found = np.asarray(rows) if np.size(rows) else np.zeros(np.shape(rows), np.int64)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "iu" or isinstance(rows, np.ma.MaskedArray):
        raise TypeError(f"rows: expected a sequence of row numbers; got {checks.describe(rows)}")
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError(f"rows: expected numbers from 0 to {count - 1}; got {found.min()} to {found.max()}")
    return found.astype(np.int64)
