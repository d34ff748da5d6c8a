"""Kernels for other people's code, compiled or not: flat arguments, checked where they come in, and a loop.

What types tell is checked while a compiled caller compiles, and costs it nothing; shapes and overlaps are checked at
each call, before the first write. Callers in Python have the same checks, and arrays are looked at more closely there:
Numba takes byte order and alignment of what comes in ``*arguments`` for granted.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from fastmomentum import checks
from fastmomentum.backends.cpu.kernels import STRICT, need_compiler
from fastmomentum.backends.cpu.loops import FLOATS, NUMBERS
from fastmomentum.checks import ANY_BOUND

SHAPES = "arrays: expected one shape; got several"
SHARED = "arrays: expected what is written to share memory with no other; got some that do"
WORD = ir.IntType(64)


class Call(NamedTuple):
    """What a kernel is called with.

    Attributes
    ----------
    names : tuple of str
        Of its arguments.
    written, read : int
        The arrays that come first, and those that come then; all others are numbers.
    axes : int
        Dimensions of the arrays.
    """

    names: tuple[str, ...]
    written: int
    read: int
    axes: int = 1

    @property
    def arrays(self) -> int:
        """Arrays in all."""
        return self.written + self.read


def embed(make_body: Callable[[Any], Callable[..., None]], call: Call, steps: bool = False) -> Any:
    """A function of arrays and numbers, for Python and for code that Numba compiles.

    ``make_body(parted)`` is it: ``parted(arguments) -> (problem, written, read, numbers)``, the numbers in the arrays'
    dtype, and in `problem` 1 where shapes differ, 2 where memory is shared. Where `steps`, a whole number comes first.
    Each body raises by itself: an exception from a function that it calls would keep a reference to every array.
    """
    need_compiler()
    body = njit(**STRICT)(make_body(_make_parted(call)))
    names = (*("steps",) * steps, *call.names)

    def kernel(*arguments: Any) -> None:
        check_count(names, arguments, TypeError)
        counts = [checks.integer("steps", count) for count in arguments[:steps]]
        body(*counts, *_checked(call, arguments[steps:]))

    @overload(kernel, strict=False)
    def compiled(*arguments: Any) -> Any:
        check_count(names, arguments, TypingError)
        if steps and not isinstance(arguments[0], types.Integer):
            raise TypingError(f"steps: expected a whole number; got {arguments[0]}")
        _accept(call, arguments[steps:])
        return lambda *arguments: body(*arguments)

    return named(kernel, names)


def check_count(names: Sequence[str], given: Sequence[Any], error: type[Exception]) -> None:
    """Refuse another number of arguments than there are names."""
    if len(given) != len(names):
        raise error(f"expected {len(names)} arguments, {', '.join(names)}; got {len(given)}")


def named(function: Any, names: Sequence[str]) -> Any:
    """`function`, with the names of its arguments where help() looks for them."""
    function.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_ONLY) for name in names])
    return function


def _checked(call: Call, arguments: Sequence[Any]) -> tuple[Any, ...]:
    first = checks.array(call.names[0], arguments[0])
    arrays = [first]
    for k, (name, given) in enumerate(zip(call.names[1 : call.arrays], arguments[1:]), start=1):
        arrays.append(checks.array(name, given, like=first, write=k < call.written))
    if first.ndim != call.axes:
        raise ValueError(f"{call.names[0]}: expected {call.axes} dimensions; got shape {first.shape}")
    numbers = zip(call.names[call.arrays :], arguments[call.arrays :])
    return *arrays, *(checks.number(name, given, ANY_BOUND) for name, given in numbers)


def _accept(call: Call, given: Sequence[Any]) -> None:
    """Refuse to compile for types that are not those of the call."""
    first = given[0]
    for k, (name, each) in enumerate(zip(call.names[: call.arrays], given)):
        if not isinstance(each, types.Array) or (each.layout, each.ndim) != ("C", call.axes):
            raise TypingError(f"{name}: expected a C-contiguous array, its dimensions {call.axes}; got {each}")
        if each.dtype not in FLOATS or each.dtype != first.dtype:
            raise TypingError(f"{name}: expected float32 or float64, and one dtype for all arrays; got {each}")
        if k < call.written and not each.mutable:
            raise TypingError(f"{name}: expected a writeable array; got a read-only one")
    for name, each in zip(call.names[call.arrays :], given[call.arrays :]):
        if not isinstance(each, NUMBERS):
            raise TypingError(f"{name}: expected a number; got {each}")


def _make_parted(call: Call) -> Any:
    """An intrinsic, as each function that passes a tuple of arrays on counts references to each of them."""

    @intrinsic
    def parted(typing_context: Any, arguments: Any) -> Any:
        kinds = arguments.types[: call.arrays]
        parts = (
            types.BaseTuple.from_types(kinds[: call.written]),
            types.BaseTuple.from_types(kinds[call.written :]),
            types.BaseTuple.from_types([kinds[0].dtype] * (len(call.names) - call.arrays)),
        )

        def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values = [builder.extract_value(given[0], k) for k in range(len(call.names))]
            arrays = [context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, values)]
            problem = builder.select(
                _alike(builder, arrays, call.axes), _shared(builder, arrays, call.written), WORD(1)
            )
            lent = [_lent(context, builder, kind, array) for kind, array in zip(kinds, arrays)]
            numbers = [
                context.cast(builder, value, kind, kinds[0].dtype)
                for value, kind in zip(values[call.arrays :], arguments.types[call.arrays :])
            ]
            pieces = (lent[: call.written], lent[call.written :], numbers)
            tuples = [context.make_tuple(builder, kind, piece) for kind, piece in zip(parts, pieces)]
            return context.make_tuple(builder, signature.return_type, [problem, *tuples])

        return types.Tuple((types.int64, *parts))(arguments), codegen

    return parted


def _alike(builder: Any, arrays: Sequence[Any], axes: int) -> Any:
    """Whether all have the first one's shape."""
    alike = ir.Constant(ir.IntType(1), 1)
    for array in arrays[1:]:
        for axis in range(axes):
            lengths = (builder.extract_value(each.shape, axis) for each in (arrays[0], array))
            alike = builder.and_(alike, builder.icmp_signed("==", *lengths))
    return alike


def _shared(builder: Any, arrays: Sequence[Any], written: int) -> Any:
    """2 where one of those written has a byte in common with another, else 0."""
    begins = [builder.ptrtoint(array.data, WORD) for array in arrays]
    spans = [(a, builder.add(a, builder.mul(array.nitems, array.itemsize))) for a, array in zip(begins, arrays)]
    meets = ir.Constant(ir.IntType(1), 0)
    for k, (begin, end) in enumerate(spans[:written]):
        for other, stop in spans[k + 1 :]:
            one, two = builder.icmp_unsigned("<", begin, stop), builder.icmp_unsigned("<", other, end)
            meets = builder.or_(meets, builder.and_(one, two))
    return builder.select(meets, WORD(2), WORD(0))


def _lent(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """The same array, whose references nobody counts."""
    lent = context.make_array(kind)(context, builder)
    populate_array(lent, array.data, array.shape, array.strides, array.itemsize, None)
    return lent._getvalue()


def once(sweep: Any) -> Callable[[Any], Callable[..., None]]:
    """The body that is one call of ``sweep(written, read, numbers)``."""

    def make_body(parted: Any) -> Callable[..., None]:
        def body(*arguments: Any) -> None:
            problem, written, read, numbers = parted(arguments)
            if problem == 1:
                raise ValueError(SHAPES)
            if problem == 2:
                raise ValueError(SHARED)
            sweep(written, read, numbers)

        return body

    return make_body
