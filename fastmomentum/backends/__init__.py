"""(rule or chain, dtypes, backend) -> kernel, compiled on first use and kept."""

from collections.abc import Callable, Hashable
from importlib import import_module
from typing import Any

import numpy as np

from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.records import Update

_kept: dict[Hashable, Callable[..., Any]] = {}

NAMES = ("numpy", "cpu")


def choose(backend: str | None) -> str:
    """The backend meant by what the user wrote; None is the compiled one.

    Raises
    ------
    ValueError
        If there is no such backend.
    """
    if backend is None:
        return "cpu"
    if backend not in NAMES:
        raise ValueError(f"backend: expected None, {' or '.join(map(repr, NAMES))}; got {backend!r}")
    return backend


def kernel(rule: Update, dtype: np.dtype[Any], backend: str, parallel: bool = False) -> Callable[..., bool]:
    """``kernel((param, *state), grad, hyper)`` for one parameter whose arrays all have this dtype.

    Where `parallel`, it also takes the number of threads.

    It answers False, and has written nothing, if two of the arrays share memory.
    """
    if backend == "numpy":
        from fastmomentum.backends.numpy import make_kernel as make_reference

        return _keep(("numpy", rule.structure), lambda: make_reference(rule))
    dtypes = _all_of(dtype, rule)
    return _keep(("one", parallel, rule.structure, dtypes), lambda: _maker(parallel).make_kernel(rule, dtypes))


def many_kernel(rule: Update, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """``kernel(table, written, rows, hyper, grads)`` for many parameters whose arrays all have this dtype.

    Where `parallel`, it takes `ends` and the number of threads in front of `grads`.
    """
    dtypes = _all_of(dtype, rule)
    return _keep(("many", parallel, rule.structure, dtypes), lambda: _maker(parallel).make_many_kernel(rule, dtypes))


def squares_kernel(dtype: np.dtype[Any], arrays: int, parallel: bool = False) -> Callable[..., bool]:
    """``kernel(table, written, rows, lanes, sums, grads)`` for gradients of this dtype.

    Where `parallel`, it takes `ends`, `shares`, `lanes`, `parts` and `sums` in place of `lanes` and `sums`.
    """
    from fastmomentum.backends import norms

    make = norms.make_parallel_squares_kernel if parallel else norms.make_squares_kernel
    return _keep(("squares", parallel, dtype, arrays), lambda: make(dtype, arrays))


def _maker(parallel: bool) -> Any:
    return import_module(f"{__name__}.{'parallel' if parallel else 'cpu'}")


def _all_of(dtype: np.dtype[Any], rule: Update) -> Dtypes:
    return Dtypes(dtype, dtype, (dtype,) * len(rule.state))


def _keep(key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    # The key holds the rule's structure, not the rule: chains made anew from the same stages share their kernel.
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]
