"""Updates as C functions, which whatever can call a function pointer can call, without Python's global lock.

Rules as functions of scalars, for code that Numba compiles.

Rules as functions of scalars, of arrays, and of C pointers.
"""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import carray, types
from numba import cfunc as c_callback
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum import checks
from fastmomentum.backends.base import cached_kernel
from fastmomentum.backends.cpu.headers import make_views
from fastmomentum.backends.cpu.kernels import vector
from fastmomentum.backends.cpu.loops import FLOATS, NUMBERS, make_advance, make_cast, make_loop
from fastmomentum.jit import fused
from fastmomentum.jit.embedding import check_count, named
from fastmomentum.rules.base import Rule
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find


def make_pointer(rule: Rule, dtype: np.dtype[Any]) -> Any:
    """``void update(int64_t n, T **arrays, const double *hyper)``, as Numba's object for it."""
    written, taken = 1 + len(rule.state), len(rule.hyper)
    given = written + 1
    views = make_views([vector(dtype)] * given)
    loop, cast = make_loop(make_advance(rule), written), make_cast(taken)

    def update(n: Any, arrays: Any, hyper: Any) -> None:
        each = views(carray(arrays, (1, given)), 0, 0, n)
        loop(each[:written], each[written:], cast(to_fixed_tuple(carray(hyper, (taken,)), taken), each[0]))

    addresses, numbers = types.CPointer(types.int64), types.CPointer(types.float64)
    return c_callback(types.void(types.int64, addresses, numbers), error_model="numpy")(update)


def make_scalar(rule: Rule) -> Any:
    """``scalar(p, *state, g, *hyper) -> (p, *state)``, all in the dtype of p."""
    names = ("p", *rule.slots, "g", *rule.hyper)
    compute, update, cast = rule.build(), rule.build(register_jitable), make_cast(len(names) - 1)

    def scalar(*given: Any) -> Any:
        check_count(names, given, TypeError)
        return compute(*given)

    @overload(scalar, strict=False)
    def compiled(*given: Any) -> Any:
        check_count(names, given, TypingError)
        if types.unliteral(given[0]) not in FLOATS:
            raise TypingError(f"p: expected float32 or float64; got {given[0]}")
        for name, each in zip(names, given):
            if not isinstance(each, NUMBERS):
                raise TypingError(f"{name}: expected a number; got {each}")
        return lambda *given: update(given[0], *cast(given[1:], given[0]))

    return named(scalar, names)


def update(rule: str | Rule) -> Any:
    """``(p, *state, g, *hyper) -> (p, *state)``: one element's update, for code compiled by Numba.

    It is inlined: the loop around it holds no call, and is vectorised as one written by hand. ``fm.jit.<name>`` is
    ``fm.jit.update("<name>")``.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        Takes scalars of float32 or float64; all are cast to the dtype of p first, so that hyper-parameters may be
        Python's floats. Without state it returns a tuple of one.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.

    Notes
    -----
    How it rounds is up to the function that calls it: under ``fastmath=True`` the bits are others, and with Numba's own
    ``error_model`` a rule that divides raises ZeroDivisionError in the middle of an array; give
    ``error_model="numpy"``. :func:`kernel` is strict whoever calls it. Called from Python it is the rule itself, and
    nothing is cast.

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
    return cached_kernel(("scalar", chosen.structure, chosen.slots, chosen.hyper), lambda: make_scalar(chosen))


def hyper(rule: str | Rule, dtype: Any = np.float64, /, **values: float) -> tuple[Any, ...]:
    """The hyper-parameters that the rule's functions take, in their order, derived and checked.

    What is derived (1 − τ, 1 − β, 1 − lr·λ) is computed in double precision and then cast to `dtype`, as everywhere in
    the package.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.
    dtype : dtype
        float32 or float64, that of the arrays.
    **values
        lr, momentum and whatever else the rule declares.

    Returns
    -------
    tuple of numpy scalars

    Raises
    ------
    TypeError, ValueError
        If a value is missing, is none of the rule's, or is out of its range.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(*fm.jit.hyper("ema", lr=0.1, momentum=0.75))
    0.1 0.75 0.25
    """
    return hyper_row(find(rule), values, checks.dtype(dtype))


def kernel(rule: str | Rule) -> Any:
    """``(p, *state, g, *hyper) -> None``: one fused update of arrays in place, for code compiled by Numba.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        Compiled for the dtypes that it is called with. Takes C-contiguous arrays of one dimension, one shape and one
        dtype, float32 or float64, and numbers, which are cast to that dtype; gradients may be read-only. It allocates
        nothing, holds no lock, and has the bits of :func:`fastmomentum.step`. Python may call it, too. Ranges of
        hyper-parameters are not checked: :func:`hyper` does that.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule. Where it is called: ``numba.TypingError`` while the caller compiles, if a type is not
        as above; ValueError, with nothing written, if shapes differ or what is written shares memory with another.

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
    return cached_kernel(("embedded", chosen.structure, chosen.slots, chosen.hyper), lambda: fused.make_kernel(chosen))


@dataclass(frozen=True)
class CFunction:
    """A C function, made by :func:`cfunc`.

    Attributes
    ----------
    prototype : str
        Its declaration, with what `arrays` and `hyper` hold.
    address : int
        Where it is: the value of the function pointer.
    ctypes : object
        The same for Python's ctypes.

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
    ctypes: Any = field(repr=False, compare=False)


PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_double))


def cfunc(rule: str | Rule, dtype: Any) -> CFunction:
    """One fused update as a C function: ``void update(int64_t n, T **arrays, const double *hyper)``.

    `arrays` points to the addresses of p, the state and g, in this order, of n elements each; `hyper` to the rule's
    hyper-parameters, which are cast to T (:func:`hyper`; derived ones are given, too). One prototype serves all rules.
    The function may be called from any thread, allocates nothing, and checks nothing: what is written shares no memory
    with another array.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.
    dtype : dtype
        T: float32 (float) or float64 (double).

    Returns
    -------
    CFunction
        Its prototype, its address, and itself for ctypes.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or dtype is another.

    Notes
    -----
    It stays where it is while this process lives, and means nothing in another. No routine of SciPy takes this
    prototype: for a scipy.LowLevelCallable write a ``numba.cfunc`` of the one it takes, with a rule's scalar function
    in it (the tests smooth along an axis so, with scipy.ndimage.generic_filter1d).

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
    made: Any = cached_kernel(("pointer", chosen.structure, kind), lambda: make_pointer(chosen, kind))
    names, name = ("p", *chosen.slots, "g"), "float" if kind == np.float32 else "double"
    arrays = f"{name} *arrays[{len(names)}] /* {', '.join(names)} */"
    numbers = f"const double hyper[{len(chosen.hyper)}] /* {', '.join(chosen.hyper)} */"
    prototype = f"void update(int64_t n, {arrays}, {numbers})"
    return CFunction(prototype, made.address, PROTOTYPE(made.address))
