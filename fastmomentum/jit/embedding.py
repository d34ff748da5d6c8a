"""Make kernels that Python and code compiled by Numba can call, and that check their arguments.

Types are checked while Numba compiles the caller, which costs nothing per call. Shapes and overlaps are checked in each
call, before the first write. A call from Python has further checks of the arrays, as Numba does not check the byte
order and alignment of arrays that it gets through ``*arguments``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, Signature
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from fastmomentum import checks
from fastmomentum.backends import cpu
from fastmomentum.backends.cpu.kernels import STRICT
from fastmomentum.backends.cpu.loops import FLOATS, NUMBERS
from fastmomentum.checks import ANY_BOUND
from fastmomentum.rules.assemble import Function

SHAPES_DIFFER, MEMORY_SHARED = 1, 2
"""The problems that compiled code finds in the arrays of a call; 0 stands for none."""

SHAPES_MESSAGE = "arrays: expected one shape for all arrays; got several"
SHARED_MESSAGE = (
    "arrays: expected each written array to share memory with no other array; got two that overlap. Pass arrays that "
    "have their own memory"
)
INT64 = ir.IntType(64)


class KernelArguments(NamedTuple):
    """The arguments of a kernel: written arrays, then arrays that are only read, then numbers.

    Attributes
    ----------
    names : tuple of str
        The names of all arguments.
    written, read : int
        The numbers of written and of read arrays.
    dimensions : int
        The number of dimensions of each array.
    """

    names: tuple[str, ...]
    written: int
    read: int
    dimensions: int = 1

    @property
    def arrays(self) -> int:
        """The number of all arrays."""
        return self.written + self.read


def embed(
    make_body: Callable[[Function], Callable[..., None]], expected: KernelArguments, with_steps: bool = False
) -> Callable[..., None]:
    """Return a function of arrays and numbers for Python and for code that Numba compiles.

    Parameters
    ----------
    make_body : callable
        ``make_body(split_arguments)`` returns the function to compile. It calls
        ``split_arguments(arguments) -> (problem, written, read, numbers)``, which casts the numbers to the arrays'
        dtype, and raises an error if `problem` is SHAPES_DIFFER or MEMORY_SHARED. The body itself must hold this
        ``raise``: an exception from a function that it calls would keep a reference to every array.
    expected : KernelArguments
        The arguments of the function.
    with_steps : bool
        Whether the function takes a number of steps before these arguments.
    """
    if cpu.has_compiler():
        body = njit(**STRICT)(make_body(_make_split_arguments(expected)))
    else:  # Python runs the same loops
        body = np.errstate(all="ignore")(make_body(partial(_split_arguments, expected)))
    names = (*("steps",) * with_steps, *expected.names)

    def kernel(*arguments: Any) -> None:
        check_count(names, arguments, TypeError)
        steps = [checks.integer("steps", count) for count in arguments[:with_steps]]
        body(*steps, *_check_values(expected, arguments[with_steps:]))

    @overload(kernel, strict=False)
    def compiled(*arguments: Any) -> Function:
        check_count(names, arguments, TypingError)
        if with_steps and not isinstance(arguments[0], types.Integer):
            raise TypingError(f"steps: expected a whole number; got {arguments[0]}")
        _check_types(expected, arguments[with_steps:])
        return lambda *arguments: body(*arguments)

    return with_signature(kernel, names)


def check_count(names: Sequence[str], given: Sequence[object], error: type[Exception]) -> None:
    """Raise `error` if the number of given arguments is not the number of names."""
    if len(given) != len(names):
        raise error(f"expected {len(names)} arguments, {', '.join(names)}; got {len(given)}")


def with_signature(function: Function, names: Sequence[str]) -> Function:
    """Return `function` after setting the names of its arguments that help() shows."""
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
    )
    return function


def single_sweep(sweep: Callable[..., None]) -> Callable[[Function], Callable[..., None]]:
    """Return a ``make_body`` for :func:`embed` whose body calls ``sweep(written, read, numbers)`` once."""

    def make_body(split_arguments: Function) -> Callable[..., None]:
        def body(*arguments: Any) -> None:
            problem, written, read, numbers = split_arguments(arguments)
            if problem == SHAPES_DIFFER:
                raise ValueError(SHAPES_MESSAGE)
            if problem == MEMORY_SHARED:
                raise ValueError(SHARED_MESSAGE)
            sweep(written, read, numbers)

        return body

    return make_body


def _check_values(expected: KernelArguments, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arguments of a call from Python as plain arrays and floats, or raise an error."""
    names, first = expected.names, checks.array(expected.names[0], arguments[0])
    arrays = [first]
    for k in range(1, expected.arrays):
        arrays.append(checks.array(names[k], arguments[k], like=first, write=k < expected.written))
    if first.ndim != expected.dimensions:
        raise ValueError(f"{names[0]}: expected an array of dimension {expected.dimensions}; got shape {first.shape}")
    numbers = zip(names[expected.arrays :], arguments[expected.arrays :])
    return *arrays, *(checks.number(name, given, ANY_BOUND) for name, given in numbers)


