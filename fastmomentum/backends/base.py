"""Define the interface of the three backends, and the code that they share."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import ref

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.host_arrays import flat_view, read
from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.backends.step_sums import StepSums
from fastmomentum.backends.sums import Derivation, Round, Skips, check_agreement, plan_derivations, sum_in_order
from fastmomentum.checks import describe, real_dtype
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import MASK
from fastmomentum.rules.stages import maximises

LANES = 32
"""The number of partial sums of a reduction."""

CHUNK = 65_536
"""The number of elements of a chunk, a part of an array whose sum does not depend on other parts."""

NO_ROW = -1
"""The row of hyper-parameters of a parameter that is not updated."""

COUNTERS = 2
"""The number of rows that StepCounter appends to the array of written intervals: calls done of the step in progress and
calls that make up a step; steps done and an unused number."""


class StepCounter:
    """Count updates done, updates skipped, and those of them that were skipped in a row.

    Compiled kernels count in the same call as they update, so that no signal can come between. A CUDA device counts
    instead of the host if only the device knows which updates were skipped.

    Attributes
    ----------
    jumps : int
        The number of times that :attr:`steps` was set, and not counted.
    """

    jumps = 0

    def __init__(self, steps: int = 0, skipped: int = 0, in_a_row: int = 0) -> None:
        self._use(np.zeros((COUNTERS, 2), np.int64))
        self._on_device: Callable[[], tuple[int, int]] | None = None
        self._kept: list[object] = []
        self._skipped = 0
        self.steps, self.skipped, self.in_a_row = steps, skipped, in_a_row

    def append_to(self, written: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return an array of these intervals and, after them, the counters, which are stored there from now on."""
        found = np.concatenate([written, self._cells])
        self._use(found[-COUNTERS:])
        return found

    def _use(self, cells: npt.NDArray[np.int64]) -> None:
        self._cells = cells
        self._memory: Any = cells.data  # five times as fast to read as the array

    def expect_calls(self, calls: int) -> None:
        """Set how many calls of kernels make up one step."""
        self._cells[0] = 0, calls

    def keep_alive(self, memory: object) -> None:
        """Hold a reference to memory that a captured graph reads."""
        self._kept.append(memory)

    def add_step(self) -> None:
        """Count one update."""
        self._cells[1, 0] += 1

    def count_on_device(self, read: Callable[[], tuple[int, int]]) -> None:
        """Let a device count from now on; ``read()`` returns the numbers of updates that it has done and skipped."""
        before = self.steps, self.skipped
        self._on_device = read
        self.steps, self.skipped = before

    @property
    def steps(self) -> int:
        """The number of updates done."""
        steps: int = self._memory[1, 0]
        return steps + self._on_device()[0] if self._on_device else steps

    @steps.setter
    def steps(self, value: int) -> None:
        self.jumps += 1
        self._cells[1, 0] = value - (self._on_device()[0] if self._on_device else 0)

    @property
    def skipped(self) -> int:
        """The number of updates skipped."""
        return self._skipped + (self._on_device()[1] if self._on_device else 0)

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value - (self._on_device()[1] if self._on_device else 0)

    def __reduce__(self) -> tuple[type["StepCounter"], tuple[int, int, int]]:
        return type(self), (self.steps, self.skipped, self.in_a_row)


class StepRows(Protocol):
    """Hold the hyper-parameters of the next update, in rows that arrays share.

    Attributes
    ----------
    numbers : sequence of tuple of float
        Each row, in the order of the rule's hyper-parameters, in double precision; executors cast them.
    """

    numbers: list[tuple[float, ...]]
    keys: Any

    def values(self, row: int) -> dict[str, Any]:
        """Return the values of a row by the names that users give."""


