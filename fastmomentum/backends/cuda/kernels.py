"""Compile, cache and launch CUDA kernels, for one array and for many arrays in one launch.

The elements are divided into tiles. A block of threads updates the tile with its own number, and then every tile whose
number is larger by a multiple of the grid's size, so a grid of any size updates arrays of any size. In a tile, threads
load and store vectors of 16 bytes between the first and the last address that are multiples of 16, and single elements
before and after. Kernels take addresses as 64-bit integers, so no array is wrapped in a Numba array.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import config, cuda, from_dtype
from numba.cuda import types

from fastmomentum.backends.base import LANES
from fastmomentum.backends.cuda import device_functions, streams
from fastmomentum.backends.cuda.device_array import DeviceArray
from fastmomentum.backends.cuda.scalars import DerivedScalar, derived_from
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import bounded, cached_kernel

VECTOR_BYTES = 16  # the most that one instruction loads; the address must be a multiple of 16
THREADS, TILE = (8, 64) if config.ENABLE_CUDASIM else (256, 4096)  # fewer in the simulator, whose threads are slow
INT64 = np.dtype(np.int64)
WORD = INT64.itemsize
Operations = Mapping[str, Callable[..., Any]]
"""The LLVM code of each operation of a rule: codegen.STRICT, or codegen.CONTRACTED in benchmarks."""

Kernel = tuple[Callable[..., None], Any]
"""A Python function, and the Numba signature for which it is to be compiled."""

MIN_BLOCKS = 3 if config.ENABLE_CUDASIM else 128
"""The least number of blocks of a launch, as Numba warns of fewer. Blocks without a tile take almost no time."""

WARP = LANES
"""The number of threads in a block of the kernel for norms: one for each lane."""

SIZE, HEAD, ADDRESSES = range(3)
"""The first columns of a table with one row for each parameter.

