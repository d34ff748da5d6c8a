"""Streams: which one a step runs in, and what it waits for there. Nothing here makes the host wait.

A stream that is given is taken as it is, and waits for no other: who names one has put his work in order, and in a
stream that is being captured there is nothing else to wait for. Else it is the first one that an array belongs to, the
parameters' before the gradients', and it waits for those that other arrays tell of.
"""

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from numba import config, cuda

from fastmomentum.backends.cuda.device_array import LEGACY, TORCH
from fastmomentum.checks import describe


def handle_of(stream: Any) -> int | None:
    """The handle of a stream of CUDA, Numba, CuPy, torch, or of whatever speaks the protocol ``__cuda_stream__``.

    Raises
    ------
    TypeError
        If it is none.
    """
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        told = stream.__cuda_stream__
        return int((told() if callable(told) else told)[1])
    for name in ("cuda_stream", "ptr"):  # torch's, CuPy's
        if isinstance(handle := getattr(stream, name, None), int):
            return handle
    raise TypeError(f"stream: expected None, a handle or a stream of CUDA; got {describe(stream)}")


def streams_for(asked: int | None, told: Iterable[int | None], device: int) -> tuple[Any, list[Any]]:
    """The stream to run in, as Numba takes it, and the others that arrays belong to."""
    if config.ENABLE_CUDASIM:
        return 0, []
    if asked is not None:
        return _wrapped(asked), []
    handles = [_torchs(device) if each == TORCH else each for each in dict.fromkeys(told) if each is not None]
    chosen, *others = map(_wrapped, dict.fromkeys(handles or [LEGACY]))
    return chosen, others


def let_wait(stream: Any, behind: Any) -> None:
    """Let the stream wait for what the other has been given up to now."""
    event = _event(behind)
    event.record(behind)
    event.wait(stream)


@lru_cache(maxsize=256)
def _event(stream: Any) -> Any:
    # One for each stream that is waited for: whoever records it again records what comes later, which serves as well.
    return cuda.event(timing=False)


def _torchs(device: int) -> int:
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream) or LEGACY


@lru_cache(maxsize=256)
def _wrapped(handle: int) -> Any:
    return cuda.external_stream(handle)


def is_capturing(stream: Any) -> bool:
    """Whether what the stream is given goes into a graph."""
    if config.ENABLE_CUDASIM:
        return False
    from numba.cuda.cudadrv.driver import driver

    return int(driver.cuStreamIsCapturing(int(stream.handle))) != 0
