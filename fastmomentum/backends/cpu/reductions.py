"""Compile reductions for the CPU: norms of gradients and the sums of a step, added in a fixed order.

The order, which :mod:`fastmomentum.backends.numpy.reductions` describes, does not depend on threads or vector width, so
the bits do not either. A function ``add(lanes, (p, *state, g), hyper)`` computes the products of one chunk, and adds
them to the lanes: 32 for each sum.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic, register_jitable

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.cpu.headers import INDEX, OBJECTS, SIZE, arrays_unchanged, make_views
from fastmomentum.backends.cpu.kernels import ENDS, TABLES, compiled, find_row, table_kinds, vector
from fastmomentum.backends.cpu.loops import (
    as_like,
    compiled_part,
    inlined,
    make_cut,
    make_function,
    make_load,
    make_numbers,
)
from fastmomentum.backends.step_sums import BLOCK, PAIRS, WIDTH, make_step_vectors
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.elementwise import MASK, select

Pairs = Sequence[tuple[int, int]]
"""For each sum, the indices of the two arrays whose products are added."""

_DOUBLES = types.Array(types.float64, 1, "C")
_ROWS = types.Array(types.float64, 2, "C")


def squares_kernel(rule: Rule, dtype: np.dtype, parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, lanes, sums, grads)``, which sums g²; `hyper` is not used.

    If `parallel`, the kernel takes `ends`, `shares`, `lanes`, `parts` and `sums` in place of `lanes` and `sums`. The
    gradient of a frozen element counts as 0.
    """
    make, arrays = make_parallel_kernel if parallel else make_kernel, 1 + len(rule.state)
    is_masked = MASK in rule.given
    key = ("squares", parallel, dtype, arrays, *(rule.given if is_masked else ()))

    def make_it() -> Callable[..., bool]:
        if is_masked:
            return make(make_add_masked_squares(rule, dtype), 1, table_kinds(rule, dtype), arrays)
        return make(make_add_squares(arrays), 1, [vector(dtype)] * (arrays + 1), arrays)

    return cached_kernel(key, make_it)


def measure_kernel(rule: Rule, dtype: np.dtype, parallel: bool = False) -> Callable[..., bool]:
    """Return a kernel with the arguments of :func:`squares_kernel`, which adds the StepSums of each parameter."""
    make = make_parallel_kernel if parallel else make_kernel
    key = ("measure", parallel, rule.structure, rule.slots, dtype)
    return cached_kernel(
        key, lambda: make(make_add_step_sums(rule, dtype), WIDTH, table_kinds(rule, dtype), 1 + len(rule.state))
    )


def make_add_squares(arrays: int) -> Function:
    """Return ``add(lanes, (p, *state, g), hyper)``, which adds g²; `arrays` is the number of arrays before g."""
    add = make_add(((0, 0),), LANES)
    return inlined(lambda lanes, chunk, hyper: add(lanes, chunk[arrays:]))


def make_add_step_sums(rule: Rule, dtype: np.dtype) -> Function:
    """Return ``add(lanes, (p, *state, g), hyper)`` for a :class:`~fastmomentum.backends.step_sums.StepSums`."""
    # Two loops for each block of elements: LLVM vectorises the first, over elements, as it does the update; the second
    # adds rows of products, eight lanes of all seven sums at a time, as 32 vector registers hold no more.
    arrays, kind, block, numbers = (
        1 + len(rule.state),
        dtype.type,
        BLOCK // dtype.itemsize,
        make_numbers(len(rule.hyper)),
    )
    step_vectors, add, given = make_step_vectors(rule, compiled_part), make_add(PAIRS, 8), len(rule.given)
    load, cut, moving_gradient = make_load(arrays), make_cut(arrays + 1 + given), make_moving_gradient(rule)
    load_given, given_at = make_load(given), arrays + 1

    @register_jitable
    def fill(v: Any, step: Any, next_v: Any, chunk: Any, g: Any, hyper: Any) -> None:
        for i in range(g.size):
            v[i], step[i], next_v[i] = step_vectors(load(chunk, i), g[i], hyper)

    @register_jitable
    def fill_given(v: Any, step: Any, next_v: Any, chunk: Any, g: Any, hyper: Any) -> None:
        for i in range(g.size):
            g[i] = moving_gradient(chunk, i)
            row = load_given(chunk[given_at:], i) + hyper
            v[i], step[i], next_v[i] = step_vectors(load(chunk, i), g[i], row)

    def add_step_sums(lanes: Any, chunk: Any, hyper: Any) -> None:
        row = numbers(hyper)
        scratch = lanes[WIDTH * LANES :].view(kind)
        v, step, next_v = scratch[:block], scratch[block : 2 * block], scratch[2 * block : 3 * block]
        for start in range(0, chunk[0].size, block):
            part = cut(chunk, start, min(start + block, chunk[0].size))
            g, p = part[arrays], part[0]
            fill(v[: g.size], step[: g.size], next_v[: g.size], part[:arrays], g, row)
            add(lanes, (v[: g.size], g, step[: g.size], next_v[: g.size], p))

    def add_step_sums_given(lanes: Any, chunk: Any, hyper: Any) -> None:
        row = numbers(hyper)
        scratch = lanes[WIDTH * LANES :].view(kind)
        for start in range(0, chunk[0].size, block):
            part = cut(chunk, start, min(start + block, chunk[0].size))
            size = part[0].size
            v, step = scratch[:size], scratch[block : block + size]
            next_v, g = scratch[2 * block : 2 * block + size], scratch[3 * block : 3 * block + size]
            fill_given(v, step, next_v, part, g, row)
            add(lanes, (v, g, step, next_v, part[0]))

    return inlined(add_step_sums_given if given else add_step_sums)


