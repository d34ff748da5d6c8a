"""The norm of all gradients on the device, by the tree of :mod:`fastmomentum.backends.numpy`, and what follows from it.

Two stages, so that no bit depends on which block is first: one warp a chunk, lane j adding the squares of column j;
then one block that adds chunks and arrays in order, and writes what the update reads: the factor, and the number of
tiles to do, which is 0 where the update is to be left out.

Kernels compiled on first use and kept, and in which shape they are launched.
"""

import math
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.cuda import leaves
from fastmomentum.backends.cuda.kernels import ADDRESSES, INT64, SIZE, WORD, Kernel, _kept, holding, load_word

DOUBLE = np.dtype(np.float64)
SUMS = ("x²", "0·x")
"""What is summed in every chunk; the second is NaN where a gradient is not finite, even if squares overflow."""

KINDS = len(SUMS)

load_double, store_double = leaves.make_loads(DOUBLE, 1), leaves.make_store(DOUBLE)
store_word = leaves.make_store(INT64)


def make_squares_kernel(dtype: np.dtype[Any], arrays: int) -> Kernel:
    """``kernel(table, ends, rows, sums)``: the sums of every chunk of the last of the arrays that each row tells of.

    `ends` counts chunks, where that of the update counts tiles. To be run with as many threads a block as lanes.
    """
    squares = leaves.make_sums(dtype, LANES, SUMS)
    load_row = leaves.make_loads(INT64, ADDRESSES + arrays)
    itemsize = dtype.itemsize

    def kernel(table: Any, ends: Any, rows: Any, sums: Any) -> None:
        lanes = cuda.shared.array((KINDS, LANES), types.float64)
        lane = cuda.threadIdx.x
        for chunk in range(cuda.blockIdx.x, load_word(ends + WORD * rows)[0], cuda.gridDim.x):
            row = holding(ends, rows, chunk)
            told = load_row(table + row * (WORD * (ADDRESSES + arrays)))
            start = (chunk - load_word(ends + WORD * row)[0]) * CHUNK
            count = min(CHUNK, told[SIZE] - start)
            found = squares(told[-1] + (start + lane) * itemsize, (count - lane + LANES - 1) // LANES)
            lanes[0, lane], lanes[1, lane] = found
            cuda.syncthreads()
            half = LANES // 2
            while half > 0:
                if lane < half:
                    lanes[0, lane] += lanes[0, half + lane]
                    lanes[1, lane] += lanes[1, half + lane]
                cuda.syncthreads()
                half //= 2
            if lane < KINDS:
                store_double(sums + (chunk * KINDS + lane) * WORD, lanes[lane, 0])
            cuda.syncthreads()

    return kernel, types.void(*[types.int64] * 4)


add_chunks = leaves.make_sums(DOUBLE, KINDS, ("x",))


def finish(
    sums: Any, ends: Any, rows: Any, index: Any, totals: Any, arrays: Any, limit: Any,
    factor: Any, counts: Any, tiles: Any, parts: Any, done: Any,
) -> None:  # fmt: skip
    """What the update reads, from the sums of all chunks; one block does it.

    `ends` counts the chunks of all rows, of which the arrays' numbers stand at `index`; `totals` has room for the sums
    of every array. Written are the `factor` min(1, limit / (norm + 1e-6)), and `tiles`: for each part the number in
    `counts`, or 0 if any gradient is not finite. `done` counts updates, the word behind it those left out. All but the
    numbers `rows`, `arrays`, `parts` and `limit` are addresses.
    """
    if cuda.blockIdx.x > 0:
        return
    for i in range(cuda.threadIdx.x, arrays * KINDS, cuda.blockDim.x):
        store_double(totals + i * WORD, 0.0)
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, rows * KINDS, cuda.blockDim.x):
        row, kind = i // KINDS, i % KINDS
        start = load_word(ends + WORD * row)[0]
        count = load_word(ends + WORD * (row + 1))[0] - start
        total = add_chunks(sums + (start * KINDS + kind) * WORD, count)[0]
        store_double(totals + (load_word(index + WORD * row)[0] * KINDS + kind) * WORD, total)
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        found = limit / (math.sqrt(add_chunks(totals, arrays)[0]) + 1e-6)
        store_double(factor, 1.0 if found > 1.0 else found)
        finite = add_chunks(totals + WORD, arrays)[0] == 0.0
        counter = done + (0 if finite else WORD)
        store_word(counter, load_word(counter)[0] + 1)
        for part in range(parts):
            store_word(tiles + WORD * part, load_word(counts + WORD * part)[0] if finite else 0)


def make_finish_kernel() -> Kernel:
    """:func:`finish`."""
    return finish, types.void(*[types.int64] * 6, types.float64, *[types.int64] * 5)


def squares_kernel(dtype: np.dtype[Any], arrays: int, device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.norms.make_squares_kernel`."""
    return _kept(device, lambda: make_squares_kernel(dtype, arrays), "squares", dtype, arrays)


def finish_kernel(device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.norms.finish`."""
    return _kept(device, make_finish_kernel, "finish")
