"""Where NumPy keeps what it knows of an array, and the rows in which kernels are told of arrays.

The offsets are those of ``PyArrayObject_fields`` in NumPy's ndarraytypes.h, a part of its C ABI: data, nd, dimensions,
strides, base, descr, flags, behind Python's object head, whose last word is the type. A dtype is told by the word of
``PyArray_Descr`` that holds kind, type, byte order and type_num: its address would not do, since an unpickled array has
a dtype object of its own.
"""

import ctypes
from typing import Any

import numpy as np

_HEAD = object.__basicsize__  # 16 bytes, more in a free-threaded Python
TYPE, DATA, NDIM, DIMENSIONS, DESCR, FLAGS = _HEAD - 8, _HEAD, _HEAD + 8, _HEAD + 16, _HEAD + 40, _HEAD + 48
CODE = _HEAD + 8  # in a dtype
NDARRAY = id(np.ndarray)
READABLE = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
WRITEABLE = READABLE | 0x0400  # NPY_ARRAY_WRITEABLE

SIZE, BYTES, DTYPE, OBJECTS = range(4)
"""Columns of a row; the addresses of memory follow those of the objects."""


def dtype_code(dtype: np.dtype[Any]) -> int:
    """The word that tells a dtype."""
    return ctypes.c_int64.from_address(id(dtype) + CODE).value
