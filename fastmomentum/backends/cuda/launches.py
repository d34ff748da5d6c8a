"""Kernels compiled on first use and kept, and in which shape they are launched."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import config, cuda

from fastmomentum.backends import all_of, keep
from fastmomentum.backends.cuda import kernels, norms
from fastmomentum.backends.cuda.columns import columns_of
from fastmomentum.backends.numpy import LANES
from fastmomentum.records import Update


def one_kernel(update: Update, dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_kernel`."""
    return _kept(device, lambda: kernels.make_kernel(update, all_of(dtype, update)), "one", update.structure, dtype)


def many_kernel(update: Update, dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_many_kernel`."""
    return _kept(
        device, lambda: kernels.make_many_kernel(update, all_of(dtype, update)), "many", update.structure, dtype
    )


def settle_kernel(update: Update, on_device: dict[str, np.dtype[Any]], dtype: np.dtype[Any], device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.kernels.make_settle_kernel`."""
    columns, taken = columns_of(update, on_device), len(update.hyper)
    names = tuple(dict.fromkeys((*update.parameters, *on_device)))
    key = (columns, names, tuple(on_device.items()), dtype, taken)
    return _kept(device, lambda: kernels.make_settle_kernel(columns, names, on_device, dtype, taken), "settle", *key)


def squares_kernel(dtype: np.dtype[Any], arrays: int, device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.norms.make_squares_kernel`."""
    return _kept(device, lambda: norms.make_squares_kernel(dtype, arrays), "squares", dtype, arrays)


def finish_kernel(device: int) -> Any:
    """See :func:`fastmomentum.backends.cuda.norms.finish`."""
    return _kept(device, norms.make_finish_kernel, "finish")


def _kept(device: int, make: Callable[[], kernels.Kernel], *key: Hashable) -> Any:
    return keep(("cuda", device, *key), lambda: kernels.compiled(make()))


FEWEST = 3 if config.ENABLE_CUDASIM else 128
"""Blocks of a launch: of fewer Numba warns, once a launch. Those that find nothing to do cost next to nothing."""


def launch(kernel: Any, blocks: int, stream: Any, *arguments: Any, threads: int = kernels.THREADS) -> None:
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
