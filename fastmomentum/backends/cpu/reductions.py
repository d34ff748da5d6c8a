"""What is summed by the tree: the squares of a gradient, and the motion of a step that is still to be done.

Sums over arrays by a fixed tree, so that neither threads nor vector width change their bits.

The tree is told, and written for the reference backend, in :mod:`fastmomentum.backends.numpy`. What is added is given
as an ``add(lanes, arrays, hyper)``, which adds the products of one chunk's elements to so many times 32 lanes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic, register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.base import CHUNK, LANES, cached_kernel
from fastmomentum.backends.cpu.headers import INDEX, OBJECTS, SIZE, arrays_unchanged, make_views
from fastmomentum.backends.cpu.kernels import ENDS, TABLES, compiled, holding, numbers, vector
from fastmomentum.backends.cpu.loops import make_cut, make_load
from fastmomentum.backends.step_sums import BLOCK, PAIRS, WIDTH, make_step_sums
from fastmomentum.rules.base import Rule


def make_add_squares(arrays: int) -> Any:
    """``add(lanes, (p, *state, g), hyper)``: the squares of g, for so many arrays in front of it."""
    add = make_add(((0, 0),), LANES)
    return register_jitable(lambda lanes, chunk, hyper: add(lanes, chunk[arrays:]))


def make_add_step_sums(rule: Rule, dtype: np.dtype[Any]) -> Any:
    """``add(lanes, (p, *state, g), hyper)``: the products that make up a :class:`~fastmomentum.backends.motion.Motion`.

    In two turns, block by block: one loop over the elements that LLVM vectorises, as it does the update's, then rows of
    products, eight lanes of all seven sums at once (what 32 registers hold).
    """
    arrays, taken, kind, block = 1 + len(rule.state), len(rule.hyper), dtype.type, BLOCK // dtype.itemsize
    motion, add = make_step_sums(rule, register_jitable), make_add(PAIRS, 8)
    load, cut = make_load(arrays), make_cut(arrays + 1)

    @register_jitable
    def fill(v: Any, moved: Any, left: Any, chunk: Any, g: Any, hyper: Any) -> None:
        for i in range(g.size):
            v[i], moved[i], left[i] = motion(load(chunk, i), g[i], hyper)

    def add_motion(lanes: Any, chunk: Any, hyper: Any) -> None:
        row = to_fixed_tuple(hyper, taken)
        spare = lanes[WIDTH * LANES :].view(kind)
        v, moved, left = spare[:block], spare[block : 2 * block], spare[2 * block : 3 * block]
        for start in range(0, chunk[0].size, block):
            part = cut(chunk, start, min(start + block, chunk[0].size))
            g, p = part[arrays], part[0]
            fill(v[: g.size], moved[: g.size], left[: g.size], part[:arrays], g, row)
            add(lanes, (v[: g.size], g, moved[: g.size], left[: g.size], p))

    return register_jitable(add_motion)


Pairs = Sequence[tuple[int, int]]
"""Of which two arrays the products are added, for each sum."""

_DOUBLES = types.Array(types.float64, 1, "C")
_ROWS = types.Array(types.float64, 2, "C")


def make_add(pairs: Pairs, together: int) -> Any:
    """``add(lanes, arrays)``: the products of these pairs of arrays to the lanes of each sum, row by row.

    So many lanes are added to at once, and stay in vector registers all the while.
    """
    add_rows, add_element = _make_add_rows(pairs, together), _make_add_element(pairs)

    def add(lanes: Any, arrays: Any) -> None:
        rows = arrays[0].size // LANES
        add_rows(lanes, arrays, rows)
        for lane in range(arrays[0].size - rows * LANES):
            add_element(lanes, lane, arrays, rows * LANES + lane)

    return register_jitable(add)


def _make_add_rows(pairs: Pairs, together: int) -> Any:
    @intrinsic
    def add_rows(typing_context: Any, lanes: Any, arrays: Any, rows: Any) -> Any:
        """Add so many whole rows.

        Written as LLVM vectors because a loop over an array of lanes loads and stores them again for every row, at a
        third of the speed (measured; the sum of squares reads memory as fast as BLAS's dot does, and asking for lines
        ahead gained nothing that stood out from the noise).
        """

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lane = context.make_array(lanes)(context, builder, arguments[0]).data
            given = [builder.extract_value(arguments[1], i) for i in range(len(arrays))]
            values = [context.make_array(kind)(context, builder, each).data for kind, each in zip(arrays, given)]
            itemsize = arrays[0].dtype.bitwidth // 8
            wide = ir.VectorType(ir.DoubleType(), together)
            row = ir.VectorType(values[0].type.pointee, together)

            def loaded(value: Any, place: Any) -> Any:
                found = builder.load(builder.bitcast(builder.gep(value, [place]), row.as_pointer()), align=itemsize)
                return found if row == wide else builder.fpext(found, wide)

            for first in range(0, LANES, together):
                starts = [ir.Constant(ir.IntType(64), k * LANES + first) for k in range(len(pairs))]
                places = [builder.bitcast(builder.gep(lane, [start]), wide.as_pointer()) for start in starts]
                totals = [alloca_once_value(builder, builder.load(place, align=8)) for place in places]
                for place, total in zip(places, totals):  # an alloca has its value but once, outside of all loops
                    builder.store(builder.load(place, align=8), total)
                with for_range(builder, arguments[2]) as loop:
                    at = builder.add(builder.mul(loop.index, ir.Constant(loop.index.type, LANES)), starts[0])
                    row_of = [loaded(value, at) for value in values]
                    for (one, other), total in zip(pairs, totals):
                        product = builder.fmul(row_of[one], row_of[other])
                        builder.store(builder.fadd(builder.load(total), product), total)
                for place, total in zip(places, totals):
                    builder.store(builder.load(total), place, align=8)
            return context.get_dummy_value()

        return types.void(lanes, arrays, types.int64), codegen

    return add_rows


def _make_add_element(pairs: Pairs, first: int = 0) -> Any:
    """``add_element(lanes, lane, arrays, i)``: the products of one element of each."""
    if not pairs:
        return register_jitable(lambda lanes, lane, arrays, i: None)
    (one, other), rest = pairs[0], _make_add_element(pairs[1:], first + LANES)

    def add_element(lanes: Any, lane: Any, arrays: Any, i: Any) -> None:
        lanes[first + lane] += np.float64(arrays[one][i]) * np.float64(arrays[other][i])
        rest(lanes, lane, arrays, i)

    return register_jitable(add_element)


def _make_chunk_sums(add: Any, arrays: int, width: int) -> Any:
    """``chunk_sums(lanes, arrays, hyper, start, sums)``: added to `sums`, those of the chunk that begins there."""
    cut = make_cut(arrays)

    def chunk_sums(lanes: Any, arrays: Any, hyper: Any, start: Any, sums: Any) -> None:
        lanes[: width * LANES] = 0.0
        add(lanes, cut(arrays, start, min(start + CHUNK, arrays[0].size)), hyper)
        for k in range(width):
            mine = lanes[k * LANES : (k + 1) * LANES]
            half = LANES // 2
            while half > 0:
                for lane in range(half):
                    mine[lane] += mine[half + lane]
                half //= 2
            sums[k] += mine[0]

    return register_jitable(chunk_sums)


def make_kernel(add: Any, width: int, dtype: np.dtype[Any], arrays: int) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, lanes, sums, grads)`` for rows with so many arrays to write.

    It looks through the table as the update kernels do, and answers False if they would. Else it adds what is summed of
    each row to the row of `sums` at the gradient's place in the list; `lanes` is scratch.
    """
    views = make_views([vector(dtype)] * (arrays + 1))
    chunk_sums, memory = _make_chunk_sums(add, arrays + 1, width), OBJECTS + arrays

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, lanes: Any, sums: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row, memory, rows[row, SIZE])
            for start in range(0, rows[row, SIZE], CHUNK):
                chunk_sums(lanes, each, hyper[row], start, sums[rows[row, INDEX]])
        return True

    return compiled(kernel, types.boolean(*TABLES, numbers(dtype), _DOUBLES, _ROWS, types.int64))


