"""What carries out an optimiser's update, whatever the backend."""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastmomentum.backends.motion import Motion
from fastmomentum.checks import shown
from fastmomentum.compose import Chain
from fastmomentum.groups import Rows
from fastmomentum.progress import Progress
from fastmomentum.records import Update
from fastmomentum.stages import maximize


class Job(NamedTuple):
    """One parameter's update: its arrays, the rule with its stages, and the number of its group."""

    arrays: tuple[Any, ...]
    update: Update
    group: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all its arrays."""
        dtype: np.dtype[Any] = self.arrays[0].dtype
        return dtype


class Launch(Protocol):
    """How an optimiser's update is run.

    Attributes
    ----------
    checks : bool
        Whether :meth:`run` looks at all arrays itself; else they must have been checked just before.
    progress : Progress
        Where :meth:`run` counts.
    """

    checks: bool
    progress: Progress

    def select(self, active: Sequence[bool]) -> None:
        """Update these parameters, until selected anew; the others must have no gradient."""

    def take_hyper(self, rows: Rows, first: Container[int]) -> None:
        """Use these hyper-parameters; `first` holds the parameters that take their first step from rest."""

    def run_measured(self, grads: list[Any], max_norm: float | None, skip: bool) -> bool:
        """The same with gradients clipped to this norm, or left out, and counted, if any is not finite and `skip`."""

    def run(self, grads: list[Any]) -> bool:
        """One update by these gradients, one a parameter; False, and nothing written, if it cannot be."""

    def finish(self) -> None:
        """Do what is left of a step that was torn apart."""

    def use(self, stream: Any) -> None:
        """Run in this stream from now on; None is the arrays' own."""

    def watch(self, observers: "Sequence[Observer]") -> None:
        """Have every update observed by these from the next :meth:`select` on."""


class Observer(Protocol):
    """What watches updates."""

    def begin(self, grads: list[Any], launch: "HostLaunch") -> Callable[[], None] | None:
        """Look before an update; what is to be done when it is done, or None if it cannot be."""


class HostLaunch:
    """What launches on the host share: there the norm is known before the update."""

    progress: Progress
    _jobs: Sequence[Job]
    _observers: Sequence[Observer] = ()

    def watch(self, observers: Sequence[Observer]) -> None:
        """See :class:`Launch`."""
        self._observers = observers

    def _observed(self, run: Callable[[list[Any]], bool]) -> Callable[[list[Any]], bool]:
        """`run` itself where nobody watches: there a step costs nothing more."""
        for observer in self._observers:
            run = partial(self._run_observed, observer, run)
        return run

    def _run_observed(self, observer: Observer, run: Callable[[list[Any]], bool], grads: list[Any]) -> bool:
        end = observer.begin(grads, self)
        if end is None or not run(grads):
            return False
        end()
        return True

    def look(self, grads: list[Any]) -> dict[int, Motion] | None:
        """The motion of the update that :meth:`run` would do now; nothing is written.

        For each parameter that has a gradient, in order, in one pass over the parameter, its state and its gradient,
        with the hyper-parameters of this very update, the factor for the norm among them. With `maximize` the gradient
        is taken as that of the function which is minimised, −g. None if an update could not be.
        """
        raise NotImplementedError

    def _turned(self, i: int, sums: Iterable[float]) -> Motion:
        """A motion from its sums, as :meth:`look` has it."""
        found, update = Motion(*sums), self._jobs[i].update
        if isinstance(update, Chain) and maximize in update.before:
            return found._replace(along=-found.along, slope=-found.slope)
        return found

    def measure(self, grads: list[Any]) -> float:
        """The sum of squares of all gradients, negative if an update could not be."""
        raise NotImplementedError

    def take_factor(self, factor: float) -> None:
        """Use this factor, the first of all hyper-parameters, for the norm."""
        raise NotImplementedError

    def run_measured(self, grads: list[Any], max_norm: float | None, skip: bool) -> bool:
        """See :class:`Launch`."""
        squares = self.measure(grads)
        if squares < 0:
            return False
        if skip and not is_finite(squares, grads):
            self.progress.skipped += 1
            return True
        if max_norm is not None:
            factor = max_norm / (math.sqrt(squares) + 1e-6)
            self.take_factor(1.0 if factor > 1.0 else factor)  # a NaN stays one
        return self.run(grads)

    def run(self, grads: list[Any]) -> bool:
        """See :class:`Launch`."""
        raise NotImplementedError

    def use(self, stream: Any) -> None:
        """See :class:`Launch`; the host has no streams."""
        if stream is not None:
            raise TypeError(f"stream: expected None, as the arrays are on the host; got {shown(stream)}")


def arrange(jobs: Sequence[Job]) -> tuple[Callable[[int], int], list[int]]:
    """For each job the number of its code and dtype; and the order in which those of a number stand together."""
    codes: dict[Any, int] = {}
    keys = [codes.setdefault((job.update.structure, job.dtype), len(codes)) for job in jobs]
    return keys.__getitem__, sorted(range(len(jobs)), key=lambda i: (keys[i], jobs[i].group, i))


def is_finite(squares: float, grads: Sequence[Any]) -> bool:
    """Whether all gradients are finite; their sum of squares tells, unless it has overflowed."""
    return math.isfinite(squares) or all(np.isfinite(grad).all() for grad in grads if grad is not None)


def in_order(values: Iterable[float]) -> float:
    """Their sum, one after the other (the built-in sum of Python 3.12 and later compensates)."""
    return reduce(add, values, 0.0)
