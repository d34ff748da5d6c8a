"""The sum of squares of a gradient by a fixed tree, so that neither threads nor vector width change its bits.

The tree is told, and written for the reference backend, in :mod:`fastmomentum.backends.numpy`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic, register_jitable

from fastmomentum.backends.cpu import TABLES, compiled, vector
from fastmomentum.backends.headers import make_views, unchanged
from fastmomentum.backends.layout import INDEX, OBJECTS, SIZE
from fastmomentum.backends.numpy import CHUNK, LANES
from fastmomentum.backends.parallel import ENDS, holding


@intrinsic
def _add_rows(typing_context: Any, lanes: Any, values: Any, rows: Any) -> Any:
    """Add the squares of so many whole rows to the lanes, which stay in vector registers all the while.

    Written as LLVM vectors because a loop over an array of lanes loads and stores them again for every row, at a third
    of the speed (measured; this one reads memory as fast as BLAS's dot does, and asking for lines ahead gained nothing
    that stood out from the noise).
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lane = context.make_array(lanes)(context, builder, arguments[0]).data
        value = context.make_array(values)(context, builder, arguments[1]).data
        itemsize = values.dtype.bitwidth // 8
        wide = ir.VectorType(ir.DoubleType(), LANES)
        row = ir.VectorType(value.type.pointee, LANES)
        total = alloca_once_value(builder, builder.load(builder.bitcast(lane, wide.as_pointer()), align=8))
        with for_range(builder, arguments[2]) as loop:
            place = builder.gep(value, [builder.mul(loop.index, ir.Constant(loop.index.type, LANES))])
            loaded = builder.load(builder.bitcast(place, row.as_pointer()), align=itemsize)
            double = loaded if row == wide else builder.fpext(loaded, wide)
            builder.store(builder.fadd(builder.load(total), builder.fmul(double, double)), total)
        builder.store(builder.load(total), builder.bitcast(lane, wide.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(lanes, values, types.int64), codegen


@register_jitable
def _chunk_sum(lanes: Any, chunk: Any) -> Any:
    lanes[:] = 0.0
    rows = chunk.size // LANES
    _add_rows(lanes, chunk, rows)
    for lane in range(chunk.size - rows * LANES):
        value = np.float64(chunk[rows * LANES + lane])
        lanes[lane] += value * value
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[half + lane]
        half //= 2
    return lanes[0]


def make_parallel_squares_kernel(dtype: np.dtype[Any], arrays: int) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, ends, shares, lanes, parts, sums, grads)``, over several threads.

    `ends` has for each row the chunks up to its last, `shares` the chunks between which threads begin and the last
    ends, `lanes` scratch for each, `parts` room for a sum of each chunk. These are added in order, as the serial kernel
    adds them.
    """
    views = make_views([vector(dtype)])
    memory = OBJECTS + 2 * arrays

    def kernel(
        table: Any, written: Any, rows: Any, ends: Any, shares: Any, lanes: Any, parts: Any, sums: Any, grads: Any
    ) -> Any:
        if not unchanged(table, written, arrays, grads):
            return False
        for thread in prange(lanes.shape[0]):
            for chunk in range(shares[thread], shares[thread + 1]):
                row = holding(ends, chunk)
                grad = views(rows, row, memory, rows[row, SIZE])[0]
                start = (chunk - ends[row] + (rows[row, SIZE] + CHUNK - 1) // CHUNK) * CHUNK
                parts[chunk] = _chunk_sum(lanes[thread], grad[start : start + CHUNK])
        chunk = 0
        for row in range(rows.shape[0]):
            total = 0.0
            while chunk < ends[row]:
                total += parts[chunk]
                chunk += 1
            sums[rows[row, INDEX]] = total
        return True

    given = (*TABLES, ENDS, ENDS, types.Array(types.float64, 2, "C"), _DOUBLES, _DOUBLES, types.int64)
    return compiled(kernel, types.boolean(*given), parallel=True)


_DOUBLES = types.Array(types.float64, 1, "C")


def make_squares_kernel(dtype: np.dtype[Any], arrays: int) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, lanes, sums, grads)`` for rows with so many arrays to write.

    It looks through the table as the update kernels do, and answers False if they would. Else it puts the sum of
    squares of each row's gradient into `sums`, at the gradient's place in the list; `lanes` is scratch.
    """
    views = make_views([vector(dtype)])
    memory = OBJECTS + 2 * arrays

    def kernel(table: Any, written: Any, rows: Any, lanes: Any, sums: Any, grads: Any) -> Any:
        if not unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            grad = views(rows, row, memory, rows[row, SIZE])[0]
            total = 0.0
            for start in range(0, grad.size, CHUNK):
                total += _chunk_sum(lanes, grad[start : start + CHUNK])
            sums[rows[row, INDEX]] = total
        return True

    return compiled(kernel, types.boolean(*TABLES, _DOUBLES, _DOUBLES, types.int64))
