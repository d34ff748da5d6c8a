"""CUDA kernels: one array, and many arrays in one launch.

Blocks take tiles of an array in turn, from their own number on in steps of the grid, so that any grid does any size
and elements, not arrays, are what is shared out. In a tile, threads take vectors of 16 bytes between the first address
that allows them and the last whole one, and single elements before and behind. Addresses are 64-bit integers, not
array objects: nothing is wrapped, and nothing is asked of who made the arrays.

Kernels compiled on first use and kept, and in which shape they are launched.

One update of arrays in device memory, told of by the arguments of one launch.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import config, cuda
from numba.cuda import types

from fastmomentum.backends.base import LANES, cached_kernel
from fastmomentum.backends.cuda import leaves, streams
from fastmomentum.backends.cuda.device_array import DeviceArray
from fastmomentum.backends.cuda.scalars import DerivedScalar, derived_from
from fastmomentum.rules.base import Rule

BYTES = 16  # of a vector: the most that one instruction loads, and ask for alignment
THREADS, TILE = (8, 64) if config.ENABLE_CUDASIM else (256, 4096)  # the simulator's threads are Python's
INT64 = np.dtype(np.int64)
WORD = INT64.itemsize
Kernel = tuple[Callable[..., None], Any]
"""A function, and the signature that it is to be compiled for."""

load_word = leaves.make_loads(INT64, 1)


@cuda.jit(device=True, inline="always")
def holding(ends: Any, rows: Any, tile: Any) -> Any:
    """The row that this tile belongs to; `ends` is the address of 0 and, for each row, the tiles up to its last."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if load_word(ends + WORD * (middle + 1))[0] > tile:
            high = middle
        else:
            low = middle + 1
    return low


def make_sweep(rule: Rule, dtype: np.dtype[Any], operations: Any) -> Any:
    """A device function ``sweep(addresses, start, stop, head, values)``: elements of one tile, by the block's threads.

    The first `head` of them stand before a multiple of 16 bytes; all of them where no such multiple is common.
    """
    width = BYTES // dtype.itemsize
    chosen = () if operations is None else (operations,)
    single, vector = (leaves.make_update(rule, dtype, elements, *chosen) for elements in (1, width))

    @cuda.jit(device=True, inline="always")
    def sweep(addresses: Any, start: Any, stop: Any, head: Any, values: Any) -> None:
        vectors = max(0, stop - start - head) // width
        for i in range(cuda.threadIdx.x, vectors, cuda.blockDim.x):
            vector(addresses, start + head + i * width, values)
        for i in range(cuda.threadIdx.x, stop - start - vectors * width, cuda.blockDim.x):
            single(addresses, start + (i if i < head else i + vectors * width), values)

    return sweep


