"""Make the parts of all compiled CPU updates: a loop over elements, and loads and stores of tuples of arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule

FLOATS = (types.float32, types.float64)
NUMBERS = (types.Integer, types.Float, types.Boolean)


def inlined(function: Function) -> Function:
    """Return `function` in a form that compiled code can call, and that LLVM inlines if it is small.

    An njit function is compiled anew, with the strict arithmetic of its caller instead of its own options.
    """
    inlinable: Function = register_jitable(getattr(function, "py_func", function))
    return inlinable


def make_advance(rule: Rule) -> Function:
    """Return the update of one element whose gradient is stored in an array.

    advance((p, *state), (g,), hyper) -> (p, *state)
    """
    update = rule.build(register_jitable)
    return inlined(lambda now, data, hyper: update(*now, data[0], *hyper))


def make_descent(rule: Rule, gradient: Function) -> Function:
    """Return the update of one element whose gradient is computed as ``gradient(p, *data)``.

    advance((p, *state), data, hyper) -> (p, *state)
    """
    update, slope = rule.build(register_jitable), inlined(gradient)
    return inlined(lambda now, data, hyper: update(*now, as_like(slope(now[0], *data), now[0]), *hyper))


def make_loop(advance: Function, arrays: int, data: int = 1) -> Function:
    """Return ``loop(arrays, data, hyper)``, which applies `advance` to all elements.

    `arrays` is the number of arrays that are written, `data` the number of those that are only read.
    """
    load, store, load_data = make_load(arrays), make_store(arrays), make_load(data)

    def loop(arrays: Any, data: Any, hyper: Any) -> None:
        for i in range(arrays[0].size):  # with bounds, range(a, b) is not vectorised (measured: 5.7 times as slow)
            store(arrays, i, advance(load(arrays, i), load_data(data, i), hyper))

    return inlined(loop)


def as_like(value: Any, like: Any) -> Any:
    """Return `value` in the dtype of `like`, a number or an array."""
    return np.result_type(like).type(value)


@overload(as_like)
def _as_like(value: Any, like: Any) -> Callable[..., Any]:
    kind = getattr(like, "dtype", like)
    if not isinstance(value, NUMBERS):
        raise TypingError(f"expected a number; got {value}")

    def cast(value: Any, like: Any) -> Any:  # Numba requires the annotations of _as_like
        return kind(value)

    return cast


# The functions below recurse over the length of a tuple of arrays, which is resolved at compile time. A loop over the
# tuple would be run for every element.


def make_load(arrays: int) -> Function:
    """Return ``load(arrays, i)``: a tuple of element i of each of `arrays` arrays."""
    if arrays < 2:  # every additional function takes 1/20 s to compile
        return inlined((lambda arrays, i: (arrays[0][i],)) if arrays else lambda arrays, i: ())
    rest = make_load(arrays - 1)
    return inlined(lambda arrays, i: (arrays[0][i], *rest(arrays[1:], i)))


def make_store(arrays: int) -> Function:
    """Return ``store(arrays, i, values)``, which writes one value to element i of each of `arrays` arrays."""
    if arrays == 1:

        def store_last(arrays: Any, i: Any, values: Any) -> None:
            arrays[0][i] = values[0]

        return inlined(store_last)
    rest = make_store(arrays - 1)

    def store(arrays: Any, i: Any, values: Any) -> None:
        arrays[0][i] = values[0]
        rest(arrays[1:], i, values[1:])

    return inlined(store)


def make_cut(arrays: int) -> Function:
    """Return ``cut(arrays, first, last)``: a tuple of the slice [first, last) of each of `arrays` arrays."""
    if arrays == 0:
        return inlined(lambda arrays, first, last: ())
    rest = make_cut(arrays - 1)
    return inlined(lambda arrays, first, last: (arrays[0][first:last], *rest(arrays[1:], first, last)))


def make_cast(numbers: int) -> Function:
    """Return ``cast(numbers, like)``: a tuple of `numbers` numbers in the dtype of `like`, an array or a number."""
    if numbers == 0:
        return inlined(lambda numbers, like: ())
    rest = make_cast(numbers - 1)
    return inlined(lambda numbers, like: (as_like(numbers[0], like), *rest(numbers[1:], like)))
