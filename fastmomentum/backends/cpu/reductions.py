"""Compile reductions for the CPU: norms of gradients and the sums of a step, added in a fixed order.

The order, which :mod:`fastmomentum.backends.numpy.reductions` describes, does not depend on threads or vector width, so
the bits do not either. A function ``add(lanes, (p, *state, g, *given), hyper)`` computes what is summed of one chunk,
and adds it to the lanes: 32 for each sum.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import alloca_once, for_range
from numba.extending import intrinsic

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.cpu.headers import INDEX, OBJECTS, SIZE, arrays_unchanged, make_views
from fastmomentum.backends.cpu.kernels import ENDS, TABLES, compiled, find_row, table_kinds
from fastmomentum.backends.cpu.loops import inlined, make_cut
from fastmomentum.backends.cpu.vector_code import broadcast, emit, load
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel
from fastmomentum.rules.symbolic import Formula, formula

_DOUBLES = types.Array(types.float64, 1, "C")
_ROWS = types.Array(types.float64, 2, "C")


def sums_kernel(rule: Rule, summands: Function, dtype: np.dtype, parallel: bool = False) -> Callable[..., bool]:
    """Return ``kernel(table, written, rows, hyper, lanes, sums, grads)``, which adds up the summands of each parameter.

    ``summands(p, *state, g, *given, *hyper)`` returns a tuple of numbers in double precision; it is a function of
    symbols, of which the kernel takes the operations. If `parallel`, the kernel takes `ends`, `shares`, `lanes`,
    `parts` and `sums` in place of `lanes` and `sums`.
    """
    kinds, arrays = table_kinds(rule, dtype), 1 + len(rule.state)
    program = formula(summands, len(kinds) + len(rule.hyper))
    make = make_parallel_kernel if parallel else make_kernel
    count, width = len(rule.hyper), len(program[-1])
    return cached_kernel(
        ("sums", parallel, dtype, arrays, rule.given, count, program),
        lambda: make(make_add(program, count), width, kinds, arrays),
    )


ROWS = 16
"""The number of rows of a block, which stays in the first cache while its sums are added."""


def make_add(program: Formula, hyper_count: int) -> Function:
    """Return ``add(lanes, arrays, hyper)``, which adds the summands of all elements of the arrays to the lanes.

    `program` has the operations of the summands of one element, `hyper_count` is the number of hyper-parameters.
    """
    width = len(program[-1])
    vector_width = max(8, LANES >> (width - 1).bit_length())  # 32 vector registers hold no more sums

    @intrinsic
    def add(typing_context: Any, lanes: Any, arrays: Any, hyper: Any) -> Any:
        # With vectors the sum of squares reads memory as fast as BLAS's dot; prefetching made no difference larger than
        # the noise (measured).

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(64)
            lane = context.make_array(lanes)(context, builder, arguments[0]).data
            given = [builder.extract_value(arguments[1], i) for i in range(len(arrays))]
            views = [context.make_array(kind)(context, builder, each) for kind, each in zip(arrays, given)]
            row = context.make_array(hyper)(context, builder, arguments[2])

            def number(value: int) -> ir.Value:
                return ir.Constant(word, value)

            def summands(at: ir.Value, elements: int) -> list[ir.Value]:
                loaded = [load(builder, builder.gep(view.data, [at]), elements) for view in views]
                return emit(builder, program, [*loaded, *[broadcast(builder, value, elements) for value in numbers]])

            def add_vectors(first: int, begin: ir.Value, rows: ir.Value) -> None:
                """Add the vectors from this lane on, of a number of rows."""
                wide = ir.VectorType(ir.DoubleType(), vector_width)
                pointers = [builder.gep(lane, [number(k * LANES + first)]) for k in range(width)]
                places = [builder.bitcast(pointer, wide.as_pointer()) for pointer in pointers]
                totals = [alloca_once(builder, wide) for _ in places]
                for place, total in zip(places, totals):
                    builder.store(builder.load(place, align=8), total)
                with for_range(builder, rows) as loop:
                    at = builder.add(builder.mul(builder.add(begin, loop.index), number(LANES)), number(first))
                    for total, summand in zip(totals, summands(at, vector_width)):
                        builder.store(builder.fadd(builder.load(total), summand), total)
                for place, total in zip(places, totals):
                    builder.store(builder.load(total), place, align=8)

            numbers = [builder.load(builder.gep(row.data, [number(i)])) for i in range(hyper_count)]
            size = builder.extract_value(views[0].shape, 0)
            rows = builder.udiv(size, number(LANES))
            if vector_width == LANES:
                add_vectors(0, number(0), rows)
            else:
                blocks = builder.udiv(builder.add(rows, number(ROWS - 1)), number(ROWS))
                with for_range(builder, blocks) as loop:
                    begin = builder.mul(loop.index, number(ROWS))
                    left = builder.sub(rows, begin)
                    some = builder.select(builder.icmp_signed("<", left, number(ROWS)), left, number(ROWS))
                    for first in range(0, LANES, vector_width):
                        add_vectors(first, begin, some)
            done = builder.mul(rows, number(LANES))
            with for_range(builder, builder.sub(size, done)) as loop:
                for k, summand in enumerate(summands(builder.add(done, loop.index), 1)):
                    place = builder.gep(lane, [builder.add(loop.index, number(k * LANES))])
                    builder.store(builder.fadd(builder.load(place), summand), place)
            return context.get_dummy_value()

        return types.void(lanes, arrays, hyper), codegen

    adder: Function = add
    return adder


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
