"""Where NumPy and Python keep what kernels look at, and the rows in which kernels are told of arrays.

The offsets in an array are those of ``PyArrayObject_fields`` in NumPy's ndarraytypes.h, a part of its C ABI: data, nd,
dimensions, strides, base, descr, flags, behind Python's object head, whose last word is the type. A dtype is told by
the word of ``PyArray_Descr`` that holds kind, type, byte order and type_num: its address would not do, since an
unpickled array has a dtype object of its own. A list has its size, then the address of its items (``PyListObject``).
"""

import ctypes
from typing import Any

import numpy as np

_HEAD = object.__basicsize__  # 16 bytes, more in a free-threaded Python
TYPE, DATA, NDIM, DIMENSIONS, DESCR, FLAGS = _HEAD - 8, _HEAD, _HEAD + 8, _HEAD + 16, _HEAD + 40, _HEAD + 48
CODE = _HEAD + 8  # in a dtype: the bytes kind, type, byte order, flags, then type_num
KIND, ORDER = -0x100000000 | 0xFFFF, 0xFF0000  # what tells it; "=" and the machine's own order both are native
SWAPPED = ord(">") << 16  # Numba's machines are little-endian
ITEMS = _HEAD + 8  # in a list
NDARRAY, NONE = id(np.ndarray), id(None)
READABLE = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
WRITEABLE = READABLE | 0x0400  # NPY_ARRAY_WRITEABLE

INDEX, SIZE, BYTES, DTYPE, OBJECTS = range(5)
"""Columns of a row: place in the list of gradients; size, bytes and dtype code of each of its arrays; then the
addresses of the objects p, *state; then those of the memory of p, *state, g. A negative size: no gradient allowed."""

COUNTERS = 2
"""Rows behind the intervals that are written to: calls done of the step under way and calls that it takes; steps done.
In an array of their own they would cost each call of a kernel one argument more."""


def dtype_code(dtype: np.dtype[Any]) -> int:
    """What tells a native dtype."""
    return _word(id(dtype) + CODE) & KIND


def verify() -> None:
    """Refuse a Python or NumPy that keeps these things elsewhere, before a kernel looks for them there."""
    array = np.zeros((3, 5), np.float32)
    head = id(array)
    dimensions = _word(head + DIMENSIONS)
    found = [
        *(_word(head + TYPE), _word(head + DATA), _word(head + NDIM) & 0xFFFFFFFF, _word(head + DESCR)),
        *(_word(head + FLAGS) & WRITEABLE, _word(dimensions), _word(dimensions + 8)),
        _word(_word(id(items := [None, array]) + ITEMS) + 8),
    ]
    expected = [NDARRAY, array.ctypes.data, 2, id(array.dtype), WRITEABLE, 3, 5, id(items[1])]
    if found != expected:
        raise RuntimeError(
            f"NumPy {np.__version__} in this Python keeps arrays in another layout than the compiled kernels know; "
            "backend='numpy' works"
        )


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value
