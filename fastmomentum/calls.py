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

    def add(self, serial: Call, threaded: Call | None) -> None:
        """One more call; `threaded` is left out where one thread does as well."""
        if threaded and not self.threaded:
            self.threaded.extend(self.serial)
        self.serial.append(serial)
        if threaded or self.threaded:
            self.threaded.append(threaded or serial)

    def run(self, grads: list[Any]) -> bool:
        """All of them, until one answers False; what a signal's handler interrupts between two calls is finished."""
        try:
            if self.threaded:
                with threads.region() as ours:
                    return all(call(id(grads)) for call in (self.threaded if ours else self.serial))
            for call in self.serial:  # noqa: SIM110, a generator for all() would cost more than the rest
                if not call(id(grads)):
                    return False
            return True
        except BaseException:
            while self._progress.done:
                with suppress(BaseException):  # of a handler again, as kernels raise none; the first is on its way
                    self.serial[self._progress.done](id(grads))
            raise
