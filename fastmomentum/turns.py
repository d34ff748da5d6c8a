"""One caller at a time."""

from threading import Lock


def free(lock: Lock) -> Lock:
    """The lock, for ``with``, if nobody holds it; who comes second is refused, at the very same moment waits.

    To wait always would hang a forked child whose parent was in a step. ``with`` on the lock itself cannot be torn
    apart by a signal's handler; an acquire and a try can, and would leave it held for ever.
    """
    if lock.locked():
        raise RuntimeError(
            "one optimiser serves one caller at a time; another is in a step of it, and nothing was changed"
        )
    return lock
