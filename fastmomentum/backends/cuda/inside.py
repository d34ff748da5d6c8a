"""Device functions for other people's kernels, as LLVM code: a rule of scalars, and of one element of arrays.

An intrinsic takes no ``*arguments``, so its signature is given to it: one argument a name.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from numba.cuda import types
from numba.cuda.core.errors import TypingError
from numba.cuda.extending import intrinsic

from fastmomentum.backends.cuda.operations import emit
from fastmomentum.records import Update
from fastmomentum.trace import trace

FLOATS = (types.float32, types.float64)


def make_scalar(rule: Update) -> Any:
    """``scalar(p, *state, g, *hyper) -> (p, *state)``, all in the dtype of p."""
    names, results = _names(rule), _results(rule)

    def scalar(typing_context: Any, *given: Any) -> Any:
        if given[0] not in FLOATS:
            raise TypingError(f"p: expected float32 or float64; got {given[0]}")

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = _cast(context, builder, arguments, given, given[0])
            found = emit(builder, results, dict(zip(names, numbers)))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(given[0], len(results))(*given), codegen

    return _of_names(scalar, names)


def make_element(rule: Update) -> Any:
    """``element(i, p, *state, g, *hyper)``: the update of element i of arrays, all in the dtype of p."""
    names, results = _names(rule), _results(rule)
    arrays = len(results) + 1

    def element(typing_context: Any, i: Any, *given: Any) -> Any:
        for name, each in zip(names[:arrays], given):
            if not isinstance(each, types.Array) or (each.ndim, each.layout) != (1, "C") or each.dtype not in FLOATS:
                raise TypingError(f"{name}: expected a C-contiguous array of float32 or float64; got {each}")
        kind = given[0].dtype

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = context.cast(builder, arguments[0], i, types.int64)
            data = [context.make_array(t)(context, builder, a).data for t, a in zip(given, arguments[1 : 1 + arrays])]
            places = [builder.gep(start, [place]) for start in data]
            elements = [builder.load(each) for each in places]
            of = [array.dtype for array in given[:arrays]]
            numbers = _cast(context, builder, [*elements, *arguments[1 + arrays :]], [*of, *given[arrays:]], kind)
            for value, each in zip(emit(builder, results, dict(zip(names, numbers))), places):
                builder.store(value, each)
            return context.get_dummy_value()

        return types.void(i, *given), codegen

    return _of_names(element, ["i", *names])


def _names(rule: Update) -> list[str]:
    return ["p", *rule.slots, "g", *(f"hyper_{i}" for i in range(len(rule.hyper)))]


def _results(rule: Update) -> Any:
    return trace(rule.build(), _names(rule), 1 + len(rule.state))


def _cast(context: Any, builder: Any, values: Sequence[Any], kinds: Sequence[Any], to: Any) -> list[Any]:
    return [context.cast(builder, value, kind, to) for value, kind in zip(values, kinds)]


def _of_names(typing: Callable[..., Any], names: Sequence[str]) -> Any:
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing_context", *names)]
    typing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(typing)
