"""Generate LLVM code for the operations of a formula, on vectors of elements, with the bits of the compiled updates.

A reduction keeps its partial sums in vector registers. LLVM does not find such a form for a loop over an array of
partial sums, which it loads and stores again for every row of elements, at a third of the speed (measured).
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from fastmomentum.rules.symbolic import COMPARISONS, WHERE, Formula, follow


def _intrinsic(name: str) -> Callable[..., ir.Value]:
    """Return the operation that calls an LLVM intrinsic of one operand."""

    def call(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        kind = value.type
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        width = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
        full = f"llvm.{name}.{width}f{32 if element == ir.FloatType() else 64}"
        declared = builder.module.globals.get(full)
        return builder.call(declared or ir.Function(builder.module, ir.FunctionType(kind, [kind]), full), [value])

    return call


def constant(kind: ir.Type, number: float) -> ir.Constant:
    """Return a number, in every element of a vector."""
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _choose_by(comparison: str) -> Callable[..., ir.Value]:
    """Return NumPy's minimum (``<``) or maximum (``>``): if an operand is NaN, the result is NaN."""

    def choose(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        first = builder.or_(builder.fcmp_ordered(comparison, a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(first, a, b)

    return choose


def _compare(comparison: str) -> Callable[..., ir.Value]:
    """Return a comparison, which does not hold for a NaN."""
    return lambda builder, a, b: builder.fcmp_ordered(comparison, a, b)


def _sign(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """Return NumPy's sign: ±1, +0 for ±0, and NaN for NaN."""
    zero = constant(a.type, 0.0)
    rest = builder.select(builder.fcmp_ordered("<", a, zero), constant(a.type, -1.0), builder.fsub(a, a))
    return builder.select(builder.fcmp_ordered(">", a, zero), constant(a.type, 1.0), rest)


def _widen(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """Return the value in double precision."""
    is_vector = isinstance(a.type, ir.VectorType)
    wide = ir.VectorType(ir.DoubleType(), a.type.count) if is_vector else ir.DoubleType()
    return a if a.type == wide else builder.fpext(a, wide)


def _select(builder: ir.IRBuilder, mask: ir.Value, new: ir.Value, old: ir.Value) -> ir.Value:
    """Return `new` where the mask, an int8, is not 0, else `old`."""
    zero = ir.Constant(mask.type, [0] * mask.type.count if isinstance(mask.type, ir.VectorType) else 0)
    return builder.select(builder.icmp_signed("!=", mask, zero), new, old)


def _relax(builder: ir.IRBuilder, factor: ir.Value, scale: ir.Value) -> ir.Value:
    """Return 1 − s·(1 − f)."""
    one = constant(factor.type, 1.0)
    return builder.fsub(one, builder.fmul(scale, builder.fsub(one, factor)))


OPERATIONS: dict[str, Callable[..., ir.Value]] = {
    "+": lambda builder, a, b: builder.fadd(a, b),
    "-": lambda builder, a, b: builder.fsub(a, b),
    "*": lambda builder, a, b: builder.fmul(a, b),
    "/": lambda builder, a, b: builder.fdiv(a, b),
    "negative": lambda builder, a: builder.fneg(a),
    "absolute": _intrinsic("fabs"),
    "sqrt": _intrinsic("sqrt"),
    "minimum": _choose_by("<"),
    "maximum": _choose_by(">"),
    "sign": _sign,
    WHERE: lambda builder, condition, a, b: builder.select(condition, a, b),
    **{comparison: _compare(comparison) for comparison in COMPARISONS},
    "widen": _widen,
    "select": _select,
    "moving": lambda builder, mask, value: _select(builder, mask, value, constant(value.type, 0.0)),
    "relax": _relax,
}
"""The LLVM code of each operation; without fast-math flags LLVM changes no bit."""


def emit(builder: ir.IRBuilder, formula: Formula, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """Emit the operations of a formula, and return the values of its results."""
    return follow(formula, arguments, lambda name, *operands: OPERATIONS[name](builder, *operands))


def load(builder: ir.IRBuilder, pointer: ir.Value, width: int) -> ir.Value:
    """Return the first `width` elements from a pointer as one vector, or one element."""
    if width == 1:
        return builder.load(pointer)
    element = pointer.type.pointee
    kind = ir.VectorType(element, width)
    itemsize = {ir.DoubleType(): 8, ir.FloatType(): 4}.get(element, 1)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=itemsize)


def broadcast(builder: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    """Return a vector that holds a number `width` times; the number itself for one."""
    if width == 1:
        return value
    kind, place = ir.VectorType(value.type, width), ir.IntType(32)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(place, 0))
    zeros = ir.Constant(ir.VectorType(place, width), [0] * width)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)
