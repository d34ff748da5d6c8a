"""What a trace holds: numbers step by step, and what was noticed between two steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.motion import Motion

Floats = npt.NDArray[np.float64]


class Row(NamedTuple):
    """What a recorded step was for one group: its settings, and the motion of its arrays together."""

    lr: float
    momentum: float
    motion: Motion


class Written(NamedTuple):
    """A velocity that a step did not find as the step before had left it.

    Attributes
    ----------
    step, group, array : int
        The number of updates done by then; whose velocity.
    left, found : float
        Its norm, as the update before left it, and as it was.
    inside : bool
        Whether it is what the rule makes of a velocity at rest, so that it was put to rest within the update.
    """

    step: int
    group: int
    array: int
    left: float
    found: float
    inside: bool = False


class Start(NamedTuple):
    """Where a trace begins or goes on behind a load: the updates done by then, and whether the velocity is at rest."""

    step: int
    at_rest: bool


NOTHING = Motion(*[float("nan")] * len(Motion._fields))
"""Of a group none of whose arrays had a gradient."""


class Track:
    """The recorded steps of one group, or of all arrays together, as read-only arrays with an entry a record.

    Attributes
    ----------
    steps : ndarray of int
        The number of each update, from 0: how many had been done before.
    """

    def __init__(self, steps: Sequence[int], rows: Sequence[Row]) -> None:
        self.steps = np.array(steps, np.int64)
        self.steps.flags.writeable = False
        self._rows = np.array([(row.lr, row.momentum, *row.motion) for row in rows], np.float64)
        self._rows = self._rows.reshape(len(rows), 2 + len(Motion._fields))

    def __len__(self) -> int:
        return len(self.steps)

    def _column(self, name: str) -> Floats:
        return _fixed(self._rows[:, 2 + Motion._fields.index(name)])

    def _norm(self, name: str) -> Floats:
        return _fixed(np.sqrt(self._column(name)))

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether any of its arrays had a gradient."""
        return np.asarray(~np.isnan(self._rows[:, 2:]).all(axis=1))

    @property
    def lr(self) -> Floats:
        """The learning rate; NaN where groups differ."""
        return _fixed(self._rows[:, 0])

    @property
    def momentum(self) -> Floats:
        """The momentum; NaN where groups differ."""
        return _fixed(self._rows[:, 1])

    @property
    def velocity(self) -> Floats:
        """‖v‖, as the step found it; 0 for rules that keep none."""
        return self._norm("velocity")

    @property
    def gradient(self) -> Floats:
        """‖g‖, as given."""
        return self._norm("gradient")

    @property
    def cosine(self) -> Floats:
        """v·g / (‖v‖‖g‖), −1 to 1; below 0 they are opposed, at NaN one of them is 0."""
        with np.errstate(all="ignore"):
            return _fixed(np.clip(self._column("along") / (self.velocity * self.gradient), -1.0, 1.0))

    @property
    def step(self) -> Floats:
        """‖p⁺ − p‖."""
        return self._norm("step")

    @property
    def slope(self) -> Floats:
        """g·(p⁺ − p): what the step changes the function by, to first order; above 0 it goes uphill."""
        return self._column("slope")

    @property
    def left(self) -> Floats:
        """‖v⁺‖, as the step leaves it."""
        return self._norm("left")

    @property
    def size(self) -> Floats:
        """‖p‖."""
        return self._norm("size")


def together(motions: Sequence[Motion]) -> Motion:
    """The motion of several arrays as if they were one; their sums are added in order."""
    found = NOTHING
    for motion in motions:
        found = Motion(*(a + b for a, b in zip(found, motion))) if found is not NOTHING else motion
    return found


def _fixed(values: Floats) -> Floats:
    found = values.copy()
    found.flags.writeable = False
    return found
