"""Kernels for other people's compiled code: flat arguments, checked where they come in, and a loop.

What types tell is checked while the caller compiles, and costs nothing; shapes and overlaps are checked at each call,
before the first write.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

from fastmomentum.backends.cpu import apart
from fastmomentum.backends.headers import spans
from fastmomentum.backends.loops import make_cast

FLOATS = (types.float32, types.float64)
Body = Callable[[Any], Callable[..., Any]]
"""From ``parted(arguments) -> (written, read, numbers)``, which checks them, to the function itself."""


def embed(make_body: Body, names: Sequence[str], written: int, read: int, dimensions: int = 1) -> Any:
    """A function for compiled code that takes, by these names, arrays it writes, arrays it reads, and numbers.

    Strict, and dividing as NumPy does, whatever its caller is; compiled for the dtypes that it is called with.
    """
    return njit(error_model="numpy", nogil=True)(make_body(_make_parted(names, written, read, dimensions)))


def once(sweep: Any) -> Body:
    """The body that is one call of ``sweep(written, read, numbers)``."""

    def make_body(parted: Any) -> Callable[..., None]:
        def kernel(*arguments: Any) -> None:
            sweep(*parted(arguments))

        return kernel

    return make_body


def _make_parted(names: Sequence[str], written: int, read: int, dimensions: int) -> Any:
    arrays = written + read
    acceptable, alike = _make_acceptable(names, written, arrays, dimensions), _make_alike(arrays)
    cast = make_cast(len(names) - arrays)

    def parted(arguments: Any) -> Any:
        acceptable(arguments)
        if not alike(arguments, arguments[0].shape):
            raise ValueError("arrays: expected one shape; got several")
        if not apart(spans(arguments[:arrays]), written):
            raise ValueError("arrays: expected what is written to share memory with no other; got some that do")
        return arguments[:written], arguments[written:arrays], cast(arguments[arrays:], arguments[0])

    return register_jitable(parted)


def _make_alike(arrays: int) -> Any:
    """``alike(arrays, shape)``: whether so many arrays all have this shape."""
    if arrays == 0:
        return register_jitable(lambda arrays, shape: True)
    rest = _make_alike(arrays - 1)
    return register_jitable(lambda arrays, shape: arrays[0].shape == shape and rest(arrays[1:], shape))


def _make_acceptable(names: Sequence[str], written: int, arrays: int, dimensions: int) -> Any:
    """A function that does not compile where the types of the arguments are not those of a kernel."""

    def acceptable(arguments: Any) -> None: ...

    @overload(acceptable)
    def compiled(arguments: Any) -> Any:
        if len(arguments) != len(names):
            raise TypingError(f"expected {len(names)} arguments, {', '.join(names)}; got {len(arguments)}")
        for name, given in zip(names[:arrays], arguments.types):
            _accept_array(name, given, dimensions, arguments.types[0])
        for name, given in zip(names[:written], arguments.types):
            if not given.mutable:
                raise TypingError(f"{name}: expected a writeable array; got a read-only one")
        for name, given in zip(names[arrays:], arguments.types[arrays:]):
            if not isinstance(given, types.Number):
                raise TypingError(f"{name}: expected a number; got {given}")

        def nothing(arguments: Any) -> None: ...

        return nothing

    return acceptable


def _accept_array(name: str, given: Any, dimensions: int, first: Any) -> None:
    if not isinstance(given, types.Array) or (given.layout, given.ndim, given.aligned) != ("C", dimensions, True):
        raise TypingError(f"{name}: expected a C-contiguous array of {dimensions} dimensions; got {given}")
    if given.dtype not in FLOATS or given.dtype != first.dtype:
        raise TypingError(f"{name}: expected float32 or float64, and one dtype for all arrays; got {given}")
