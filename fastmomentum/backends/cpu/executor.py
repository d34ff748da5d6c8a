"""Run an optimiser's updates by as few calls of compiled CPU kernels as possible."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, repeat
from operator import call
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.base import (
    CHUNK,
    LANES,
    NO_ROW,
    ArrayUpdate,
    HostExecutor,
    StepCounter,
    StepRows,
    group_by_code,
)
from fastmomentum.backends.cpu import dlpack, threads
from fastmomentum.backends.cpu.headers import ALIGNED, C_CONTIGUOUS, HEADER, OBJECTS, SIZE, dtype_code
from fastmomentum.backends.cpu.kernels import many_kernel
from fastmomentum.backends.cpu.reductions import sums_kernel
from fastmomentum.backends.step_sums import WIDTH, StepSums, make_step_summands
from fastmomentum.backends.sums import make_round_summands, plan_rounds
from fastmomentum.backends.tensors import counted, tensor_of
from fastmomentum.checks import address
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.elementwise import symbolic

KernelCall = Callable[[int], bool]
"""A kernel with all its arguments except the address of the list of gradients."""

UNKNOWN_ADDRESS = -1
"""The address of a gradient that no call has checked yet."""

NO_GRADIENT = -1
"""The size in the table of a parameter that must have no gradient."""


class Part(NamedTuple):
    """Hold what one call of a kernel gets: the rows of the table that it updates, and their hyper-parameters.

    Attributes
    ----------
    checked : ndarray
        The rows that the call checks before it writes: the whole table for the first call, none for later calls.
    rows : ndarray
        The rows that the call updates.
    hyper : ndarray
        The hyper-parameters of these rows.
    job : ArrayUpdate
        The update of the first of these rows, which has the rule and dtype of all.
    """

    checked: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    hyper: npt.NDArray[Any]
    job: ArrayUpdate


class KernelCalls:
    """Make the calls that a step consists of, by serial kernels or, if several threads are faster, by threaded ones."""

    def __init__(self) -> None:
        self.serial: list[KernelCall] = []
        self.threaded: list[KernelCall] = []

    def add(self, serial: KernelCall, threaded: KernelCall | None) -> None:
        """Add a call; `threaded` is None if one thread is as fast."""
        if threaded and not self.threaded:
            self.threaded.extend(self.serial)
        self.serial.append(serial)
        if threaded or self.threaded:
            self.threaded.append(threaded or serial)

    def runner(self) -> Callable[[list[Any]], bool]:
        """Return the function that makes all calls with the least overhead."""
        if len(self.serial) > 1 or self.threaded:
            return self.run
        (only,) = self.serial
        return lambda grads: only(id(grads))

    def run(self, grads: list[Any]) -> bool:
        """Make all calls until one returns False, and return whether all returned True.

        The loop over the calls runs inside :func:`all` and :class:`map`, without any Python bytecode in between, so
        that no signal handler can come between two calls.
        """
        region = threads.region() if self.threaded else None
        if region is None:
            return all(map(call, self.serial, repeat(id(grads))))
        with region:
            return all(map(call, self.threaded, repeat(id(grads))))


class HyperBlock:
    """Write one row of hyper-parameters to the rows of the kernel's table that share it.

    ``struct`` casts a double to float32 as NumPy does, in a tenth of the time (measured: 0.2 µs for three numbers).

    Attributes
    ----------
    row : int
        The number of the row.
    hyper : ndarray
        The part of the kernel's hyper-parameters that belongs to these parameters.
    members : list of int
        The numbers of the parameters.
    rule : Rule
        Their rule.
    write : callable
        ``write(*numbers)`` writes these numbers, cast to the dtype of the arrays, to every row of the block.
    """

    def __init__(self, row: int, hyper: npt.NDArray[Any], members: list[int], rule: Rule) -> None:
        self.row, self.hyper, self.members, self.rule = row, hyper, members, rule
        pack = partial(Struct(f"{hyper.shape[1]}{hyper.dtype.char}").pack_into, hyper[:1].reshape(-1).data, 0)
        is_plain = len(hyper) == 1 and not rule.late_parameters
        self.write: Callable[..., None] = pack if is_plain else partial(_write_all, pack, hyper)


def _write_all(pack: Callable[..., None], hyper: npt.NDArray[Any], *numbers: float) -> None:
    pack(*numbers[: hyper.shape[1]])
    hyper[1:] = hyper[0]


class CpuExecutor(HostExecutor):
    """Run updates by one call for all arrays that share code and dtype, from one table of all arrays.

    The rows of the table are sorted by call, then by group, so that the hyper-parameters of a group are one block.
    :mod:`fastmomentum.backends.cpu.headers` describes the columns.
    """

    checks = True
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # select() binds it: one call fewer in every step

    def __init__(
        self, jobs: Sequence[ArrayUpdate], written: npt.NDArray[np.int64], counter: StepCounter, threads: int | None
    ) -> None:
        self._jobs, self._counter, self._threads = jobs, counter, threads
        self._written = counter.append_to(written)
        self._headers = [job.arrays[0].view(np.ndarray) for job in jobs]  # the table holds their addresses
        self.reads_tensors = any([tensor_of(array) is not None for job in jobs for array in job.arrays])
        self.reads_tensors = self.reads_tensors and dlpack.fill_function() is not None
        given = max([len(job.given) for job in jobs], default=0)
        rows = [_table_row(i, *each, given) for i, each in enumerate(zip(jobs, self._headers))]
        self._table = np.array(rows, np.int64) if rows else np.zeros((0, OBJECTS), np.int64)
        self._key, self._order = group_by_code(jobs)
        self._rounds = plan_rounds([job.update for job in jobs])

    def select(self, row_of: Sequence[int]) -> None:
        """Update the parameters that have a row of hyper-parameters until the next call."""
        rows = [i for i in sorted(self._order, key=lambda i: (self._key(i), row_of[i])) if row_of[i] != NO_ROW]
        table = self._table[[*rows, *(i for i in self._order if row_of[i] == NO_ROW)]]
        table[len(rows) :, SIZE], table[len(rows) :, HEADER] = NO_GRADIENT, id(None)
        self._blocks: list[HyperBlock] = []
        self._parts: list[Part] = []
        self._row_of, self._active = row_of, [i for i, row in enumerate(row_of) if row != NO_ROW]
        self._derivations = None
        self._sums: dict[tuple[int, bool], tuple[npt.NDArray[np.float64], KernelCalls]] = {}
        self._measures: KernelCalls | None = None
        updates, start = self._calls_after_check(table), 0
        checked = table[:0] if self.reads_tensors else table
        for _, members in groupby(rows, self._key):
            numbers = list(members)
            job = self._jobs[numbers[0]]
            dtype = job.dtype
            hyper = np.empty((len(numbers), len(job.update.hyper)), dtype)
            part = Part(checked, table[start : start + len(numbers)], hyper, job)
            kernel = many_kernel(job.update, dtype)
            updates.add(partial(kernel, part.checked, self._written, part.rows, hyper), self._in_threads(part))
            self._parts.append(part)
            self._blocks += self._by_row(hyper, numbers, row_of)
            checked, start = table[:0], start + len(numbers)
        self._hyper_of = {i: block.hyper[k] for block in self._blocks for k, i in enumerate(block.members)}
        self._counter.expect_calls(len(self._parts))
        run = self._observed(updates.runner() if rows else partial(_count_step, self._counter))
        written = [array for i in rows for array in self._jobs[i].arrays]
        self.run = counted(run, written, addresses=not self.reads_tensors)

    def _calls_after_check(self, table: npt.NDArray[np.int64]) -> KernelCalls:
        """Return the calls of a step, of which there is none yet, or that which checks tensors."""
        calls = KernelCalls()
        self._checked = table
        if self.reads_tensors:
            check = dlpack.tensor_check(len(self._jobs[0].arrays))
            calls.add(partial(check, table, self._written), None)
        return calls

    def _in_threads(self, part: Part) -> KernelCall | None:
        """Return the call over several threads; None if they are not asked for, not faster, or not safe."""
        ends = np.cumsum(part.rows[:, SIZE])
        count = threads.worthwhile(int(ends[-1]), self._threads)
        if count == 1:
            return None
        kernel = many_kernel(part.job.update, part.job.dtype, parallel=True)
        return partial(kernel, part.checked, self._written, part.rows, part.hyper, ends, count)

    def _reductions(
        self, make_summands: Callable[[ArrayUpdate], Function | None], sums: npt.NDArray[np.float64]
    ) -> KernelCalls:
        """Return calls that add the sums of all parts with summands to the rows of `sums`."""
        calls = self._calls_after_check(self._checked)
        checked = self._parts[0].checked if self._parts else self._checked[:0]
        for part in self._parts:
            summands = make_summands(part.job)
            if summands is None:
                continue
            given, sizes = (checked, self._written, part.rows, part.hyper), part.rows[:, SIZE]
            count = threads.worthwhile(int(sizes.sum()), self._threads)
            lanes, threaded = np.empty((count, sums.shape[1] * LANES)), None
            rule, dtype = part.job.update, part.job.dtype
            if count > 1:
                ends = np.cumsum(-(-sizes // CHUNK))
                chunk_sums, shares = np.empty((ends[-1], sums.shape[1])), _shares(sizes, count)
                kernel = sums_kernel(rule, summands, dtype, parallel=True)
                threaded = partial(kernel, *given, ends, shares, lanes, chunk_sums, sums)
            calls.add(partial(sums_kernel(rule, summands, dtype), *given, lanes[0], sums), threaded)
            checked = checked[:0]
        return calls

    def _by_row(self, hyper: npt.NDArray[Any], members: list[int], row_of: Sequence[int]) -> list["HyperBlock"]:
        """Return the blocks of hyper-parameters of these parameters, one for each row that several share."""
        same_row = [list(block) for _, block in groupby(members, row_of.__getitem__)]
        starts = np.cumsum([0, *map(len, same_row)])
        return [
            HyperBlock(row_of[block[0]], hyper[start : start + len(block)], block, self._jobs[block[0]].update)
            for start, block in zip(starts, same_row)
        ]

    def set_hyper(self, rows: StepRows) -> None:
        """Use these hyper-parameters."""
        self._rows = rows
        numbers = rows.numbers
        for block in self._blocks:
            block.write(*numbers[block.row])

    def sum_round(self, number: int, with_square: bool, grads: list[Any]) -> list[list[float]] | None:
        """Return the sums of a round for each parameter, or None if the update cannot be done."""
        found = self._sums.get((number, with_square))
        if found is None:
            found = self._sums[number, with_square] = self._make_round(number, with_square)
        sums, calls = found
        sums[:] = 0.0
        return sums.tolist() if calls.run(grads) else None

    def _make_round(self, number: int, with_square: bool) -> tuple[npt.NDArray[np.float64], KernelCalls]:
        """Return the array for the sums of a round, and the calls that add them."""
        links = self._rounds[number] if self._rounds else {}
        link_of = {id(self._jobs[i]): link for i, link in links.items()}

        def make_summands(job: ArrayUpdate) -> Function | None:
            link = link_of.get(id(job))
            has_sums = with_square or (link is not None and link.sums)
            return make_round_summands(with_square, link)(job.update, symbolic) if has_sums else None

        width = with_square + max([len(link.sums) for link in links.values()], default=0)
        sums = np.zeros((len(self._jobs), width))
        return sums, self._reductions(make_summands, sums)

    def measure(self, grads: list[Any]) -> dict[int, StepSums] | None:
        """Return the sums of the next step, or None if it cannot be done."""
        if self._measures is None:
            self._step_sum_rows = np.zeros((len(self._jobs), WIDTH))
            self._measures = self._reductions(lambda job: make_step_summands(job.update, symbolic), self._step_sum_rows)
        self._step_sum_rows[:] = 0.0
        if not self._measures.run(grads):
            return None
        rows = self._step_sum_rows.tolist()
        return {i: self._step_sums(i, sums) for i, sums in enumerate(rows) if grads[i] is not None}


def _count_step(counter: StepCounter, grads: list[Any]) -> bool:
    """Count a step in which no parameter has a gradient, as kernels count other steps."""
    counter.add_step()
    return True


def _table_row(index: int, job: ArrayUpdate, header: npt.NDArray[Any], given: int) -> list[int]:
    """Return the row of a parameter; `given` is the greatest number of given arrays of any row."""
    memory = [*map(address, job.arrays)]
    flags = ALIGNED | C_CONTIGUOUS if header.flags.c_contiguous else ALIGNED
    size = 2 * header.size if header.dtype.kind == "c" else header.size
    first = header.__array_interface__["data"][0] - memory[0]
    dtypes = dtype_code(header.dtype), dlpack.dlpack_dtype(header.dtype)
    columns = (index, size, header.nbytes, *dtypes, flags, id(header), first)
    others = [*map(address, job.given), *[0] * (given - len(job.given))]
    objects = [array if tensor_of(array) is None else tensor_of(array) for array in job.arrays]
    return [*columns, *map(id, objects), *memory, UNKNOWN_ADDRESS, *others]


def _shares(sizes: npt.NDArray[np.int64], threads: int) -> npt.NDArray[np.intp]:
    """Return the first chunk of each thread, then the number of chunks, such that threads get about equal elements."""
    offsets = np.repeat(np.cumsum(sizes) - sizes, -(-sizes // CHUNK))
    starts = np.concatenate([np.arange(0, size, CHUNK) for size in sizes]) + offsets
    shares: npt.NDArray[np.intp] = np.searchsorted(starts, sizes.sum() * np.arange(threads + 1) // threads)
    return shares
