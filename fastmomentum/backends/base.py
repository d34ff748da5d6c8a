"""(rule or chain, dtypes, backend) -> kernel, compiled on first use and kept.

The dtypes that a kernel is compiled for.

The reference backend: a rule applied to whole arrays.

Every other backend gives these bits. It allocates a temporary for each operation, as the formula written by hand in
NumPy does.

The norm of gradients, and what is measured of a step, come from sums by a fixed tree, so that neither threads nor
vector width change their bits. An array is cut into chunks of 65,536 elements, a chunk into rows of 32 lanes. Lane j
adds the products of column j, in double precision; then the upper half of the lanes is added to the lower until one is
left; the chunks' sums are added in order, and so are, by the caller, the arrays'.

Counting updates where no signal can come between the doing and the counting.

What carries out an optimiser's update, whatever the backend.
"""

import math
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.step_sums import StepSums
from fastmomentum.checks import describe
from fastmomentum.rules.base import Rule
from fastmomentum.rules.stages import maximize

_kernels: dict[Hashable, Callable[..., Any]] = {}


def cached_kernel(key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """What is kept under this key; made if nothing is."""
    # The key holds the rule's structure, not the rule: chains made anew from the same stages share their kernel.
    if key not in _kernels:
        _kernels[key] = make()
    return _kernels[key]


LANES = 32
CHUNK = 65_536


COUNTERS = 2
"""Rows that the step counter adds to the intervals that are written to; kernels count there."""


class StepCounter:
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


class RowFunction(Protocol):
    """The hyper-parameters of the next update of every group."""

    def __call__(self, group: int, dtype: np.dtype[Any], first: bool) -> tuple[Any, ...]:
        """Return the values of this group as a kernel takes them; `first` asks for an array's first step from rest."""

    def values(self, group: int, first: bool) -> dict[str, Any]:
        """Return the same values by name, as users give them."""


class ArrayUpdate(NamedTuple):
    """One parameter's update: its arrays, the rule with its stages, and the number of its group."""

    arrays: tuple[Any, ...]
    update: Rule
    group: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all its arrays."""
        dtype: np.dtype[Any] = self.arrays[0].dtype
        return dtype


class Executor(Protocol):
    """How an optimiser's update is run.

    Attributes
    ----------
    checks : bool
        Whether :meth:`run` looks at all arrays itself; else they must have been checked just before.
    progress : Progress
        Where :meth:`run` counts.
    """

    checks: bool
    progress: StepCounter

    def select(self, active: Sequence[bool]) -> None:
        """Update these parameters, until selected anew; the others must have no gradient."""

    def take_hyper(self, rows: RowFunction, first: Container[int]) -> None:
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

    def begin(self, grads: list[Any], launch: "HostExecutor") -> Callable[[], None] | None:
        """Look before an update; what is to be done when it is done, or None if it cannot be."""


class HostExecutor:
    """What launches on the host share: there the norm is known before the update."""

    progress: StepCounter
    _jobs: Sequence[ArrayUpdate]
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

    def look(self, grads: list[Any]) -> dict[int, StepSums] | None:
        """The motion of the update that :meth:`run` would do now; nothing is written.

        For each parameter that has a gradient, in order, in one pass over the parameter, its state and its gradient,
        with the hyper-parameters of this very update, the factor for the norm among them. With `maximize` the gradient
        is taken as that of the function which is minimised, −g. None if an update could not be.
        """
        raise NotImplementedError

    def _turned(self, i: int, sums: Iterable[float]) -> StepSums:
        """A motion from its sums, as :meth:`look` has it."""
        found, update = StepSums(*sums), self._jobs[i].update
        if maximize in update.composed_of:
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
            raise TypeError(f"stream: expected None, as the arrays are on the host; got {describe(stream)}")


def arrange(jobs: Sequence[ArrayUpdate]) -> tuple[Callable[[int], int], list[int]]:
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
