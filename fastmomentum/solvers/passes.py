"""The two passes over memory in a step of a minimiser: the update, and the sums that are measured of it.

Both are made of the rule's own scalar function, with proximal maps between gradient step and extrapolation.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable

from fastmomentum.backends.cpu.kernels import STRICT
from fastmomentum.backends.cpu.loops import make_cast, make_load, make_store
from fastmomentum.rules.compose import chain
from fastmomentum.rules.stages import box, negative_threshold, positive_zero, soft_threshold, threshold_of

LANES, FEW = 128, 16
"""The number of partial sums kept side by side, in a fixed order (with 32 the pass takes twice as long, measured), and
the number left after vectors of them have been added."""


SUMS = ("absolute", "squares", "slope", "descent", "size", "size_next")
"""With x⁺ = prox(p − lr·g) and a step a − b: Σ|p − x⁺|, Σ(p − x⁺)², Σ(p − x⁺)(a − b), Σ(p − x⁺)g, Σ|p|, Σ|x⁺|."""

SCRATCH = (1 + len(SUMS)) * LANES

SUMMED: dict[str, Any] = {
    "absolute": lambda d, step, g, p: abs(d),
    "squares": lambda d, step, g, p: d * d,
    "slope": lambda d, step, g, p: d * step,
    "descent": lambda d, step, g, p: d * g,
    "size": lambda d, step, g, p: abs(p),
    "size_next": lambda d, step, g, p: abs(p - d),
}
"""The term of each sum for one coordinate, with d = p − x⁺."""


class Terms(NamedTuple):
    """The terms beside the smooth function: whether there is l1·‖x‖₁, and whether x has bounds."""

    l1: bool
    bounds: bool

    @property
    def any(self) -> bool:
        """Whether there is a proximal map."""
        return self.l1 or self.bounds


@lru_cache(maxsize=64)
def make_advance(rule: str, terms: Terms) -> Any:
    """Return ``advance(new, old, g, lr, mu, l1, limits)``, which writes (p⁺, q⁺) to `new` from (p, q) in `old`.

    `limits` holds two arrays of bounds, or nothing. The extrapolated point is projected, too, so that gradients are
    taken within the bounds alone.
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

    return njit(**STRICT)(advance)


@lru_cache(maxsize=64)
def make_measure(terms: Terms, wanted: frozenset[str]) -> Any:
    """Return ``measure(lanes, p, g, a, b, lr, l1, limits)``: max|p − x⁺| and the :data:`SUMS`, 0 if not `wanted`.

    It works in double precision; `lanes` is scratch memory of SCRATCH numbers. It returns a tuple of plain numbers: if
    a signal came while Numba made any other Python object, it would end the process.
    """
    gap, limit, numbers = _gap(terms), _limit(terms), _numbers(terms)
    cast, width = make_cast(2 + 3 * terms.l1), (1 + len(wanted)) * LANES
    names = [name for name in SUMS if name in wanted]
    add, folded = _make_add(names), _make_folded([names.index(name) if name in names else -1 for name in SUMS])

    @register_jitable
    def collect(lanes: Any, p: Any, g: Any, a: Any, b: Any, row: Any, limits: Any, first: Any) -> None:
        for lane in range(p.size):
            d = np.float64(gap(p[lane], g[lane], row, limit(limits, first + lane)))
            largest, size = lanes[lane], abs(d)
            lanes[lane] = size if size > largest else largest
            step = np.float64(a[lane]) - np.float64(b[lane])
            add(lanes, LANES + lane, d, step, np.float64(g[lane]), np.float64(p[lane]))

    def measure(lanes: Any, p: Any, g: Any, a: Any, b: Any, lr: Any, l1: Any, limits: Any) -> Any:
        row = cast(numbers(lr, 0.0, l1), g)
        lanes[:width] = 0.0
        for first in range(0, p.size, LANES):
            last = min(first + LANES, p.size)
            collect(lanes, p[first:last], g[first:last], a[first:last], b[first:last], row, limits, first)
        return (greatest(lanes, 0), *folded(lanes))

    return njit(**STRICT)(measure)


