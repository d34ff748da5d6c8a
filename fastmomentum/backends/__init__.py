"""(rule or chain, dtypes, backend) -> kernel, compiled on first use and kept."""

from collections.abc import Callable, Hashable
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


def kernel(rule: Update, dtype: np.dtype[Any], backend: str) -> Callable[..., bool]:
    """``kernel((param, *state), grad, hyper)`` for one parameter whose arrays all have this dtype.

    It answers False, and has written nothing, if two of the arrays share memory.
    """
    if backend == "numpy":
        from fastmomentum.backends.numpy import make_kernel as make_reference

        return _keep(("numpy", rule.structure), lambda: make_reference(rule))
    from fastmomentum.backends.cpu import make_kernel

    dtypes = _all_of(dtype, rule)
    return _keep(("one", rule.structure, dtypes), lambda: make_kernel(rule, dtypes))


def many_kernel(rule: Update, dtype: np.dtype[Any]) -> Callable[..., bool]:
    """``kernel(table, written, rows, hyper, grads)`` for many parameters whose arrays all have this dtype."""
    from fastmomentum.backends.cpu import make_many_kernel

    dtypes = _all_of(dtype, rule)
    return _keep(("many", rule.structure, dtypes), lambda: make_many_kernel(rule, dtypes))


def squares_kernel(dtype: np.dtype[Any], arrays: int) -> Callable[..., bool]:
    """``kernel(table, written, rows, lanes, sums, grads)`` for gradients of this dtype."""
    from fastmomentum.backends.norms import make_squares_kernel

    return _keep(("squares", dtype, arrays), lambda: make_squares_kernel(dtype, arrays))


def _all_of(dtype: np.dtype[Any], rule: Update) -> Dtypes:
    return Dtypes(dtype, dtype, (dtype,) * len(rule.state))


def _keep(key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    # The key holds the rule's structure, not the rule: chains made anew from the same stages share their kernel.
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]
