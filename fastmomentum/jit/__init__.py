"""Update rules as functions that compiled code can call.

``fm.jit.<name>`` is the rule of that name as a function of scalars. Code compiled by Numba may call it, and LLVM
inlines it there. For the rule "pytorch", with keep = 1 − dampening::

    p[i], v[i] = fm.jit.pytorch(p[i], v[i], g[i], lr, momentum, keep)

All functions take their arguments in one order: the parameter, the rule's state, the gradient, and the hyper-parameters
in the order of ``rule.hyper``. :func:`hyper` returns the values of the hyper-parameters.

- :func:`update` returns the function of scalars for any rule, chains and user-defined rules included.
- :func:`kernel` returns a function of arrays.
- :func:`cfunc` returns a C function.
- :func:`fuse` and :func:`fuse_stencil` return kernels that compute the gradient themselves.
- :mod:`fastmomentum.jit.cuda` has functions for CUDA kernels.

While the variable NUMBA_DISABLE_JIT switches Numba's compiler off, for debugging, all but those for CUDA run in Python,
slowly, and with the same bits. In a gradient function for float32, write constants as ``numpy.float32``: of a plain
number compiled code makes a double, and Python does not.
"""

from importlib import import_module
from typing import Any

from fastmomentum.jit.functions import CFunction, cfunc, hyper, kernel, update
from fastmomentum.jit.fused import Fused, fuse, fuse_stencil
from fastmomentum.rules.registry import names

__all__ = ["CFunction", "Fused", "cfunc", "cuda", "fuse", "fuse_stencil", "hyper", "kernel", "update"]


def __getattr__(name: str) -> Any:
    if name == "cuda":  # loaded on first use, as it imports numba-cuda, which is an extra
        return import_module("fastmomentum.jit.cuda")
    if name in names():
        return update(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and there is no rule of that name")


def __dir__() -> list[str]:
    return [*__all__, *names()]
