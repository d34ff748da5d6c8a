"""Looking at NumPy arrays from inside compiled code, so that a thousand of them are rechecked in microseconds.

A row of the table describes one parameter with its state and gradient, as int64:

    size, bytes, dtype's address | address of each array object: p, *state, g | address of each array's memory

What a kernel may rely on can change under an array object between two steps: its memory can move
(``resize(refcheck=False)``), its shape or dtype be assigned to, its write flag be cleared. So the header of every
object is read again, before the first write of every step. The offsets are those of ``PyArrayObject_fields`` in NumPy's
ndarraytypes.h, a part of its C ABI: data, nd, dimensions, strides, base, descr, flags, behind Python's object head,
whose last word is the type.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

_HEAD = object.__basicsize__  # 16 bytes, more in a free-threaded Python
_TYPE, _DATA, _NDIM, _DIMENSIONS, _DTYPE, _FLAGS = _HEAD - 8, _HEAD, _HEAD + 8, _HEAD + 16, _HEAD + 40, _HEAD + 48
_NDARRAY = id(np.ndarray)
_READABLE = 0x0001 | 0x0100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED
_WRITEABLE = _READABLE | 0x0400  # NPY_ARRAY_WRITEABLE

SIZE, BYTES, DTYPE, OBJECTS = range(4)
"""Columns of a row; the addresses of memory follow those of the objects."""


def _loader(result: Any, bits: int) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()))

        return result(types.int64), codegen

    return load


_word = _loader(types.int64, 64)
_half = _loader(types.int32, 32)


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """The address, an int64, as a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@register_jitable
def _size(header: Any) -> Any:
    dimensions = _word(header + _DIMENSIONS)
    size = 1
    for axis in range(_half(header + _NDIM)):
        size *= _word(dimensions + 8 * axis)
    return size


@register_jitable
def _fits(header: Any, size: Any, dtype: Any, flags: Any) -> Any:
    return (
        _word(header + _TYPE) == _NDARRAY
        and _word(header + _DTYPE) == dtype
        and _half(header + _FLAGS) & flags == flags
        and _size(header) == size
    )


@register_jitable
def _overlaps(written: Any, start: Any, stop: Any) -> Any:
    """Whether [start, stop) meets one of the written intervals, which are sorted and lie apart."""
    low, high = 0, written.shape[0]
    while low < high:
        middle = (low + high) // 2
        if written[middle, 0] < stop:
            low = middle + 1
        else:
            high = middle
    return start < stop and low > 0 and written[low - 1, 1] > start


@register_jitable
def unchanged(table: Any, written: Any, arrays: Any) -> Any:
    """Whether a kernel may run on this table, whose rows hold so many arrays to write, and a gradient behind them.

    The memory of a gradient may be elsewhere than in the last step; its new address is taken down.
    """
    for row in range(table.shape[0]):
        size, nbytes, dtype = table[row, SIZE], table[row, BYTES], table[row, DTYPE]
        for column in range(OBJECTS, OBJECTS + arrays + 1):
            header = table[row, column]
            reads = column == OBJECTS + arrays
            if not _fits(header, size, dtype, _READABLE if reads else _WRITEABLE):
                return False
            address = _word(header + _DATA)
            if address != table[row, column + arrays + 1]:
                if not reads or _overlaps(written, address, address + nbytes):
                    return False
                table[row, column + arrays + 1] = address
    return True
