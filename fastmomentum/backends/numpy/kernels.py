"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.

The norm of gradients, and what is measured of a step, come from sums by a fixed tree, so that neither threads nor
vector width change their bits. An array is cut into chunks of 65,536 elements, a chunk into rows of 32 lanes. Lane j
adds the products of column j, in double precision; then the upper half of the lanes is added to the lower until one is
left; the chunks' sums are added in order, and so are, by the caller, the arrays'.
"""

from collections.abc import Callable
from itertools import combinations, starmap
from typing import Any

import numpy as np

from fastmomentum.backends.base import cached_kernel
from fastmomentum.rules.base import Rule


def kernel(rule: Rule) -> Callable[..., bool]:
    """Return ``kernel((param, *state), grad, hyper)`` for this rule; rules of one structure share it."""
    return cached_kernel(("numpy", rule.structure), lambda: make_kernel(rule))


def make_kernel(rule: Rule) -> Callable[[tuple[Any, ...], Any, tuple[Any, ...]], bool]:
    """The function ``kernel((param, *state), grad, hyper)``, which updates param and state in place.

    It looks for shared memory first; where it finds any, nothing is written and False comes back.
    """
    update = rule.build()

    def kernel(arrays: tuple[Any, ...], grad: Any, hyper: tuple[Any, ...]) -> bool:
        if any(starmap(np.may_share_memory, combinations((*arrays, grad), 2))):  # exact for contiguous arrays
            return False
        with np.errstate(all="ignore"):
            results = update(*arrays, grad, *hyper)
        # A result may be one of the arrays itself (heavy_ball's q ← p), and must outlive the writing of the others.
        results = tuple(np.copy(result) if any(result is array for array in arrays) else result for result in results)
        for array, result in zip(arrays, results, strict=True):
            array[...] = result
        return True

    return kernel
