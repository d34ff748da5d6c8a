"""Read the headers of NumPy arrays inside compiled code, so that 1,000 arrays are rechecked in microseconds.

Between two steps an array object can change: its memory can move (``resize(refcheck=False)``), its shape or dtype can
be assigned, its write flag can be cleared; and gradients are often new objects. So every step reads the header of every
array before it writes anything.

All arrays of a parameter must have its layout, so that their elements have the same order in memory. A copy of the
parameter's header, which no other code can change, holds its shape and strides.

An array's header is ``PyArrayObject_fields`` of NumPy's ndarraytypes.h, part of NumPy's C ABI: data, nd, dimensions,
strides, base, descr, flags, after Python's object head, whose last word is the type. A dtype is identified by the word
of ``PyArray_Descr`` that holds kind, type, byte order and type_num, not by its address, as an unpickled array has a
dtype object of its own. A list (``PyListObject``) holds its size, then the address of its items.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import populate_array

from fastmomentum.backends.base import COUNTERS
from fastmomentum.rules.assemble import Function

_HEAD = object.__basicsize__  # 16 bytes; more in a free-threaded Python
TYPE, DATA, NDIM, DIMENSIONS, STRIDES, DESCR, FLAGS = (_HEAD + at for at in (-8, 0, 8, 16, 24, 40, 48))
CODE = _HEAD + 8  # in a dtype: the bytes kind, type, byte order and flags, then type_num
KIND, ORDER = -0x100000000 | 0xFFFF, 0xFF0000  # KIND leaves out the byte order: "=" and "<" are both native
SWAPPED = ord(">") << 16  # all machines that Numba supports are little-endian
ITEMS = _HEAD + 8  # in a list
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x0001, 0x0100, 0x0400  # NPY_ARRAY_C_CONTIGUOUS and so on

INDEX, SIZE, BYTES, DTYPE, TENSOR_DTYPE, FLAG_BITS, HEADER, FIRST, OBJECTS = range(9)
"""The first columns of a table with one row for each parameter.

A row holds the index in the list of gradients; then, of each of the parameter's arrays, the number of floats, the
number of bytes, the dtype code, that of tensors, the flags that it must have (with C_CONTIGUOUS, strides need no
comparison), the address of a header with its shape and strides, and the number of bytes from the begin of its memory to
its first element; then the addresses of the objects p and *state, and the addresses at which the memory of p, *state
and g begins, and that of the rule's given arrays, which only the optimiser holds, so that they cannot change. If the
size is negative, the parameter must have no gradient, and the header's column holds the address of None. Kernels hold
no address themselves: their machine code is valid in every process.
"""


@cache
def dtype_code(dtype: np.dtype) -> int:
    """Return the number that identifies a native dtype."""
    return _read_word(id(dtype) + CODE) & KIND


def identities(items: list[Any]) -> list[int] | bytes:
    """Return the addresses of the items of a list, by which two lists of the same objects are told.

    The objects of the list that is compared must still live. 1,000 addresses take a twentieth of the time that ``id``
    takes for each (measured).
    """
    if len(items) < 50:
        return [*map(id, items)]
    return ctypes.string_at(_read_word(id(items) + ITEMS), 8 * len(items))


def check_header_layout() -> None:
    """Raise RuntimeError if the headers in this Python and NumPy do not have the layout that the kernels read."""
    array = np.zeros((3, 5), np.float32)
    head = id(array)
    dimensions, strides = _read_word(head + DIMENSIONS), _read_word(head + STRIDES)
    flags = C_CONTIGUOUS | ALIGNED | WRITEABLE
    found = [
        *(
            _read_word(head + TYPE),
            _read_word(head + DATA),
            _read_word(head + NDIM) & 0xFFFFFFFF,
            _read_word(head + DESCR),
        ),
        *(_read_word(head + FLAGS) & flags, _read_word(dimensions), _read_word(dimensions + 8)),
        *(_read_word(strides), _read_word(strides + 8)),
        _read_word(_read_word(id(items := [None, array]) + ITEMS) + 8),
    ]
    expected = [id(np.ndarray), array.ctypes.data, 2, id(array.dtype), flags, 3, 5, 20, 4, id(items[1])]
    if found != expected:
        raise RuntimeError(
            "expected the array headers of CPython and the NumPy 2 ABI, which compiled kernels read; NumPy "
            f"{np.__version__} in this Python has others. Use backend='numpy', which does not read them"
        )


def _read_word(address: int) -> int:
    """Return the 64-bit integer at this address."""
    return ctypes.c_int64.from_address(address).value


def _make_load(result: Any, bits: int) -> Function:
    """Return ``load(address)`` for compiled code, which reads an integer of this Numba type and number of bits."""

    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()))

        return result(types.int64), codegen

    loader: Function = load
    return loader


load_word = _make_load(types.int64, 64)
load_half = _make_load(types.int32, 32)


def make_views(kinds: list[types.Array]) -> Function:
    """Return ``views(table, row, column, size)``, which makes arrays of these Numba types from addresses in a table.

    The addresses are those in the table's row from this column on; each array has `size` elements.
    """

    @intrinsic
    def views(typing_context: Any, table: Any, row: Any, column: Any, size: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = context.make_array(table)(context, builder, arguments[0])
            first = builder.add(builder.mul(arguments[1], builder.extract_value(rows.shape, 1)), arguments[2])
            made = []
            for i, kind in enumerate(kinds):
                address = builder.load(builder.gep(rows.data, [builder.add(first, ir.Constant(first.type, i))]))
                array = context.make_array(kind)(context, builder)
                itemsize = ir.Constant(first.type, kind.dtype.bitwidth // 8)
                data = builder.inttoptr(address, array.data.type)
                populate_array(array, data, [arguments[3]], [itemsize], itemsize, None)
                made.append(array._getvalue())
            return context.make_tuple(builder, signature.return_type, made)

        integers = (types.int64, types.int64, types.int64)
        return types.BaseTuple.from_types(kinds)(table, *integers), codegen

    maker: Function = views
    return maker


@intrinsic
def memory_spans(typing_context: Any, arrays: Any) -> Any:
    """Return the interval of memory of each array in a tuple, as int64 addresses: begin, end, begin, end, ..."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = []
        for i, kind in enumerate(arrays.types):
            array = context.make_array(kind)(context, builder, builder.extract_value(arguments[0], i))
            begin = builder.ptrtoint(array.data, ir.IntType(64))
            words += [begin, builder.add(begin, builder.mul(array.nitems, array.itemsize))]
        return context.make_tuple(builder, signature.return_type, words)

    return types.UniTuple(types.int64, 2 * len(arrays.types))(arrays), codegen


