"""The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.

The norm of gradients, and what is measured of a step, come from sums by a fixed tree, so that neither threads nor
vector width change their bits. An array is cut into chunks of 65,536 elements, a chunk into rows of 32 lanes. Lane j
adds the products of column j, in double precision; then the upper half of the lanes is added to the lower until one is
left; the chunks' sums are added in order, and so are, by the caller, the arrays'.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastmomentum.backends.base import CHUNK, LANES, cached_kernel
from fastmomentum.backends.step_sums import PAIRS, StepSums, make_step_sums
from fastmomentum.rules.base import Rule


def measure(rule: Rule) -> Callable[..., StepSums]:
    """Return ``measure((param, *state), grad, hyper)`` for this rule; rules of one structure share it."""
    return cached_kernel(("measure", "numpy", rule.structure, rule.slots), lambda: make_measure(rule))


def make_measure(rule: Rule) -> Callable[[tuple[Any, ...], Any, tuple[Any, ...]], StepSums]:
    """The function ``look((param, *state), grad, hyper)``: the motion of the step to come; nothing is written."""
    motion = make_step_sums(rule)

    def look(arrays: tuple[Any, ...], grad: Any, hyper: tuple[Any, ...]) -> StepSums:
        *flat, g = (array.reshape(-1) for array in (*arrays, grad))

        def products(part: slice) -> Iterable[Any]:
            now = [array[part] for array in flat]
            v, moved, left = motion(now, g[part], hyper)
            factors = [factor.astype(np.float64) for factor in (v, g[part], moved, left, now[0])]
            return (factors[one] * factors[other] for one, other in PAIRS)

        return StepSums(*sums(products, g.size, len(PAIRS)))

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
