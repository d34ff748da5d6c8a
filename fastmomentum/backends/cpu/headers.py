"""Where NumPy and Python keep what kernels look at, and the rows in which kernels are told of arrays.

The offsets in an array are those of ``PyArrayObject_fields`` in NumPy's ndarraytypes.h, a part of its C ABI: data, nd,
dimensions, strides, base, descr, flags, behind Python's object head, whose last word is the type. A dtype is told by
the word of ``PyArray_Descr`` that holds kind, type, byte order and type_num: its address would not do, since an
unpickled array has a dtype object of its own. A list has its size, then the address of its items (``PyListObject``).

Looking at NumPy arrays from inside compiled code, so that a thousand of them are rechecked in microseconds.

What a kernel may rely on can change under an array object between two steps: its memory can move
(``resize(refcheck=False)``), its shape or dtype be assigned to, its write flag be cleared; and gradients come as new
objects. So the header of every object is read at every step, before the first write;
:mod:`fastmomentum.backends.layout` tells where it lies, and what a table's rows hold.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import populate_array

from fastmomentum.backends.base import COUNTERS

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


def dtype_code(dtype: np.dtype[Any]) -> int:
    """What tells a native dtype."""
    return _read_word(id(dtype) + CODE) & KIND


def verify() -> None:
    """Refuse a Python or NumPy that keeps these things elsewhere, before a kernel looks for them there."""
    array = np.zeros((3, 5), np.float32)
    head = id(array)
    dimensions = _read_word(head + DIMENSIONS)
    found = [
        *(
            _read_word(head + TYPE),
            _read_word(head + DATA),
            _read_word(head + NDIM) & 0xFFFFFFFF,
            _read_word(head + DESCR),
        ),
        *(_read_word(head + FLAGS) & WRITEABLE, _read_word(dimensions), _read_word(dimensions + 8)),
        _read_word(_read_word(id(items := [None, array]) + ITEMS) + 8),
    ]
    expected = [NDARRAY, array.ctypes.data, 2, id(array.dtype), WRITEABLE, 3, 5, id(items[1])]
    if found != expected:
        raise RuntimeError(
            f"NumPy {np.__version__} in this Python keeps arrays in another layout than the compiled kernels know; "
            "backend='numpy' works"
        )


def _read_word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _loader(result: Any, bits: int) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()))

        return result(types.int64), codegen

    return load


_word = _loader(types.int64, 64)
_half = _loader(types.int32, 32)


def make_views(kinds: list[Any]) -> Any:
    """A function ``views(table, row, column, size)``: arrays of these types on the memory told from that column on."""

    @intrinsic
    def views(typing_context: Any, table: Any, row: Any, column: Any, size: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = context.make_array(table)(context, builder, arguments[0])
            place = builder.add(builder.mul(arguments[1], builder.extract_value(rows.shape, 1)), arguments[2])
            made = []
            for i, kind in enumerate(kinds):
                address = builder.load(builder.gep(rows.data, [builder.add(place, ir.Constant(place.type, i))]))
                array = context.make_array(kind)(context, builder)
                itemsize = ir.Constant(place.type, kind.dtype.bitwidth // 8)
                data = builder.inttoptr(address, array.data.type)
                populate_array(array, data, [arguments[3]], [itemsize], itemsize, None)
                made.append(array._getvalue())
            return context.make_tuple(builder, signature.return_type, made)

        integers = (types.int64, types.int64, types.int64)
        return types.BaseTuple.from_types(kinds)(table, *integers), codegen

    return views


@intrinsic
def memory_spans(typing_context: Any, arrays: Any) -> Any:
    """Where the memory of each array in a tuple begins and ends, as int64: begin, end, begin, end, ..."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = []
        for i, kind in enumerate(arrays.types):
            array = context.make_array(kind)(context, builder, builder.extract_value(arguments[0], i))
            begin = builder.ptrtoint(array.data, ir.IntType(64))
            words += [begin, builder.add(begin, builder.mul(array.nitems, array.itemsize))]
        return context.make_tuple(builder, signature.return_type, words)

    return types.UniTuple(types.int64, 2 * len(arrays.types))(arrays), codegen


@register_jitable
def _fits(header: Any, param: Any, size: Any, dtype: Any, flags: Any) -> Any:
    """Whether the array has this dtype, these flags, and the shape of the parameter, whose size this is."""
    if _word(header + TYPE) != NDARRAY:
        return False
    code = _word(_word(header + DESCR) + CODE)
    if code & KIND != dtype or code & ORDER == SWAPPED:
        return False
    axes, dimensions, expected = _half(param + NDIM), _word(header + DIMENSIONS), _word(param + DIMENSIONS)
    if _half(header + FLAGS) & flags != flags or _half(header + NDIM) != axes:
        return False
    elements = 1
    for axis in range(axes):
        length = _word(dimensions + 8 * axis)
        if length != _word(expected + 8 * axis):
            return False
        elements *= length
    return elements == size


@register_jitable
def _overlaps(written: Any, start: Any, stop: Any) -> Any:
    """Whether [start, stop) meets one of the written intervals, which are sorted and lie apart."""
    low, high = 0, written.shape[0] - COUNTERS
    while low < high:
        middle = (low + high) // 2
        if written[middle, 0] < stop:
            low = middle + 1
        else:
            high = middle
    return start < stop and low > 0 and written[low - 1, 1] > start


@register_jitable
def arrays_unchanged(table: Any, written: Any, arrays: Any, grads: Any) -> Any:
    """Whether kernels may run on this table, whose rows have so many arrays to write, and this list of gradients.

    The memory of a gradient may be elsewhere than in the last step, but not where anything is written; its address is
    taken down.
    """
    items = _word(grads + ITEMS)
    for row in range(table.shape[0]):
        grad, param, size = _word(items + 8 * table[row, INDEX]), table[row, OBJECTS], table[row, SIZE]
        if size < 0:
            if grad != NONE:
                return False
            continue
        for column in range(OBJECTS, OBJECTS + arrays + 1):
            reads = column == OBJECTS + arrays
            header = grad if reads else table[row, column]
            if not _fits(header, param, size, table[row, DTYPE], READABLE if reads else WRITEABLE):
                return False
            address = _word(header + DATA)
            if address != table[row, column + arrays]:
                if not reads or _overlaps(written, address, address + table[row, BYTES]):
                    return False
                table[row, column + arrays] = address
    return True
