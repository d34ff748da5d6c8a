"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.

The norm of gradients, and what is measured of a step, come from sums by a fixed tree, so that neither threads nor
vector width change their bits. An array is cut into chunks of 65,536 elements, a chunk into rows of 32 lanes. Lane j
adds the products of column j, in double precision; then the upper half of the lanes is added to the lower until one is
left; the chunks' sums are added in order, and so are, by the caller, the arrays'.
"""

from collections.abc import Callable, Iterable
from itertools import combinations, starmap
from typing import Any

import numpy as np

from fastmomentum.backends.motion import PAIRS, Motion, make_motion
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


def make_look(rule: Update) -> Callable[[tuple[Any, ...], Any, tuple[Any, ...]], Motion]:
    """The function ``look((param, *state), grad, hyper)``: the motion of the step to come; nothing is written."""
    motion = make_motion(rule)

    def look(arrays: tuple[Any, ...], grad: Any, hyper: tuple[Any, ...]) -> Motion:
        *flat, g = (array.reshape(-1) for array in (*arrays, grad))

        def products(part: slice) -> Iterable[Any]:
            now = [array[part] for array in flat]
            v, moved, left = motion(now, g[part], hyper)
            factors = [factor.astype(np.float64) for factor in (v, g[part], moved, left, now[0])]
            return (factors[one] * factors[other] for one, other in PAIRS)

        return Motion(*sums(products, g.size, len(PAIRS)))

    return look


def sum_of_squares(grad: Any) -> float:
    """Σ g², by the tree, in double precision."""
    flat = grad.reshape(-1)
    return sums(lambda part: (flat[part].astype(np.float64) ** 2,), flat.size, 1)[0]


def sums(products: Callable[[slice], Iterable[Any]], size: int, width: int) -> list[float]:
    """By the tree, the sums of so many arrays of this size, of which `products` makes the parts."""
    totals = [0.0] * width
    with np.errstate(all="ignore"):
        for start in range(0, size, CHUNK):
            for k, product in enumerate(products(slice(start, start + CHUNK))):
                rows = np.zeros((-(-product.size // LANES), LANES))
                rows.reshape(-1)[: product.size] = product
                lanes = np.add.accumulate(rows)[-1]  # accumulate adds row by row, in order, where reduce may not
                while lanes.size > 1:
                    lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
                totals[k] += float(lanes[0])
    return totals
