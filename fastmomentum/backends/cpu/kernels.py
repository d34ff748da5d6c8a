"""Kernels for other people's code, compiled or not: flat arguments, checked where they come in, and a loop.

What types tell is checked while a compiled caller compiles, and costs it nothing; shapes and overlaps are checked at
each call, before the first write. Callers in Python have the same checks, and arrays are looked at more closely there:
Numba takes byte order and alignment of what comes in ``*arguments`` for granted.

Numba kernels: one array, and many arrays in one call; serial, and free of Python's global lock.

A kernel is the rule's own scalar function, inlined into a loop over all elements. Those that share one loop among
threads are in :mod:`fastmomentum.backends.parallel`.

The kernels of :mod:`fastmomentum.backends.cpu` over several threads: the same loop, over parts of the arrays.

Elements do not depend on each other, so the bits are those of the serial kernels. Threads share elements, not arrays:
one large array among many small ones keeps all of them busy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, njit, prange, types
from numba.core.errors import NumbaError
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.base import COUNTERS, cached_kernel
from fastmomentum.backends.cpu.headers import (
    OBJECTS,
    SIZE,
    arrays_unchanged,
    make_views,
    memory_spans,
    verify,
)
from fastmomentum.backends.cpu.loops import make_advance, make_cut, make_loop
from fastmomentum.rules.base import Rule

STRICT: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": False}
"""Said in full: what is not said here, Numba takes over from the function that makes it compile."""


def kernel(rule: Rule, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper)`` for one parameter whose arrays all have this dtype.

    If `parallel`, the kernel also takes the number of threads, last. If two of the arrays share memory, it writes
    nothing and returns False.
    """
    make = make_parallel_kernel if parallel else make_kernel
    return cached_kernel(("one", parallel, rule.structure, dtype), lambda: make(rule, dtype))


def many_kernel(rule: Rule, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, grads)`` for many parameters whose arrays all have this dtype.

    If `parallel`, the kernel takes `ends` and the number of threads before `grads`.
    """
    make = make_parallel_many_kernel if parallel else make_many_kernel
    return cached_kernel(("many", parallel, rule.structure, dtype), lambda: make(rule, dtype))


def compiled(function: Callable[..., Any], signature: Any, parallel: bool = False) -> Callable[..., Any]:
    """`function` compiled for this signature and no other; `prange` in it uses threads where `parallel` is set.

    Strict IEEE arithmetic (no fastmath: contraction to FMA changes 3.3 % of the elements and saves nothing), division
    by zero as in NumPy (the default raises in mid-array), and no disk cache (numba#6264, #6845: closures miss it, and
    can be given each other's code).
    """
    need_compiler()
    try:
        dispatcher = njit(signature, nogil=True, error_model="numpy", parallel=parallel)(function)
    except NumbaError as error:
        raise TypeError(f"the rule cannot be compiled; does it call a function that is not njit? {error}") from error
    dispatcher.disable_compile()
    kernel: Callable[..., Any] = dispatcher
    return kernel


def need_compiler() -> None:
    """Refuse to go on without Numba's compiler."""
    if config.DISABLE_JIT:
        raise RuntimeError(
            "backend 'cpu' needs Numba's compiler, which NUMBA_DISABLE_JIT has off; 'numpy' has the same bits"
        )


def make_kernel(rule: Rule, dtype: np.dtype[Any]) -> Callable[..., bool]:
    """The function ``kernel((param, *state), grad, hyper)``, for 1-D contiguous arrays of one length.

    It looks for shared memory first; where it finds any, nothing is written and False comes back.
    """
    written = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), written)

    def kernel(arrays: Any, grad: Any, hyper: Any) -> Any:
        if not disjoint(memory_spans((*arrays, grad)), written):
            return False
        loop(arrays, (grad,), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype)] * written)
    grad = vector(dtype, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtype)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper))


def make_many_kernel(rule: Rule, dtype: np.dtype[Any]) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, grads)``: one update, if nothing has changed.

    `table` is what :func:`fastmomentum.backends.headers.unchanged` looks through first, with the list whose address is
    `grads`; where it answers no, nothing is written and False comes back. `rows` are those of its rows that this kernel
    updates, each with the row of `hyper` at the same place. Behind `written` it counts (:func:`count`).
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    views = make_views([vector(dtype)] * (arrays + 1))
    memory = OBJECTS + arrays
    loop = make_loop(make_advance(rule), arrays)

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row, memory, rows[row, SIZE])
            loop(each[:arrays], each[arrays:], to_fixed_tuple(hyper[row], taken))
        count(written)
        return True

    verify()
    return compiled(kernel, types.boolean(*TABLES, numbers(dtype), types.int64))


TABLES = (types.Array(types.int64, 2, "C"),) * 3
"""The types of a table, of the intervals that are written to, and of the rows that a kernel is for."""


def numbers(dtype: Any) -> Any:
    """The type of the hyper-parameters of many arrays, a row each."""
    return types.Array(from_dtype(dtype), 2, "C")


@register_jitable
def count(written: Any) -> None:
    """Count a call as done, where no signal can come between the doing and the counting."""
    calls = written.shape[0] - COUNTERS
    written[calls, 0] += 1
    if written[calls, 0] == written[calls, 1]:
        written[calls, 0] = 0
        written[calls + 1, 0] += 1


def vector(dtype: Any, readonly: bool = False) -> Any:
    """The type of a contiguous array in compiled code."""
    return types.Array(from_dtype(dtype), 1, "C", readonly=readonly)


@register_jitable
def disjoint(spans: Any, written: Any) -> Any:
    """Whether none of the first `written` intervals [spans[0], spans[1]), ... has a byte in common with another."""
    for i in range(0, 2 * written, 2):
        for j in range(i + 2, len(spans), 2):
            if spans[i] < spans[j + 1] and spans[j] < spans[i + 1]:
                return False
    return True


ENDS = types.Array(types.int64, 1, "C")

LINE = 16
"""Elements of float32 in a cache line of 64 bytes: parts begin so many apart, so that threads share few lines."""


def make_parallel_kernel(rule: Rule, dtype: np.dtype[Any]) -> Callable[..., bool]:
    """The function ``kernel((param, *state), grad, hyper, threads)``, else like that of the serial kernel."""
    written = 1 + len(rule.state)
    loop, cut = make_loop(make_advance(rule), written), make_cut(written)

    def kernel(arrays: Any, grad: Any, hyper: Any, threads: Any) -> Any:
        if not disjoint(memory_spans((*arrays, grad)), written):
            return False
        for thread in prange(threads):
            first, last = share(grad.size, thread, threads), share(grad.size, thread + 1, threads)
            loop(cut(arrays, first, last), (grad[first:last],), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype)] * written)
    grad = vector(dtype, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtype)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper, types.int64), parallel=True)


def make_parallel_many_kernel(rule: Rule, dtype: np.dtype[Any]) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, ends, threads, grads)``.

    Like that of the serial kernel, but for `ends`: the elements of all rows up to the last of each.
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    views = make_views([vector(dtype)] * (arrays + 1))
    memory = OBJECTS + arrays
    loop, cut = make_loop(make_advance(rule), arrays), make_cut(arrays)

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, ends: Any, threads: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
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
    given = (*TABLES, numbers(dtype), ENDS, types.int64, types.int64)
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
