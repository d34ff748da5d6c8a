"""Choose the CUDA stream in which a step runs, and the streams that it waits for. The host never waits.

A step runs in the stream that the user passes, and waits for no other: the user has put the work in order, and a stream
that is being captured must not wait for work outside of the graph. Without such a stream, the step runs in the first
stream that an array belongs to, and waits for the streams of the other arrays.
"""

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from numba import config, cuda

from fastmomentum.backends.cuda.device_array import LEGACY, TORCH
from fastmomentum.checks import describe


def handle_of(stream: Any) -> int | None:
    """Return the handle of a stream of CUDA, Numba, CuPy, torch or any library with ``__cuda_stream__``.

    Raises
    ------
    TypeError
        If `stream` is not such a stream, nor a handle, nor None.
    """
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr"):  # torch, CuPy
        if isinstance(handle := getattr(stream, name, None), int):
            return handle
    raise TypeError(f"stream: expected None, a handle or a stream of CUDA; got {describe(stream)}")


def streams_for(requested: int | None, array_streams: Iterable[int | None], device: int) -> tuple[Any, list[Any]]:
    """Return the stream in which to run, as a Numba stream, and the streams that it must wait for."""
    if config.ENABLE_CUDASIM:
        return 0, []
    if requested is not None:
        return _external_stream(requested), []
    handles = [
        _torch_stream(device) if stream == TORCH else stream
        for stream in dict.fromkeys(array_streams)
        if stream is not None
    ]
    chosen, *others = map(_external_stream, dict.fromkeys(handles or [LEGACY]))
    return chosen, others


def let_wait(stream: Any, other: Any) -> None:
    """Make later work in `stream` wait for all work that is already in `other`."""
    event = _event(other)
    event.record(other)
    event.wait(stream)


@lru_cache(maxsize=256)
def _event(stream: Any) -> Any:
    # One event for each stream is enough: to record it again marks a later point, for which a stream can wait as well.
    return cuda.event(timing=False)


def _torch_stream(device: int) -> int:
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream) or LEGACY


@lru_cache(maxsize=256)
def _external_stream(handle: int) -> Any:
    return cuda.external_stream(handle)


def is_capturing(stream: Any) -> bool:
    """Return whether work given to the stream is captured into a CUDA graph."""
    if config.ENABLE_CUDASIM:
        return False
    from numba.cuda.cudadrv.driver import driver

    return int(driver.cuStreamIsCapturing(int(stream.handle))) != 0