def make_kernel(rule: Rule, dtype: np.dtype[Any], operations: Any = None) -> Kernel:
    """``kernel(addresses, size, head, hyper)`` for the arrays p, *state, g at these addresses."""
    sweep = make_sweep(rule, dtype, operations)

    def kernel(addresses: Any, size: Any, head: Any, hyper: Any) -> None:
        for tile in range(cuda.blockIdx.x, (size + TILE - 1) // TILE, cuda.gridDim.x):
            sweep(addresses, tile * TILE, min((tile + 1) * TILE, size), head, hyper)

    addresses = types.UniTuple(types.int64, 2 + len(rule.state))
    hyper = types.UniTuple(number(dtype), len(rule.hyper))
    return kernel, types.void(addresses, types.int64, types.int64, hyper)


SIZE, HEAD, ADDRESSES = range(3)
"""Columns of a row that tells a kernel of arrays: elements, how many of them stand before the first vector, then the
addresses of p, *state, g."""


def make_many_kernel(rule: Rule, dtype: np.dtype[Any], operations: Any = None) -> Kernel:
    """``kernel(table, ends, rows, tiles, hyper)`` for arrays told of in a table of rows, each with a row of `hyper`.

    All arguments but `rows` are addresses. The number of tiles is read from device memory, so that what was computed
    there can make it 0.
    """
    arrays, taken, itemsize = 2 + len(rule.state), len(rule.hyper), dtype.itemsize
    sweep = make_sweep(rule, dtype, operations)
    load_row = leaves.make_loads(INT64, ADDRESSES + arrays)
    load_hyper = leaves.make_loads(dtype, taken)

    def kernel(table: Any, ends: Any, rows: Any, tiles: Any, hyper: Any) -> None:
        for tile in range(cuda.blockIdx.x, load_word(tiles)[0], cuda.gridDim.x):
            row = holding(ends, rows, tile)
            told = load_row(table + row * (WORD * (ADDRESSES + arrays)))
            start = (tile - load_word(ends + WORD * row)[0]) * TILE
            stop = min(start + TILE, told[SIZE])
            sweep(told[ADDRESSES:], start, stop, told[HEAD], load_hyper(hyper + row * (itemsize * taken)))

    return kernel, types.void(*[types.int64] * 5)


def make_settle_kernel(
    columns: tuple[DerivedScalar, ...],
    names: tuple[str, ...],
    on_device: dict[str, Any],
    dtype: np.dtype[Any],
    taken: int,
) -> Kernel:
    """``kernel(addresses, values, hyper, rows)``: these columns, in so many rows, from scalars in device memory."""
    settle, step = leaves.make_settle(columns, names, on_device, dtype), taken * dtype.itemsize

    def kernel(addresses: Any, values: Any, hyper: Any, rows: Any) -> None:
        for row in range(cuda.grid(1), rows, cuda.gridsize(1)):
            settle(addresses, values, hyper + row * step)

    addresses = types.UniTuple(types.int64, len(on_device))
    values = types.UniTuple(types.float64, len(names))
    return kernel, types.void(addresses, values, types.int64, types.int64)


def number(dtype: np.dtype[Any]) -> Any:
    """What signatures call this dtype."""
    return getattr(types, dtype.name)


def head_of(addresses: Sequence[int], itemsize: int) -> int:
    """How many elements stand before the first vector that all these arrays have at the same place; else a tile's."""
    first, *others = (address % BYTES for address in addresses)
    if any(other != first for other in others):
        return TILE
    return -first % BYTES // itemsize


def compiled(made: Kernel) -> Any:
    """The kernel for the current device."""
    function, signature = made
    return cuda.jit(signature)(function)


def one_kernel(update: Rule, dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_kernel`."""
    return _kept(device, lambda: make_kernel(update, dtype), "one", update.structure, dtype)


def many_kernel(update: Rule, dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_many_kernel`."""
    return _kept(device, lambda: make_many_kernel(update, dtype), "many", update.structure, dtype)


def settle_kernel(update: Rule, on_device: dict[str, np.dtype[Any]], dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_settle_kernel`."""
    columns, taken = derived_from(update, on_device), len(update.hyper)
    names = tuple(dict.fromkeys((*update.parameters, *on_device)))
    key = (columns, names, tuple(on_device.items()), dtype, taken)
    return _kept(device, lambda: make_settle_kernel(columns, names, on_device, dtype, taken), "settle", *key)


def _kept(device: int, make: Callable[[], Kernel], *key: Hashable) -> Any:
    return cached_kernel(("cuda", device, *key), lambda: compiled(make()))


FEWEST = 3 if config.ENABLE_CUDASIM else 128
"""Blocks of a launch: of fewer Numba warns, once a launch. Those that find nothing to do cost next to nothing."""


def launch(kernel: Any, blocks: int, stream: Any, *arguments: Any, threads: int = THREADS) -> None:
    """Run the kernel by as many blocks, or as many as the device has room for; not at all for none."""
    if blocks:
        kernel[max(FEWEST, min(blocks, _room(threads))), threads, stream](*arguments)


@lru_cache(maxsize=64)
def _most(threads: int, device: int) -> int:
    here = cuda.get_current_device()
    return int(here.MULTIPROCESSOR_COUNT * (here.MAX_THREADS_PER_MULTIPROCESSOR // threads))


def _room(threads: int) -> int:
    # The simulator's device tells nothing; three blocks make every kernel go round.
    return FEWEST if config.ENABLE_CUDASIM else _most(threads, cuda.get_current_device().id)


WARP = LANES
"""Threads a block of the kernel for norms: one a lane."""


def run_one(
    update: Rule, arrays: Sequence[DeviceArray], row: tuple[Any, ...], device: int, stream: int | None
) -> None:
    """Update p and its state by g, the last of the arrays, which have been checked and are on the current device."""
    size, addresses = arrays[0].size, tuple(array.address for array in arrays)
    kernel = one_kernel(update, arrays[0].dtype, device)
    chosen, others = streams.streams_for(stream, (array.stream for array in arrays), device)
    for other in others:
        streams.let_wait(chosen, other)
    if size:
        head = head_of(addresses, arrays[0].dtype.itemsize)
        launch(kernel, -(-size // TILE), chosen, addresses, size, head, row)
    for other in others:
        streams.let_wait(other, chosen)
