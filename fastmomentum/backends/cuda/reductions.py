"""Add up sums over arrays on the device; from the norm of all gradients compute the clip factor there, too.

The sums are added in the order of :mod:`fastmomentum.backends.numpy.reductions`, so that no bit depends on which block
is first. In one kernel a warp sums a chunk, and lane j adds what is summed of column j. The host adds the sums of the
chunks in order. For max_norm alone a second kernel of one block adds those of chunks and arrays in order, and writes
what the update reads: the clip factor, and the number of tiles, which is 0 if the update is to be skipped.
"""

import math
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.cuda import device_functions
from fastmomentum.backends.cuda.kernels import (
    ADDRESSES,
    INT64,
    SIZE,
    WORD,
    Kernel,
    cached_on_device,
    find_row,
    load_word,
)
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import symbolic, widen
from fastmomentum.rules.symbolic import Formula, formula

DOUBLE = np.dtype(np.float64)

SUM_COUNT = 2
"""The number of sums of each chunk that the norm needs, those of :func:`make_norm_summands`."""


def make_norm_summands(arrays: int) -> Function:
    """Return ``summands(p, *state, g, *hyper)``: g², and a number that is NaN if g is not finite, and else 0."""

    def summands(*values: Any) -> tuple[Any, ...]:
        g = symbolic(widen)(values[arrays - 1])
        return g * g, g - g

    return summands


load_double, store_double = device_functions.make_loads(DOUBLE, 1), device_functions.make_store(DOUBLE)
store_word = device_functions.make_store(INT64)
_add_chunks = device_functions.make_sums(DOUBLE, SUM_COUNT, ((0,),), 1, 0)


@cuda.jit(device=True, inline="always")
def add_chunks(address: Any, count: Any) -> Any:
    """Return the sum of `count` doubles from this address, each SUM_COUNT apart, added in order."""
    return _add_chunks((address,), 0, count, ())


def sums_kernel(rule: Rule, summands: Function, dtype: np.dtype, device: int) -> Any:
    """Return the kernel of :func:`make_sums_kernel` for ``summands(p, *state, g, *hyper)``, on this device."""
    arrays, n_hyper = 2 + len(rule.state), len(rule.hyper)
    program = formula(summands, arrays + n_hyper)
    return cached_on_device(
        device, lambda: make_sums_kernel(program, dtype, arrays, n_hyper), "sums", program, dtype, arrays, n_hyper
    )


def finish_kernel(device: int) -> Any:
    """Return the kernel :func:`finish`, compiled for this device on first use."""
    return cached_on_device(device, make_finish_kernel, "finish")


def make_sums_kernel(program: Formula, dtype: np.dtype, arrays: int, n_hyper: int) -> Kernel:
    """Return ``kernel(table, ends, rows, hyper, sums)``, which writes the sums of every chunk of each row's arrays.

    `arrays` is the number of arrays in a row, the last of which is the gradient. `ends` counts chunks, while `ends` of
    an update kernel counts tiles. A block must have one thread for each lane.
    """
    width, itemsize = len(program[-1]), dtype.itemsize
    add_columns = device_functions.make_sums(dtype, LANES, program, arrays, n_hyper)
    load_row = device_functions.make_loads(INT64, ADDRESSES + arrays)
    load_hyper = device_functions.make_loads(dtype, n_hyper)

    def kernel(table: Any, ends: Any, rows: Any, hyper: Any, sums: Any) -> None:
        lanes = cuda.shared.array((width, LANES), types.float64)
        lane = cuda.threadIdx.x
        for chunk in range(cuda.blockIdx.x, load_word(ends + WORD * rows)[0], cuda.gridDim.x):
            row = find_row(ends, rows, chunk)
            columns = load_row(table + row * (WORD * (ADDRESSES + arrays)))
            start = (chunk - load_word(ends + WORD * row)[0]) * CHUNK
            count = (min(CHUNK, columns[SIZE] - start) - lane + LANES - 1) // LANES
            values = load_hyper(hyper + row * (itemsize * n_hyper))
            sums_of_lane = add_columns(columns[ADDRESSES:], start + lane, count, values)
            for k in range(width):
                lanes[k, lane] = sums_of_lane[k]
            cuda.syncthreads()
            half = LANES // 2
            while half > 0:
                if lane < half:
                    for k in range(width):
                        lanes[k, lane] += lanes[k, half + lane]
                cuda.syncthreads()
                half //= 2
            for k in range(lane, width, LANES):
                store_double(sums + (chunk * width + k) * WORD, lanes[k, 0])
            cuda.syncthreads()

    return kernel, types.void(*[types.int64] * 5)


def finish(
    sums: Any, ends: Any, rows: Any, index: Any, totals: Any, arrays: Any, limit: Any,
    factor: Any, counts: Any, tiles: Any, parts: Any, done: Any,
) -> None:  # fmt: skip
    """Compute the clip factor, and the number of tiles to update, from the sums of all chunks, in one block.

        factor = min(1, limit / (norm + 1e-6))
        tiles[part] = counts[part], or 0 if any gradient is not finite

    A part is the set of arrays that one launch updates. `rows`, `arrays`, `parts` and `limit` are numbers; all other
    arguments are addresses. `ends` counts the chunks of all rows, `index` holds the number of each row's array, and
    `totals` is scratch memory for the sums of each array. The word at `done` counts the updates that are done, the word
    after it those that are skipped.
    """
    if cuda.blockIdx.x > 0:
        return
    for i in range(cuda.threadIdx.x, arrays * SUM_COUNT, cuda.blockDim.x):
        store_double(totals + i * WORD, 0.0)
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, rows * SUM_COUNT, cuda.blockDim.x):
        row, kind = i // SUM_COUNT, i % SUM_COUNT
        start = load_word(ends + WORD * row)[0]
        count = load_word(ends + WORD * (row + 1))[0] - start
        total = add_chunks(sums + (start * SUM_COUNT + kind) * WORD, count)[0]
        store_double(totals + (load_word(index + WORD * row)[0] * SUM_COUNT + kind) * WORD, total)
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        scale = limit / (math.sqrt(add_chunks(totals, arrays)[0]) + 1e-6)
        store_double(factor, 1.0 if scale > 1.0 else scale)
        finite = add_chunks(totals + WORD, arrays)[0] == 0.0
        counter = done + (0 if finite else WORD)
        store_word(counter, load_word(counter)[0] + 1)
        for part in range(parts):
            store_word(tiles + WORD * part, load_word(counts + WORD * part)[0] if finite else 0)


def make_finish_kernel() -> Kernel:
    """Return the kernel :func:`finish` with its signature."""
    return finish, types.void(*[types.int64] * 6, types.float64, *[types.int64] * 5)