@register_jitable
def _fits(header: Any, like: Any, dtype: Any, flags: Any) -> Any:
    """Return whether an array has this dtype and these flags, and the shape and strides in the header `like`."""
    if load_word(header + TYPE) != load_word(like + TYPE):
        return False
    code = load_word(load_word(header + DESCR) + CODE)
    if code & KIND != dtype or code & ORDER == SWAPPED:
        return False
    ndim, dimensions, expected = load_half(like + NDIM), load_word(header + DIMENSIONS), load_word(like + DIMENSIONS)
    if load_half(header + FLAGS) & flags != flags or load_half(header + NDIM) != ndim:
        return False
    for axis in range(ndim):
        if load_word(dimensions + 8 * axis) != load_word(expected + 8 * axis):
            return False
    return flags & C_CONTIGUOUS != 0 or _strides_fit(header, like)


@register_jitable
def _strides_fit(header: Any, like: Any) -> Any:
    """Return whether an array of this shape has the same strides; those of axes of length 1 do not matter."""
    dimensions, strides, expected = (
        load_word(like + DIMENSIONS),
        load_word(header + STRIDES),
        load_word(like + STRIDES),
    )
    for axis in range(load_half(like + NDIM)):
        differ = load_word(strides + 8 * axis) != load_word(expected + 8 * axis)
        if differ and load_word(dimensions + 8 * axis) != 1:
            return False
    return True


@register_jitable
def _overlaps(written: Any, start: Any, stop: Any) -> Any:
    """Return whether [start, stop) overlaps one of the written intervals, which are sorted and disjoint."""
    low, high = 0, written.shape[0] - COUNTERS
    while low < high:
        middle = (low + high) // 2
        if written[middle, 0] < stop:
            low = middle + 1
        else:
            high = middle
    return start < stop and low > 0 and written[low - 1, 1] > start


UNFIT = -1
"""What a reader returns in place of an address if an object is not an array as expected."""


@register_jitable
def read_array(header: Any, like: Any, dtype: Any, flags: Any, tensor_dtype: Any) -> Any:
    """Return the address of the first element of a NumPy array that is as expected, or UNFIT."""
    return load_word(header + DATA) if _fits(header, like, dtype, flags) else UNFIT


def make_check(read: Function) -> Function:
    """Return ``check(table, written, arrays, grads)``: whether a kernel may run on all arrays as they are now.

    `arrays` is the number of arrays in a row of the table that are written, `grads` the address of the list of
    gradients. A gradient may have other memory than in the last step, unless an array is written there; the table gets
    its new address. ``read(object, like, dtype, flags, tensor_dtype)`` returns the address of the first element of an
    object, or UNFIT.
    """

    @register_jitable
    def check(table: Any, written: Any, arrays: Any, grads: Any) -> Any:
        items = load_word(grads + ITEMS)
        for row in range(table.shape[0]):
            grad, like, flags = load_word(items + 8 * table[row, INDEX]), table[row, HEADER], table[row, FLAG_BITS]
            if table[row, SIZE] < 0:
                if grad != table[row, HEADER]:
                    return False
                continue
            for column in range(OBJECTS, OBJECTS + arrays + 1):
                is_grad = column == OBJECTS + arrays
                item = grad if is_grad else table[row, column]
                needed = flags if is_grad else flags | WRITEABLE
                begin = read(item, like, table[row, DTYPE], needed, table[row, TENSOR_DTYPE])
                if begin == UNFIT:
                    return False
                address = begin - table[row, FIRST]
                if address != table[row, column + arrays] and table[row, BYTES] != 0:  # no memory has any address
                    if not is_grad or _overlaps(written, address, address + table[row, BYTES]):
                        return False
                    table[row, column + arrays] = address
        return True

    checker: Function = check
    return checker


arrays_unchanged = make_check(read_array)
