"""Calls of kernels that make up a step, by one thread or by several.

From an optimiser's arrays to the fewest calls of compiled kernels.
"""

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.base import (
    CHUNK,
    LANES,
    ArrayUpdate,
    HostExecutor,
    RowFunction,
    StepCounter,
    arrange,
    in_order,
)
from fastmomentum.backends.cpu import threads
from fastmomentum.backends.cpu.headers import SIZE, dtype_code
from fastmomentum.backends.cpu.kernels import many_kernel
from fastmomentum.backends.cpu.reductions import measure_kernel, squares_kernel
from fastmomentum.backends.step_sums import BLOCK, WIDTH, StepSums
from fastmomentum.checks import Array, address

Call = Callable[[int], bool]
"""A kernel with all its arguments but the address of the list of gradients."""


class Calls:
    """The same work twice: by serial kernels, and over several threads where that is worth while.

    Attributes
    ----------
    serial, threaded : list of Call
        `threaded` is empty where one thread does as well everywhere.
    """

    def __init__(self, progress: StepCounter) -> None:
        self.serial: list[Call] = []
        self.threaded: list[Call] = []
        self._progress = progress
        self._torn: list[Any] | None = None  # the gradients of a step that may be half done

    def add(self, serial: Call, threaded: Call | None) -> None:
        """One more call; `threaded` is left out where one thread does as well."""
        if threaded and not self.threaded:
            self.threaded.extend(self.serial)
        self.serial.append(serial)
        if threaded or self.threaded:
            self.threaded.append(threaded or serial)

    def runner(self) -> Callable[[list[Any]], bool]:
        """What runs all of them: nothing can tear a single one apart."""
        if len(self.serial) > 1:
            return self.run
        if self.threaded:
            return self.attempt
        (only,) = self.serial
        return lambda grads: only(id(grads))

    def run(self, grads: list[Any]) -> bool:
        """All of them, until one answers False; what a signal's handler interrupts between two calls is finished."""
        self.finish()
        self._torn = grads
        try:
            return self.attempt(grads)
        finally:
            self.finish()

    def finish(self) -> None:
        """Do what is left of a step whose end raised: another signal in :meth:`run`'s own handling of the first."""
        if self._torn is not None:
            while self._progress.done:
                with suppress(BaseException):  # of a handler again, as kernels raise none; the first is on its way
                    self.serial[self._progress.done](id(self._torn))
            self._torn = None

    def attempt(self, grads: list[Any]) -> bool:
        """All of them, until one answers False."""
        ours = threads.region() if self.threaded else None
        if ours is None:
            for call in self.serial:  # noqa: SIM110, a generator for all() would cost more than the rest
                if not call(id(grads)):
                    return False
            return True
        with ours:
            return all(call(id(grads)) for call in self.threaded)


NOWHERE = NO_GRADIENT = -1


class Part(NamedTuple):
    """Rows that one call updates: the table that it looks through first, its rows of that, and their job's like."""

    checked: Array
    rows: Array
    hyper: Array
    job: ArrayUpdate


