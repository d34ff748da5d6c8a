"""(rule or chain, dtypes, backend) -> kernel, compiled on first use and kept."""

from collections.abc import Callable, Hashable, Iterable
from importlib import import_module
from typing import Any

import numpy as np

from fastmomentum.backends.cuda import require
from fastmomentum.backends.cuda.arrays import is_on_device
from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.backends.motion import WIDTH, Motion
from fastmomentum.records import Update

_kept: dict[Hashable, Callable[..., Any]] = {}

NAMES = ("numpy", "cpu", "cuda")


def is_array(value: Any) -> bool:
    """Whether it is one array, on the host or on a device, and no sequence of them."""
    return isinstance(value, np.ndarray) or is_on_device(value)


def choose(backend: str | None, arrays: Iterable[Any]) -> str:
    """The backend meant by what the user wrote; None is the compiled one of the place where the arrays are.

    Raises
    ------
    ValueError
        If there is no such backend.
    RuntimeError
        If it is "cuda", and there is none.
    """
    if backend is None:
        backend = "cuda" if any(map(is_on_device, arrays)) else "cpu"
    if backend not in NAMES:
        raise ValueError(f"backend: expected None, {' or '.join(map(repr, NAMES))}; got {backend!r}")
    if backend == "cuda":
        require()
    return backend


def home(backend: str) -> Any:
    """The module that knows the arrays of this backend."""
    return import_module(f"{__name__}.{'cuda.home' if backend == 'cuda' else 'host'}")


def kernel(rule: Update, dtype: np.dtype[Any], backend: str, parallel: bool = False) -> Callable[..., bool]:
    """``kernel((param, *state), grad, hyper)`` for one parameter whose arrays all have this dtype.

    Where `parallel`, it also takes the number of threads.

    It answers False, and has written nothing, if two of the arrays share memory.
    """
    if backend == "numpy":
        from fastmomentum.backends.numpy import make_kernel as make_reference

        return keep(("numpy", rule.structure), lambda: make_reference(rule))
    dtypes = all_of(dtype, rule)
    return keep(("one", parallel, rule.structure, dtypes), lambda: _maker(parallel).make_kernel(rule, dtypes))


def many_kernel(rule: Update, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """``kernel(table, written, rows, hyper, grads)`` for many parameters whose arrays all have this dtype.

    Where `parallel`, it takes `ends` and the number of threads in front of `grads`.
    """
    dtypes = all_of(dtype, rule)
    return keep(("many", parallel, rule.structure, dtypes), lambda: _maker(parallel).make_many_kernel(rule, dtypes))


def squares_kernel(dtype: np.dtype[Any], arrays: int, parallel: bool = False) -> Callable[..., bool]:
    """``kernel(table, written, rows, hyper, lanes, sums, grads)`` for gradients of this dtype; `hyper` has no part.

    Where `parallel`, it takes `ends`, `shares`, `lanes`, `parts` and `sums` in place of `lanes` and `sums`.
    """
    from fastmomentum.backends import norms, trees

    make = trees.make_parallel_kernel if parallel else trees.make_kernel
    return keep(("squares", parallel, dtype, arrays), lambda: make(norms.make_add_squares(arrays), 1, dtype, arrays))


def look_kernel(rule: Update, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """The same for the motion of the step to come, :data:`fastmomentum.backends.motion.WIDTH` sums an array."""
    from fastmomentum.backends import norms, trees

    make, arrays = trees.make_parallel_kernel if parallel else trees.make_kernel, 1 + len(rule.state)
    key = ("look", parallel, rule.structure, rule.slots, dtype)
    return keep(key, lambda: make(norms.make_add_motion(rule, dtype), WIDTH, dtype, arrays))


def look(rule: Update) -> Callable[..., Motion]:
    """``look((param, *state), grad, hyper)``, the same of one array by the reference."""
    from fastmomentum.backends.numpy import make_look

    return keep(("look", "numpy", rule.structure, rule.slots), lambda: make_look(rule))


def _maker(parallel: bool) -> Any:
    return import_module(f"{__name__}.{'parallel' if parallel else 'cpu'}")


def all_of(dtype: np.dtype[Any], rule: Update) -> Dtypes:
    """One dtype for the parameter, its state and its gradient."""
    return Dtypes(dtype, dtype, (dtype,) * len(rule.state))


def keep(key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """What is kept under this key; made if nothing is."""
    # The key holds the rule's structure, not the rule: chains made anew from the same stages share their kernel.
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]
