"""Generate device functions as LLVM code in which every operation is rounded: a rule's update, loads, stores and sums.

NVVM contracts a·b + c to a fused multiply-add, and numba-cuda has no option against it; 3 % of the elements then differ
from every other backend. The intrinsics with a rounding mode (``llvm.nvvm.mul.rn``) are never contracted, not even by
link-time optimisation. To insert them, the rule is run on symbols; its source text is not needed, which rules made by a
factory do not have.

Two results can differ from NumPy's: the bits of a NaN (a GPU has one NaN, x86 returns the operand's), and which of +0
and −0 minimum and maximum return, in which CPUs differ as well.

An intrinsic cannot take ``*arguments``, so functions for users' kernels are given a signature with one name for each
argument.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype
from numba.cuda import cgutils, types
from numba.cuda.core.errors import TypingError
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from fastmomentum.backends.cuda.scalars import DerivedScalar
from fastmomentum.rules.base import Rule
from fastmomentum.rules.symbolic import COMPARISONS, WHERE, Formula, Node, Symbol, evaluate, follow

Operation = Callable[..., ir.Value]
"""``operation(builder, *operands) -> value``: emits one operation."""

DeviceFunction = Callable[..., Any]
"""A function that other device code may call."""


def _device_function(function: Any) -> DeviceFunction:
    """Return an intrinsic, declared as a function for type checkers; Numba ships no types."""
    typed: DeviceFunction = function
    return typed


def _call_intrinsic(builder: ir.IRBuilder, name: str, *operands: ir.Value) -> ir.Value:
    """Emit a call of an LLVM intrinsic whose operands all have the same type."""
    kind = operands[0].type
    name = f"llvm.{name}.{'f' if kind == ir.FloatType() else 'd'}"
    declared = builder.module.globals.get(name)
    function = declared or ir.Function(builder.module, ir.FunctionType(kind, [kind] * len(operands)), name)
    return builder.call(function, operands)


def _negative(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    return builder.fsub(ir.Constant(a.type, -0.0), a)  # NVVM has no fneg for compute capability 9 and below


def _subtract(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return _call_intrinsic(builder, "nvvm.add.rn", a, _negative(builder, b))  # sub.rn does not exist for double


def _select_by(comparison: str) -> Operation:
    """Return NumPy's minimum (``<``) or maximum (``>``): if an operand is NaN, the result is NaN."""

    def select(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        first = builder.or_(builder.fcmp_ordered(comparison, a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(first, a, b)

    return select


def _compare(comparison: str) -> Operation:
    """Return a comparison, which does not hold for a NaN."""
    return lambda builder, a, b: builder.fcmp_ordered(comparison, a, b)


def _sign(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """Return NumPy's sign: ±1, +0 for ±0, and NaN for NaN."""
    zero, one = ir.Constant(a.type, 0.0), ir.Constant(a.type, 1.0)
    rest = builder.select(builder.fcmp_ordered("<", a, zero), _negative(builder, one), _subtract(builder, a, a))
    return builder.select(builder.fcmp_ordered(">", a, zero), one, rest)


def _rounded(name: str) -> Operation:
    """Return the operation that rounds its result to nearest even, and is never contracted."""
    return lambda builder, *operands: _call_intrinsic(builder, f"nvvm.{name}.rn", *operands)


STRICT: dict[str, Operation] = {
    "+": _rounded("add"),
    "-": _subtract,
    "*": _rounded("mul"),
    "/": _rounded("div"),
    "sqrt": _rounded("sqrt"),
    "negative": _negative,
    "absolute": lambda builder, a: _call_intrinsic(builder, "nvvm.fabs", a),
    "minimum": _select_by("<"),
    "maximum": _select_by(">"),
    "sign": _sign,
    WHERE: lambda builder, condition, a, b: builder.select(condition, a, b),
    **{comparison: _compare(comparison) for comparison in COMPARISONS},
}
"""The LLVM code of each operation that a rule may use, with the bits of the CPU."""

CONTRACTED = STRICT | {
    "+": lambda builder, a, b: builder.fadd(a, b),
    "-": lambda builder, a, b: builder.fsub(a, b),
    "*": lambda builder, a, b: builder.fmul(a, b),
}
"""The same operations, but a·b + c may be rounded once; only benchmarks use them, for comparison."""


def emit(
    builder: ir.IRBuilder,
    symbols: tuple[Symbol, ...],
    arguments: dict[str, ir.Value],
    operations: Mapping[str, Operation] = STRICT,
) -> list[ir.Value]:
    """Emit code that computes these symbols, and return their values; a shared subexpression is computed once.

    `arguments` holds the value of each named argument of the symbolic expressions.
    """
    values: dict[int, ir.Value] = {}

    def value(symbol: Node) -> ir.Value:
        if id(symbol) not in values:
            operands = [value(operand) for operand in symbol.operands]
            values[id(symbol)] = operations[symbol.operation](builder, *operands) if operands else leaf(symbol)
        return values[id(symbol)]

    def leaf(symbol: Node) -> ir.Value:
        name = symbol.operation  # of an argument, or the text of a number in the formula of a derived hyper-parameter
        return arguments[name] if name in arguments else ir.Constant(ir.DoubleType(), float(name))

    return [value(symbol) for symbol in symbols]


GLOBAL = 1  # the address space of device memory; a load without it first finds out which memory the address is in
LLVM_TYPES = {np.dtype(np.float32): ir.FloatType(), np.dtype(np.float64): ir.DoubleType()}
INT64 = ir.IntType(64)


def pointer_to(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """Convert an address, an integer, to a pointer into device memory."""
    return builder.inttoptr(address, kind.as_pointer(addrspace=GLOBAL))


def make_update(
    rule: Rule, dtype: np.dtype, width: int, operations: Mapping[str, Operation] = STRICT
) -> DeviceFunction:
    """Return ``update(addresses, i, values)``, which updates the elements i to i + width − 1 of all arrays.

    `addresses` are the addresses of p, *state and g, and `values` the hyper-parameters. If `width` is more than 1, the
    elements are loaded and stored as one vector, whose address must be a multiple of its size.
    """
    arrays, n_hyper = 1 + len(rule.state), len(rule.hyper)
    names = [str(i) for i in range(arrays + 1 + n_hyper)]
    results = evaluate(rule.build(), names, arrays)
    size = dtype.itemsize
    vector_type = ir.VectorType(LLVM_TYPES[dtype], width)

    @intrinsic
    def update(typing_context: Any, addresses: Any, i: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            offset = builder.mul(arguments[1], ir.Constant(INT64, size))
            pointers = [
                pointer_to(builder, builder.add(builder.extract_value(arguments[0], j), offset), vector_type)
                for j in range(arrays + 1)
            ]
            loaded = [builder.load(pointer, align=size * width) for pointer in pointers]
            hyper = [builder.extract_value(arguments[2], j) for j in range(n_hyper)]
            stored = [ir.Constant(vector_type, ir.Undefined)] * arrays
            for lane in (ir.Constant(ir.IntType(32), j) for j in range(width)):
                elements = [builder.extract_element(vector, lane) for vector in loaded]
                values_of_lane = emit(builder, results, dict(zip(names, elements + hyper)), operations)
                stored = [builder.insert_element(vector, x, lane) for vector, x in zip(stored, values_of_lane)]
            for vector, pointer in zip(stored, pointers):
                builder.store(vector, pointer, align=size * width)
            return context.get_dummy_value()

        return signature(types.void, addresses, types.int64, values), codegen

    return _device_function(update)


def make_loads(dtype: np.dtype, count: int) -> DeviceFunction:
    """Return ``loads(address)``, which returns a tuple of the first `count` numbers from this address."""
    number = from_dtype(dtype)

    @intrinsic
    def loads(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            start = pointer_to(builder, arguments[0], context.get_value_type(number))
            loaded = [builder.load(builder.gep(start, [ir.Constant(INT64, i)])) for i in range(count)]
            return context.make_tuple(builder, types_of.return_type, loaded)

        return signature(types.UniTuple(number, count), types.int64), codegen

    return _device_function(loads)


def make_store(dtype: np.dtype) -> DeviceFunction:
    """Return ``store(address, value)``, which writes one number."""
    number = from_dtype(dtype)

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            builder.store(arguments[1], pointer_to(builder, arguments[0], context.get_value_type(number)))
            return context.get_dummy_value()

        return signature(types.void, types.int64, number), codegen

    return _device_function(store)


def make_derive(
    derived: Sequence[DerivedScalar], names: Sequence[str], on_device: Mapping[str, np.dtype], dtype: np.dtype
) -> DeviceFunction:
    """Return ``derive(addresses, values, row)``, which writes derived hyper-parameters to the row at this address.

    `addresses` are the addresses of the scalars `on_device`. `values` holds a float64 for each of `names`; those of
    scalars on the device are ignored. All is computed in double precision and then cast to `dtype`, as on the host.
    """
    double, kind = ir.DoubleType(), LLVM_TYPES[dtype]

    @intrinsic
    def derive(typing_context: Any, addresses: Any, values: Any, row: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            known = {name: builder.extract_value(arguments[1], i) for i, name in enumerate(names)}
            for i, (name, stored) in enumerate(on_device.items()):
                loaded = builder.load(pointer_to(builder, builder.extract_value(arguments[0], i), LLVM_TYPES[stored]))
                known[name] = loaded if loaded.type == double else builder.fpext(loaded, double)
            start = pointer_to(builder, arguments[2], kind)
            for scalar in derived:
                (result,) = emit(builder, (scalar.formula(),), known)
                cast = result if kind == double else builder.fptrunc(result, kind)
                builder.store(cast, builder.gep(start, [ir.Constant(INT64, scalar.column)]))
            return context.get_dummy_value()

        return signature(types.void, addresses, values, types.int64), codegen

    return _device_function(derive)


UNROLLED = 16
"""The number of loads that :func:`make_sums` starts at a time: unlike additions, loads need not wait for each other."""

SUMMED = STRICT | {"widen": lambda builder, a: a if a.type == ir.DoubleType() else builder.fpext(a, ir.DoubleType())}
"""The operations of what is summed."""


def make_sums(dtype: np.dtype, stride: int, program: Formula, arrays: int, n_hyper: int) -> DeviceFunction:
    """Return ``sums(addresses, first, count, values)``, which adds up the summands of `count` elements of `arrays`.

    The elements begin at `first`, are `stride` apart, and are added in order and in double precision. `program` has the
    operations of the summands of one element of (p, *state, g), then of the hyper-parameters `values`.
    """
    double, kind, width = ir.DoubleType(), LLVM_TYPES[dtype], len(program[-1])
    unrolled = max(1, UNROLLED // arrays)

    @intrinsic
    def sums(typing_context: Any, addresses: Any, first: Any, count: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            starts = [pointer_to(builder, builder.extract_value(arguments[0], j), kind) for j in range(arrays)]
            hyper = [builder.extract_value(arguments[3], j) for j in range(n_hyper)]
            totals = [cgutils.alloca_once_value(builder, ir.Constant(double, 0.0)) for _ in range(width)]

            def add(step: Any, elements: int) -> None:
                steps = [builder.add(step, ir.Constant(INT64, i)) for i in range(elements)]
                places = [builder.add(arguments[1], builder.mul(i, ir.Constant(INT64, stride))) for i in steps]
                loaded = [[builder.load(builder.gep(start, [place])) for start in starts] for place in places]
                for element in loaded:
                    apply: Any = lambda name, *operands: SUMMED[name](builder, *operands)  # noqa: E731
                    for total, summand in zip(totals, follow(program, [*element, *hyper], apply)):
                        builder.store(STRICT["+"](builder, builder.load(total), summand), total)

            whole = builder.sdiv(arguments[2], ir.Constant(INT64, unrolled))
            with cgutils.for_range(builder, whole) as loop:
                add(builder.mul(loop.index, ir.Constant(INT64, unrolled)), unrolled)
            done = builder.mul(whole, ir.Constant(INT64, unrolled))
            with cgutils.for_range(builder, builder.sub(arguments[2], done)) as loop:
                add(builder.add(done, loop.index), 1)
            return context.make_tuple(builder, types_of.return_type, [builder.load(total) for total in totals])

        given = (addresses, types.int64, types.int64, values)
        return signature(types.UniTuple(types.float64, width), *given), codegen

    return _device_function(sums)


FLOATS = (types.float32, types.float64)


def make_scalar(rule: Rule) -> DeviceFunction:
    """Return ``scalar(p, *state, g, *hyper) -> (p, *state)``, which casts all arguments to the dtype of p."""
    names, results = _argument_names(rule), _symbolic_results(rule)

    def scalar(typing_context: Any, *given: Any) -> Any:
        if given[0] not in FLOATS:
            raise TypingError(f"p: expected float32 or float64; got {given[0]}")

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = _cast(context, builder, arguments, given, given[0])
            values = emit(builder, results, dict(zip(names, numbers)))
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(given[0], len(results))(*given), codegen

    return _with_names(scalar, names)


def make_sweep(rule: Rule) -> DeviceFunction:
    """Return ``sweep(start, stride, p, *state, g, *hyper)``, which updates the elements start, start + stride, …."""
    names, results = _argument_names(rule), _symbolic_results(rule)
    arrays = len(results) + 1

    def sweep(typing_context: Any, start: Any, stride: Any, *given: Any) -> Any:
        check_arrays(names, given[:arrays])
        kind = given[0].dtype

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, step = _cast(context, builder, arguments[:2], (start, stride), types.int64)
            structs = [context.make_array(t)(context, builder, a) for t, a in zip(given[:arrays], arguments[2:])]
            hyper = _cast(context, builder, arguments[2 + arrays :], given[arrays:], kind)
            size = builder.extract_value(structs[0].shape, 0)
            with cgutils.for_range_slice(builder, first, size, step) as (i, _):
                pointers = [builder.gep(array.data, [i]) for array in structs]
                loaded = [builder.load(pointer) for pointer in pointers]
                for value, pointer in zip(emit(builder, results, dict(zip(names, loaded + hyper))), pointers):
                    builder.store(value, pointer)
            return context.get_dummy_value()

        return types.void(start, stride, *given), codegen

    return _with_names(sweep, ["start", "stride", *names])


def check_arrays(names: Sequence[str], given: Sequence[types.Type]) -> None:
    """Raise TypingError if an update cannot take arguments of these Numba types: p, *state and g."""
    for name, each in zip(names, given):
        if not isinstance(each, types.Array) or (each.ndim, each.layout) != (1, "C"):
            raise TypingError(f"{name}: expected a C-contiguous array of one dimension; got {each}")
        if each.dtype not in FLOATS or each.dtype != given[0].dtype:
            raise TypingError(f"{name}: expected float32 or float64, and one dtype for all arrays; got {each}")
        if not each.mutable and name != "g":
            raise TypingError(f"{name}: expected a writeable array; got a read-only one")


def _argument_names(rule: Rule) -> list[str]:
    return ["p", *rule.slots, "g", *(f"hyper_{i}" for i in range(len(rule.hyper)))]


def _symbolic_results(rule: Rule) -> tuple[Symbol, ...]:
    results: tuple[Symbol, ...] = evaluate(rule.build(), _argument_names(rule), 1 + len(rule.state))
    return results


def _cast(context: Any, builder: Any, values: Sequence[Any], kinds: Sequence[Any], to: Any) -> list[Any]:
    return [context.cast(builder, value, kind, to) for value, kind in zip(values, kinds)]


def _with_names(typing: Callable[..., Any], names: Sequence[str]) -> DeviceFunction:
    """Return an intrinsic that takes one argument for each name."""
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("typing_context", *names)]
    typing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return _device_function(intrinsic(typing))