A row holds the number of elements; the number of elements before the first vector; then the addresses of p, *state and
g.
"""

load_word = device_functions.make_loads(INT64, 1)


def compiled(made: Kernel) -> Any:
    """Return the kernel compiled for the current device."""
    function, signature = made
    return cuda.jit(signature)(function)


def one_kernel(rule: Rule, dtype: np.dtype, device: int) -> Any:
    """Return the kernel of :func:`make_kernel`, compiled for this device on first use."""
    return cached_on_device(device, lambda: make_kernel(rule, dtype), "one", rule.structure, dtype)


def many_kernel(rule: Rule, dtype: np.dtype, device: int) -> Any:
    """Return the kernel of :func:`make_many_kernel`, compiled for this device on first use."""
    return cached_on_device(device, lambda: make_many_kernel(rule, dtype), "many", rule.structure, dtype)


def derive_kernel(rule: Rule, on_device: dict[str, np.dtype], dtype: np.dtype, device: int) -> Any:
    """Return the kernel of :func:`make_derive_kernel`, compiled for this device on first use."""
    derived, n_hyper = derived_from(rule, on_device), len(rule.hyper)
    names = tuple(dict.fromkeys((*rule.parameters, *on_device)))
    key = (derived, names, tuple(on_device.items()), dtype, n_hyper)
    make = partial(make_derive_kernel, derived, names, on_device, dtype, n_hyper)
    return cached_on_device(device, make, "derive", *key)


def cached_on_device(device: int, make: Callable[[], Kernel], *key: Hashable) -> Any:
    """Return the kernel with this key, compiled for this device; it is made and compiled if it is not in the cache."""
    return cached_kernel(("cuda", device, *key), lambda: compiled(make()))


def launch(kernel: Any, blocks: int, stream: Any, *arguments: Any, threads: int = THREADS) -> None:
    """Launch the kernel with `blocks` blocks, or with as many as the device runs at a time; with 0 do nothing."""
    if blocks:
        kernel[max(MIN_BLOCKS, min(blocks, _max_blocks(threads))), threads, stream](*arguments)


@bounded(64)
def _resident_blocks(threads: int, device: int) -> int:
    """Return the number of blocks of this many threads that the current device runs at a time."""
    properties = cuda.get_current_device()
    return int(properties.MULTIPROCESSOR_COUNT * (properties.MAX_THREADS_PER_MULTIPROCESSOR // threads))


def _max_blocks(threads: int) -> int:
    # The simulator has no such properties; with three blocks, tests cover the loop over tiles of every kernel.
    return MIN_BLOCKS if config.ENABLE_CUDASIM else _resident_blocks(threads, cuda.get_current_device().id)


def run_one(rule: Rule, arrays: Sequence[DeviceArray], row: tuple[Any, ...], device: int, stream: int | None) -> None:
    """Launch one update of the arrays (p, *state, g), which must have been checked and be on the current device.

    The launch does not wait for the device.
    """
    size, addresses = arrays[0].size, tuple(array.address for array in arrays)
    kernel = one_kernel(rule, arrays[0].dtype, device)
    chosen, others = streams.streams_for(stream, (array.stream for array in arrays), device)
    for other in others:
        streams.let_wait(chosen, other)
    if size:
        head = head_of(addresses, arrays[0].dtype.itemsize)
        launch(kernel, -(-size // TILE), chosen, addresses, size, head, tuple(map(arrays[0].dtype.type, row)))
    for other in others:
        streams.let_wait(other, chosen)


@cuda.jit(device=True, inline="always")
def find_row(ends: Any, rows: Any, tile: Any) -> Any:
    """Return the row that this tile belongs to.

    The words at the address `ends` are 0 and, for each row i, the number of tiles in the rows 0 to i.
    """
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if load_word(ends + WORD * (middle + 1))[0] > tile:
            high = middle
        else:
            low = middle + 1
    return low


def make_tile_update(rule: Rule, dtype: np.dtype, operations: Operations | None) -> Any:
    """Return ``update_tile(addresses, start, stop, head, values)``, by which the threads of a block update one tile.

    The first vector begins after `head` elements, at the first element whose address is a multiple of 16 bytes in all
    arrays. If there is no such element, `head` is at least the size of a tile.
    """
    width = VECTOR_BYTES // dtype.itemsize
    make = partial(device_functions.make_update, rule, dtype)
    options = () if operations is None else (operations,)  # the simulator's make_update takes none
    single, vector = make(1, *options), make(width, *options)

    @cuda.jit(device=True, inline="always")
    def update_tile(addresses: Any, start: Any, stop: Any, head: Any, values: Any) -> None:
        vectors = max(0, stop - start - head) // width
        for i in range(cuda.threadIdx.x, vectors, cuda.blockDim.x):
            vector(addresses, start + head + i * width, values)
        for i in range(cuda.threadIdx.x, stop - start - vectors * width, cuda.blockDim.x):
            single(addresses, start + (i if i < head else i + vectors * width), values)

    return update_tile


def make_kernel(rule: Rule, dtype: np.dtype, operations: Operations | None = None) -> Kernel:
    """Return ``kernel(addresses, size, head, hyper)``, which updates the arrays (p, *state, g) at these addresses."""
    update_tile = make_tile_update(rule, dtype, operations)

    def kernel(addresses: Any, size: Any, head: Any, hyper: Any) -> None:
        for tile in range(cuda.blockIdx.x, (size + TILE - 1) // TILE, cuda.gridDim.x):
            update_tile(addresses, tile * TILE, min((tile + 1) * TILE, size), head, hyper)

    addresses = types.UniTuple(types.int64, 2 + len(rule.state))
    hyper = types.UniTuple(from_dtype(dtype), len(rule.hyper))
    return kernel, types.void(addresses, types.int64, types.int64, hyper)


def make_many_kernel(rule: Rule, dtype: np.dtype, operations: Operations | None = None) -> Kernel:
    """Return ``kernel(table, ends, rows, tiles, hyper)``, which updates the arrays of a table with `rows` rows.

    All arguments except `rows` are addresses. Each row of the table has a row of `hyper`. The kernel reads the number
    of tiles from device memory; :func:`fastmomentum.backends.cuda.reductions.finish` writes 0 there to skip the update.
    """
    arrays, n_hyper, itemsize = 2 + len(rule.state), len(rule.hyper), dtype.itemsize
    update_tile = make_tile_update(rule, dtype, operations)
    load_row = device_functions.make_loads(INT64, ADDRESSES + arrays)
    load_hyper = device_functions.make_loads(dtype, n_hyper)

    def kernel(table: Any, ends: Any, rows: Any, tiles: Any, hyper: Any) -> None:
        for tile in range(cuda.blockIdx.x, load_word(tiles)[0], cuda.gridDim.x):
            row = find_row(ends, rows, tile)
            columns = load_row(table + row * (WORD * (ADDRESSES + arrays)))
            start = (tile - load_word(ends + WORD * row)[0]) * TILE
            stop = min(start + TILE, columns[SIZE])
            update_tile(columns[ADDRESSES:], start, stop, columns[HEAD], load_hyper(hyper + row * (itemsize * n_hyper)))

    return kernel, types.void(*[types.int64] * 5)


def make_derive_kernel(
    derived: tuple[DerivedScalar, ...],
    names: tuple[str, ...],
    on_device: dict[str, np.dtype],
    dtype: np.dtype,
    n_hyper: int,
) -> Kernel:
    """Return ``kernel(addresses, values, hyper, rows)``, which writes the derived hyper-parameters to `rows` rows.

    `addresses` are the addresses of the scalars `on_device`, and `values` the float64 values of `names`; the values of
    scalars on the device are ignored.
    """
    derive, row_bytes = device_functions.make_derive(derived, names, on_device, dtype), n_hyper * dtype.itemsize

    def kernel(addresses: Any, values: Any, hyper: Any, rows: Any) -> None:
        for row in range(cuda.grid(1), rows, cuda.gridsize(1)):
            derive(addresses, values, hyper + row * row_bytes)

    addresses = types.UniTuple(types.int64, len(on_device))
    values = types.UniTuple(types.float64, len(names))
    return kernel, types.void(addresses, values, types.int64, types.int64)


def head_of(addresses: Sequence[int], itemsize: int) -> int:
    """Return the number of elements before the first vector; TILE if no element can begin a vector in all arrays."""
    first, *others = (address % VECTOR_BYTES for address in addresses)
    if any(other != first for other in others):
        return TILE
    return -first % VECTOR_BYTES // itemsize
