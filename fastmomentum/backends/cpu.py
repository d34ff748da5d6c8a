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
from fastmomentum.backends.headers import address, pointer, unchanged
from fastmomentum.backends.layout import OBJECTS, SIZE
from fastmomentum.records import Update


def compiled(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """`function` compiled for this signature and no other.

    Strict IEEE arithmetic (no fastmath: contraction to FMA changes 3.3 % of the elements and saves nothing), division
    by zero as in NumPy (the default raises in mid-array), and no disk cache (numba#6264, #6845: closures miss it, and
    can be given each other's code).
    """
    dispatcher = njit(signature, nogil=True, error_model="numpy")(function)
    dispatcher.disable_compile()
    kernel: Callable[..., Any] = dispatcher
    return kernel


def make_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel((param, *state), grad, hyper)``, for 1-D contiguous arrays of one length.

    It looks for shared memory first; where it finds any, nothing is written and False comes back.
    """
    loop, bounds = register_jitable(_make_loop(rule)), _make_bounds(2 + len(rule.state))

    def kernel(arrays: Any, grad: Any, hyper: Any) -> Any:
        if not _apart(bounds((*arrays, grad))):
            return False
        loop(arrays, grad, hyper)
        return True

    arrays = types.BaseTuple.from_types([types.Array(from_dtype(d), 1, "C") for d in (dtypes.param, *dtypes.state)])
    grad = types.Array(from_dtype(dtypes.grad), 1, "C", readonly=True)
    hyper = types.BaseTuple.from_types([from_dtype(dtypes.param)] * len(rule.hyper))
    return compiled(kernel, types.boolean(arrays, grad, hyper))


def make_many_kernel(rule: Update, dtypes: Dtypes) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper)``: one update of all `rows`, if nothing has changed.

    `table` is what :func:`fastmomentum.backends.headers.unchanged` looks through first; where it answers no, nothing
    is written and False comes back. `rows` are those of its rows that this kernel updates, each with the row of
    `hyper` at the same place.
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    views = _make_views((dtypes.param, *dtypes.state, dtypes.grad), OBJECTS + arrays + 1)
    loop = register_jitable(_make_loop(rule))

    def kernel(table: Any, written: Any, rows: Any, hyper: Any) -> Any:
        if not unchanged(table, written, arrays):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row)
            loop(each[:arrays], each[arrays], to_fixed_tuple(hyper[row], taken))
        return True

    integers = types.Array(types.int64, 2, "C")
    return compiled(kernel, types.boolean(integers, integers, integers, types.Array(from_dtype(dtypes.param), 2, "C")))


def _make_loop(rule: Update) -> Any:
    """The loop over all elements; `range(grad.size)` without bounds, or it is not vectorised (measured: 5.7 times)."""
    update = rule.build(register_jitable)
    load, store = _make_load(1 + len(rule.state)), _make_store(1 + len(rule.state))

    def loop(arrays: Any, grad: Any, hyper: Any) -> None:
        for i in range(grad.size):
            store(arrays, i, update(*load(arrays, i), grad[i], *hyper))

    return loop


# Tuples of arrays are taken apart by recursion over their length, which ends at compile time: a loop over a tuple
# would stay in the code of every element.


def _make_load(arrays: int) -> Any:
    if arrays == 1:
        return register_jitable(lambda arrays, i: (arrays[0][i],))
    rest = _make_load(arrays - 1)
    return register_jitable(lambda arrays, i: (arrays[0][i], *rest(arrays[1:], i)))


def _make_store(arrays: int) -> Any:
    if arrays == 1:

        def store_last(arrays: Any, i: Any, values: Any) -> None:
            arrays[0][i] = values[0]

        return register_jitable(store_last)
    rest = _make_store(arrays - 1)

    def store(arrays: Any, i: Any, values: Any) -> None:
        arrays[0][i] = values[0]
        rest(arrays[1:], i, values[1:])

    return register_jitable(store)


@register_jitable
def _bounds_of(array: Any) -> Any:
    return address(array), address(array) + array.nbytes


def _make_bounds(arrays: int) -> Any:
    """A function that gives where the memory of each of so many arrays begins and ends."""
    if arrays == 1:
        return register_jitable(lambda arrays: _bounds_of(arrays[0]))
    rest = _make_bounds(arrays - 1)

    def bounds(arrays: Any) -> Any:
        return (*_bounds_of(arrays[0]), *rest(arrays[1:]))

    return register_jitable(bounds)


@register_jitable
def _apart(bounds: Any) -> Any:
    """Whether no two of the intervals [bounds[0], bounds[1]), [bounds[2], bounds[3]), ... have a byte in common."""
    for i in range(0, len(bounds), 2):
        for j in range(0, i, 2):
            if max(bounds[i], bounds[j]) < min(bounds[i + 1], bounds[j + 1]):
                return False
    return True


def _make_views(dtypes: tuple[Any, ...], column: int) -> Any:
    """A function that makes arrays of the addresses in a row of the table, from this column on."""
    dtype = dtypes[0]

    def view(table: Any, row: Any) -> Any:
        return (carray(pointer(table[row, column]), table[row, SIZE], dtype),)

    first = register_jitable(view)
    if len(dtypes) == 1:
        return first
    rest = _make_views(dtypes[1:], column + 1)
    return register_jitable(lambda table, row: first(table, row) + rest(table, row))