def make_moving_gradient(rule: Rule) -> Function:
    """Return ``moving_gradient((p, *state, g, *given), i)``: element i of g; 0 if the element is frozen."""
    g_at = 1 + len(rule.state)
    mask_at, choose = g_at + 1, compiled_part(select)

    def moving_gradient(chunk: Any, i: Any) -> Any:
        return choose(chunk[mask_at][i], chunk[g_at][i], as_like(0.0, chunk[g_at][i]))

    def gradient(chunk: Any, i: Any) -> Any:
        return chunk[g_at][i]

    return inlined(moving_gradient if MASK in rule.given else gradient)


def make_add_masked_squares(rule: Rule, dtype: np.dtype) -> Function:
    """Return ``add(lanes, (p, *state, g, *given), hyper)``, which adds g² of the elements that are not frozen."""
    kind, block = dtype.type, BLOCK // dtype.itemsize
    add, moving_gradient = make_add(((0, 0),), LANES), make_moving_gradient(rule)
    cut = make_cut(2 + len(rule.state) + len(rule.given))

    @register_jitable
    def fill(g: Any, chunk: Any) -> None:
        for i in range(g.size):
            g[i] = moving_gradient(chunk, i)

    def add_masked_squares(lanes: Any, chunk: Any, hyper: Any) -> None:
        scratch = lanes[LANES:].view(kind)
        for start in range(0, chunk[0].size, block):
            part = cut(chunk, start, min(start + block, chunk[0].size))
            g = scratch[: part[0].size]
            fill(g, part)
            add(lanes, (g,))

    return inlined(add_masked_squares)


def make_add(pairs: Pairs, vector_width: int) -> Function:
    """Return ``add(lanes, arrays)``, which adds the products of these pairs of arrays to the lanes, row by row.

    `vector_width` lanes of every sum are added to at a time, and stay in vector registers until all rows are done.
    """
    add_rows, add_element = _make_add_rows(pairs, vector_width), _make_add_element(pairs)

    def add(lanes: Any, arrays: Any) -> None:
        rows = arrays[0].size // LANES
        add_rows(lanes, arrays, rows)
        for lane in range(arrays[0].size - rows * LANES):
            add_element(lanes, lane, arrays, rows * LANES + lane)

    return inlined(add)


