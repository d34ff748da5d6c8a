"""Make the parts of all compiled CPU updates: a loop over elements, and loads and stores of tuples of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload, register_jitable

from fastmomentum.rules.assemble import Function, define
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import relax, select
from fastmomentum.rules.symbolic import FUNCTIONS, WHERE, formula, operations_text

FLOATS = (types.float32, types.float64)
NUMBERS = (types.Integer, types.Float, types.Boolean)


def inlined(function: Function) -> Function:
    """Return `function` in a form that compiled code can call, and that LLVM inlines if it is small.

    An njit function is compiled anew, with the strict arithmetic of its caller instead of its own options.
    """
    inlinable: Function = register_jitable(getattr(function, "py_func", function))
    return inlinable


@intrinsic
def select_one(typing_context: Any, mask: Any, new: Any, old: Any) -> Any:
    """Return `new` if the mask of an element is −1, and `old` if it is 0, both an int8."""
    # Written as (new & mask) | (old & ~mask) on the bits: of a comparison LLVM makes a masked store, which is slow on
    # AMD's processors (measured for pytorch in float32, in the caches: 1.06 ns an element; so 0.41, without mask 0.35).

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(new.bitwidth)
        bits = builder.sext(arguments[0], word)
        first, second = [builder.bitcast(value, word) for value in arguments[1:]]
        chosen = builder.or_(builder.and_(first, bits), builder.and_(second, builder.not_(bits)))
        return builder.bitcast(chosen, arguments[1].type)

    return new(mask, new, new), codegen


def relax_one(factor: Any, scale: Any) -> Any:
    """Return 1 − s·(1 − f) in the dtype of the factor f."""
    one = as_like(1.0, factor)
    return one - scale * (one - factor)


@intrinsic
def where_one(typing_context: Any, condition: Any, chosen: Any, other: Any) -> Any:
    """Return `chosen` if the condition holds, else `other`: Numba's numpy.where returns an array even for scalars."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return chosen(types.boolean, chosen, chosen), codegen


def sign_one(value: Any) -> Any:
    """Return the sign as NumPy has it: 1, −1, +0 for ±0, and NaN for NaN."""
    one = as_like(1.0, value)
    return where_one(value > as_like(0.0, value), one, where_one(value < as_like(0.0, value), -one, value - value))


OPERATIONS: dict[str, Function] = {
    **{name: function for function, name in FUNCTIONS.items()},
    "sign": register_jitable(sign_one),
    WHERE: where_one,
}
"""The compiled functions for the operations of rules that are no operators."""

COMPILED: dict[Function, Function] = {select: select_one, relax: register_jitable(relax_one)}
"""The compiled forms of functions that work on whole arrays: Numba's numpy.where returns an array even for scalars."""


def compiled_part(function: Function, count: int = 0) -> Function:
    """Return a part of a rule, a function of `count` scalars, in a form that compiled code can call.

    A function that calls numpy.where or numpy.sign is written anew, operation by operation: for scalars Numba's where
    returns arrays, and its sign has other bits than NumPy's.
    """
    if function in COMPILED:
        return COMPILED[function]
    if count and {WHERE, "sign"} & {operation for operation, *_ in formula(function, count)[:-1]}:
        text = operations_text("operations", function, count)
        function = define("operations", text, OPERATIONS)
    found: Function = register_jitable(function)
    return found


def make_advance(rule: Rule) -> Function:
    """Return ``advance(p, *state, g, *given, *hyper) -> (p, *state)``, the update of one element."""
    return inlined(rule.build(compiled_part))


def make_descent(rule: Rule, gradient: Function, data: int) -> Function:
    """Return ``advance(p, *state, *data, *hyper)``, the update of one element by the gradient ``gradient(p, *data)``.

    `data` is the number of values that the gradient takes beside p.
    """
    values, given = _names("value", 1 + len(rule.state)), _names("data", data)
    statement = f"return update({values}as_like(slope(value_0, {given}), value_0), *hyper)"
    functions = {"update": make_advance(rule), "slope": inlined(gradient), "as_like": as_like}
    return make_function("advance", f"{values}{given}*hyper", [statement], **functions)


def make_two_steps(advance: Function, arrays: int, data: int) -> Function:
    """Return ``advance(p, *state, *data, *hyper)``, which does two updates of one element."""
    values = _names("value", arrays)
    call = f"advance({values}{_names('data', data)}*hyper)"
    statements = [f"({values}) = {call}", f"return {call}"]
    return make_function("two_steps", f"{values}{_names('data', data)}*hyper", statements, advance=advance)


def _names(name: str, count: int) -> str:
    """Return the text of `count` names, each with a comma after it."""
    return "".join(f"{name}_{k}, " for k in range(count))


def make_loop(advance: Function, arrays: int, data: int = 1) -> Function:
    """Return ``loop(arrays, data, hyper)``, which applies ``advance(p, *state, *data, *hyper)`` to all elements.

    `arrays` is the number of arrays that are written, `data` the number of those that are only read.
    """
    values, given = _elements("arrays", arrays, "i"), _elements("data", data, "i")
    text = f"""def loop(arrays, data, hyper):
    for i in range(arrays[0].size):  # with bounds, range(a, b) is not vectorised (measured: 5.7 times as slow)
        ({values}) = advance({values}{given}*hyper)
"""
    return inlined(define("loop", text, {"advance": advance}))


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


# The functions below, and the loop above, are defined by text in which every array of a tuple has an expression of its
# own. A loop over the tuple would run for every element, and a recursion over it takes Numba 1/10 to 1/4 s a level.


def make_load(arrays: int) -> Function:
    """Return ``load(arrays, i)``: a tuple of element i of each of `arrays` arrays."""
    return make_function("load", "arrays, i", [f"return ({_elements('arrays', arrays, 'i')})"])


def make_store(arrays: int) -> Function:
    """Return ``store(arrays, i, values)``, which writes one value to element i of each of `arrays` arrays."""
    return make_function("store", "arrays, i, values", [f"({_elements('arrays', arrays, 'i')}) = values"])


def make_cut(arrays: int) -> Function:
    """Return ``cut(arrays, first, last)``: a tuple of the slice [first, last) of each of `arrays` arrays."""
    return make_function("cut", "arrays, first, last", [f"return ({_elements('arrays', arrays, 'first:last')})"])


def make_cast(numbers: int) -> Function:
    """Return ``cast(numbers, like)``: a tuple of `numbers` numbers in the dtype of `like`, an array or a number."""
    casts = "".join(f"as_like(numbers[{k}], like), " for k in range(numbers))
    return make_function("cast", "numbers, like", [f"return ({casts})"], as_like=as_like)


def make_numbers(count: int) -> Function:
    """Return ``numbers(row)``: a tuple of the first `count` elements of an array of one dimension.

    Unlike Numba's to_fixed_tuple it makes Numba raise and keep no exception, whose traceback would keep the frames of
    all callers, and the optimiser in them, until Python's garbage collector runs.
    """
    return make_function("numbers", "row", [f"return ({''.join(f'row[{k}], ' for k in range(count))})"])


def _elements(name: str, arrays: int, index: str) -> str:
    """Return the text of the elements, or slices, with this index of each array of the tuple `name`, with commas."""
    return "".join(f"{name}[{k}][{index}], " for k in range(arrays))


def make_function(name: str, arguments: str, statements: Sequence[str], **functions: Function) -> Function:
    """Return a function of these arguments that runs these statements, in a form that compiled code can call.

    The statements may call `functions` by name.
    """
    text = "\n    ".join([f"def {name}({arguments}):", *(statements or ["pass"])])
    return inlined(define(name, text, functions))
