"""Update rules as functions for other people's compiled code.

``fm.jit.pytorch``, and likewise every other rule's name, is that rule as a function of scalars. Code compiled by Numba
may call it, and LLVM inlines it there::

    p[i], v[i] = fm.jit.pytorch(p[i], v[i], g[i], lr, momentum, keep)

All functions take their arguments in one order: the parameter, the rule's state, the gradient, and the hyper-parameters
in the order of ``rule.hyper`` (:func:`hyper` computes their values).

- :func:`update` returns the function of scalars for any rule, chains and user-defined rules included,
- :func:`kernel` a function of arrays,
- :func:`cfunc` a C function,
- :func:`fuse` and :func:`fuse_stencil` kernels that compute the gradient themselves,
- :mod:`fastmomentum.jit.cuda` has functions for CUDA kernels.
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
