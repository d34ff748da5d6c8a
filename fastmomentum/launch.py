"""From an optimiser's arrays to the fewest calls of kernels."""

from collections.abc import Callable, Container, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.backends.layout import dtype_code
from fastmomentum.checks import Array
from fastmomentum.records import Update

NOWHERE = -1

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
    runs : list of callable
        To be called in turn; the first answers False, and has written nothing, if an array is not as it must be.
    checked : bool
        Whether that answer can be relied on, so that what was checked once need not be checked again in Python.
    """

    runs: list[Callable[[], bool]]
    checked: bool

    def select(self, active: Sequence[bool]) -> None:
        """Update these parameters, until selected anew."""

    def take_grads(self, grads: Sequence[Any]) -> None:
        """Use these gradients, one a parameter; the caller keeps them alive."""

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """Use these hyper-parameters; `first` holds the parameters that take their first step from rest."""


class ReferenceLaunch:
    """The NumPy backend: one parameter after the other."""

    checked = False

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._kernels = [backends.kernel(job.update, job.dtype, "numpy") for job in jobs]
        self.runs = [self._run]

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self._rows = [i for i, is_active in enumerate(active) if is_active]

    def take_grads(self, grads: Sequence[Any]) -> None:
        """See :class:`Launch`."""
        self._grads = grads

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: row_of(self._jobs[i].group, self._jobs[i].dtype, i in first) for i in self._rows}

    def _run(self) -> bool:
        return all(self._kernels[i](self._jobs[i].arrays, self._grads[i], self._hyper[i]) for i in self._rows)


class CompiledLaunch:
    """The CPU backend: a table of all arrays, and one call of a compiled kernel for those that share code and dtype.

    The table's rows stand in the order of the calls and, within a call, in that of the groups, so that a group's
    hyper-parameters are written as one block. What a row holds is told in :mod:`fastmomentum.backends.headers`.
    """

    checked = True

    def __init__(self, jobs: Sequence[Job], written: npt.NDArray[np.int64]) -> None:
        self._jobs, self._written = jobs, written
        self._all = np.array([_table_row(job) for job in jobs], np.int64)
        self._gradients = self._all.shape[1] - len(jobs[0].arrays) - 2
        codes: dict[Any, int] = {}
        keys = [codes.setdefault((job.update.functions, job.dtype), len(codes)) for job in jobs]
        self._key = keys.__getitem__
        self._order = sorted(range(len(jobs)), key=lambda i: (keys[i], jobs[i].group, i))
        self.runs: list[Callable[[], bool]] = []

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self._rows = [i for i in self._order if active[i]]
        self._table = self._all[self._rows]
        self._ids = self._table[:, self._gradients]
        self._blocks: list[tuple[Array, list[int]]] = []
        self.runs = []
        checked, start = self._table, 0
        for _, members in groupby(self._rows, self._key):
            mine = list(members)
            job, rows = self._jobs[mine[0]], self._table[start : start + len(mine)]
            hyper = np.empty((len(mine), len(job.update.hyper)), job.dtype)
            kernel = backends.many_kernel(job.update, job.dtype)
            self.runs.append(partial(kernel, checked, self._written, rows, hyper))
            self._blocks.extend(self._by_group(hyper, mine))
            checked, start = self._table[:0], start + len(mine)  # the first call has looked through all rows

    def _by_group(self, hyper: Array, members: list[int]) -> list[tuple[Array, list[int]]]:
        parts = [list(part) for _, part in groupby(members, lambda i: self._jobs[i].group)]
        starts = np.cumsum([0, *map(len, parts)])
        return [(hyper[start : start + len(part)], part) for start, part in zip(starts, parts, strict=False)]

    def take_grads(self, grads: Sequence[Any]) -> None:
        """See :class:`Launch`."""
        self._ids[:] = [id(grads[i]) for i in self._rows]

    def take_hyper(self, row_of: RowOf, first: Container[int]) -> None:
        """See :class:`Launch`."""
        for block, members in self._blocks:
            job = self._jobs[members[0]]
            block[:] = row_of(job.group, job.dtype, False)
            for place, i in enumerate(members):
                if i in first:
                    block[place] = row_of(job.group, job.dtype, True)


def _table_row(job: Job) -> list[int]:
    param = job.arrays[0]
    addresses = map(checks.address, job.arrays)
    return [param.size, param.nbytes, dtype_code(param.dtype), *map(id, job.arrays), 0, *addresses, NOWHERE]
