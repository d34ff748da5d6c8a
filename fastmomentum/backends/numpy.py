"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.
"""

from collections.abc import Callable
from itertools import combinations, starmap
from typing import Any

import numpy as np

from fastmomentum.records import Update


def make_kernel(rule: Update) -> Callable[[tuple[Any, ...], Any, tuple[Any, ...]], bool]:
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
