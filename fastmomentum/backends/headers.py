"""Looking at NumPy arrays from inside compiled code, so that a thousand of them are rechecked in microseconds.

A row of the table describes one parameter with its state and gradient, as int64:

    size, bytes, dtype | address of each array object: p, *state, g | address of each array's memory

What a kernel may rely on can change under an array object between two steps: its memory can move
(``resize(refcheck=False)``), its shape or dtype be assigned to, its write flag be cleared. So the header of every
object is read again, before the first write of every step; :mod:`fastmomentum.backends.layout` tells where it lies.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from fastmomentum.backends import layout
from fastmomentum.backends.layout import BYTES, DTYPE, OBJECTS, SIZE

# As globals of this module they are constants in compiled code.
TYPE, DATA, NDIM, DIMENSIONS = layout.TYPE, layout.DATA, layout.NDIM, layout.DIMENSIONS
DESCR, FLAGS, CODE, NDARRAY = layout.DESCR, layout.FLAGS, layout.CODE, layout.NDARRAY
READABLE, WRITEABLE = layout.READABLE, layout.WRITEABLE


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


@intrinsic
def address(typing_context: Any, array: Any) -> Any:
    """Where the memory of a compiled array begins, as an int64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@register_jitable
def _fits(header: Any, size: Any, dtype: Any, flags: Any) -> Any:
    if _word(header + TYPE) != NDARRAY or _word(_word(header + DESCR) + CODE) != dtype:
        return False
    dimensions, elements = _word(header + DIMENSIONS), 1
    for axis in range(_half(header + NDIM)):
        elements *= _word(dimensions + 8 * axis)
    return elements == size and _half(header + FLAGS) & flags == flags


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
            if not _fits(header, size, dtype, READABLE if reads else WRITEABLE):
                return False
            address = _word(header + DATA)
            if address != table[row, column + arrays + 1]:
                if not reads or _overlaps(written, address, address + nbytes):
                    return False
                table[row, column + arrays + 1] = address
    return True