def _check_types(expected: KernelArguments, given: Sequence[types.Type]) -> None:
    """Raise a TypingError if these Numba types are not those of the expected arguments."""
    dtype = getattr(given[0], "dtype", None)
    for k, (name, kind) in enumerate(zip(expected.names[: expected.arrays], given)):
        if not isinstance(kind, types.Array) or (kind.layout, kind.ndim) != ("C", expected.dimensions):
            raise TypingError(f"{name}: expected a C-contiguous array of dimension {expected.dimensions}; got {kind}")
        if kind.dtype not in FLOATS or kind.dtype != dtype:
            raise TypingError(f"{name}: expected float32 or float64, and one dtype for all arrays; got {kind}")
        if k < expected.written and not kind.mutable:
            raise TypingError(f"{name}: expected a writeable array; got a read-only one")
    for name, kind in zip(expected.names[expected.arrays :], given[expected.arrays :]):
        if not isinstance(kind, NUMBERS):
            raise TypingError(f"{name}: expected a number; got {kind}")


def _split_arguments(expected: KernelArguments, arguments: Sequence[Any]) -> tuple[int, Any, Any, tuple[Any, ...]]:
    """Return ``(problem, written, read, numbers)`` in Python, for use without Numba's compiler."""
    arrays, numbers = arguments[: expected.arrays], arguments[expected.arrays :]
    pairs = [(k, other) for k in range(expected.written) for other in range(k + 1, expected.arrays)]
    problem = 0
    if any(array.shape != arrays[0].shape for array in arrays):
        problem = SHAPES_DIFFER
    elif any(np.may_share_memory(arrays[k], arrays[other]) for k, other in pairs):  # exact for contiguous arrays
        problem = MEMORY_SHARED
    dtype = arrays[0].dtype.type
    return problem, arrays[: expected.written], arrays[expected.written :], tuple(map(dtype, numbers))


def _make_split_arguments(expected: KernelArguments) -> Function:
    """Return ``split_arguments(arguments) -> (problem, written, read, numbers)``, for compiled code."""
    # An intrinsic, because a Numba function that takes or returns a tuple of arrays counts references to each of them.
    count, written = expected.arrays, expected.written

    @intrinsic
    def split_arguments(typing_context: Any, arguments: Any) -> Any:
        kinds = arguments.types[:count]
        parts = (
            types.BaseTuple.from_types(kinds[:written]),
            types.BaseTuple.from_types(kinds[written:]),
            types.BaseTuple.from_types([kinds[0].dtype] * (len(expected.names) - count)),
        )

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, given: Any) -> Any:
            values = [builder.extract_value(given[0], k) for k in range(len(expected.names))]
            arrays = [context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, values)]
            same_shape = _have_same_shape(builder, arrays, expected.dimensions)
            overlap = builder.select(_overlap(builder, arrays, written), INT64(MEMORY_SHARED), INT64(0))
            problem = builder.select(same_shape, overlap, INT64(SHAPES_DIFFER))
            borrowed = [_borrowed(context, builder, kind, array) for kind, array in zip(kinds, arrays)]
            numbers = [
                context.cast(builder, value, kind, kinds[0].dtype)
                for value, kind in zip(values[count:], arguments.types[count:])
            ]
            pieces = (borrowed[:written], borrowed[written:], numbers)
            tuples = [context.make_tuple(builder, kind, piece) for kind, piece in zip(parts, pieces)]
            return context.make_tuple(builder, signature.return_type, [problem, *tuples])

        return types.Tuple((types.int64, *parts))(arguments), codegen

    split: Function = split_arguments
    return split


def _have_same_shape(builder: ir.IRBuilder, arrays: Sequence[Any], dimensions: int) -> ir.Value:
    """Return the bit that says whether all arrays have the shape of the first one."""
    same: ir.Value = ir.Constant(ir.IntType(1), 1)
    for array in arrays[1:]:
        for axis in range(dimensions):
            lengths = (builder.extract_value(each.shape, axis) for each in (arrays[0], array))
            same = builder.and_(same, builder.icmp_signed("==", *lengths))
    return same


def _overlap(builder: ir.IRBuilder, arrays: Sequence[Any], written: int) -> ir.Value:
    """Return the bit that says whether a written array has a byte in common with another array."""
    starts = [builder.ptrtoint(array.data, INT64) for array in arrays]
    stops = [builder.add(start, builder.mul(each.nitems, each.itemsize)) for start, each in zip(starts, arrays)]
    found: ir.Value = ir.Constant(ir.IntType(1), 0)
    for k in range(written):
        for other in range(k + 1, len(arrays)):
            before_end = builder.icmp_unsigned("<", starts[k], stops[other])
            after_start = builder.icmp_unsigned("<", starts[other], stops[k])
            found = builder.or_(found, builder.and_(before_end, after_start))
    return found


def _borrowed(context: Any, builder: ir.IRBuilder, kind: types.Array, array: Any) -> ir.Value:
    """Return an array on the same memory whose references are not counted."""
    borrowed = context.make_array(kind)(context, builder)
    populate_array(borrowed, array.data, array.shape, array.strides, array.itemsize, None)
    return borrowed._getvalue()
