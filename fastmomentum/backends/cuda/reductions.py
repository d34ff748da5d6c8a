"""Compute the norm of all gradients on the device, and from it the clip factor and the number of tiles to update.

The sums are added in the order of :mod:`fastmomentum.backends.numpy.reductions`, in two kernels, so that no bit depends
on which block is first. In the first kernel a warp sums a chunk, and lane j adds the squares of column j. In the second
kernel one block adds chunks and arrays in order, and writes what the update reads: the clip factor, and the number of
tiles, which is 0 if the update is to be skipped.
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

DOUBLE = np.dtype(np.float64)

SUMS = ("x²", "0·x")
"""The two sums of each chunk. The second is NaN if an element is not finite, and 0 if squares merely overflow."""

SUM_COUNT = len(SUMS)

load_double, store_double = device_functions.make_loads(DOUBLE, 1), device_functions.make_store(DOUBLE)
store_word = device_functions.make_store(INT64)
add_chunks = device_functions.make_sums(DOUBLE, SUM_COUNT, ("x",))


def squares_kernel(dtype: np.dtype, arrays: int, device: int) -> Any:
    """Return the kernel of :func:`make_squares_kernel`, compiled for this device on first use."""
    return cached_on_device(device, lambda: make_squares_kernel(dtype, arrays), "squares", dtype, arrays)


def finish_kernel(device: int) -> Any:
    """Return the kernel :func:`finish`, compiled for this device on first use."""
    return cached_on_device(device, make_finish_kernel, "finish")


def make_squares_kernel(dtype: np.dtype, arrays: int) -> Kernel:
    """Return ``kernel(table, ends, rows, sums)``, which writes the sums of every chunk of each row's gradient.

    `arrays` is the number of arrays in a row, the last of which is the gradient. `ends` counts chunks, while `ends` of
    an update kernel counts tiles. A block must have one thread for each lane.
    """
    squares = device_functions.make_sums(dtype, LANES, SUMS)
    load_row = device_functions.make_loads(INT64, ADDRESSES + arrays)
    itemsize = dtype.itemsize

    def kernel(table: Any, ends: Any, rows: Any, sums: Any) -> None:
        lanes = cuda.shared.array((SUM_COUNT, LANES), types.float64)
        lane = cuda.threadIdx.x
        for chunk in range(cuda.blockIdx.x, load_word(ends + WORD * rows)[0], cuda.gridDim.x):
            row = find_row(ends, rows, chunk)
            columns = load_row(table + row * (WORD * (ADDRESSES + arrays)))
            start = (chunk - load_word(ends + WORD * row)[0]) * CHUNK
            count = min(CHUNK, columns[SIZE] - start)
            sums_of_lane = squares(columns[-1] + (start + lane) * itemsize, (count - lane + LANES - 1) // LANES)
            lanes[0, lane], lanes[1, lane] = sums_of_lane
            cuda.syncthreads()
            half = LANES // 2
            while half > 0:
                if lane < half:
                    lanes[0, lane] += lanes[0, half + lane]
                    lanes[1, lane] += lanes[1, half + lane]
                cuda.syncthreads()
                half //= 2
            if lane < SUM_COUNT:
                store_double(sums + (chunk * SUM_COUNT + lane) * WORD, lanes[lane, 0])
            cuda.syncthreads()

    return kernel, types.void(*[types.int64] * 4)


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
