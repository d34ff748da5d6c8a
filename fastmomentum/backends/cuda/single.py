"""One update of arrays in device memory, told of by the arguments of one launch."""

from collections.abc import Sequence
from typing import Any

from fastmomentum.backends.cuda import launches, streams
from fastmomentum.backends.cuda.arrays import DeviceArray
from fastmomentum.backends.cuda.kernels import TILE, head_of
from fastmomentum.records import Update


def run(update: Update, arrays: Sequence[DeviceArray], row: tuple[Any, ...], device: int, stream: int | None) -> None:
    """Update p and its state by g, the last of the arrays, which have been checked and are on the current device."""
    size, addresses = arrays[0].size, tuple(array.address for array in arrays)
    kernel = launches.one_kernel(update, arrays[0].dtype, device)
    chosen, others = streams.streams_for(stream, (array.stream for array in arrays), device)
    for other in others:
        streams.let_wait(chosen, other)
    if size:
        head = head_of(addresses, arrays[0].dtype.itemsize)
        launches.launch(kernel, -(-size // TILE), chosen, addresses, size, head, row)
    for other in others:
        streams.let_wait(other, chosen)
