"""Counting updates where no signal can come between the doing and the counting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.layout import COUNTERS


class Progress:
    """Numbers that compiled kernels count on: calls done of the step under way, calls that it takes, steps done.

    A step of several calls that a signal's handler interrupts (Ctrl-C) is half done; what tells is the first of them.
    They lie behind the intervals that are written to, where kernels find them without another argument.
    """

    def __init__(self, steps: int = 0, skipped: int = 0) -> None:
        self._cells = np.zeros((COUNTERS, 2), np.int64)
        self._elsewhere: Callable[[], tuple[int, int]] = _nothing
        self._kept: list[object] = []
        self._skipped = 0
        self.steps, self.skipped = steps, skipped

    def behind(self, written: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """An array of these intervals, and behind them the numbers, which live there from now on."""
        found = np.concatenate([written, self._cells])
        self._cells = found[-COUNTERS:]
        return found

    def expect(self, calls: int) -> None:
        """From now on a step takes so many calls."""
        self._cells[0] = 0, calls

    @property
    def done(self) -> int:
        """Calls done of a step that is half done; 0 between steps."""
        return int(self._cells[0, 0])

    def keep(self, reader: object) -> None:
        """Keep alive what a captured graph reads."""
        if reader not in self._kept:
            self._kept.append(reader)

    def add_step(self) -> None:
        """Count an update."""
        self._cells[1, 0] += 1

    def count_elsewhere(self, elsewhere: Callable[[], tuple[int, int]]) -> None:
        """From now on updates are counted elsewhere, where alone it is known which of them are done and left out.

        `elsewhere` tells both numbers, from then on.
        """
        before = self.steps, self.skipped
        self._elsewhere = elsewhere
        self.steps, self.skipped = before

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self._cells[1, 0]) + self._elsewhere()[0]

    @steps.setter
    def steps(self, value: int) -> None:
        self._cells[1, 0] = value - self._elsewhere()[0]

    @property
    def skipped(self) -> int:
        """Steps left out."""
        return self._skipped + self._elsewhere()[1]

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value - self._elsewhere()[1]

    def __reduce__(self) -> Any:
        return type(self), (self.steps, self.skipped)


def _nothing() -> tuple[int, int]:
    return 0, 0
