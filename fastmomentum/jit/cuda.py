"""Update rules as device functions for CUDA kernels that numba-cuda compiles; needs the extra ``cuda``.

``fm.jit.cuda.<name>`` is the rule of that name as a device function of scalars. In a kernel, with numba's `cuda` and
``pytorch = fm.jit.cuda.pytorch``::

    i = cuda.grid(1)
    if i < p.size:
        p[i], v[i] = pytorch(p[i], v[i], g[i], lr, momentum, keep)

Its arithmetic is strict: products and sums are not contracted to FMA, and the bits are those of the host. A kernel
compiled with ``fastmath=True`` flushes subnormal numbers to zero; all other results keep their bits.
"""

from fastmomentum.backends.cuda import device_functions
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.registry import find, names

__all__ = ["kernel", "update"]


def update(rule: str | Rule) -> Function:
    """Return a rule as a device function of scalars, which updates one element.

    (p, *state, g, *hyper) → (p, *state)

    Like the function of :func:`fastmomentum.jit.update`, it casts all arguments to the dtype of p, float32 or float64.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        For functions decorated with ``numba.cuda.jit``; a Python function in Numba's simulator.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.
    """
    chosen = find(rule)
    return cached_kernel(("device scalar", chosen.structure), lambda: device_functions.make_scalar(chosen))


def kernel(rule: str | Rule) -> Function:
    """Return a device function that updates the elements start, start + stride, start + 2·stride, … of arrays.

    ``(start, stride, p, *state, g, *hyper) -> None``

    If all threads of a grid call it with ``cuda.grid(1)`` and ``cuda.gridsize(1)``, it updates whole arrays, for any
    size of the grid. It does not check shapes and overlaps: all arrays must have one length, and no written array may
    share memory with another. After the call a thread may read the elements that it has written itself; it may read
    those of other threads only after a barrier of the whole grid.

    Parameters
    ----------
    rule : str, Rule or chain
        The update rule.

    Returns
    -------
    function
        For functions decorated with ``numba.cuda.jit``. It takes contiguous arrays of one dtype, float32 or float64,
        and numbers, which are cast to that dtype.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule.
    """
    chosen = find(rule)
    return cached_kernel(("device sweep", chosen.structure), lambda: device_functions.make_sweep(chosen))


def __getattr__(name: str) -> Function:
    if name in names():
        return update(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and there is no rule of that name")


def __dir__() -> list[str]:
    return [*__all__, *names()]
