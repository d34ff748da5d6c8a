"""Counting updates where no signal can come between the doing and the counting."""

from typing import Any

import numpy as np


class Progress:
    """Three numbers that compiled kernels count on: calls done of the step under way, calls it takes, steps done.

    A step of several calls that a signal's handler interrupts (Ctrl-C) is half done; what tells is the first of them.
    """

    def __init__(self) -> None:
        self.cells = np.zeros(3, np.int64)

    def expect(self, calls: int) -> None:
        """From now on a step takes so many calls."""
        self.cells[:2] = 0, calls

    @property
    def done(self) -> int:
        """Calls done of a step that is half done; 0 between steps."""
        return int(self.cells[0])

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.cells[2])

    @steps.setter
    def steps(self, value: int) -> None:
        self.cells[2] = value

    def __getstate__(self) -> Any:
        return self.steps

    def __setstate__(self, steps: Any) -> None:
        self.__init__()  # type: ignore[misc]
        self.steps = steps
