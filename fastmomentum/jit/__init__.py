"""The rules inside other people's compiled code.

``fm.jit.pytorch`` and every other rule's name is that rule as a scalar function, which code compiled by Numba may call
and which LLVM inlines there::

    p[i], v[i] = fm.jit.pytorch(p[i], v[i], g[i], lr, momentum, keep)

The order is everywhere the same: the parameter, the rule's state, the gradient, the rule's hyper-parameters as its
record has them (``rule.hyper``; :func:`hyper` computes them). :func:`update` is such a function for a chain or a rule
of one's own, :func:`kernel` one for whole arrays, :func:`cfunc` a C function, :func:`fuse` and :func:`fuse_stencil`
make kernels that form the gradient themselves; :mod:`fastmomentum.jit.cuda` has the same for device code.
"""

from importlib import import_module
from typing import Any

from fastmomentum.jit.functions import CFunction, cfunc, hyper, kernel, update
from fastmomentum.jit.fused import Fused, fuse, fuse_stencil
from fastmomentum.rules.registry import names

__all__ = ["CFunction", "Fused", "cfunc", "cuda", "fuse", "fuse_stencil", "hyper", "kernel", "update"]


def __getattr__(name: str) -> Any:
    if name == "cuda":  # loads numba-cuda, which is an extra
        return import_module("fastmomentum.jit.cuda")
    if name in names():
        return update(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and there is no rule of that name")


def __dir__() -> list[str]:
    return [*__all__, *names()]
