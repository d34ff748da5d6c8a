"""Calls of kernels that make up a step, by one thread or by several."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fastmomentum.backends import threads

Call = Callable[[int], bool]
"""A kernel with all its arguments but the address of the list of gradients."""


class Calls(NamedTuple):
    """The same work twice: by serial kernels, and over several threads where that is worth while."""

    serial: list[Call]
    threaded: list[Call]

    def add(self, serial: Call, threaded: Call | None) -> None:
        """One more call; `threaded` is left out where one thread does as well."""
        if threaded and not self.threaded:
            self.threaded.extend(self.serial)
        self.serial.append(serial)
        if threaded or self.threaded:
            self.threaded.append(threaded or serial)

    def run(self, grads: list[Any]) -> bool:
        """All of them, until one answers False."""
        if not self.threaded:
            return _all(self.serial, grads)
        with threads.region() as ours:
            return _all(self.threaded if ours else self.serial, grads)


def _all(calls: list[Call], grads: list[Any]) -> bool:
    for call in calls:  # noqa: SIM110, a generator for all() would cost more than the rest
        if not call(id(grads)):
            return False
    return True
