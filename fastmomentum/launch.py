"""From an optimiser's arrays to the fewest calls of kernels."""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial, reduce
from itertools import groupby
from operator import add
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmomentum import backends
from fastmomentum.backends import threads
from fastmomentum.backends.layout import SIZE, dtype_code
from fastmomentum.backends.numpy import CHUNK, LANES, sum_of_squares
from fastmomentum.calls import Call, Calls
from fastmomentum.checks import Array, address
from fastmomentum.progress import Progress
from fastmomentum.records import Update

NOWHERE = NO_GRADIENT = -1

RowOf = Callable[[int, np.dtype[Any], bool], tuple[Any, ...]]
"""(group, dtype, whether it is an array's first step from rest) -> its hyper-parameters, as a kernel takes them."""


class Job(NamedTuple):
    """One parameter's update: its arrays, the rule with its stages, and the number of its group."""

    arrays: tuple[Array, ...]
    update: Update
    group: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all its arrays."""
        return self.arrays[0].dtype


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

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """Use these hyper-parameters; `first` holds the parameters that take their first step from rest."""

    def measure(self, grads: list[Any]) -> float:
        """The sum of squares of all gradients, negative if an update could not be."""

    def take_factor(self, factor: float) -> None:
        """Use this factor, the first of all hyper-parameters, for the norm."""

    def run(self, grads: list[Any]) -> bool:
        """One update by these gradients, one a parameter; False, and nothing written, if it cannot be."""

    def finish(self) -> None:
        """Do what is left of a step that was torn apart."""


class ReferenceLaunch:
    """The NumPy backend: one parameter after the other."""

    checks = False
    progress: Progress

    def __init__(self, jobs: Sequence[Job], progress: Progress) -> None:
        self._jobs, self.progress = jobs, progress
        self._kernels = [backends.kernel(job.update, job.dtype, "numpy") for job in jobs]

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self._rows = [i for i, is_active in enumerate(active) if is_active]

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: row_of(self._jobs[i].group, self._jobs[i].dtype, i in first) for i in self._rows}

    def measure(self, grads: list[Any]) -> float:
        """See :class:`Launch`."""
        return in_order(sum_of_squares(grads[i]) for i in self._rows)

    def take_factor(self, factor: float) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: (type(row[0])(factor), *row[1:]) for i, row in self._hyper.items()}

    def run(self, grads: list[Any]) -> bool:
        """See :class:`Launch`."""
        if not all([self._kernels[i](self._jobs[i].arrays, grads[i], self._hyper[i]) for i in self._rows]):
            return False
        self.progress.steps += 1
        return True

    def finish(self) -> None:
        """See :class:`Launch`; nothing is kept of such a step."""


class CompiledLaunch:
    """The CPU backend: a table of all arrays, and one call of a compiled kernel for those that share code and dtype.

    The table's rows stand in the order of the calls and, within a call, in that of the groups, so that a group's
    hyper-parameters are written as one block. What a row holds is told in :mod:`fastmomentum.backends.layout`.
    """

    checks = True
    progress: Progress
    run: Callable[[list[Any]], bool]  # bound by :meth:`select`: one call less in every step

    def __init__(
        self, jobs: Sequence[Job], written: npt.NDArray[np.int64], progress: Progress, threads: int | None
    ) -> None:
        self.progress = progress
        self._jobs, self._written, self._asked = jobs, progress.behind(written), threads
        self._all = np.array([_table_row(i, job) for i, job in enumerate(jobs)], np.int64)
        codes: dict[Any, int] = {}
        keys = [codes.setdefault((job.update.structure, job.dtype), len(codes)) for job in jobs]
        self._key = keys.__getitem__
        self._order = sorted(range(len(jobs)), key=lambda i: (keys[i], jobs[i].group, i))
        self._updates = Calls(progress)
        self._sums, self._lanes = np.zeros(len(jobs)), np.empty((1, LANES))

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self.finish()
        rows = [i for i in self._order if active[i]]
        table = self._all[[*rows, *(i for i in self._order if not active[i])]]
        table[len(rows) :, SIZE] = NO_GRADIENT
        self._blocks: list[tuple[Array, list[int]]] = []
        self._updates = self._norms = Calls(self.progress)
        self._parts: list[tuple[Array, Array, Job]] = []
        checked, start = table, 0
        for _, members in groupby(rows, self._key):
            mine = list(members)
            job = self._jobs[mine[0]]
            hyper = np.empty((len(mine), len(job.update.hyper)), job.dtype)
            kernel = backends.many_kernel(job.update, job.dtype)
            part = table[start : start + len(mine)]
            serial = partial(kernel, checked, self._written, part, hyper)
            self._updates.add(serial, self._in_threads(job, checked, part, hyper))
            self._parts.append((checked, part, job))
            self._blocks.extend(self._by_group(hyper, mine))
            checked, start = table[:0], start + len(mine)  # the first call has looked through all rows
        self.progress.expect(len(self._parts))
        self.run = self._updates.runner() if rows else self._count_alone

    def _in_threads(self, job: Job, checked: Array, part: Array, hyper: Array) -> Call | None:
        """The same update over several threads, where these are asked for and worth while."""
        ends = np.cumsum(part[:, SIZE])
        count = threads.worthwhile(int(ends[-1]), self._asked)
        if count == 1:
            return None
        kernel = backends.many_kernel(job.update, job.dtype, parallel=True)
        return partial(kernel, checked, self._written, part, hyper, ends, count)

    def _norm_of(self, checked: Array, part: Array, job: Job) -> tuple[Call, Call | None]:
        """The sums of squares of these gradients, by one thread and by several."""
        arrays, sizes = len(job.arrays), part[:, SIZE]
        serial = backends.squares_kernel(job.dtype, arrays)
        one = partial(serial, checked, self._written, part, self._lanes[0], self._sums)
        count = threads.worthwhile(int(sizes.sum()), self._asked)
        if count == 1:
            return one, None
        ends = np.cumsum(-(-sizes // CHUNK))
        kernel = backends.squares_kernel(job.dtype, arrays, parallel=True)
        sums, lanes = np.empty(ends[-1]), np.empty((count, LANES))
        return one, partial(kernel, checked, self._written, part, ends, _shares(sizes, count), lanes, sums, self._sums)

    def _by_group(self, hyper: Array, members: list[int]) -> list[tuple[Array, list[int]]]:
        parts = [list(part) for _, part in groupby(members, lambda i: self._jobs[i].group)]
        starts = np.cumsum([0, *map(len, parts)])
        return [(hyper[start : start + len(part)], part) for start, part in zip(starts, parts)]

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """See :class:`Launch`."""
        for block, members in self._blocks:
            job = self._jobs[members[0]]
            block[:] = row_of(job.group, job.dtype, False)
            for place, i in enumerate(members):
                if i in first:
                    block[place] = row_of(job.group, job.dtype, True)

    def measure(self, grads: list[Any]) -> float:
        """See :class:`Launch`."""
        if self._norms is self._updates:
            norms = Calls(self.progress)
            for part in self._parts:
                norms.add(*self._norm_of(*part))
            self._norms = norms  # whole: a signal while kernels are compiled must not leave a part
        self._sums[:] = 0.0
        return in_order(self._sums.tolist()) if self._norms.attempt(grads) else -1.0

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


def is_finite(squares: float, grads: Sequence[Any]) -> bool:
    """Whether all gradients are finite; their sum of squares tells, unless it has overflowed."""
    return math.isfinite(squares) or all(np.isfinite(grad).all() for grad in grads if grad is not None)


def in_order(values: Iterable[float]) -> float:
    """Their sum, one after the other (the built-in sum of Python 3.12 and later compensates)."""
    return reduce(add, values, 0.0)


def _table_row(index: int, job: Job) -> list[int]:
    param, memory = job.arrays[0], map(address, job.arrays)
    return [index, param.size, param.nbytes, dtype_code(param.dtype), *map(id, job.arrays), *memory, NOWHERE]


def _shares(sizes: Array, threads: int) -> Any:
    """Between which chunks of arrays of these sizes each thread begins, and the last ends: with like many elements."""
    first = np.repeat(np.cumsum(sizes) - sizes, -(-sizes // CHUNK))
    starts = np.concatenate([np.arange(0, size, CHUNK) for size in sizes]) + first
    return np.searchsorted(starts, sizes.sum() * np.arange(threads + 1) // threads)
