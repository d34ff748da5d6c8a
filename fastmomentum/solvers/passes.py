"""Make the two passes over memory of a minimiser's step: the update, and the sums on which the loop decides.

Both passes use the rule's own scalar function, with proximal maps between its gradient step and its extrapolation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.extending import register_jitable

from fastmomentum.backends.cpu.kernel_cache import kept_on_disk
from fastmomentum.backends.cpu.kernels import STRICT
from fastmomentum.backends.cpu.loops import compiled_part, inlined, make_cast, make_function, make_load, make_store
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.cache import bounded
from fastmomentum.rules.compose import chain
from fastmomentum.rules.stage import Stage
from fastmomentum.rules.stages import box, negative_threshold, positive_zero, soft_threshold, threshold_of

Floats = npt.NDArray[np.floating]
"""An array of one dimension, float32 or float64."""

Limits = tuple[Floats, Floats] | tuple[()]
"""The lower and the upper bounds, or () if there are none."""

LANES = 128
"""The number of partial sums kept side by side, in a fixed order (with 32 the pass takes twice as long, measured)."""

FEWER_LANES = 16
"""The number of partial sums that are left when all vectors of this length have been added."""

SUMS = ("absolute", "squares", "slope", "descent", "size", "size_next")
"""The names of the sums. With x⁺ = prox(p − lr·g) and a step from b to a of the minimising sequence they are
Σ|p − x⁺|, Σ(p − x⁺)², Σ(p − x⁺)(a − b), Σ(p − x⁺)g, Σ|p|, Σ|x⁺|. The first is not finite if p or g is not, either."""

SCRATCH = (1 + len(SUMS)) * LANES
"""The size of the scratch memory for a maximum and all sums."""

SUMMANDS = {
    "absolute": "abs(d) + 0.0 * g + 0.0 * p",  # bounds make d finite where g is not
    "squares": "d * d",
    "slope": "d * step",
    "descent": "d * g",
    "size": "abs(p)",
    "size_next": "abs(p - d)",
}
"""The summand of each sum for one parameter, as the text of an expression, with d = p − x⁺."""


class Terms(NamedTuple):
    """Say which terms the objective has besides the smooth function.

    Attributes
    ----------
    l1 : bool
        Whether there is a term l1·‖x‖₁.
    bounds : bool
        Whether x has bounds.
    """

    l1: bool
    bounds: bool

    @property
    def any(self) -> bool:
        """Whether a step has a proximal map."""
        return self.l1 or self.bounds


@bounded(64)
def make_advance(rule: str, terms: Terms) -> Callable[..., None]:
    """Return ``advance(new, old, g, lr, mu, l1, limits)``, which writes (p⁺, q⁺) to `new` from (p, q) in `old`.

    q is the rule's state. The extrapolated point is projected on the bounds, too, so that gradients are taken within
    the bounds alone.
    """
    projection = (replace(box, kind="param"),) if terms.bounds else ()
    update = chain(*_prox_stages(terms), rule, *projection).build(compiled_part)
    derive_row, limits_at = _make_derive_row(terms), _make_limits_at(terms)
    load, store, cast = make_load(2), make_store(2), make_cast(2 + 3 * terms.l1)

    def advance(new: Any, old: Any, g: Any, lr: Any, mu: Any, l1: Any, limits: Any) -> None:
        row = cast(derive_row(lr, mu, l1), g)
        for i in range(g.size):
            box_row = limits_at(limits, i)  # of the proximal map, and of the projection after the extrapolation
            store(new, i, update(*load(old, i), g[i], *row, *box_row, *box_row))

    compiled: Callable[..., None] = kept_on_disk(njit(**STRICT)(advance))
    return compiled


@bounded(64)
def make_measure(terms: Terms, wanted: frozenset[str]) -> Callable[..., tuple[float, ...]]:
    """Return ``measure(lanes, p, g, a, b, lr, l1, limits)``, which computes max|p − x⁺| and the :data:`SUMS`.

    Sums that are not `wanted` are 0. It computes in double precision; `lanes` is scratch memory of SCRATCH numbers.
    """
    # It returns a tuple of plain numbers: a signal that arrives while Numba makes any other Python object would end the
    # process.
    gap, limits_at, derive_row = _make_gap(terms), _make_limits_at(terms), _make_derive_row(terms)
    cast, width = make_cast(2 + 3 * terms.l1), (1 + len(wanted)) * LANES
    names = [name for name in SUMS if name in wanted]
    add, totals = _make_add(names), _make_totals(names)

    @register_jitable
    def collect(lanes: Any, p: Any, g: Any, a: Any, b: Any, row: Any, limits: Any, first: Any) -> None:
        for lane in range(p.size):
            d = np.float64(gap(p[lane], g[lane], row, limits_at(limits, first + lane)))
            largest, size = lanes[lane], abs(d)
            lanes[lane] = size if size > largest else largest
            step = np.float64(a[lane]) - np.float64(b[lane])
            add(lanes, LANES + lane, d, step, np.float64(g[lane]), np.float64(p[lane]))

    def measure(lanes: Any, p: Any, g: Any, a: Any, b: Any, lr: Any, l1: Any, limits: Any) -> Any:
        row = cast(derive_row(lr, 0.0, l1), g)
        lanes[:width] = 0.0
        for first in range(0, p.size, LANES):
            last = min(first + LANES, p.size)
            collect(lanes, p[first:last], g[first:last], a[first:last], b[first:last], row, limits, first)
        return (max_of_lanes(lanes, 0), *totals(lanes))

    compiled: Callable[..., tuple[float, ...]] = kept_on_disk(njit(**STRICT)(measure))
    return compiled


@kept_on_disk
@njit(**STRICT)
def secant_is_within(p: Any, x: Any, g: Any, x_g: Any, curvature: Any, noise: Any) -> Any:
    """Return whether the mean curvature of f from p to x is at most `curvature`, by the gradients g and x_g there.

    ⟨x_g − g, x − p⟩ ≤ curvature·‖x − p‖·(‖x − p‖ + noise·‖p‖), as rounding of p moves gradients by curvature·noise·‖p‖
    """
    secant, squares, size = 0.0, 0.0, 0.0
    for i in range(p.size):
        step = np.float64(x[i]) - np.float64(p[i])
        secant += (np.float64(x_g[i]) - np.float64(g[i])) * step
        squares += step * step
        size += np.float64(p[i]) * np.float64(p[i])
    return secant <= curvature * (squares + noise * np.sqrt(squares) * np.sqrt(size))


def _make_add(names: Sequence[str]) -> Function:
    """Return ``add(lanes, lane, d, step, g, p)``, which adds to the sums of these names, LANES numbers apart."""
    statements = [f"lanes[lane + {i * LANES}] += {SUMMANDS[name]}" for i, name in enumerate(names)]
    return make_function("add", "lanes, lane, d, step, g, p", statements)


def _make_totals(names: Sequence[str]) -> Function:
    """Return ``totals(lanes)``, a tuple of all SUMS; those that are not among these names are 0."""
    sums = [f"sum_of_lanes(lanes, {LANES * (1 + names.index(name))})" if name in names else "0.0" for name in SUMS]
    return make_function("totals", "lanes", [f"return ({', '.join(sums)})"], sum_of_lanes=sum_of_lanes)


def _make_reduction(combine: Function) -> Function:
    """Return ``reduce(lanes, first)``, which combines the LANES numbers from `first` on and overwrites some."""

    def reduce(lanes: Any, first: Any) -> Any:
        for k in range(FEWER_LANES, LANES, FEWER_LANES):  # LLVM unrolls these loops, as their bounds are constants
            for lane in range(FEWER_LANES):
                lanes[first + lane] = combine(lanes[first + lane], lanes[first + k + lane])
        found = lanes[first]
        for lane in range(1, FEWER_LANES):
            found = combine(found, lanes[first + lane])
        return found

    return inlined(reduce)


sum_of_lanes = _make_reduction(inlined(lambda one, other: one + other))
max_of_lanes = _make_reduction(inlined(lambda one, other: other if other > one else one))


def _prox_stages(terms: Terms) -> tuple[Stage, ...]:
    return (soft_threshold,) * terms.l1 + (box,) * terms.bounds


def _make_derive_row(terms: Terms) -> Function:
    """Return ``derive_row(lr, mu, l1)``: the hyper-parameters that all parameters share, in double precision."""
    if not terms.l1:
        return inlined(lambda lr, mu, l1: (lr, mu))
    low, high, zero = (inlined(derive) for derive in (negative_threshold, threshold_of, positive_zero))
    return inlined(lambda lr, mu, l1: (lr, mu, low(lr, l1), high(lr, l1), zero()))


def _make_limits_at(terms: Terms) -> Function:
    """Return ``limits_at(limits, i)``: the hyper-parameters of the box for parameter i."""
    if not terms.bounds:
        return inlined(lambda limits, i: ())
    return inlined(lambda limits, i: (limits[0][i], limits[1][i], limits[0].dtype.type(0)))


def _make_gap(terms: Terms) -> Function:
    """Return ``gap(p, g, row, limits)``, which computes p − x⁺.

    It starts from s = lr·g, so that the rounding of p − s cannot hide a small gap. For the soft threshold, with
    u = p − s: p − (u − clip(u, −τ, τ)) = s + clip(u, −τ, τ). For a box after it:
    p − clip(p − d, low, high) = clip(d, p − high, p − low).
    """
    soft = inlined(lambda p, s, row: s + np.minimum(np.maximum(p - s, row[2]), row[3]))
    within = inlined(lambda p, d, limits: np.minimum(np.maximum(d, p - limits[1]), p - limits[0]))
    if terms.l1 and terms.bounds:
        return inlined(lambda p, g, row, limits: within(p, soft(p, row[0] * g, row), limits))
    if terms.l1:
        return inlined(lambda p, g, row, limits: soft(p, row[0] * g, row))
    if terms.bounds:
        return inlined(lambda p, g, row, limits: within(p, row[0] * g, limits))
    return inlined(lambda p, g, row, limits: row[0] * g)