def make_parallel_kernel(add: Any, width: int, dtype: np.dtype[Any], arrays: int) -> Callable[..., bool]:
    """The function ``kernel(table, written, rows, hyper, ends, shares, lanes, parts, sums, grads)``, over threads.

    `ends` has for each row the chunks up to its last, `shares` the chunks between which threads begin and the last
    ends, `lanes` scratch for each, `parts` room for the sums of each chunk. These are added in order, as the serial
    kernel adds them.
    """
    views = make_views([vector(dtype)] * (arrays + 1))
    chunk_sums, memory = _make_chunk_sums(add, arrays + 1, width), OBJECTS + arrays

    def kernel(
        table: Any,
        written: Any,
        rows: Any,
        hyper: Any,
        ends: Any,
        shares: Any,
        lanes: Any,
        parts: Any,
        sums: Any,
        grads: Any,
    ) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        parts[:] = 0.0
        for thread in prange(lanes.shape[0]):
            for chunk in range(shares[thread], shares[thread + 1]):
                row = holding(ends, chunk)
                each = views(rows, row, memory, rows[row, SIZE])
                start = (chunk - ends[row] + (rows[row, SIZE] + CHUNK - 1) // CHUNK) * CHUNK
                chunk_sums(lanes[thread], each, hyper[row], start, parts[chunk])
        chunk = 0
        for row in range(rows.shape[0]):
            while chunk < ends[row]:
                for k in range(width):
                    sums[rows[row, INDEX], k] += parts[chunk, k]
                chunk += 1
        return True

    given = (*TABLES, numbers(dtype), ENDS, ENDS, _ROWS, _ROWS, _ROWS, types.int64)
    return compiled(kernel, types.boolean(*given), parallel=True)


def squares_kernel(dtype: np.dtype[Any], arrays: int, parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, lanes, sums, grads)``: Σg² of each gradient; `hyper` is not used.

    If `parallel`, the kernel takes `ends`, `shares`, `lanes`, `parts` and `sums` in place of `lanes` and `sums`.
    """
    make = make_parallel_kernel if parallel else make_kernel
    key = ("squares", parallel, dtype, arrays)
    return cached_kernel(key, lambda: make(make_add_squares(arrays), 1, dtype, arrays))


def measure_kernel(rule: Rule, dtype: np.dtype[Any], parallel: bool = False) -> Callable[..., bool]:
    """Return the like kernel for the sums of the step to come, :data:`~fastmomentum.backends.step_sums.WIDTH` a row."""
    make, arrays = make_parallel_kernel if parallel else make_kernel, 1 + len(rule.state)
    key = ("measure", parallel, rule.structure, rule.slots, dtype)
    return cached_kernel(key, lambda: make(make_add_step_sums(rule, dtype), WIDTH, dtype, arrays))
