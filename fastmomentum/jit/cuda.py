"""The rules inside other people's CUDA kernels, compiled by numba-cuda; needs the extra `cuda`.

``fm.jit.cuda.pytorch`` and every other rule's name is that rule as a device function of scalars. Its arithmetic is
strict: nothing is contracted to FMA, and the bits are the host's (but under ``fastmath=True`` subnormal numbers, which
that flushes to zero)::

    i = cuda.grid(1)
    if i < p.size:
        p[i], v[i] = pytorch(p[i], v[i], g[i], lr, momentum, keep)
"""

from typing import Any

from fastmomentum.backends.base import cached_kernel
from fastmomentum.backends.cuda import device_functions
from fastmomentum.rules.base import Rule
from fastmomentum.rules.registry import find, names

__all__ = ["kernel", "update"]


def update(rule: str | Rule) -> Any:
    """``(p, *state, g, *hyper) -> (p, *state)``: one element's update, for device code.

    As :func:`fastmomentum.jit.update`: everything is cast to the dtype of p, float32 or float64.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        For functions decorated with ``numba.cuda.jit``; in Numba's simulator a Python function.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.
    """
    chosen = find(rule)
    return cached_kernel(("device scalar", chosen.structure), lambda: device_functions.make_scalar(chosen))


def kernel(rule: str | Rule) -> Any:
    """``(start, stride, p, *state, g, *hyper) -> None``: one fused update of elements start, start + stride, ….

    With ``cuda.grid(1)`` and ``cuda.gridsize(1)``, called by all threads, it updates whole arrays, whatever the grid.
    Shapes and overlaps are not checked: arrays are of one length, and those written share no memory with another.
    Behind it a thread may read what it has written itself, and others only behind a barrier of the whole grid.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        For functions decorated with ``numba.cuda.jit``: contiguous arrays of one dtype, float32 or float64, and
        numbers, which are cast to it.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.
    """
    chosen = find(rule)
    return cached_kernel(("device sweep", chosen.structure), lambda: device_functions.make_sweep(chosen))


def __getattr__(name: str) -> Any:
    if name in names():
        return update(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and there is no rule of that name")


def __dir__() -> list[str]:
    return [*__all__, *names()]
