"""The vocabulary of rules in LLVM code, each operation rounded by itself.

NVVM contracts a·b + c to a fused multiply-add wherever it sees one, with no switch against it in numba-cuda, and 3 % of
the elements then differ from every other backend. The intrinsics that name their rounding (``llvm.nvvm.mul.rn``) are
left alone, also by what optimises at link time. They are put in by tracing the rule, not by rewriting its text: rules
made by a factory have none, and chains are closures.

Two things are not NumPy's: which NaN comes out of an operation (a GPU has one, x86 hands on the operand's), and which
of +0 and −0 minimum and maximum return, which is open on the CPU too.

Device functions as LLVM code: a rule's update of one element or of a vector, loads, stores, sums.

Device functions for other people's kernels, as LLVM code: a rule of scalars, and of one element of arrays.

An intrinsic takes no ``*arguments``, so its signature is given to it: one argument a name.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.core.errors import TypingError
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from fastmomentum.backends.cuda.scalars import DerivedScalar
from fastmomentum.rules.base import Rule
from fastmomentum.rules.symbolic import Symbol, evaluate


def _named(builder: Any, name: str, *operands: Any) -> Any:
    """A call of an intrinsic of LLVM on numbers of one type."""
    kind = operands[0].type
    name = f"llvm.{name}.{'f' if kind == ir.FloatType() else 'd'}"
    known = builder.module.globals.get(name)
    function = known or ir.Function(builder.module, ir.FunctionType(kind, [kind] * len(operands)), name)
    return builder.call(function, operands)


def _negative(builder: Any, a: Any) -> Any:
    return builder.fsub(ir.Constant(a.type, -0.0), a)  # NVVM for compute capability 9 and less knows no fneg


def _subtract(builder: Any, a: Any, b: Any) -> Any:
    return _named(builder, "nvvm.add.rn", a, _negative(builder, b))  # there is no sub.rn for double


def _first_where(comparison: str) -> Callable[..., Any]:
    """NumPy's minimum or maximum: a NaN in either operand comes out."""

    def select(builder: Any, a: Any, b: Any) -> Any:
        first = builder.or_(builder.fcmp_ordered(comparison, a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(first, a, b)

    return select


def _rounded(name: str) -> Callable[..., Any]:
    return lambda builder, *operands: _named(builder, f"nvvm.{name}.rn", *operands)


STRICT: dict[str, Callable[..., Any]] = {
    "+": _rounded("add"),
    "-": _subtract,
    "*": _rounded("mul"),
    "/": _rounded("div"),
    "sqrt": _rounded("sqrt"),
    "negative": _negative,
    "absolute": lambda builder, a: _named(builder, "nvvm.fabs", a),
    "minimum": _first_where("<"),
    "maximum": _first_where(">"),
}
"""What the vocabulary of rules is in LLVM, bit for bit as on the CPU."""

CONTRACTED = STRICT | {
    "+": lambda builder, a, b: builder.fadd(a, b),
    "-": lambda builder, a, b: builder.fsub(a, b),
    "*": lambda builder, a, b: builder.fmul(a, b),
}
"""The same with a·b + c rounded once, which benchmarks compare."""


def emit(builder: Any, symbols: tuple[Symbol, ...], leaves: dict[str, Any], operations: Any = None) -> list[Any]:
    """The values of these symbols, from those of the leaves; what two of them share is computed once."""
    made: dict[int, Any] = {}
    known = operations or STRICT

    def value(symbol: Symbol) -> Any:
        if id(symbol) not in made:
            operands = [value(operand) for operand in symbol.operands]
            made[id(symbol)] = known[symbol.operation](builder, *operands) if operands else leaf(symbol)
        return made[id(symbol)]

    def leaf(symbol: Symbol) -> Any:
        name = symbol.operation
        return leaves[name] if name in leaves else ir.Constant(ir.DoubleType(), float(name))  # a formula's number

    return [value(symbol) for symbol in symbols]


GLOBAL = 1  # the address space of device memory: without it, loads ask first which memory they are from
KINDS = {np.dtype(np.float32): (ir.FloatType(), "f"), np.dtype(np.float64): (ir.DoubleType(), "d")}
INT64 = ir.IntType(64)


def place(builder: Any, address: Any, kind: Any) -> Any:
    """The address, an integer, as a pointer into device memory."""
    return builder.inttoptr(address, kind.as_pointer(addrspace=GLOBAL))


def make_update(rule: Rule, dtype: np.dtype[Any], width: int, operations: Any = None) -> Any:
    """A device function ``update(addresses, i, values)``: elements i to i + width − 1 of all arrays, updated.

    `addresses` are those of p, *state and g, `values` the hyper-parameters. More than one element are loaded and
    stored as one vector, whose address must be a multiple of its size.
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    names = [str(i) for i in range(arrays + 1 + taken)]
    results = evaluate(rule.build(), names, arrays)
    kind, _ = KINDS[dtype]
    size = dtype.itemsize
    wide = ir.VectorType(kind, width)

    @intrinsic
    def update(typing_context: Any, addresses: Any, i: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            offset = builder.mul(arguments[1], ir.Constant(INT64, size))
            places = [
                place(builder, builder.add(builder.extract_value(arguments[0], j), offset), wide)
                for j in range(arrays + 1)
            ]
            loaded = [builder.load(each, align=size * width) for each in places]
            hyper = [builder.extract_value(arguments[2], j) for j in range(taken)]
            stored = [ir.Constant(wide, ir.Undefined)] * arrays
            for lane in (ir.Constant(ir.IntType(32), j) for j in range(width)):
                elements = [builder.extract_element(each, lane) for each in loaded]
                found = emit(builder, results, dict(zip(names, elements + hyper)), operations)
                stored = [builder.insert_element(whole, one, lane) for whole, one in zip(stored, found)]
            for vector, each in zip(stored, places):
                builder.store(vector, each, align=size * width)
            return context.get_dummy_value()

        return signature(types.void, addresses, types.int64, values), codegen

    return update


def type_of(dtype: np.dtype[Any]) -> Any:
    """What kernels' signatures call this dtype."""
    return getattr(types, dtype.name)


def make_loads(dtype: np.dtype[Any], count: int) -> Any:
    """A device function ``loads(address)``: a tuple of so many numbers that lie there."""
    number = type_of(dtype)

    @intrinsic
    def loads(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            start = place(builder, arguments[0], context.get_value_type(number))
            found = [builder.load(builder.gep(start, [ir.Constant(INT64, i)])) for i in range(count)]
            return context.make_tuple(builder, types_of.return_type, found)

        return signature(types.UniTuple(number, count), types.int64), codegen

    return loads


def make_store(dtype: np.dtype[Any]) -> Any:
    """A device function ``store(address, value)``."""
    number = type_of(dtype)

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            builder.store(arguments[1], place(builder, arguments[0], context.get_value_type(number)))
            return context.get_dummy_value()

        return signature(types.void, types.int64, number), codegen

    return store


def make_settle(
    columns: Sequence[DerivedScalar], names: Sequence[str], on_device: Mapping[str, np.dtype[Any]], dtype: np.dtype[Any]
) -> Any:
    """A device function ``settle(addresses, values, row)``, which computes these columns of a row of hyper-parameters.

    `addresses` are those of the scalars `on_device`, `values` holds all `names` in double precision (those on the
    device for nothing). Computed in double precision and then cast, as on the host.
    """
    double, (kind, _) = ir.DoubleType(), KINDS[dtype]

    @intrinsic
    def settle(typing_context: Any, addresses: Any, values: Any, row: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            known = {name: builder.extract_value(arguments[1], i) for i, name in enumerate(names)}
            for i, (name, stored) in enumerate(on_device.items()):
                found = builder.load(place(builder, builder.extract_value(arguments[0], i), KINDS[stored][0]))
                known[name] = found if found.type == double else builder.fpext(found, double)
            start = place(builder, arguments[2], kind)
            for column in columns:
                (result,) = emit(builder, (column.formula(),), known)
                cast = result if kind == double else builder.fptrunc(result, kind)
                builder.store(cast, builder.gep(start, [ir.Constant(INT64, column.place)]))
            return context.get_dummy_value()

        return signature(types.void, addresses, values, types.int64), codegen

    return settle


TERMS: dict[str, Callable[..., Any]] = {
    "x": lambda builder, x: x,
    "x²": lambda builder, x: STRICT["*"](builder, x, x),
    "0·x": lambda builder, x: STRICT["*"](builder, x, ir.Constant(x.type, 0.0)),
}
"""What can be summed."""

UNROLLED = 16
"""Loads under way at once in :func:`make_sums`: sums must be formed one after the other, loads need not."""


def make_sums(dtype: np.dtype[Any], stride: int, terms: Sequence[str]) -> Any:
    """A device function ``sums(address, count)``: for each of the :data:`TERMS` named, its sum over `count` numbers.

    Formed in order and in double precision; the numbers stand `stride` apart.
    """
    double, (kind, _) = ir.DoubleType(), KINDS[dtype]

    @intrinsic
    def sums(typing_context: Any, address: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            start, number = place(builder, arguments[0], kind), arguments[1]
            totals = [cgutils.alloca_once_value(builder, ir.Constant(double, 0.0)) for _ in terms]

            def add(first: Any, elements: int) -> None:
                steps = [builder.add(first, ir.Constant(INT64, i)) for i in range(elements)]
                places = [builder.gep(start, [builder.mul(step, ir.Constant(INT64, stride))]) for step in steps]
                for loaded in [builder.load(each) for each in places]:
                    x = loaded if kind == double else builder.fpext(loaded, double)
                    for total, term in zip(totals, terms):
                        more = STRICT["+"](builder, builder.load(total), TERMS[term](builder, x))
                        builder.store(more, total)

            whole = builder.sdiv(number, ir.Constant(INT64, UNROLLED))
            with cgutils.for_range(builder, whole) as loop:
                add(builder.mul(loop.index, ir.Constant(INT64, UNROLLED)), UNROLLED)
            done = builder.mul(whole, ir.Constant(INT64, UNROLLED))
            with cgutils.for_range(builder, builder.sub(number, done)) as loop:
                add(builder.add(done, loop.index), 1)
            return context.make_tuple(builder, types_of.return_type, [builder.load(total) for total in totals])

        return signature(types.UniTuple(types.float64, len(terms)), types.int64, types.int64), codegen

    return sums


FLOATS = (types.float32, types.float64)


def make_scalar(rule: Rule) -> Any:
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


def make_sweep(rule: Rule) -> Any:
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


def _names(rule: Rule) -> list[str]:
    return ["p", *rule.slots, "g", *(f"hyper_{i}" for i in range(len(rule.hyper)))]


def _results(rule: Rule) -> Any:
    return evaluate(rule.build(), _names(rule), 1 + len(rule.state))


def _cast(context: Any, builder: Any, values: Sequence[Any], kinds: Sequence[Any], to: Any) -> list[Any]:
    return [context.cast(builder, value, kind, to) for value, kind in zip(values, kinds)]


def _of_names(typing: Callable[..., Any], names: Sequence[str]) -> Any:
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing_context", *names)]
    typing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(typing)
