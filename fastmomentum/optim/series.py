"""The recorded steps of a run as arrays, with an entry for each step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.step_sums import StepSums

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Row(NamedTuple):
    """Hold a recorded step of one group: its settings, and the sums over all elements of its arrays."""

    lr: float
    momentum: float
    sums: StepSums


EMPTY = StepSums(*[float("nan")] * len(StepSums._fields))
"""The sums of a group if none of its arrays had a gradient."""


class Series:
    """Hold the recorded steps of one group, or of all groups as one, in read-only arrays with an entry for each step.

    Attributes
    ----------
    steps : ndarray of int
        The number of each update, from 0.
    """

    def __init__(self, steps: Sequence[int], rows: Sequence[Row]) -> None:
        self.steps = np.array(steps, np.int64)
        self.steps.flags.writeable = False
        self._rows = np.array([(row.lr, row.momentum, *row.sums) for row in rows], np.float64)
        self._rows = self._rows.reshape(len(rows), 2 + len(StepSums._fields))

    def __len__(self) -> int:
        return len(self.steps)

    def _column(self, name: str) -> Floats:
        return _read_only(self._rows[:, 2 + StepSums._fields.index(name)])

    def _norm(self, name: str) -> Floats:
        return _read_only(np.sqrt(self._column(name)))

    @property
    def present(self) -> Bools:
        """Whether an array had a gradient."""
        return np.asarray(~np.isnan(self._rows[:, 2:]).all(axis=1))

    @property
    def lr(self) -> Floats:
        """The learning rate; NaN if groups differ."""
        return _read_only(self._rows[:, 0])

    @property
    def momentum(self) -> Floats:
        """The momentum; NaN if groups differ."""
        return _read_only(self._rows[:, 1])

    @property
    def velocity(self) -> Floats:
        """The norm ‖v‖ before the step; 0 for rules that keep no velocity."""
        return self._norm("velocity")

    @property
    def gradient(self) -> Floats:
        """The norm ‖g‖ of the gradient that the step got, before weight decay or clipping."""
        return self._norm("gradient")

    @property
    def cosine(self) -> Floats:
        """The cosine v·g / (‖v‖‖g‖); below 0 velocity and gradient oppose each other, NaN if one of them is 0."""
        with np.errstate(all="ignore"):
            return _read_only(np.clip(self._column("along") / (self.velocity * self.gradient), -1.0, 1.0))

    @property
    def step(self) -> Floats:
        """The norm ‖p⁺ − p‖ of the step."""
        return self._norm("step")

    @property
    def slope(self) -> Floats:
        """The change g·(p⁺ − p) of the objective, to first order; above 0 the step goes up the gradient."""
        return self._column("slope")

    @property
    def left(self) -> Floats:
        """The norm ‖v⁺‖ after the step."""
        return self._norm("left")

    @property
    def size(self) -> Floats:
        """The norm ‖p‖ of the parameters before the step."""
        return self._norm("size")


def combine(all_sums: Sequence[StepSums]) -> StepSums:
    """Return the sums over the elements of several arrays, added in the order of the arrays."""
    found = EMPTY
    for sums in all_sums:
        found = StepSums(*(a + b for a, b in zip(found, sums))) if found is not EMPTY else sums
    return found


def _read_only(values: Floats) -> Floats:
    found = values.copy()
    found.flags.writeable = False
    return found


def of_all(rows: Sequence[Row]) -> Row:
    """Return the row of all groups as one."""
    lr, momentum = ({getattr(row, name) for row in rows} for name in ("lr", "momentum"))
    sums = [row.sums for row in rows if row.sums is not EMPTY]
    one = [values.pop() if len(values) == 1 else float("nan") for values in (lr, momentum)]
    return Row(one[0], one[1], combine(sums))
