"""The vocabulary of rules in LLVM code, each operation rounded by itself.

NVVM contracts a·b + c to a fused multiply-add wherever it sees one, with no switch against it in numba-cuda, and 3 % of
the elements then differ from every other backend. The intrinsics that name their rounding (``llvm.nvvm.mul.rn``) are
left alone, also by what optimises at link time. They are put in by tracing the rule, not by rewriting its text: rules
made by a factory have none, and chains are closures.

Two things are not NumPy's: which NaN comes out of an operation (a GPU has one, x86 hands on the operand's), and which
of +0 and −0 minimum and maximum return, which is open on the CPU too.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from fastmomentum.trace import Symbol


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