def _make_add(names: Sequence[str]) -> Any:
    """Return ``add(lanes, lane, d, step, g, p)``, which adds to the sums of these names, LANES numbers apart."""
    if not names:
        return register_jitable(lambda lanes, lane, d, step, g, p: None)
    term, rest = register_jitable(SUMMED[names[0]]), _make_add(names[1:])

    def add(lanes: Any, lane: Any, d: Any, step: Any, g: Any, p: Any) -> None:
        lanes[lane] += term(d, step, g, p)
        rest(lanes, lane + LANES, d, step, g, p)

    return register_jitable(add)


def _make_folded(places: Sequence[int]) -> Any:
    """Return ``folded(lanes)``: the totals of the sums at these places; 0 for a sum that is not wanted."""
    if not places:
        return register_jitable(lambda lanes: ())
    first, rest = LANES * (1 + places[0]), _make_folded(places[1:])
    if places[0] < 0:
        return register_jitable(lambda lanes: (0.0, *rest(lanes)))
    return register_jitable(lambda lanes: (total(lanes, first), *rest(lanes)))


def _make_joined(joined: Any) -> Any:
    """Return ``all_of(lanes, first)``, which combines LANES numbers; its loops are unrolled."""

    def all_of(lanes: Any, first: Any) -> Any:
        for k in range(FEW, LANES, FEW):
            for lane in range(FEW):
                lanes[first + lane] = joined(lanes[first + lane], lanes[first + k + lane])
        found = lanes[first]
        for lane in range(1, FEW):
            found = joined(found, lanes[first + lane])
        return found

    return register_jitable(all_of)


total = _make_joined(register_jitable(lambda one, other: one + other))
greatest = _make_joined(register_jitable(lambda one, other: other if other > one else one))


def _proximal(terms: Terms) -> tuple[Any, ...]:
    return (soft_threshold,) * terms.l1 + (box,) * terms.bounds


def _numbers(terms: Terms) -> Any:
    """Return the hyper-parameters that all coordinates share, derived in double precision."""
    if not terms.l1:
        return register_jitable(lambda lr, mu, l1: (lr, mu))
    low, high, zero = (register_jitable(how) for how in (negative_threshold, threshold_of, positive_zero))
    return register_jitable(lambda lr, mu, l1: (lr, mu, low(lr, l1), high(lr, l1), zero()))


def _limit(terms: Terms) -> Any:
    """Return the hyper-parameters of the box for one coordinate."""
    if not terms.bounds:
        return register_jitable(lambda limits, i: ())
    return register_jitable(lambda limits, i: (limits[0][i], limits[1][i], limits[0].dtype.type(0)))


def _gap(terms: Terms) -> Any:
    """Return ``gap(p, g, row, limit)``: p − x⁺, computed from s = lr·g, so that the rounding of p − s cannot hide it.

    For the soft threshold p − (u − clip(u, −τ, τ)) = s + clip(u, −τ, τ), with u = p − s; for a box after it
    p − clip(p − d, low, high) = clip(d, p − high, p − low).
    """
    soft = register_jitable(lambda p, s, row: s + np.minimum(np.maximum(p - s, row[2]), row[3]))
    within = register_jitable(lambda p, d, limit: np.minimum(np.maximum(d, p - limit[1]), p - limit[0]))
    if terms.l1 and terms.bounds:
        return register_jitable(lambda p, g, row, limit: within(p, soft(p, row[0] * g, row), limit))
    if terms.l1:
        return register_jitable(lambda p, g, row, limit: soft(p, row[0] * g, row))
    if terms.bounds:
        return register_jitable(lambda p, g, row, limit: within(p, row[0] * g, limit))
    return register_jitable(lambda p, g, row, limit: row[0] * g)
