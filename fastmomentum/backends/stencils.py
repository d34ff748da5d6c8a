"""Kernels whose gradient at a point follows from the parameters around it, as they were before the update.

The parameters are read in one array and written to another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from fastmomentum.backends.embedded import Call, embed, once
from fastmomentum.backends.loops import as_like, inlined, make_load, make_store
from fastmomentum.parts import Function
from fastmomentum.records import Update

Offsets = Sequence[tuple[int, ...]]


def make_stencil(rule: Update, gradient: Function, offsets: Offsets, data: tuple[str, ...]) -> Any:
    """``kernel(new, *state, old, *data, *hyper)``: one update of all points but those too near to the edge."""
    written, read, axes = 1 + len(rule.state), 1 + len(data), len(offsets[0])
    halos = [max(abs(offset[axis]) for offset in offsets) for axis in range(axes)]
    sweep = _make_sweep(_make_point(rule, gradient, offsets, len(data)), halos)

    def whole(written: Any, read: Any, hyper: Any) -> None:
        sweep(written, read, hyper, ())

    names = ("new", *rule.slots, "old", *data, *rule.hyper)
    return embed(once(register_jitable(whole)), Call(names, written, read, axes))


def _make_point(rule: Update, gradient: Function, offsets: Offsets, data: int) -> Any:
    """``point(written, read, hyper, at)``: the update of one point."""
    update, slope, around = rule.build(register_jitable), inlined(gradient), _make_around(offsets)
    load, load_data, store = make_load(len(rule.state)), make_load(data), make_store(1 + len(rule.state))
    here = _make_shifted((0,) * len(offsets[0]))

    def point(written: Any, read: Any, hyper: Any, at: Any) -> None:
        place, old = here(at), read[0]
        g = as_like(slope(*around(old, at), *load_data(read[1:], place)), old)
        store(written, place, update(old[place], *load(written[1:], place), g, *hyper))

    return register_jitable(point)


def _make_sweep(point: Any, halos: Sequence[int]) -> Any:
    """Loops over all axes, so far from both ends of each; `at` holds the places along those outside."""
    if not halos:
        return point
    halo, axis = halos[0], -len(halos)
    within = _make_sweep(point, halos[1:])

    def sweep(written: Any, read: Any, hyper: Any, at: Any) -> None:
        for i in range(halo, written[0].shape[axis] - halo):
            within(written, read, hyper, (*at, i))

    return register_jitable(sweep)


def _make_around(offsets: Offsets) -> Any:
    """``around(old, at)``: the values at these offsets from a point."""
    shifted = _make_shifted(offsets[0])
    if len(offsets) == 1:
        return register_jitable(lambda old, at: (old[shifted(at)],))
    rest = _make_around(offsets[1:])
    return register_jitable(lambda old, at: (old[shifted(at)], *rest(old, at)))


def _make_shifted(offset: Sequence[int]) -> Any:
    """``shifted(at)``: a place, by so much further along each axis; unsigned, as Numba looks whether others are < 0."""
    first = offset[0]
    if len(offset) == 1:
        return register_jitable(lambda at: (np.uintp(at[0] + first),))
    rest = _make_shifted(offset[1:])
    return register_jitable(lambda at: (np.uintp(at[0] + first), *rest(at[1:])))
