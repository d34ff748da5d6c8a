"""The kernels of :mod:`fastmomentum.backends.cpu` over several threads: the same loop, over parts of the arrays.

Elements do not depend on each other, so the bits are those of the serial kernels. Threads share elements, not arrays:
one large array among many small ones keeps all of them busy.
"""

from collections.abc import Callable
from typing import Any

from numba import prange, types
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.cpu import TABLES, apart, compiled, count, numbers, vector
from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.backends.headers import make_views, spans, unchanged
from fastmomentum.backends.layout import OBJECTS, SIZE, verify
from fastmomentum.backends.loops import make_advance, make_cut, make_loop
from fastmomentum.records import Update

ENDS = types.Array(types.int64, 1, "C")

LINE = 16
"""Elements of float32 in a cache line of 64 bytes: parts begin so many apart, so that threads share few lines."""


def make_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel((param, *state), grad, hyper, threads)``, else like that of the serial kernel."""
    written = 1 + len(rule.state)
    loop, cut = make_loop(make_advance(rule), written), make_cut(written)

    def kernel(arrays: Any, grad: Any, hyper: Any, threads: Any) -> Any:
        if not apart(spans((*arrays, grad)), written):
            return False
        for thread in prange(threads):
            first, last = share(grad.size, thread, threads), share(grad.size, thread + 1, threads)
            loop(cut(arrays, first, last), (grad[first:last],), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype) for dtype in (dtypes.param, *dtypes.state)])
    grad = vector(dtypes.grad, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtypes.param)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper, types.int64), parallel=True)


def make_many_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, ends, threads, grads)``.

    Like that of the serial kernel, but for `ends`: the elements of all rows up to the last of each.
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    views = make_views([vector(dtype) for dtype in (dtypes.param, *dtypes.state, dtypes.grad)])
    memory = OBJECTS + arrays
    loop, cut = make_loop(make_advance(rule), arrays), make_cut(arrays)

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, ends: Any, threads: Any, grads: Any) -> Any:
        if not unchanged(table, written, arrays, grads):
            return False
        for thread in prange(threads):
            first, last = share(ends[-1], thread, threads), share(ends[-1], thread + 1, threads)
            row = holding(ends, first)
            while first < last:
                size = rows[row, SIZE]
                start = first - (ends[row] - size)
                stop = min(size, start + last - first)
                each = views(rows, row, memory, size)
                loop(cut(each[:arrays], start, stop), (each[arrays][start:stop],), to_fixed_tuple(hyper[row], taken))
                first += stop - start
                row += 1
        count(written)
        return True

    verify()
    given = (*TABLES, numbers(dtypes.param), ENDS, types.int64, types.int64)
    return compiled(kernel, types.boolean(*given), parallel=True)


@register_jitable
def share(size: Any, thread: Any, threads: Any) -> Any:
    """Where the part of this thread begins; behind the last thread, `size`."""
    return size if thread == threads else size * thread // threads // LINE * LINE


@register_jitable
def holding(ends: Any, element: Any) -> Any:
    """The row that holds this element, where `ends` has for each row the elements up to its last."""
    low, high = 0, ends.size
    while low < high:
        middle = (low + high) // 2
        if ends[middle] > element:
            high = middle
        else:
            low = middle + 1
    return low
