"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmomentum.records import Update


def make_kernel(rule: Update) -> Callable[[tuple[Any, ...], Any, tuple[Any, ...]], None]:
    """The function ``kernel((param, *state), grad, hyper)``, which updates param and state in place."""
    update = rule.build()

    def kernel(arrays: tuple[Any, ...], grad: Any, hyper: tuple[Any, ...]) -> None:
        with np.errstate(all="ignore"):
            results = update(*arrays, grad, *hyper)
        # A result may be one of the arrays itself (heavy_ball's q ← p), and must outlive the writing of the others.
        results = tuple(np.copy(result) if any(result is array for array in arrays) else result for result in results)
        for array, result in zip(arrays, results, strict=True):
            array[...] = result

    return kernel
