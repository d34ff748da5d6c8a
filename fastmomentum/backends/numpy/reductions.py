"""Define the reference reductions: norms of gradients and the sums of a step, added in a fixed order.

The order does not depend on threads or vector width, so every backend gives the same bits. An array is cut into chunks
of 65,536 elements, and a chunk into rows of 32 lanes:

1. Lane j adds the products of column j in double precision, row by row.
2. The upper half of the lanes is added to the lower half, until one lane is left: the sum of the chunk.
3. The sums of the chunks are added in order, and the caller adds the sums of the arrays in order.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.step_sums import PAIRS, StepSums, make_step_vectors
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.elementwise import MASK

Array = npt.NDArray[np.floating]
Measure = Callable[..., StepSums]
"""``measure((param, *state), grad, hyper, given=()) -> StepSums``."""


def measure(rule: Rule) -> Measure:
    """Return ``measure((param, *state), grad, hyper)`` from the cache; rules of the same structure share it."""
    return cached_kernel(("measure", "numpy", rule.structure, rule.slots), lambda: make_measure(rule))


def make_measure(rule: Rule) -> Measure:
    """Return ``measure((param, *state), grad, hyper, given=())``, which computes the sums of the next step.

    It writes nothing. The gradient of a frozen element counts as 0.
    """
    step_vectors = make_step_vectors(rule)

    mask_at = rule.given.index(MASK) if MASK in rule.given else None

    def measure(
        arrays: tuple[Array, ...], grad: Array, hyper: tuple[np.floating, ...], given: Sequence[Array] = ()
    ) -> StepSums:
        *flat, g = (array.reshape(-1) for array in (*arrays, grad))
        others = [array.reshape(-1) for array in given]
        if mask_at is not None:
            g = np.where(others[mask_at], g, g.dtype.type(0))

        def products(part: slice) -> Iterable[Array]:
            before = [array[part] for array in flat]
            velocity, step, next_velocity = step_vectors(before, g[part], (*(array[part] for array in others), *hyper))
            factors = [x.astype(np.float64) for x in (velocity, g[part], step, next_velocity, before[0])]
            return (factors[one] * factors[other] for one, other in PAIRS)

        return StepSums(*sums(products, g.size, len(PAIRS)))

    return measure


def sum_of_squares(grad: Array, mask: npt.NDArray[np.int8] | None = None) -> float:
    """Return Σg², added in the fixed order in double precision; an element whose mask is 0 counts as 0."""
    flat = grad.reshape(-1) if mask is None else np.where(mask, grad, grad.dtype.type(0)).reshape(-1)
    return sums(lambda part: (flat[part].astype(np.float64) ** 2,), flat.size, 1)[0]


def sums(products: Callable[[slice], Iterable[Array]], size: int, width: int) -> list[float]:
    """Return `width` sums over arrays of this size, added in the fixed order.

    ``products(part)`` returns the `width` arrays to be summed, for the elements of the slice `part`.
    """
    totals = [0.0] * width
    with np.errstate(all="ignore"):
        for start in range(0, size, CHUNK):
            for k, product in enumerate(products(slice(start, start + CHUNK))):
                rows = np.zeros((-(-product.size // LANES), LANES))
                rows.reshape(-1)[: product.size] = product
                lanes = np.add.accumulate(rows)[-1]  # accumulate adds row by row in order; np.sum need not
                while lanes.size > 1:
                    lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
                totals[k] += float(lanes[0])
    return totals
