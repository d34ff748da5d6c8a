"""Numba kernels: one array, and many arrays in one call; serial, and free of Python's global lock.

A kernel is the rule's own scalar function, inlined into a loop over all elements. Those that share one loop among
threads are in :mod:`fastmomentum.backends.parallel`.
"""

from collections.abc import Callable
from typing import Any

from numba import config, njit, types
from numba.core.errors import NumbaError
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.backends.headers import make_views, spans, unchanged
from fastmomentum.backends.layout import COUNTERS, OBJECTS, SIZE, verify
from fastmomentum.backends.loops import make_advance, make_loop
from fastmomentum.records import Update


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


def make_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel((param, *state), grad, hyper)``, for 1-D contiguous arrays of one length.

    It looks for shared memory first; where it finds any, nothing is written and False comes back.
    """
    written = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), written)

    def kernel(arrays: Any, grad: Any, hyper: Any) -> Any:
        if not apart(spans((*arrays, grad)), written):
            return False
        loop(arrays, (grad,), hyper)
        return True

    arrays = types.BaseTuple.from_types([vector(dtype) for dtype in (dtypes.param, *dtypes.state)])
    grad = vector(dtypes.grad, readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtypes.param)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper))


def make_many_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, grads)``: one update, if nothing has changed.

    `table` is what :func:`fastmomentum.backends.headers.unchanged` looks through first, with the list whose address is
    `grads`; where it answers no, nothing is written and False comes back. `rows` are those of its rows that this kernel
    updates, each with the row of `hyper` at the same place. Behind `written` it counts (:func:`count`).
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    views = make_views([vector(dtype) for dtype in (dtypes.param, *dtypes.state, dtypes.grad)])
    memory = OBJECTS + arrays
    loop = make_loop(make_advance(rule), arrays)

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, grads: Any) -> Any:
        if not unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row, memory, rows[row, SIZE])
            loop(each[:arrays], each[arrays:], to_fixed_tuple(hyper[row], taken))
        count(written)
        return True

    verify()
    return compiled(kernel, types.boolean(*TABLES, numbers(dtypes.param), types.int64))


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
def apart(spans: Any, written: Any) -> Any:
    """Whether none of the first `written` intervals [spans[0], spans[1]), ... has a byte in common with another."""
    for i in range(0, 2 * written, 2):
        for j in range(i + 2, len(spans), 2):
            if spans[i] < spans[j + 1] and spans[j] < spans[i + 1]:
                return False
    return True
