"""Compile CPU kernels for one parameter and for many parameters in one call, each serial and for several threads.

A kernel is the rule's scalar function inlined into a loop over all elements. It releases Python's global lock (GIL).
Threads share elements, not arrays, so that one large array among many small ones keeps all threads busy. Elements do
not depend on each other, so parallel and serial kernels give the same bits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.core.errors import NumbaError
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype

from fastmomentum.backends import cpu
from fastmomentum.backends.base import COUNTERS
from fastmomentum.backends.cpu.headers import (
    OBJECTS,
    SIZE,
    arrays_unchanged,
    check_header_layout,
    make_views,
    memory_spans,
)
from fastmomentum.backends.cpu.kernel_cache import kept_on_disk
from fastmomentum.backends.cpu.loops import make_advance, make_cut, make_loop, make_numbers
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.elementwise import MASK

STRICT: dict[str, str | bool] = {"error_model": "numpy", "nogil": True, "fastmath": False}
"""Compile options of every function that is compiled inside of other compiled code.

All are given, since Numba takes an option that is left out from the function that calls it.
"""

TABLES = (types.Array(types.int64, 2, "C"),) * 3
"""The Numba types of the arguments table, written and rows."""

ENDS = types.Array(types.int64, 1, "C")
"""The Numba type of the arguments ends and shares."""

CACHE_LINE = 16
"""The number of float32 elements in a cache line of 64 bytes.

Each thread begins at a multiple of this number, so that few cache lines are written by two threads.
"""


def kernel(rule: Rule, dtype: np.dtype, parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper)`` for one parameter whose arrays all have this dtype.

    If `parallel`, the kernel also takes the number of threads, last. If two of the arrays share memory, it writes
    nothing and returns False.
    """
    make = make_parallel_kernel if parallel else make_kernel
    return cached_kernel(("one", parallel, rule.structure, dtype), lambda: make(rule, dtype))


def many_kernel(rule: Rule, dtype: np.dtype, parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, grads)`` for many parameters whose arrays all have this dtype.

    If `parallel`, the kernel takes `ends` and the number of threads before `grads`.
    """
    make = make_parallel_many_kernel if parallel else make_many_kernel
    return cached_kernel(("many", parallel, rule.structure, dtype), lambda: make(rule, dtype))


def compiled(function: Function, signature: Any, parallel: bool = False, nogil: bool = True) -> Function:
    """Return `function` compiled for this signature and no other; with `parallel`, `prange` runs on several threads.

    With `nogil` it releases Python's global lock. Its machine code is taken from the folder of
    :func:`~fastmomentum.backends.cpu.kernel_cache.set_cache`, if one is set.

    Raises
    ------
    TypeError
        If Numba cannot compile the function.
    RuntimeError
        If Numba's compiler is switched off.
    """
    # No fastmath: contraction to FMA changes 3.3 % of the elements and saves no time. error_model="numpy": by default a
    # division by zero raises in the middle of an array, when its first part is updated. No cache=True: closures miss
    # Numba's own disk cache, and may be given each other's code (numba#6264, #6845).
    cpu.require()
    dispatcher = kept_on_disk(njit(nogil=nogil, error_model="numpy", parallel=parallel)(function))
    try:
        dispatcher.compile(signature)
    except NumbaError as error:
        raise TypeError(
            "the rule cannot be compiled; decorate every function that it calls with numba.extending.register_jitable. "
            f"Numba says: {error}"
        ) from error
    dispatcher.disable_compile()
    kernel: Function = dispatcher
    return kernel


def make_kernel(rule: Rule, dtype: np.dtype) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper)``, for contiguous 1-D arrays of one length.

    If two of the arrays share memory, the kernel writes nothing and returns False.
    """
    outputs = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), outputs)

    def kernel(arrays: Any, grad: Any, hyper: Any) -> Any:
        if not disjoint(memory_spans((*arrays, grad)), outputs):
            return False
        loop(arrays, (grad,), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype)] * outputs)
    grad = vector(dtype, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtype)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper))


