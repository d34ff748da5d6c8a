"""The interface that the three backends fulfil, and the code that they share."""

import math
import signal
import threading
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from functools import partial, reduce
from operator import add
from threading import Lock
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.step_sums import StepSums
from fastmomentum.checks import describe
from fastmomentum.rules.base import Rule
from fastmomentum.rules.stages import maximize

LANES = 32
"""Partial sums that a reduction keeps side by side."""

CHUNK = 65_536
"""Elements of an array that one reduction adds up by itself; the sums of chunks are added in order."""

_kernels: dict[Hashable, Callable[..., Any]] = {}


def cached_kernel(key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return the kernel that is cached under this key; make it if there is none.

    Keys hold a rule's structure, not the rule: chains made anew from the same stages share their kernel.
    """
    if key not in _kernels:
        _kernels[key] = make()
    return _kernels[key]


def one_caller(lock: Lock) -> Lock:
    """Return the lock, to be used in ``with``, if no caller holds it.

    A second caller is refused; one that comes at the very same moment waits. To wait always would hang a forked child
    whose parent was in a step. ``with`` on the lock itself is safe from signals; an ``acquire`` with a ``try`` could be
    interrupted between the two, and the lock would stay held.

    Raises
    ------
    RuntimeError
        If another caller holds the lock.
    """
    if lock.locked():
        raise RuntimeError(
            "one optimiser serves one caller at a time; another is in a step of it, and nothing was changed"
        )
    return lock


class uninterrupted:
    """A context in which SIGINT (Ctrl-C) waits until the block is done.

    It acts in the main thread alone, the only one in which Python runs signal handlers, and only if a Python function
    handles SIGINT. Setting a handler twice takes 1.4 to 20 µs (measured), so a plain step does without: it is one call
    of compiled code, in which no handler runs. Handlers of other signals that raise are left to the user.
    """

    def __init__(self) -> None:
        self._is_pending = False

    def __enter__(self) -> None:
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._hold)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._is_pending:
                signal.raise_signal(signal.SIGINT)

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self._is_pending = True


COUNTERS = 2
"""Rows that the step counter appends to the intervals of written memory, where kernels count without one more argument:
(calls done of the step in progress, calls that a step takes), then (steps done, unused)."""


class StepCounter:
    """Counts updates done and updates skipped.

    Compiled kernels do the counting, in the same call as the update: no signal can come between. A CUDA device may
    count by itself instead, if it alone knows which updates were skipped.
    """

    def __init__(self, steps: int = 0, skipped: int = 0) -> None:
        self._cells = np.zeros((COUNTERS, 2), np.int64)
        self._on_device: Callable[[], tuple[int, int]] | None = None
        self._kept: list[object] = []
        self._skipped = 0
        self.steps, self.skipped = steps, skipped

    def append_to(self, written: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return an array of these intervals and, after them, the counters, which live there from now on."""
        found = np.concatenate([written, self._cells])
        self._cells = found[-COUNTERS:]
        return found

    def expect_calls(self, calls: int) -> None:
        """Set how many calls of kernels make up one step."""
        self._cells[0] = 0, calls

    def keep_alive(self, reader: object) -> None:
        """Hold a reference to an object whose memory a captured graph reads."""
        if reader not in self._kept:
            self._kept.append(reader)

    def add_step(self) -> None:
        """Count one update."""
        self._cells[1, 0] += 1

    def count_on_device(self, read: Callable[[], tuple[int, int]]) -> None:
        """Let a device count from now on; ``read()`` returns its updates done and skipped."""
        before = self.steps, self.skipped
        self._on_device = read
        self.steps, self.skipped = before

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return int(self._cells[1, 0]) + (self._on_device()[0] if self._on_device else 0)

    @steps.setter
    def steps(self, value: int) -> None:
        self._cells[1, 0] = value - (self._on_device()[0] if self._on_device else 0)

    @property
    def skipped(self) -> int:
        """The number of updates skipped."""
        return self._skipped + (self._on_device()[1] if self._on_device else 0)

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value - (self._on_device()[1] if self._on_device else 0)

    def __reduce__(self) -> tuple[type["StepCounter"], tuple[int, int]]:
        return type(self), (self.steps, self.skipped)


class RowFunction(Protocol):
    """The hyper-parameters of the next update of every group."""

    def __call__(self, group: int, dtype: np.dtype[Any], first: bool) -> tuple[Any, ...]:
        """Return the values of this group as a kernel takes them; `first` asks for an array's first step from rest."""

    def values(self, group: int, first: bool) -> dict[str, Any]:
        """Return these values by name, as users give them."""


class ArrayUpdate(NamedTuple):
    """The arrays of one parameter (p, then its state slots), its rule with its stages, and its group's number."""

    arrays: tuple[Any, ...]
    update: Rule
    group: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all its arrays."""
        dtype: np.dtype[Any] = self.arrays[0].dtype
        return dtype


class Executor(Protocol):
    """Runs an optimiser's updates on one backend.

    Attributes
    ----------
    checks : bool
        Whether :meth:`run` checks all arrays itself; otherwise they must have been checked just before.
    """

    checks: bool

    def select(self, active: Sequence[bool]) -> None:
        """Update these parameters until the next call; the others must have no gradient."""

    def set_hyper(self, rows: RowFunction, first: Container[int]) -> None:
        """Use these hyper-parameters; `first` holds the parameters that take their first step from rest."""

    def run(self, grads: list[Any]) -> bool:
        """Do one update by these gradients, one for each parameter; if it cannot be done, write nothing, return False.

        The caller keeps the list alive meanwhile.
        """

    def run_clipped(self, grads: list[Any], max_norm: float | None, skip_nonfinite: bool) -> bool:
        """Do one update by gradients clipped to this norm.

        If `skip_nonfinite` and a gradient holds a NaN or an infinity, the update is skipped and counted.
        """

    def use_stream(self, stream: object) -> None:
        """Run in this stream from now on; None stands for the arrays' own."""

    def observe_with(self, observers: "Sequence[Observer]") -> None:
        """Let these observe every update, from the next :meth:`select` on."""


class Observer(Protocol):
    """Observes the updates of an optimiser on the host."""

    def before_step(self, grads: list[Any], executor: "HostExecutor") -> Callable[[], None] | None:
        """Read what is to come; return the function to call after the update, or None if it cannot be done."""


class HostExecutor:
    """The part of an executor that both backends on the host share: there the norm is known before the update."""

    _counter: StepCounter
    _jobs: Sequence[ArrayUpdate]
    _observers: Sequence[Observer] = ()

    def observe_with(self, observers: Sequence[Observer]) -> None:
        """Let these observe every update, from the next selection of arrays on."""
        self._observers = observers

    def _observed(self, run: Callable[[list[Any]], bool]) -> Callable[[list[Any]], bool]:
        """Return `run` with its observers; `run` itself if there are none, so that they cost nothing then."""
        for observer in self._observers:
            run = partial(self._run_observed, observer, run)
        return run

    def _run_observed(self, observer: Observer, run: Callable[[list[Any]], bool], grads: list[Any]) -> bool:
        after = observer.before_step(grads, self)
        if after is None:
            return False
        with uninterrupted():
            done = run(grads)
            if done:
                after()
        return done

    def measure(self, grads: list[Any]) -> dict[int, StepSums] | None:
        """Return the sums of the step that :meth:`Executor.run` would do now; nothing is written.

        There is an entry for each parameter that has a gradient, in order. One pass over the parameter, its state and
        its gradient computes it, with the hyper-parameters of this very update, the factor for the norm among them.
        With `maximize` the gradient is taken as that of the function that is minimised, −g. The answer is None if an
        update could not be done.
        """
        raise NotImplementedError

    def _step_sums(self, i: int, sums: Iterable[float]) -> StepSums:
        """Return the sums of a parameter with the sign of its gradient as :meth:`measure` takes it."""
        found = StepSums(*sums)
        if maximize in self._jobs[i].update.composed_of:
            return found._replace(along=-found.along, slope=-found.slope)
        return found

    def sum_squares(self, grads: list[Any]) -> float:
        """Return the sum of squares of all gradients, or a negative number if an update could not be done."""
        raise NotImplementedError

    def set_clip_factor(self, factor: float) -> None:
        """Use this factor, the first of all hyper-parameters, for the norm."""
        raise NotImplementedError

    def run(self, grads: list[Any]) -> bool:
        """Do one update."""
        raise NotImplementedError

    def run_clipped(self, grads: list[Any], max_norm: float | None, skip_nonfinite: bool) -> bool:
        """Do one update by gradients clipped to this norm, or skip it."""
        squares = self.sum_squares(grads)
        if squares < 0:
            return False
        if skip_nonfinite and not is_finite(squares, grads):
            self._counter.skipped += 1
            return True
        if max_norm is not None:
            factor = max_norm / (math.sqrt(squares) + 1e-6)
            self.set_clip_factor(1.0 if factor > 1.0 else factor)  # a NaN stays one
        return self.run(grads)

    def use_stream(self, stream: object) -> None:
        """Refuse any stream, as the host has none."""
        if stream is not None:
            raise TypeError(f"stream: expected None, as the arrays are on the host; got {describe(stream)}")


def group_by_code(jobs: Sequence[ArrayUpdate]) -> tuple[Callable[[int], int], list[int]]:
    """Return which parameters share code and dtype, and an order in which those stand together.

    Returns
    -------
    callable
        The number of the code and dtype of each parameter.
    list of int
        The parameters' numbers, sorted by it, then by group.
    """
    codes: dict[Any, int] = {}
    keys = [codes.setdefault((job.update.structure, job.dtype), len(codes)) for job in jobs]
    return keys.__getitem__, sorted(range(len(jobs)), key=lambda i: (keys[i], jobs[i].group, i))


def is_finite(squares: float, grads: Sequence[Any]) -> bool:
    """Return whether all gradients are finite; their sum of squares tells, unless it has overflowed."""
    return math.isfinite(squares) or all(np.isfinite(grad).all() for grad in grads if grad is not None)


def sum_in_order(values: Iterable[float]) -> float:
    """Return the sum, added one after another; the built-in sum of Python 3.12 and later compensates rounding."""
    return reduce(add, values, 0.0)
