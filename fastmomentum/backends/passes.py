"""The two passes over memory that a step of a minimiser makes: the update, and what is measured of it.

Both are made of the rule's own scalar function, with its proximal maps between gradient step and extrapolation.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.loops import make_cast, make_load, make_store
from fastmomentum.chains import chain
from fastmomentum.rules import nesterov_positions
from fastmomentum.stages import box, negative_threshold, positive_zero, soft_threshold, threshold_of

LANES = 128
"""Sums that are formed at once, in a fixed order; with 32 the pass takes twice as long (measured)."""


class Measured(NamedTuple):
    """What is measured of p, x⁺ = prox(p − lr·g) and a step a − b, in double precision.

    Attributes
    ----------
    squares, slope, descent : float
        Σ(p − x⁺)², Σ(p − x⁺)(a − b), Σg(p − x⁺).
    largest : float
        max|p − x⁺|.
    size, size_next : float
        Σ|p|, Σ|x⁺|.
    """

    squares: float
    slope: float
    descent: float
    largest: float
    size: float
    size_next: float


KINDS = len(Measured._fields)
SQUARES, SLOPE, DESCENT, LARGEST, SIZE, SIZE_NEXT = range(0, KINDS * LANES, LANES)  # where the lanes of each begin


class Terms(NamedTuple):
    """What is minimised beside a smooth function: l1·‖x‖₁, and whether x has bounds."""

    l1: bool
    bounds: bool

    @property
    def any(self) -> bool:
        """Whether there is a proximal map."""
        return self.l1 or self.bounds


@lru_cache(maxsize=64)
def make_advance(rule: str, terms: Terms) -> Any:
    """``advance(new, old, g, lr, mu, l1, limits)``: from (p, q) to (p⁺, q⁺), which are other arrays.

    `limits` holds the bounds, an array each, if there are any. The extrapolated point is projected, too, so that the
    gradient is taken within the bounds alone: projections bring it nearer to every point there, and Beck and
    Teboulle's proof holds as it is.
    """
    behind = (replace(box, kind="param"),) if terms.bounds else ()
    update = chain(*_proximal(terms), rule, *behind).build(register_jitable)
    numbers, limit = _numbers(terms), _limit(terms)
    count = 2 + 3 * terms.l1
    load, store, cast = make_load(2), make_store(2), make_cast(count)

    def advance(new: Any, old: Any, g: Any, lr: Any, mu: Any, l1: Any, limits: Any) -> None:
        row = cast(numbers(lr, mu, l1), g)
        for i in range(g.size):
            between = limit(limits, i)
            store(new, i, update(*load(old, i), g[i], *row, *between, *between))

    return njit(error_model="numpy", nogil=True)(advance)


@lru_cache(maxsize=64)
def make_measure(terms: Terms) -> Any:
    """``measure(lanes, p, g, a, b, lr, l1, limits) -> Measured``; `lanes` is scratch, KINDS · LANES numbers."""
    gap, limit, numbers = _gap(terms), _limit(terms), _numbers(terms)
    cast = make_cast(2 + 3 * terms.l1)

    @register_jitable
    def collect(lanes: Any, p: Any, g: Any, a: Any, b: Any, row: Any, limits: Any, first: Any) -> None:
        for lane in range(p.size):
            way = gap(p[lane], g[lane], row, limit(limits, first + lane))
            d, old = np.float64(way), np.float64(p[lane])
            largest, size = lanes[LARGEST + lane], abs(d)
            lanes[SQUARES + lane] += d * d
            lanes[SLOPE + lane] += d * (np.float64(a[lane]) - np.float64(b[lane]))
            lanes[DESCENT + lane] += d * np.float64(g[lane])
            lanes[LARGEST + lane] = size if size > largest else largest
            lanes[SIZE + lane] += abs(old)
            lanes[SIZE_NEXT + lane] += abs(old - d)

    def measure(lanes: Any, p: Any, g: Any, a: Any, b: Any, lr: Any, l1: Any, limits: Any) -> Any:
        row = cast(numbers(lr, 0.0, l1), g)
        lanes[:] = 0.0
        for first in range(0, p.size, LANES):
            last = min(first + LANES, p.size)
            collect(lanes, p[first:last], g[first:last], a[first:last], b[first:last], row, limits, first)
        half = LANES // 2
        while half > 0:
            for kind in range(0, lanes.size, LANES):
                for lane in range(kind, kind + half):
                    one, other = lanes[lane], lanes[half + lane]
                    lanes[lane] = max(one, other) if kind == LARGEST else one + other
            half //= 2
        return Measured(*to_fixed_tuple(lanes[::LANES], KINDS))

    return njit(error_model="numpy", nogil=True)(measure)


def _proximal(terms: Terms) -> tuple[Any, ...]:
    return (soft_threshold,) * terms.l1 + (box,) * terms.bounds


def _numbers(terms: Terms) -> Any:
    """The hyper-parameters that all coordinates share, derived in double precision."""
    if not terms.l1:
        return register_jitable(lambda lr, mu, l1: (lr, mu))
    low, high, zero = (register_jitable(how) for how in (negative_threshold, threshold_of, positive_zero))
    return register_jitable(lambda lr, mu, l1: (lr, mu, low(lr, l1), high(lr, l1), zero()))


def _limit(terms: Terms) -> Any:
    """What the box takes for one coordinate."""
    if not terms.bounds:
        return register_jitable(lambda limits, i: ())
    return register_jitable(lambda limits, i: (limits[0][i], limits[1][i], limits[0].dtype.type(0)))


def _gap(terms: Terms) -> Any:
    """``gap(p, g, row, limit)``: p − x⁺; without a proximal map lr·g itself, which no rounding of p − lr·g can hide."""
    if not terms.any:
        return register_jitable(lambda p, g, row, limit: row[0] * g)
    update = chain(*_proximal(terms), nesterov_positions).build(register_jitable)  # its state is x⁺
    return register_jitable(lambda p, g, row, limit: p - update(p, p, g, *row, *limit)[1])
