"""Calls of kernels that make up a step, by one thread or by several."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastmomentum.backends import threads
from fastmomentum.progress import Progress

Call = Callable[[int], bool]
"""A kernel with all its arguments but the address of the list of gradients."""


class Calls:
    """The same work twice: by serial kernels, and over several threads where that is worth while.

    Attributes
    ----------
    serial, threaded : list of Call
        `threaded` is empty where one thread does as well everywhere.
    """

    def __init__(self, progress: Progress) -> None:
        self.serial: list[Call] = []
        self.threaded: list[Call] = []
        self._progress = progress
        self._torn: list[Any] | None = None  # the gradients of a step that may be half done

    def add(self, serial: Call, threaded: Call | None) -> None:
        """One more call; `threaded` is left out where one thread does as well."""
        if threaded and not self.threaded:
            self.threaded.extend(self.serial)
        self.serial.append(serial)
        if threaded or self.threaded:
            self.threaded.append(threaded or serial)

    def runner(self) -> Callable[[list[Any]], bool]:
        """What runs all of them: nothing can tear a single one apart."""
        if len(self.serial) > 1:
            return self.run
        if self.threaded:
            return self.attempt
        (only,) = self.serial
        return lambda grads: only(id(grads))

    def run(self, grads: list[Any]) -> bool:
        """All of them, until one answers False; what a signal's handler interrupts between two calls is finished."""
        self.finish()
        self._torn = grads
        try:
            return self.attempt(grads)
        finally:
            self.finish()

    def finish(self) -> None:
        """Do what is left of a step whose end raised: another signal in :meth:`run`'s own handling of the first."""
        if self._torn is not None:
            while self._progress.done:
                with suppress(BaseException):  # of a handler again, as kernels raise none; the first is on its way
                    self.serial[self._progress.done](id(self._torn))
            self._torn = None

    def attempt(self, grads: list[Any]) -> bool:
        """All of them, until one answers False."""
        ours = threads.region() if self.threaded else None
        if ours is None:
            for call in self.serial:  # noqa: SIM110, a generator for all() would cost more than the rest
                if not call(id(grads)):
                    return False
            return True
        with ours:
            return all(call(id(grads)) for call in self.threaded)
