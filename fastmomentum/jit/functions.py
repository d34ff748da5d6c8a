"""Make functions from update rules for compiled code: of scalars, of arrays, and of C pointers."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, types
from numba import cfunc as c_callback
from numba.core.errors import TypingError
from numba.extending import overload

from fastmomentum import checks
from fastmomentum.backends import cpu, one_array_kernel
from fastmomentum.backends.cpu.headers import make_views
from fastmomentum.backends.cpu.kernels import vector
from fastmomentum.backends.cpu.loops import (
    FLOATS,
    NUMBERS,
    compiled_part,
    make_advance,
    make_cast,
    make_loop,
    make_numbers,
)
from fastmomentum.jit.embedding import KernelArguments, check_count, embed, single_sweep, with_signature
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.options import how_to_compose
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find


def update(rule: str | Rule) -> Function:
    """Return a rule as a function of scalars for code that Numba compiles.

    (p, *state, g, *hyper) → (p, *state)

    LLVM inlines the function, so a loop around it holds no call and is vectorised like a loop with the formula written
    out. ``fm.jit.<name>`` is ``fm.jit.update("<name>")``.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        It takes scalars. p is float32 or float64; all others are cast to the dtype of p first, so hyper-parameters may
        be Python floats. It returns a tuple, also if the rule has no state.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.

    Notes
    -----
    The caller's compile options decide how it rounds: ``fastmath=True`` changes the bits, and with Numba's default
    ``error_model`` a rule that divides raises ZeroDivisionError in the middle of an array; pass
    ``error_model="numpy"``. :func:`kernel` is strict for every caller. A call from Python runs the rule itself and
    casts nothing, unless Numba's compiler is switched off: then it casts as compiled code does.

    Examples
    --------
    >>> import numba, numpy as np, fastmomentum as fm
    >>> pytorch = fm.jit.pytorch
    >>> @numba.njit
    ... def descend(p, v, h, steps, lr, momentum, keep):
    ...     for _ in range(steps):
    ...         for i in range(p.size):
    ...             p[i], v[i] = pytorch(p[i], v[i], h[i] * p[i], lr, momentum, keep)
    >>> p, v, h = np.ones(3), np.zeros(3), np.array([1.0, 2.0, 4.0])
    >>> descend(p, v, h, 100, *fm.jit.hyper("pytorch", lr=0.1, momentum=0.5))
    >>> bool(np.abs(p).max() < 1e-4)
    True
    """
    chosen = find(rule)
    return cached_kernel(("scalar", chosen.structure, chosen.slots, chosen.hyper), lambda: _make_scalar(chosen))


def _make_scalar(rule: Rule) -> Function:
    """Return ``scalar(p, *state, g, *hyper) -> (p, *state)``, which computes in the dtype of p."""
    names = ("p", *rule.slots, "g", *rule.hyper)
    compute, compiled_update, cast = rule.build(), rule.build(compiled_part), make_cast(len(names) - 1)
    from_python = compute if cpu.has_compiler() else _cast_first(compute, cast)

    def scalar(*given: Any) -> Any:
        check_count(names, given, TypeError)
        return from_python(*given)

    @overload(scalar, strict=False)
    def compiled(*given: Any) -> Function:
        check_count(names, given, TypingError)
        if types.unliteral(given[0]) not in FLOATS:
            raise TypingError(f"p: expected float32 or float64; got {given[0]}")
        for name, kind in zip(names, given):
            if not isinstance(kind, NUMBERS):
                raise TypingError(f"{name}: expected a number; got {kind}")
        return lambda *given: compiled_update(given[0], *cast(given[1:], given[0]))

    return with_signature(scalar, names)


def _cast_first(compute: Function, cast: Function) -> Function:
    """Return `compute` as Python calls it in place of compiled code, after casting all numbers to the dtype of p."""

    def computed(p: Any, *numbers: Any) -> Any:
        return compute(p, *cast(numbers, p))

    return computed


def hyper(rule: str | Rule, dtype: npt.DTypeLike = np.float64, /, **values: float) -> tuple[np.floating, ...]:
    """Return the hyper-parameters that a rule's functions take, in their order, checked and derived.

    Derived numbers (1 − τ, 1 − β, 1 − lr·λ) are computed in double precision and then cast to `dtype`, as everywhere in
    the package.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.
    dtype : dtype
        The arrays' dtype: float32 or float64.
    **values
        lr, momentum and all others that the rule declares.

    Returns
    -------
    tuple of numpy scalars

    Raises
    ------
    TypeError, ValueError
        If a value is missing, is not declared by the rule, or is out of its range.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(*fm.jit.hyper("ema", lr=0.1, momentum=0.75))
    0.1 0.75 0.25
    """
    chosen = find(rule)
    for name in values:
        if name not in chosen.parameters and (advice := how_to_compose(chosen, name)):
            raise TypeError(f"{name}: rule {chosen} takes no such hyper-parameter{advice}")
    return hyper_row(chosen, values, checks.dtype(dtype))


def kernel(rule: str | Rule) -> Callable[..., None]:
    """Return a kernel that updates arrays in place, for code that Numba compiles.

    p, *state ← update(p, *state, g, *hyper)

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        ``kernel(p, *state, g, *hyper)``. Numba compiles it for each dtype with which it is called. It takes
        C-contiguous arrays of one dimension, one shape and one dtype, float32 or float64, and numbers, which are cast
        to that dtype; gradients may be read-only. It allocates nothing, takes no lock, and gives the bits of
        :func:`fastmomentum.step`. Python may call it, too. It does not check the ranges of hyper-parameters:
        :func:`hyper` does that.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule. The kernel raises ``numba.TypingError`` while its caller compiles, if a type is not as
        above, and ValueError in a call, before anything is written, if shapes differ or a written array shares memory
        with another.

    Examples
    --------
    >>> import numba, numpy as np, fastmomentum as fm
    >>> classical = fm.jit.kernel("classical")
    >>> @numba.njit
    ... def descend(p, v, g, h, steps):
    ...     for _ in range(steps):
    ...         g[:] = h * p
    ...         classical(p, v, g, 0.1, 0.5)
    >>> p = np.ones(3)
    >>> descend(p, np.zeros(3), np.empty(3), np.array([1.0, 2.0, 4.0]), 100)
    >>> bool(np.abs(p).max() < 1e-4)
    True
    """
    chosen = find(rule)
    return cached_kernel(("embedded", chosen.structure, chosen.slots, chosen.hyper), lambda: _make_kernel(chosen))


def _make_kernel(rule: Rule) -> Callable[..., None]:
    """Return ``kernel(p, *state, g, *hyper)``, which does one update with a gradient that is stored in an array."""
    written = 1 + len(rule.state)
    loop = make_loop(make_advance(rule), written)
    return embed(single_sweep(loop), KernelArguments(("p", *rule.slots, "g", *rule.hyper), written, 1))


@dataclass(frozen=True)
class CFunction:
    """A C function made by :func:`cfunc`.

    Attributes
    ----------
    prototype : str
        Its declaration in C, with the contents of `arrays` and `hyper` as comments.
    address : int
        The value of the function pointer.
    ctypes : callable
        The function as Python's ctypes calls it.

    Examples
    --------
    >>> import ctypes, numpy as np, fastmomentum as fm
    >>> p, g = np.array([1.0]), np.array([2.0])
    >>> arrays = (ctypes.c_void_p * 2)(p.ctypes.data, g.ctypes.data)
    >>> fm.jit.cfunc("sgd", "float64").ctypes(1, arrays, (ctypes.c_double * 1)(0.25))
    >>> p
    array([0.5])
    """

    prototype: str
    address: int
    ctypes: Callable[..., None] = field(repr=False, compare=False)


PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_double))


def cfunc(rule: str | Rule, dtype: npt.DTypeLike) -> CFunction:
    """Return a rule's fused update of arrays as a C function.

    ``void update(int64_t n, T **arrays, const double *hyper)``

    All rules have this prototype. `arrays` points to the addresses of p, the state and g, in this order, with n
    elements each; `hyper` points to the rule's hyper-parameters, derived ones included (:func:`hyper` computes them),
    which are cast to T. Any thread may call the function, without Python's global lock. It allocates nothing and checks
    nothing: the caller ensures that no written array shares memory with another.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.
    dtype : dtype
        T: float32 (float) or float64 (double).

    Returns
    -------
    CFunction
        Its prototype, its address, and a function for ctypes.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or if `dtype` is neither float32 nor float64.

    Notes
    -----
    The address is valid until this process ends, and in this process only. No routine of SciPy takes this prototype:
    for a scipy.LowLevelCallable write a ``numba.cfunc`` with the prototype that the routine takes, and call a rule's
    scalar function in it (the tests smooth along an axis in this way, with scipy.ndimage.generic_filter1d).

    Examples
    --------
    >>> import ctypes, numpy as np, fastmomentum as fm
    >>> update = fm.jit.cfunc("pytorch", np.float32)
    >>> print(update.prototype)
    void update(int64_t n, float *arrays[3] /* p, velocity, g */, const double hyper[3] /* lr, momentum, keep */)
    >>> p, v, g = np.ones(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)
    >>> arrays = (ctypes.c_void_p * 3)(*(array.ctypes.data for array in (p, v, g)))
    >>> update.ctypes(2, arrays, (ctypes.c_double * 3)(0.25, 0.5, 1.0))
    >>> p, v
    (array([0.75, 0.75], dtype=float32), array([1., 1.], dtype=float32))
    """
    chosen, kind = find(rule), checks.dtype(dtype)
    pointer: Any = cached_kernel(("pointer", chosen.structure, kind), lambda: _make_callback(chosen, kind))
    names, name = ("p", *chosen.slots, "g"), "float" if kind == np.float32 else "double"
    arrays = f"{name} *arrays[{len(names)}] /* {', '.join(names)} */"
    numbers = f"const double hyper[{len(chosen.hyper)}] /* {', '.join(chosen.hyper)} */"
    prototype = f"void update(int64_t n, {arrays}, {numbers})"
    return CFunction(prototype, ctypes.cast(pointer, ctypes.c_void_p).value or 0, pointer)


_callbacks: list[Function] = []
"""All C functions, whose addresses stay valid when the cache is cleared."""


def _make_callback(rule: Rule, dtype: np.dtype) -> Function:
    """Return ``void update(int64_t n, T **arrays, const double *hyper)`` as ctypes calls it."""
    made = (_make_c_update if cpu.has_compiler() else _make_python_callback)(rule, dtype)
    _callbacks.append(made)
    return made


def _make_c_update(rule: Rule, dtype: np.dtype) -> Function:
    """Return the function of :func:`_make_callback`, compiled."""
    written, count = 1 + len(rule.state), len(rule.hyper)
    arrays_count = written + 1
    views = make_views([vector(dtype)] * arrays_count)
    loop, cast = make_loop(make_advance(rule), written), make_cast(count)
    hyper_numbers = make_numbers(count)

    def update(n: Any, addresses: Any, hyper: Any) -> None:
        arrays = views(carray(addresses, (1, arrays_count)), 0, 0, n)
        loop(arrays[:written], arrays[written:], cast(hyper_numbers(carray(hyper, (count,))), arrays[0]))

    addresses, numbers = types.CPointer(types.int64), types.CPointer(types.float64)
    compiled = c_callback(types.void(types.int64, addresses, numbers), error_model="numpy")(update)
    pointer: Any = PROTOTYPE(compiled.address)
    pointer.compiled = compiled  # which holds the code
    made: Function = pointer
    return made


def _make_python_callback(rule: Rule, dtype: np.dtype) -> Function:
    """Return the function of :func:`_make_callback` as a callback into Python, which runs the NumPy reference."""
    arrays_count, count = 2 + len(rule.state), len(rule.hyper)
    kernel, item = one_array_kernel("numpy", rule, dtype), np.ctypeslib.as_ctypes_type(dtype)

    def update(n: int, addresses: Any, hyper: Any) -> None:
        found = [(item * n).from_address(address or 0) for address in addresses[:arrays_count]]
        *arrays, grad = map(np.ctypeslib.as_array, found)
        kernel(tuple(arrays), grad, hyper[:count])

    return PROTOTYPE(update)
