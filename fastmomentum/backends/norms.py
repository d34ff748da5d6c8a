"""The sum of squares of a gradient by a fixed tree, so that neither threads nor vector width change its bits.

The tree is told, and written for the reference backend, in :mod:`fastmomentum.backends.numpy`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from fastmomentum.backends.cpu import compiled, vector
from fastmomentum.backends.headers import make_views, unchanged
from fastmomentum.backends.layout import INDEX, OBJECTS, SIZE
from fastmomentum.backends.numpy import CHUNK, LANES


@register_jitable
def _add_squares(lanes: Any, row: Any) -> None:
    for lane in range(row.size):
        lanes[lane] += np.float64(row[lane]) * np.float64(row[lane])


@register_jitable
def _chunk_sum(lanes: Any, chunk: Any) -> Any:
    lanes[:] = 0.0
    for start in range(0, chunk.size, LANES):
        _add_squares(lanes, chunk[start : start + LANES])
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[half + lane]
        half //= 2
    return lanes[0]


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

    integers, doubles = types.Array(types.int64, 2, "C"), types.Array(types.float64, 1, "C")
    return compiled(kernel, types.boolean(integers, integers, integers, doubles, doubles, types.int64))