class CpuExecutor(HostExecutor):
    """The CPU backend: a table of all arrays, and one call of a compiled kernel for those that share code and dtype.

    The table's rows stand in the order of the calls and, within a call, in that of the groups, so that a group's
    hyper-parameters are written as one block. What a row holds is told in :mod:`fastmomentum.backends.layout`.
    """

    checks = True
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # bound by :meth:`select`: one call less in every step

    def __init__(
        self, jobs: Sequence[ArrayUpdate], written: npt.NDArray[np.int64], progress: StepCounter, threads: int | None
    ) -> None:
        self.progress = progress
        self._jobs, self._written, self._asked = jobs, progress.behind(written), threads
        self._all = np.array([_table_row(i, job) for i, job in enumerate(jobs)], np.int64)
        self._key, self._order = arrange(jobs)
        self._updates = Calls(progress)
        self._sums = np.zeros((len(jobs), 1))

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self.finish()
        rows = [i for i in self._order if active[i]]
        table = self._all[[*rows, *(i for i in self._order if not active[i])]]
        table[len(rows) :, SIZE] = NO_GRADIENT
        self._blocks: list[tuple[Array, list[int]]] = []
        self._updates = Calls(self.progress)
        self._norms: Calls | None = None
        self._looks: Calls | None = None
        self._parts: list[Part] = []
        checked, start = table, 0
        for _, members in groupby(rows, self._key):
            mine = list(members)
            job = self._jobs[mine[0]]
            hyper = np.empty((len(mine), len(job.update.hyper)), job.dtype)
            kernel = many_kernel(job.update, job.dtype)
            part = table[start : start + len(mine)]
            serial = partial(kernel, checked, self._written, part, hyper)
            self._updates.add(serial, self._in_threads(job, checked, part, hyper))
            self._parts.append(Part(checked, part, hyper, job))
            self._blocks.extend(self._by_group(hyper, mine))
            checked, start = table[:0], start + len(mine)  # the first call has looked through all rows
        self.progress.expect(len(self._parts))
        self.run = self._observed(self._updates.runner() if rows else self._count_alone)

    def _in_threads(self, job: ArrayUpdate, checked: Array, part: Array, hyper: Array) -> Call | None:
        """The same update over several threads, where these are asked for and worth while."""
        ends = np.cumsum(part[:, SIZE])
        count = threads.worthwhile(int(ends[-1]), self._asked)
        if count == 1:
            return None
        kernel = many_kernel(job.update, job.dtype, parallel=True)
        return partial(kernel, checked, self._written, part, hyper, ends, count)

    def _sums_by(self, kernel_of: Callable[..., Callable[..., bool]], sums: Array, scratch: int) -> Calls:
        """By one thread and by several, what the kernels for these parts add to the rows of `sums`.

        Made whole before it is kept: a signal while kernels are compiled must not leave a part.
        """
        calls = Calls(self.progress)
        for part in self._parts:
            given, sizes = (part.checked, self._written, part.rows, part.hyper), part.rows[:, SIZE]
            count = threads.worthwhile(int(sizes.sum()), self._asked)
            lanes, threaded = np.empty((count, scratch)), None
            if count > 1:
                ends = np.cumsum(-(-sizes // CHUNK))
                room, shares = np.empty((ends[-1], sums.shape[1])), _shares(sizes, count)
                threaded = partial(kernel_of(part.job, True), *given, ends, shares, lanes, room, sums)
            calls.add(partial(kernel_of(part.job, False), *given, lanes[0], sums), threaded)
        return calls

    def _by_group(self, hyper: Array, members: list[int]) -> list[tuple[Array, list[int]]]:
        parts = [list(part) for _, part in groupby(members, lambda i: self._jobs[i].group)]
        starts = np.cumsum([0, *map(len, parts)])
        return [(hyper[start : start + len(part)], part) for start, part in zip(starts, parts)]

    def take_hyper(self, rows: RowFunction, first: Container[int]) -> None:
        """See :class:`Launch`."""
        for block, members in self._blocks:
            job = self._jobs[members[0]]
            block[:] = rows(job.group, job.dtype, False)
            for place, i in enumerate(members):
                if i in first:
                    block[place] = rows(job.group, job.dtype, True)

    def measure(self, grads: list[Any]) -> float:
        """See :class:`Launch`."""
        if self._norms is None:
            self._norms = self._sums_by(_squares_kernel, self._sums, LANES)
        self._sums[:] = 0.0
        return in_order(self._sums[:, 0].tolist()) if self._norms.attempt(grads) else -1.0

    def look(self, grads: list[Any]) -> dict[int, StepSums] | None:
        """See :class:`HostLaunch`."""
        if self._looks is None:
            self._motions = np.zeros((len(self._jobs), WIDTH))
            self._looks = self._sums_by(_look_kernel, self._motions, WIDTH * LANES + 3 * BLOCK // 8)
        self._motions[:] = 0.0
        if not self._looks.attempt(grads):
            return None
        return {i: self._turned(i, sums) for i, sums in enumerate(self._motions.tolist()) if grads[i] is not None}

    def take_factor(self, factor: float) -> None:
        """See :class:`Launch`."""
        for block, _ in self._blocks:
            block[:, 0] = factor

    def finish(self) -> None:
        """See :class:`Launch`."""
        self._updates.finish()

    def _count_alone(self, grads: list[Any]) -> bool:
        self.progress.steps += 1
        return True


def _squares_kernel(job: ArrayUpdate, parallel: bool) -> Callable[..., bool]:
    return squares_kernel(job.dtype, len(job.arrays), parallel)


def _look_kernel(job: ArrayUpdate, parallel: bool) -> Callable[..., bool]:
    return measure_kernel(job.update, job.dtype, parallel)


def _table_row(index: int, job: ArrayUpdate) -> list[int]:
    param, memory = job.arrays[0], map(address, job.arrays)
    return [index, param.size, param.nbytes, dtype_code(param.dtype), *map(id, job.arrays), *memory, NOWHERE]


def _shares(sizes: Array, threads: int) -> Any:
    """Between which chunks of arrays of these sizes each thread begins, and the last ends: with like many elements."""
    first = np.repeat(np.cumsum(sizes) - sizes, -(-sizes // CHUNK))
    starts = np.concatenate([np.arange(0, size, CHUNK) for size in sizes]) + first
    return np.searchsorted(starts, sizes.sum() * np.arange(threads + 1) // threads)
