"""Kernels whose gradient at a point follows from the parameters around it, as they were before the update.

The parameters are read in one array and written to another. Along the last axis the neighbours are views of the same
row, shifted: so the loop over a row knows nothing of the grid, and is vectorised.
"""

from collections.abc import Sequence
from typing import Any

from numba.extending import register_jitable

from fastmomentum.backends.embedded import embed, once
from fastmomentum.backends.loops import as_like, inlined, make_cut, make_load, make_store
from fastmomentum.parts import Function
from fastmomentum.records import Update

Offsets = Sequence[tuple[int, ...]]


def make_stencil(rule: Update, gradient: Function, offsets: Offsets, data: Sequence[str]) -> Any:
    """``kernel(new, *state, old, *data, *hyper)``: one update of all points but those too near to the edge."""
    written, read, axes = 1 + len(rule.state), 1 + len(data), len(offsets[0])
    halo = max(abs(shift) for offset in offsets for shift in offset)
    sweep = _make_sweep(_make_row(rule, gradient, len(offsets), len(data)), offsets, halo, written, len(data))
    many = len(offsets)
    repeat = _make_repeat(many)

    def whole(written: Any, read: Any, hyper: Any) -> None:
        sweep(written, read[0], repeat(read[0]), read[1:], hyper)

    return embed(once(register_jitable(whole)), ("new", *rule.slots, "old", *data, *rule.hyper), written, read, axes)


def _make_repeat(times: int) -> Any:
    if times == 1:
        return register_jitable(lambda value: (value,))
    rest = _make_repeat(times - 1)
    return register_jitable(lambda value: (value, *rest(value)))


def _make_row(rule: Update, gradient: Function, neighbours: int, data: int) -> Any:
    """``row(written, centre, neighbours, data, hyper)`` along arrays of one dimension and one length."""
    update, slope, slots = rule.build(register_jitable), inlined(gradient), len(rule.state)
    load, load_around, load_data = make_load(slots), make_load(neighbours), make_load(data)
    store = make_store(1 + slots)

    def row(written: Any, centre: Any, neighbours: Any, data: Any, hyper: Any) -> None:
        for i in range(written[0].size):
            g = as_like(slope(*load_around(neighbours, i), *load_data(data, i)), centre)
            store(written, i, update(centre[i], *load(written[1:], i), g, *hyper))

    return register_jitable(row)


def _make_sweep(row: Any, offsets: Offsets, halo: int, written: int, data: int) -> Any:
    """The same over arrays of as many axes as the offsets have, at all points that are `halo` away from the edge."""
    shifts = [offset[0] for offset in offsets]
    if len(offsets[0]) == 1:
        part, part_around, part_data = make_cut(written), make_cut(len(offsets), shifts), make_cut(data)

        def along(written: Any, centre: Any, neighbours: Any, data: Any, hyper: Any) -> None:
            first, last = halo, centre.size - halo
            around, given = part_around(neighbours, first, last), part_data(data, first, last)
            row(part(written, first, last), centre[first:last], around, given, hyper)

        return register_jitable(along)
    within = _make_sweep(row, [offset[1:] for offset in offsets], halo, written, data)
    at, at_around, at_data = make_load(written), make_load(len(offsets), shifts), make_load(data)

    def sweep(written: Any, centre: Any, neighbours: Any, data: Any, hyper: Any) -> None:
        for i in range(halo, centre.shape[0] - halo):
            within(at(written, i), centre[i], at_around(neighbours, i), at_data(data, i), hyper)

    return register_jitable(sweep)
