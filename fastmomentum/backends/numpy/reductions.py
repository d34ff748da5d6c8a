"""Define the reference reductions: norms of gradients and the sums of a step, added in a fixed order.

The order does not depend on threads or vector width, so every backend gives the same bits. An array is cut into chunks
of 65,536 elements, and a chunk into rows of 32 lanes:

1. Lane j adds what is summed of column j in double precision, row by row.
2. The upper half of the lanes is added to the lower half, until one lane is left: the sum of the chunk.
3. The sums of the chunks are added in order, and the caller adds the sums of the arrays in order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.step_sums import StepSums, make_step_summands
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule

Array = npt.NDArray[np.floating]


def sum_up(
    summands: Function,
    arrays: tuple[Array, ...],
    grad: Array,
    hyper: tuple[np.floating, ...],
    given: Sequence[npt.NDArray[Any]] = (),
) -> list[float]:
    """Return the sums of what ``summands(p, *state, g, *given, *hyper)`` returns for each element of these arrays."""
    flat = [array.reshape(-1) for array in (*arrays, grad, *given)]
    return sums(lambda part: summands(*[array[part] for array in flat], *hyper), flat[0].size)


def measure(
    rule: Rule, arrays: tuple[Array, ...], grad: Array, hyper: tuple[np.floating, ...], given: Sequence[Array] = ()
) -> StepSums:
    """Return the sums of the next step, which is not done."""
    return StepSums(*sum_up(make_step_summands(rule), arrays, grad, hyper, given))


def sums(summands: Callable[[slice], Sequence[Array]], size: int) -> list[float]:
    """Return the sums over arrays of this size, added in the fixed order.

    ``summands(part)`` returns the arrays to be summed, for the elements of the slice `part`.
    """
    totals: list[float] = []
    with np.errstate(all="ignore"):
        for start in range(0, max(size, 1), CHUNK):
            found = summands(slice(start, start + CHUNK))
            totals = totals or [0.0] * len(found)
            count = min(CHUNK, size - start)
            for k, values in enumerate(found):
                rows = np.zeros((max(1, -(-count // LANES)), LANES))
                rows.reshape(-1)[:count] = values
                lanes = np.add.accumulate(rows)[-1]  # accumulate adds row by row in order; np.sum need not
                while lanes.size > 1:
                    lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
                totals[k] += float(lanes[0])
    return totals