class ArrayUpdate(NamedTuple):
    """Hold the arrays of one parameter (p, then its state slots), its rule with all stages, and its group's number.

    `given` are the arrays that the rule takes after the gradient, the mask and the scale of lr: flat views in the order
    of addresses, with one entry for each float. No other code holds their memory.
    """

    arrays: tuple[Any, ...]
    update: Rule
    group: int
    given: tuple[Any, ...] = ()
    memory: list[float] = []  # noqa: RUF012  # shared with the state, which saves it

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which all its arrays are updated; of complex arrays that of their parts."""
        return real_dtype(self.arrays[0].dtype)

    @property
    def mask(self) -> Any:
        """The mask, 0 where an element is frozen; None if there is none."""
        return self.given[self.update.given.index(MASK)] if MASK in self.update.given else None


class Executor(Protocol):
    """Run an optimiser's updates on one backend.

    Attributes
    ----------
    checks, reads_tensors : bool
        Whether :meth:`run` checks all arrays itself; otherwise they must have been checked just before. Whether
        gradients may be torch tensors.
    """

    checks: bool
    reads_tensors: bool

    def select(self, row_of: Sequence[int]) -> None:
        """Update, until the next call, the parameters that have a row of hyper-parameters.

        ``row_of[i]`` is the number of the row of parameter i, or :data:`NO_ROW` if it must have no gradient.
        """

    def set_hyper(self, rows: StepRows) -> None:
        """Use these hyper-parameters."""

    def run(self, grads: list[Any]) -> bool:
        """Do one update by these gradients, one for each parameter, and return True.

        If an array has changed so that it must be checked in full, write nothing and return False. The caller keeps the
        list alive during the call.
        """

    def run_summed(self, grads: list[Any], skips: Skips) -> bool:
        """Do one update after the sums that its rules need, or skip it and count it as skipped."""

    def use_stream(self, stream: object) -> None:
        """Run in this stream from now on; None stands for the arrays' own streams."""

    def observe_with(self, observers: "Sequence[Observer]") -> None:
        """Let these observers observe every update, from the next :meth:`select` on."""


class Observer(Protocol):
    """Observe the updates of an optimiser on the host."""

    def before_step(self, grads: list[Any], executor: "HostExecutor") -> Callable[[], None] | None:
        """Return the function to call after the update by these gradients; None if the update cannot be done."""


class SummingExecutor:
    """Implement updates that need sums before them, for an executor that can add up what a rule sums."""

    _counter: StepCounter
    _jobs: Sequence[ArrayUpdate]
    _rounds: Sequence[Round]
    _row_of: Sequence[int]
    _active: Sequence[int]
    _rows: StepRows
    _hyper_of: Mapping[int, Any]
    """For each active parameter its row of hyper-parameters, in which single numbers can be set."""
    _derivations: list[list[Derivation]] | None = None

    def sum_round(self, number: int, with_square: bool, grads: list[Any]) -> list[list[float]] | None:
        """Return the sums of a round for each parameter, that of g² first if asked for; None if it cannot be done.

        Parameters without a gradient have no sums, or zeros.
        """
        raise NotImplementedError

    def run(self, grads: list[Any]) -> bool:
        """Do one update."""
        raise NotImplementedError

    def run_summed(self, grads: list[Any], skips: Skips) -> bool:
        """Do one update after the sums that its rules need, or skip it."""
        counter, finite, remembering = self._counter, True, []
        derivations = self._plan_derivations()
        for number in range(len(derivations) or 1):
            asks = skips.skip and number == 0
            sums = self.sum_round(number, asks, grads)
            if sums is None:
                return False
            if asks:
                finite = self._is_finite(sum_in_order([sums[i][0] for i in self._active]), grads)
                if not finite and counter.in_a_row < skips.most:
                    counter.skipped, counter.in_a_row = counter.skipped + 1, counter.in_a_row + 1
                    return True
            if derivations:
                remembering += self._derive(derivations[number], sums, int(asks))
        if remembering:
            check_agreement(remembering)
            with uninterrupted():
                done = self.run(grads)
                for derivation in remembering if done else ():
                    derivation.remember()
        else:
            done = self.run(grads)
        if done and finite:
            counter.in_a_row = 0
        return done

    def _plan_derivations(self) -> list[list[Derivation]]:
        """Return for each round what is derived from its sums; it is planned once for each selection of parameters."""
        if self._derivations is None:
            rules, memories = [job.update for job in self._jobs], [job.memory for job in self._jobs]
            self._derivations = [
                plan_derivations(links, rules, self._row_of, memories, self._active) for links in self._rounds
            ]
        return self._derivations

    def _derive(
        self, derivations: Sequence[Derivation], sums: Sequence[Sequence[float]], first: int
    ) -> list[Derivation]:
        """Set the hyper-parameters that follow from the sums of a round; return the derivations that keep numbers.

        The sums of the links begin with the entry `first` of each parameter.
        """
        totals: dict[Any, Sequence[float]] = {}
        numbers, hyper_of, remembering = self._rows.numbers, self._hyper_of, []
        found: list[tuple[list[int], list[tuple[int, float]]]] = []
        for derivation in derivations:
            key, members = derivation.key, derivation.members
            if key is None:
                own = sums[members[0]][first:]
            elif key in totals:
                own = totals[key]
            else:
                all_members = [i for each in derivations if each.key == key for i in each.members]
                columns = zip(*[sums[i][first:] for i in sorted(all_members)])
                own = totals[key] = [sum_in_order(column) for column in columns]
            found.append((members, derivation.derive(own, numbers)))
            if derivation.next:
                remembering.append(derivation)
        with np.errstate(over="ignore"):  # a number too large for the dtype of the arrays becomes infinite
            for members, values in found:
                for place, value in values:
                    for i in members:
                        hyper_of[i][place] = value
        return remembering

    def _is_finite(self, squares: float, grads: list[Any]) -> bool:
        """Return whether all gradients are finite, frozen elements aside.

        They are if their sum of squares is. If the sum overflowed, each element is looked at.
        """
        return math.isfinite(squares) or are_finite(map(self._fetch, grads), self._jobs)

    def _fetch(self, grad: Any) -> Any:
        """Return a gradient as a NumPy array; None for None."""
        return None if grad is None else read("grads", grad)


