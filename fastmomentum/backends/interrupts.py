"""Let one caller change an optimiser at a time, and hold Ctrl-C back while it writes."""

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from weakref import ref

try:  # the functions of signal turn numbers into enums, which takes ten times as long as all else that they do
    from _signal import getsignal  # type: ignore[import-not-found]
    from _signal import signal as set_handler
except ImportError:
    from signal import getsignal
    from signal import signal as set_handler

SIGINT = int(signal.SIGINT)


def one_caller(lock: threading.Lock) -> threading.Lock:
    """Return the lock, to be used in ``with``, if no caller holds it.

    If another caller holds it, the call raises, as waiting would hang a forked child whose parent was in a step. If
    another caller takes it before the ``with``, the ``with`` waits. A lock is returned, and not acquired here, because
    a signal between an ``acquire`` and a ``try`` would leave it held; ``with`` on the lock is safe from signals.

    Raises
    ------
    RuntimeError
        If another caller holds the lock.
    """
    if lock.locked():
        raise RuntimeError(
            "one optimiser serves one caller at a time; another is in a step of it, and nothing was changed"
        )
    return lock


class uninterrupted:
    """Hold SIGINT (Ctrl-C) back until the block is done.

    It acts in the main thread alone, the only one in which Python runs signal handlers, and only if a Python function
    handles SIGINT. It takes 2 µs (measured), so a plain step on the CPU does without: it is one call of compiled code,
    in which no handler runs. A handler of another signal can still raise in the block, even where the block ends and
    before its end has given SIGINT back: the next SIGINT then finds no block that holds it back, and goes to the
    handler that was there before.
    """

    def __init__(self) -> None:
        self._is_pending = False

    def __enter__(self) -> None:
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = getsignal(SIGINT)
            if callable(handler):
                self._handler = handler
                set_handler(SIGINT, partial(_hold, ref(self), handler))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            set_handler(SIGINT, self._handler)
            if self._is_pending:
                signal.raise_signal(SIGINT)


def _hold(block: "ref[uninterrupted]", handler: Callable[..., object], signum: int, frame: FrameType | None) -> None:
    """Note a SIGINT for the end of the block; give it to `handler`, and all that follow, if the block is gone."""
    held = block()
    if held is not None:
        held._is_pending = True
    else:
        set_handler(SIGINT, handler)
        handler(signum, frame)
