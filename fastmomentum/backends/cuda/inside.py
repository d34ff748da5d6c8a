"""Device functions for other people's kernels, as LLVM code: a rule of scalars, and of one element of arrays.

An intrinsic takes no ``*arguments``, so its signature is given to it: one argument a name.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from numba.cuda import cgutils, types
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


def make_sweep(rule: Update) -> Any:
    """``sweep(start, stride, p, *state, g, *hyper)``: elements start, start + stride, … of arrays, updated."""
    names, results = _names(rule), _results(rule)
    arrays = len(results) + 1

    def sweep(typing_context: Any, start: Any, stride: Any, *given: Any) -> Any:
        check_arrays(names, given[:arrays])
        kind = given[0].dtype

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places = _cast(context, builder, arguments[:2], (start, stride), types.int64)
            held = [context.make_array(t)(context, builder, a) for t, a in zip(given[:arrays], arguments[2:])]
            hyper = _cast(context, builder, arguments[2 + arrays :], given[arrays:], kind)
            size = builder.extract_value(held[0].shape, 0)
            with cgutils.for_range_slice(builder, places[0], size, places[1]) as (i, _):
                here = [builder.gep(array.data, [i]) for array in held]
                loaded = [builder.load(each) for each in here]
                for value, each in zip(emit(builder, results, dict(zip(names, loaded + hyper))), here):
                    builder.store(value, each)
            return context.get_dummy_value()

        return types.void(start, stride, *given), codegen

    return _of_names(sweep, ["start", "stride", *names])


def check_arrays(names: Sequence[str], given: Sequence[Any]) -> None:
    """Refuse to compile for types of arrays that no update can take."""
    for name, each in zip(names, given):
        if not isinstance(each, types.Array) or (each.ndim, each.layout) != (1, "C"):
            raise TypingError(f"{name}: expected a C-contiguous array of one dimension; got {each}")
        if each.dtype not in FLOATS or each.dtype != given[0].dtype:
            raise TypingError(f"{name}: expected float32 or float64, and one dtype for all arrays; got {each}")
        if not each.mutable and name != "g":
            raise TypingError(f"{name}: expected a writeable array; got a read-only one")


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