def make_many_kernel(rule: Rule, dtype: np.dtype) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, grads)``, which updates many parameters.

    First, :func:`~fastmomentum.backends.cpu.headers.arrays_unchanged` checks all arrays of `table`, and the list of
    gradients whose address is `grads`. If it returns False, the kernel writes nothing and returns False. `rows` are the
    rows of the table that this kernel updates; row i of `hyper` belongs to row i of `rows`. `written` holds the
    intervals of memory that are written, and after them the counters (:func:`count_call`).
    """
    arrays, numbers = 1 + len(rule.state), make_numbers(len(rule.hyper))
    views = make_views(table_kinds(rule, dtype))
    memory = OBJECTS + arrays
    loop = make_loop(make_advance(rule), arrays, 1 + len(rule.given))

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row, memory, rows[row, SIZE])
            loop(each[:arrays], each[arrays:], numbers(hyper[row]))
        count_call(written)
        return True

    check_header_layout()
    return compiled(kernel, types.boolean(*TABLES, hyper_type(dtype), types.int64))


def make_parallel_kernel(rule: Rule, dtype: np.dtype) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper, threads)``: :func:`make_kernel` over several threads."""
    outputs = 1 + len(rule.state)
    loop, cut = make_loop(make_advance(rule), outputs), make_cut(outputs)

    def kernel(arrays: Any, grad: Any, hyper: Any, threads: Any) -> Any:
        if not disjoint(memory_spans((*arrays, grad)), outputs):
            return False
        for thread in prange(threads):
            first, last = thread_start(grad.size, thread, threads), thread_start(grad.size, thread + 1, threads)
            loop(cut(arrays, first, last), (grad[first:last],), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype)] * outputs)
    grad = vector(dtype, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtype)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper, types.int64), parallel=True)


def make_parallel_many_kernel(rule: Rule, dtype: np.dtype) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, ends, threads, grads)``: :func:`make_many_kernel` over threads.

    ``ends[i]`` is the number of elements in the rows 0 to i.
    """
    arrays, numbers = 1 + len(rule.state), make_numbers(len(rule.hyper))
    views = make_views(table_kinds(rule, dtype))
    memory = OBJECTS + arrays
    data = 1 + len(rule.given)
    loop, cut, cut_data = make_loop(make_advance(rule), arrays, data), make_cut(arrays), make_cut(data)

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, ends: Any, threads: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        for thread in prange(threads):
            first, last = thread_start(ends[-1], thread, threads), thread_start(ends[-1], thread + 1, threads)
            row = find_row(ends, first)
            while first < last:
                size = rows[row, SIZE]
                start = first - (ends[row] - size)
                stop = min(size, start + last - first)
                each = views(rows, row, memory, size)
                loop(
                    cut(each[:arrays], start, stop),
                    cut_data(each[arrays:], start, stop),
                    numbers(hyper[row]),
                )
                first += stop - start
                row += 1
        count_call(written)
        return True

    check_header_layout()
    given = (*TABLES, hyper_type(dtype), ENDS, types.int64, types.int64)
    return compiled(kernel, types.boolean(*given), parallel=True)


def vector(dtype: np.dtype, readonly: bool = False) -> types.Array:
    """Return the Numba type of a contiguous 1-D array."""
    return types.Array(from_dtype(dtype), 1, "C", readonly=readonly)


def table_kinds(rule: Rule, dtype: np.dtype) -> list[types.Array]:
    """Return the Numba types of the arrays in a row of the table: p, the state, g, and the rule's given arrays."""
    given = [vector(np.dtype(np.int8) if name == MASK else dtype) for name in rule.given]
    return [vector(dtype)] * (2 + len(rule.state)) + given


def hyper_type(dtype: np.dtype) -> types.Array:
    """Return the Numba type of the hyper-parameters of many parameters, one row for each."""
    return types.Array(from_dtype(dtype), 2, "C")


@register_jitable
def disjoint(spans: Any, count: Any) -> Any:
    """Return whether none of the first `count` intervals [spans[0], spans[1]), ... overlaps any other interval."""
    for i in range(0, 2 * count, 2):
        for j in range(i + 2, len(spans), 2):
            if spans[i] < spans[j + 1] and spans[j] < spans[i + 1]:
                return False
    return True


@register_jitable
def count_call(written: Any) -> None:
    """Count a call of a kernel as done, and a step as done after its last call.

    Counting is part of the compiled call, so no signal can come between an update and its count.
    """
    calls = written.shape[0] - COUNTERS
    written[calls, 0] += 1
    if written[calls, 0] == written[calls, 1]:
        written[calls, 0] = 0
        written[calls + 1, 0] += 1


@register_jitable
def thread_start(size: Any, thread: Any, threads: Any) -> Any:
    """Return the first element of this thread's share; `size` if `thread` equals `threads`."""
    return size if thread == threads else size * thread // threads // CACHE_LINE * CACHE_LINE


@register_jitable
def find_row(ends: Any, element: Any) -> Any:
    """Return the row that this element belongs to; ``ends[i]`` is the number of elements in the rows 0 to i."""
    low, high = 0, ends.size
    while low < high:
        middle = (low + high) // 2
        if ends[middle] > element:
            high = middle
        else:
            low = middle + 1
    return low
