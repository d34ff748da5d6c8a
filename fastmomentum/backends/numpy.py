"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.

The norm of gradients comes from a sum of squares by a fixed tree, so that neither threads nor vector width change its
bits. An array is cut into chunks of 65,536 elements, a chunk into rows of 32 lanes. Lane j adds the squares of column
j, in double precision; then the upper half of the lanes is added to the lower until one is left; the chunks' sums are
added in order, and so are, by the caller, the arrays'.
"""

from collections.abc import Callable
from itertools import combinations, starmap
from typing import Any

import numpy as np

from fastmomentum.records import Update

LANES = 32
CHUNK = 65_536


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


def sum_of_squares(grad: Any) -> float:
    """Σ g², by the tree, in double precision."""
    total, flat = 0.0, grad.reshape(-1)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK].astype(np.float64)
            rows = np.zeros((-(-chunk.size // LANES), LANES))
            rows.reshape(-1)[: chunk.size] = chunk * chunk
            lanes = np.add.accumulate(rows)[-1]  # accumulate adds row by row, in order, where reduce may not
            while lanes.size > 1:
                lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
            total += float(lanes[0])
    return total