def _make_add_rows(pairs: Pairs, vector_width: int) -> Function:
    @intrinsic
    def add_rows(typing_context: Any, lanes: Any, arrays: Any, rows: Any) -> Any:
        """Add the products of this number of whole rows to the lanes."""
        # Written as LLVM vectors, since a loop over an array of lanes loads and stores the lanes again for every row,
        # at a third of the speed. With vectors the sum of squares reads memory as fast as BLAS's dot; prefetching made
        # no difference larger than the noise (measured).

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lane = context.make_array(lanes)(context, builder, arguments[0]).data
            given = [builder.extract_value(arguments[1], i) for i in range(len(arrays))]
            values = [context.make_array(kind)(context, builder, each).data for kind, each in zip(arrays, given)]
            itemsize = arrays[0].dtype.bitwidth // 8
            wide = ir.VectorType(ir.DoubleType(), vector_width)
            row = ir.VectorType(values[0].type.pointee, vector_width)

            def loaded(value: Any, place: Any) -> Any:
                found = builder.load(builder.bitcast(builder.gep(value, [place]), row.as_pointer()), align=itemsize)
                return found if row == wide else builder.fpext(found, wide)

            for first in range(0, LANES, vector_width):
                starts = [ir.Constant(ir.IntType(64), k * LANES + first) for k in range(len(pairs))]
                places = [builder.bitcast(builder.gep(lane, [start]), wide.as_pointer()) for start in starts]
                totals = [alloca_once_value(builder, builder.load(place, align=8)) for place in places]
                for place, total in zip(places, totals):  # the value of an alloca is set once, outside of all loops
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

    adder: Function = add_rows
    return adder


def _make_add_element(pairs: Pairs) -> Function:
    """Return ``add_element(lanes, lane, arrays, i)``, which adds the products of element i of the arrays."""
    products = [f"float64(arrays[{one}][i]) * float64(arrays[{other}][i])" for one, other in pairs]
    statements = [f"lanes[{k * LANES} + lane] += {product}" for k, product in enumerate(products)]
    return make_function("add_element", "lanes, lane, arrays, i", statements, float64=np.float64)


def _make_chunk_sums(add: Function, arrays: int, width: int) -> Function:
    """Return ``chunk_sums(lanes, arrays, hyper, start, sums)``, which adds the sums of the chunk from `start`."""
    cut = make_cut(arrays)

    def chunk_sums(lanes: Any, arrays: Any, hyper: Any, start: Any, sums: Any) -> None:
        lanes[: width * LANES] = 0.0
        add(lanes, cut(arrays, start, min(start + CHUNK, arrays[0].size)), hyper)
        for k in range(width):
            sum_lanes = lanes[k * LANES : (k + 1) * LANES]
            half = LANES // 2
            while half > 0:
                for lane in range(half):
                    sum_lanes[lane] += sum_lanes[half + lane]
                half //= 2
            sums[k] += sum_lanes[0]

    return inlined(chunk_sums)


def make_kernel(add: Function, width: int, kinds: list[types.Array], arrays: int) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, lanes, sums, grads)``, which adds `width` sums of each parameter.

    The kernel checks the table as the update kernels do, and returns False if an array does not pass. Then it adds the
    sums of each of `rows` to the row of `sums` that has the index of the parameter's gradient. `arrays` is the number
    of arrays (p, *state), `kinds` has the Numba types of (p, *state, g, *given), and `lanes` is scratch memory.
    """
    views = make_views(kinds)
    chunk_sums, memory = _make_chunk_sums(add, len(kinds), width), OBJECTS + arrays

    def kernel(table: Any, written: Any, rows: Any, hyper: Any, lanes: Any, sums: Any, grads: Any) -> Any:
        if not arrays_unchanged(table, written, arrays, grads):
            return False
        for row in range(rows.shape[0]):
            each = views(rows, row, memory, rows[row, SIZE])
            for start in range(0, rows[row, SIZE], CHUNK):
                chunk_sums(lanes, each, hyper[row], start, sums[rows[row, INDEX]])
        return True

    return compiled(kernel, types.boolean(*TABLES, types.Array(kinds[0].dtype, 2, "C"), _DOUBLES, _ROWS, types.int64))


def make_parallel_kernel(add: Function, width: int, kinds: list[types.Array], arrays: int) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, ends, shares, lanes, parts, sums, grads)`` for several threads.

    It computes what the kernel of :func:`make_kernel` does. ``ends[i]`` is the number of chunks in the rows 0 to i.
    Thread i sums the chunks ``shares[i]`` to ``shares[i + 1] - 1`` with the scratch memory ``lanes[i]``, and writes the
    sums of each chunk to a row of `parts`. At the end these are added in order, as in the serial kernel.
    """
    views = make_views(kinds)
    chunk_sums, memory = _make_chunk_sums(add, len(kinds), width), OBJECTS + arrays

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
                row = find_row(ends, chunk)
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

    given = (*TABLES, types.Array(kinds[0].dtype, 2, "C"), ENDS, ENDS, _ROWS, _ROWS, _ROWS, types.int64)
    return compiled(kernel, types.boolean(*given), parallel=True)
