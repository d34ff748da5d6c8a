"""Choose a backend, and import its arrays, its kernels and its executor on first use.

Each backend is a package with the modules arrays, kernels, reductions and executor. The packages do not import each
other; :mod:`fastmomentum.backends.base` has the code that they share.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmomentum.advice import is_tensor
from fastmomentum.backends import cpu, cuda
from fastmomentum.backends.cuda.device_array import is_on_device

if TYPE_CHECKING:
    from fastmomentum.backends.base import ArrayUpdate, Executor, StepCounter
    from fastmomentum.rules.base import Rule

NAMES = ("numpy", "cpu", "cuda")


def is_array(value: object) -> bool:
    """Return whether `value` is one array, on the host or on a device, and not a sequence of arrays."""
    return isinstance(value, np.ndarray) or is_tensor(value) or is_on_device(value)


def choose(backend: str | None, arrays: Iterable[Any]) -> str:
    """Return the name of the backend to use: `backend`, or for None the compiled one for the arrays' memory.

    If Numba's compiler is switched off, None stands for "numpy" on the host, with a warning.

    Raises
    ------
    ValueError
        If no backend has this name.
    RuntimeError
        If the backend is "cuda" and CUDA cannot be used, or "cpu" and Numba's compiler is switched off.
    """
    if backend is None:
        on_device = any(type(array) is not np.ndarray and is_on_device(array) for array in arrays)
        backend = "cuda" if on_device else _cpu_or_reference("cpu")
    if backend not in NAMES:
        raise ValueError(f"backend: expected None, {' or '.join(map(repr, NAMES))}; got {backend!r}")
    if backend == "cuda":
        cuda.require()
    elif backend == "cpu":
        cpu.require()
    return backend


def _cpu_or_reference(backend: str) -> str:
    """Return `backend`, but "numpy" in place of "cpu" if Numba's compiler is switched off."""
    if backend != "cpu" or cpu.has_compiler():
        return backend
    _warn_of_reference()
    return "numpy"


@cache
def _warn_of_reference() -> None:
    """Warn once in a process that updates are not compiled."""
    warnings.warn(
        "the variable NUMBA_DISABLE_JIT switches Numba's compiler off, so updates run on the NumPy reference: slower, "
        "with the same bits. Unset it for compiled updates, or pass backend='numpy' to use the reference without this "
        "warning",
        RuntimeWarning,
        stacklevel=2,
    )


def arrays_of(backend: str) -> Any:
    """Return this backend's module of array operations other than updates: view, copy, zero, fetch."""
    return import_module(f"{__name__}.{backend}.arrays")


def one_array_kernel(backend: str, rule: "Rule", dtype: np.dtype[Any]) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper) -> bool`` of a host backend, for arrays of this dtype.

    The kernel updates param and state in place. If two of the arrays share memory, it writes nothing and returns False.
    """
    if _cpu_or_reference(backend) == "numpy":
        from fastmomentum.backends.numpy import kernels as numpy_kernels

        return numpy_kernels.kernel(rule)
    from fastmomentum.backends.cpu import kernels

    return kernels.kernel(rule, dtype)


def make_executor(
    backend: str,
    jobs: "Sequence[ArrayUpdate]",
    written: npt.NDArray[np.int64],
    counter: "StepCounter",
    threads: int | None,
    device: int,
) -> "Executor":
    """Return the executor of this backend for these arrays.

    Parameters
    ----------
    backend : str
        The name of the backend.
    jobs : sequence of ArrayUpdate
        The arrays to update, each with its rule and the number of its group.
    written : ndarray of int64, shape (m, 2)
        The intervals of memory that an update writes to.
    counter : StepCounter
        The counter of updates done and skipped.
    threads : int or None
        The number of threads that the user asked for; the CPU backend alone uses it.
    device : int
        The CUDA device of the arrays; the CUDA backend alone uses it.
    """
    backend = _cpu_or_reference(backend)  # an optimiser may come from a process with another choice, in a pickle
    if backend == "numpy":
        from fastmomentum.backends.numpy.executor import NumpyExecutor

        return NumpyExecutor(jobs, counter)
    if backend == "cpu":
        from fastmomentum.backends.cpu.executor import CpuExecutor

        return CpuExecutor(jobs, written, counter, threads)
    from fastmomentum.backends.cuda.executor import CudaExecutor

    return CudaExecutor(jobs, written, counter, device)