class HostExecutor(SummingExecutor):
    """Implement what both executors on the host share: observers, and no streams."""

    _observers: Sequence[Observer] = ()
    reads_tensors = False

    def observe_with(self, observers: Sequence[Observer]) -> None:
        """Let these observers observe every update, from the next :meth:`Executor.select` on."""
        self._observers = observers

    def _observed(self, run: Callable[[list[Any]], bool]) -> Callable[[list[Any]], bool]:
        """Return `run` with calls of the observers; `run` itself if there are none."""
        for observer in self._observers:
            run = partial(_run_observed, ref(self), observer, run)
        return run

    def measure(self, grads: list[Any]) -> dict[int, StepSums] | None:
        """Return the sums of the step that :meth:`Executor.run` would do now, by parameter; nothing is written.

        Parameters without a gradient have no entry. The sums are computed in one pass, with the hyper-parameters of
        this update, the clip factor included. With the stage `maximize` the gradient counts as −g, the gradient of the
        function that is minimised. The result is None if the update cannot be done.
        """
        raise NotImplementedError

    def _step_sums(self, i: int, sums: Iterable[float]) -> StepSums:
        """Return the sums of a parameter, with the opposite sign of its gradient if its rule has `maximize`."""
        found = StepSums(*sums)
        if maximises(self._jobs[i].update):
            return found._replace(along=-found.along, slope=-found.slope)
        return found

    def use_stream(self, stream: object) -> None:
        """Refuse any stream, as the host has none."""
        if stream is not None:
            raise TypeError(f"stream: expected None, as the arrays are on the host; got {describe(stream)}")


def _run_observed(
    executor: "ref[HostExecutor]", observer: Observer, run: Callable[[list[Any]], bool], grads: list[Any]
) -> bool:
    owner = executor()
    after = None if owner is None else observer.before_step(grads, owner)
    if after is None:
        return False
    with uninterrupted():
        done = run(grads)
        if done:
            after()
    return done


def group_by_code(jobs: Sequence[ArrayUpdate]) -> tuple[Callable[[int], int], list[int]]:
    """Return a number for each parameter's code and dtype, and the order of the parameters by it.

    Returns
    -------
    callable
        ``key(i)`` returns the number of the code and dtype of parameter i.
    list of int
        The parameters' numbers, sorted by key, then by group.
    """
    codes: dict[Any, int] = {}
    keys = [codes.setdefault((job.update.structure, job.dtype), len(codes)) for job in jobs]
    return keys.__getitem__, sorted(range(len(jobs)), key=lambda i: (keys[i], jobs[i].group, i))


def are_finite(grads: Iterable[Any], jobs: Sequence[ArrayUpdate]) -> bool:
    """Return whether all elements of these arrays are finite, frozen elements aside."""
    given = [(flat_view(grad), job.mask) for grad, job in zip(grads, jobs) if grad is not None]
    pairs = [(np.isfinite(grad), mask) for grad, mask in given]
    return all([bool((finite if mask is None else finite | (mask == 0)).all()) for finite, mask in pairs])
