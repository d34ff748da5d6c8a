"""Numba kernels: one array, and many arrays in one call; serial, and free of Python's global lock.

A kernel is the rule's own scalar function, inlined into a loop over all elements.
"""

from collections.abc import Callable
from typing import Any

from numba import carray, njit, types
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.backends.headers import OBJECTS, SIZE, pointer, unchanged
from fastmomentum.records import Update


def compiled(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """`function` compiled for this signature and no other.

    Strict IEEE arithmetic (no fastmath: contraction to FMA changes 3.3 % of the elements and saves nothing), division
    by zero as in NumPy (the default raises in mid-array), and no disk cache (numba#6264, #6845: closures miss it, and
    can be given each other's code).
    """
    dispatcher = njit(signature, nogil=True, error_model="numpy")(function)
    dispatcher.disable_compile()
    return dispatcher  # type: ignore[no-any-return]


def make_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., None]:
    """The function ``kernel((param, *state), grad, hyper)``, for 1-D contiguous arrays of one length."""
    arrays = types.BaseTuple.from_types([types.Array(from_dtype(d), 1, "C") for d in (dtypes.param, *dtypes.state)])
    grad = types.Array(from_dtype(dtypes.grad), 1, "C", readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtypes.param)] * len(rule.hyper))
    return compiled(_make_loop(rule), types.void(arrays, grad, hyper))


def make_many_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper)``: one update of all `rows`, if nothing has changed.

    `table` is what :func:`fastmomentum.backends.headers.unchanged` looks through first; where it answers no, nothing
    is written and False comes back. `rows` are those of its rows that this kernel updates, each with the row of
    `hyper` at the same place.
    """
    loop, views = register_jitable(_make_loop(rule)), _make_views((dtypes.param, *dtypes.state, dtypes.grad))
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    memory = OBJECTS + arrays + 1

    def kernel(table: Any, written: Any, rows: Any, hyper: Any) -> Any:
        if not unchanged(table, written, arrays):
            return False
        for row in range(rows.shape[0]):
            each = views(rows[row, memory:], rows[row, SIZE])
            loop(each[:arrays], each[arrays], to_fixed_tuple(hyper[row], taken))
        return True

    integers = types.Array(types.int64, 2, "C")
    return compiled(
        kernel, types.boolean(integers, integers, integers, types.Array(from_dtype(dtypes.param), 2, "C"))
    )


def _make_loop(rule: Update) -> Callable[..., None]:
    """The loop over all elements; `range(grad.size)` without bounds, or it is not vectorised (measured: 5.7 times)."""
    update = rule.build(register_jitable)
    load, store = _make_load(1 + len(rule.state)), _make_store(1 + len(rule.state))

    def loop(arrays: Any, grad: Any, hyper: Any) -> None:
        for i in range(grad.size):
            store(arrays, i, update(*(load(arrays, i) + (grad[i],) + hyper)))

    return loop


# Tuples of arrays are taken apart by recursion over their length, which ends at compile time: a loop over a tuple
# would stay in the code of every element.


def _make_load(arrays: int) -> Callable[..., Any]:
    if arrays == 0:
        return register_jitable(lambda arrays, i: ())  # type: ignore[no-any-return]
    rest = _make_load(arrays - 1)
    return register_jitable(lambda arrays, i: (arrays[0][i], *rest(arrays[1:], i)))  # type: ignore[no-any-return]


def _make_store(arrays: int) -> Callable[..., Any]:
    if arrays == 0:
        return register_jitable(lambda arrays, i, values: None)  # type: ignore[no-any-return]
    rest = _make_store(arrays - 1)

    def store(arrays: Any, i: Any, values: Any) -> None:
        arrays[0][i] = values[0]
        rest(arrays[1:], i, values[1:])

    return register_jitable(store)  # type: ignore[no-any-return]


def _make_views(dtypes: tuple[Any, ...]) -> Callable[..., Any]:
    if not dtypes:
        return register_jitable(lambda addresses, size: ())  # type: ignore[no-any-return]
    dtype, rest = dtypes[0], _make_views(dtypes[1:])

    def views(addresses: Any, size: Any) -> Any:
        return (carray(pointer(addresses[0]), (size,), dtype), *rest(addresses[1:], size))

    return register_jitable(views)  # type: ignore[no-any-return]
