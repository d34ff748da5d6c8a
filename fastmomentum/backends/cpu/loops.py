"""Loops over arrays, with what loads and stores tuples of them: all compiled updates on the CPU are made of these."""

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


def make_advance(rule: Rule) -> Any:
    """``advance((p, *state), (g,), hyper) -> (p, *state)``: one coordinate, whose gradient lies in an array."""
    update = rule.build(register_jitable)
    return register_jitable(lambda now, data, hyper: update(*now, data[0], *hyper))


def make_descent(rule: Rule, gradient: Function) -> Any:
    """``advance((p, *state), data, hyper) -> (p, *state)``: one coordinate, its gradient from p and `data`."""
    update, slope = rule.build(register_jitable), inlined(gradient)
    return register_jitable(lambda now, data, hyper: update(*now, as_like(slope(now[0], *data), now[0]), *hyper))


def make_loop(advance: Any, arrays: int, data: int = 1) -> Any:
    """``loop(arrays, data, hyper)``: all coordinates of so many arrays that are written, and so many that are read.

    `range(size)` without bounds, or it is not vectorised (measured: 5.7 times).
    """
    load, store, load_data = make_load(arrays), make_store(arrays), make_load(data)

    def loop(arrays: Any, data: Any, hyper: Any) -> None:
        for i in range(arrays[0].size):
            store(arrays, i, advance(load(arrays, i), load_data(data, i), hyper))

    return register_jitable(loop)


def inlined(function: Function) -> Any:
    """`function`, so that compiled code may call it, anew and as strict as its caller; LLVM inlines what is small."""
    return register_jitable(getattr(function, "py_func", function))


def as_like(value: Any, like: Any) -> Any:
    """`value` in the dtype of a number or an array."""
    return np.result_type(like).type(value)


@overload(as_like)
def _as_like(value: Any, like: Any) -> Callable[..., Any]:
    kind = getattr(like, "dtype", like)
    if not isinstance(value, NUMBERS):
        raise TypingError(f"expected a number; got {value}")

    def cast(value: Any, like: Any) -> Any:  # Numba compares the annotations, too
        return kind(value)

    return cast


# Tuples of arrays are taken apart by recursion over their length, which ends at compile time: a loop over a tuple
# would stay in the code of every element.


def make_load(arrays: int) -> Any:
    """``load(arrays, i)``: the element at i of each of so many arrays."""
    if arrays < 2:  # each further function costs a twentieth of a second of compiling
        return register_jitable((lambda arrays, i: (arrays[0][i],)) if arrays else lambda arrays, i: ())
    rest = make_load(arrays - 1)
    return register_jitable(lambda arrays, i: (arrays[0][i], *rest(arrays[1:], i)))


def make_store(arrays: int) -> Any:
    """``store(arrays, i, values)``: a value each to the element at i of so many arrays."""
    if arrays == 1:

        def store_last(arrays: Any, i: Any, values: Any) -> None:
            arrays[0][i] = values[0]

        return register_jitable(store_last)
    rest = make_store(arrays - 1)

    def store(arrays: Any, i: Any, values: Any) -> None:
        arrays[0][i] = values[0]
        rest(arrays[1:], i, values[1:])

    return register_jitable(store)


def make_cut(arrays: int) -> Any:
    """``cut(arrays, first, last)``: the same part of each of so many arrays."""
    if arrays == 0:
        return register_jitable(lambda arrays, first, last: ())
    rest = make_cut(arrays - 1)
    return register_jitable(lambda arrays, first, last: (arrays[0][first:last], *rest(arrays[1:], first, last)))


def make_cast(numbers: int) -> Any:
    """``cast(numbers, like)``: so many numbers in the dtype of an array or of another number."""
    if numbers == 0:
        return register_jitable(lambda numbers, like: ())
    rest = make_cast(numbers - 1)
    return register_jitable(lambda numbers, like: (as_like(numbers[0], like), *rest(numbers[1:], like)))
