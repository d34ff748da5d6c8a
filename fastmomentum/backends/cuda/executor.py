"""Run an optimiser's updates on a CUDA device: a few kernels in one stream, without waiting for the device."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.advice import is_tensor
from fastmomentum.backends.base import (
    CHUNK,
    NO_ROW,
    ArrayUpdate,
    Observer,
    StepCounter,
    StepRows,
    SummingExecutor,
    group_by_code,
)
from fastmomentum.backends.cuda import arrays as device_arrays
from fastmomentum.backends.cuda import kernels, reductions, streams
from fastmomentum.backends.cuda.device_array import ArrayHeader, DeviceArray, find_reader
from fastmomentum.backends.cuda.kernels import WORD
from fastmomentum.backends.cuda.reductions import SUM_COUNT
from fastmomentum.backends.cuda.scalars import DeviceScalar, view
from fastmomentum.backends.cuda.tables import LaunchTable, address_of
from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.backends.sums import Skips, clips_on_device, make_round_summands, plan_rounds, sum_in_order
from fastmomentum.backends.tensors import increment_versions
from fastmomentum.rules.elementwise import symbolic


class GradientCheck:
    """Compare the headers of parameters and gradients with those of the last step.

    Parameters
    ----------
    jobs : sequence of ArrayUpdate
        The parameters, which must not have changed.
    written : ndarray of int64, shape (m, 2)
        The intervals of memory that an update writes to.
    device : int
        The device on which all arrays must lie.
    """

    def __init__(self, jobs: Sequence[ArrayUpdate], written: npt.NDArray[np.int64], device: int) -> None:
        self._jobs, self._written, self._device = jobs, written, device
        self._seen: list[ArrayHeader | None] = [None] * len(jobs)

    def forget(self) -> None:
        """Forget the gradients' headers, so that all are checked in the next step."""
        self._seen = [None] * len(self._jobs)

    def compare(self, grads: Sequence[Any], active: Sequence[bool], table: LaunchTable) -> list[int | None] | None:
        """Return the streams that the arrays belong to, or None if an array must be checked in full.

        The addresses of gradients that have moved since the last step are written to the table.
        """
        streams: dict[int | None, None] = {}
        new: dict[int, ArrayHeader] = {}
        for i, (job, grad, is_active) in enumerate(zip(self._jobs, grads, active)):
            if not is_active or grad is None:
                if is_active or grad is not None:
                    return None
                continue
            try:
                (param, of_param), (header, of_grad) = read_header(job.arrays[0].owner), read_header(grad)
            except (TypeError, ValueError, RuntimeError):
                return None  # the full check raises an error with the array's name
            streams[of_param] = streams[of_grad] = None
            if param != job.arrays[0].header:
                return None
            if header != self._seen[i]:
                if not self._fits(i, DeviceArray(grad, header)):
                    return None
                new[i] = header
        for i, header in new.items():
            table.set_gradient(i, header.address)
        if new:
            table.update_words()
        for i, header in new.items():
            self._seen[i] = header
        return list(streams)

    def is_apart(self, array: DeviceArray) -> bool:
        """Return whether the array shares no byte with the memory that an update writes to."""
        before = int(np.searchsorted(self._written[:, 0], array.address + array.nbytes)) - 1
        return not array.size or before < 0 or bool(self._written[before, 1] <= array.address)

    def _fits(self, i: int, grad: DeviceArray) -> bool:
        """Return whether `grad` may be the gradient of parameter i."""
        param = self._jobs[i].arrays[0]
        if (
            grad.dtype != param.dtype
            or grad.shape != param.shape
            or not (grad.flags.c_contiguous and grad.flags.aligned)
        ):
            return False
        if device_arrays.device_of(grad) not in (None, self._device):
            return False
        return self.is_apart(grad)


def read_header(array: Any) -> tuple[ArrayHeader, int | None]:
    """Return the header of an array, and its stream.

    Raises
    ------
    TypeError
        If the array is not in device memory.
    """
    if type(array) is DeviceArray:
        return array.header, array.stream
    reader = find_reader(array)
    if reader is None:
        raise TypeError("not in device memory")
    return reader(array)


def _read_counts(device: int, counts: Any) -> tuple[int, int]:
    """Return the numbers of updates that the device has done and skipped; this waits for the device."""
    with device_arrays.on(device):
        done, skipped = device_arrays.fetch(counts).view(np.int64).tolist()
    return done, skipped


CACHED_TABLES = 16
"""The number of sets of active parameters whose tables are cached."""


class CudaExecutor(SummingExecutor):
    """Run updates by one launch for all arrays that share code and dtype. Ctrl-C waits until all launches are made.

    A step waits for the device only if its rule sums over arrays: the host derives numbers from the sums. The norm for
    max_norm, and whether a gradient is finite, the device finds out itself, so that such a step can be captured.
    """

    checks, reads_tensors = True, False
    _counter: StepCounter

    def __init__(
        self, jobs: Sequence[ArrayUpdate], written: npt.NDArray[np.int64], counter: StepCounter, device: int
    ) -> None:
        self._counter = counter
        self._jobs, self._device = jobs, device
        self._key, self._order = group_by_code(jobs)
        self._rounds = (
            [] if all([clips_on_device(job.update) for job in jobs]) else plan_rounds([job.update for job in jobs])
        )
        self._check = GradientCheck(jobs, written, device)
        self._stream: int | None = None
        self._cache: dict[tuple[bool, ...], LaunchTable] = {}
        self._captured: list[LaunchTable] = []  # kept alive, as captured graphs read their memory
        self._scalars: dict[DeviceScalar, ArrayHeader] = {}
        self._device_counts = False
        # This memory is allocated once, as a captured graph contains its addresses.
        chunks = sum(-(-job.arrays[0].size // CHUNK) for job in jobs)
        sizes = {"sums": (chunks + 1) * SUM_COUNT, "totals": len(jobs) * SUM_COUNT, "factor": 1, "done": 2}
        with device_arrays.on(device):
            self._memory = {name: device_arrays.empty(size, np.float64) for name, size in sizes.items()}
            device_arrays.zero(self._memory["done"])
            self._address = {name: address_of(memory) for name, memory in self._memory.items()}

    def use_stream(self, stream: Any) -> None:
        """Run in this stream from now on."""
        self._stream = streams.handle_of(stream)

    def observe_with(self, observers: Sequence[Observer]) -> None:
        """Do nothing: updates on a device cannot be observed, as no step waits for it."""

    def select(self, row_of: Sequence[int]) -> None:
        """Update the parameters that have a row of hyper-parameters until the next call."""
        active = tuple([row != NO_ROW for row in row_of])
        self._row_of, self._is_active, self._derivations = row_of, active, None
        self._active = [i for i, row in enumerate(row_of) if row != NO_ROW]
        if active not in self._cache:
            if len(self._cache) == CACHED_TABLES:
                del self._cache[next(iter(self._cache))]
            self._cache[active] = LaunchTable(self._jobs, [i for i in self._order if active[i]], self._key)
        self._table = self._cache[active]
        owners = [job.arrays[0].owner for job, is_active in zip(self._jobs, active) if is_active]
        self._tensors = [owner for owner in owners if is_tensor(owner)]
        self._check.forget()

    def set_hyper(self, rows: StepRows) -> None:
        """Use these hyper-parameters."""
        self._rows, self._max_norm = rows, np.inf
        self._hyper_of = self._table.set_hyper(rows, self._row_of)
        late = [rows.numbers[self._row_of[i]][len(self._jobs[i].update.hyper) :] for i in self._active]
        if not self._rounds and any(late):  # of max_norm, the only sum that the device uses itself
            ((self._max_norm,), *_) = [values for values in late if values]

    def run(self, grads: list[Any]) -> bool:
        """Do one update by these gradients."""
        return self._run(grads, None, False)

    def run_summed(self, grads: list[Any], skips: Skips) -> bool:
        """Do one update after the sums that its rules need, or skip it; the device may count the updates it skips."""
        if self._rounds:
            return super().run_summed(grads, skips)
        if skips.skip and not self._device_counts:
            self._counter.count_on_device(partial(_read_counts, self._device, self._memory["done"]))
            self._device_counts = True
        return self._run(grads, self._max_norm, skips.skip)

    def sum_round(self, number: int, with_square: bool, grads: list[Any]) -> list[list[float]] | None:
        """Return the sums of a round for each parameter, after waiting for the device; None if it cannot be done."""
        table, links = self._table, self._rounds[number]
        array_streams = self._check.compare(grads, self._is_active, table)
        if array_streams is None:
            return None
        found: list[list[float]] = [[] for _ in self._jobs]
        with device_arrays.on(self._device):
            stream, others = streams.streams_for(self._stream, array_streams, self._device)
            if streams.is_capturing(stream):
                raise RuntimeError("a step of a rule that sums over arrays waits for the device; it cannot be captured")
            for other in others:
                streams.let_wait(stream, other)
            table.words.upload(stream, False)
            table.update_hyper(stream)
            for part in table.parts:
                members = table.members[part.rows]
                link = links.get(members[0])
                if link is None and not with_square:
                    continue
                rule, dtype = part.job.update, part.job.dtype
                summands = make_round_summands(with_square, link)(rule, symbolic)
                width = with_square + (len(link.sums) if link is not None else 0)
                if width:
                    kernel = reductions.sums_kernel(rule, summands, dtype, self._device)
                    sums = device_arrays.empty(max(part.chunks * width, 1), np.float64)
                    given = table.row(part), table.address(part.chunk_ends), part.arrays
                    hyper = table.hyper.address + part.hyper
                    kernels.launch(kernel, part.chunks, stream, *given, hyper, address_of(sums), threads=kernels.WARP)
                    chunks = iter(_fetch_rows(sums, stream, part.chunks, width))
                    for i in members:
                        own = [next(chunks) for _ in range(-(-self._jobs[i].arrays[0].size // CHUNK))]
                        found[i] = [sum_in_order(column) for column in zip(*own)] or [0.0] * width
        return found

    def _fetch(self, grad: Any) -> Any:
        """Return a gradient as a NumPy array; None for None."""
        return None if grad is None else device_arrays.fetch(device_arrays.view("grads", grad))

    def _run(self, grads: list[Any], limit: float | None, skip: bool) -> bool:
        table = self._table
        array_streams = self._check.compare(grads, self._is_active, table)
        if array_streams is None:
            return False
        array_streams += [self._check_scalar(name, scalar) for name, scalar in table.scalars()]
        with device_arrays.on(self._device):
            updates = [kernels.many_kernel(part.job.update, part.job.dtype, self._device) for part in table.parts]
            stream, others = streams.streams_for(self._stream, array_streams, self._device)
            capturing = streams.is_capturing(stream)
            with uninterrupted():
                for other in others:
                    streams.let_wait(stream, other)
                if capturing and table not in self._captured:
                    self._captured.append(table)
                    self._counter.keep_alive((table, self._memory, self._jobs))
                table.words.upload(stream, capturing)
                table.update_hyper(stream, capturing)
                self._derive_from_scalars(stream)
                if limit is not None and table.members:
                    self._measure(limit, stream)
                counts = table.tiles if skip else table.counts
                for number, (part, kernel) in enumerate(zip(table.parts, updates)):
                    ends, tiles = table.address(part.ends), table.address(counts + number)
                    hyper = table.hyper.address + part.hyper
                    kernels.launch(kernel, part.tiles, stream, table.row(part), ends, part.arrays, tiles, hyper)
                for other in others:
                    streams.let_wait(other, stream)
                increment_versions(self._tensors)
                if not capturing and not (skip and table.members):
                    self._counter.add_step()
        return True

    def _check_scalar(self, name: str, scalar: DeviceScalar) -> int | None:
        """Return the stream of a scalar; a scalar that has moved since the last step is checked."""
        try:
            header, stream = read_header(scalar.owner)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        if self._scalars.get(scalar) != header:
            array = view(name, scalar.owner)
            if device_arrays.device_of(array) != self._device:
                raise ValueError(f"{name}: expected a number on device {self._device}, as the arrays are")
            if not self._check.is_apart(array):
                raise ValueError(f"{name}: expected memory of its own; got memory that an update writes to")
            scalar.array, self._scalars[scalar] = array, header
        return stream

    def _derive_from_scalars(self, stream: Any) -> None:
        """Compute the hyper-parameters that depend on scalars in device memory."""
        for job, scalars, values, hyper, rows in self._table.derived_rows:
            dtypes = {name: scalar.array.dtype for name, scalar in scalars.items()}
            kernel = kernels.derive_kernel(job.update, dtypes, job.dtype, self._device)
            addresses = tuple(scalar.array.address for scalar in scalars.values())
            kernels.launch(kernel, 1, stream, addresses, values, self._table.hyper.address + hyper, rows)

    def _measure(self, limit: float, stream: Any) -> None:
        """Compute the norm, and write the clip factor to the rows of hyper-parameters."""
        table, arrays = self._table, len(self._jobs[0].arrays) + 1
        address = self._address
        for part in table.parts:
            rule, summands = part.job.update, reductions.make_norm_summands(arrays)
            kernel = reductions.sums_kernel(rule, summands, part.job.dtype, self._device)
            sums, hyper = address["sums"] + part.first_chunk * SUM_COUNT * WORD, table.hyper.address + part.hyper
            given = table.row(part), table.address(part.chunk_ends), part.arrays, hyper, sums
            kernels.launch(kernel, part.chunks, stream, *given, threads=kernels.WARP)
        ends, index = table.address(table.chunk_ends), table.address(table.index)
        counts, tiles = table.address(table.counts), table.address(table.tiles)
        kernels.launch(
            *(reductions.finish_kernel(self._device), 1, stream),
            *(address["sums"], ends, len(table.members), index, address["totals"], len(self._jobs), limit),
            *(address["factor"], counts, tiles, len(table.parts), address["done"]),
        )
        double = {"norm_factor": np.dtype(np.float64)}
        for part in table.parts:
            if "norm_factor" in part.job.update.hyper:
                kernel = kernels.derive_kernel(part.job.update, double, part.job.dtype, self._device)
                unused = (0.0,) * (len(part.job.update.parameters) + 1)  # of the parameters and of norm_factor itself
                hyper = table.hyper.address + part.hyper
                kernels.launch(kernel, 1, stream, (address["factor"],), unused, hyper, part.arrays)


def _fetch_rows(sums: Any, stream: Any, rows: int, width: int) -> list[list[float]]:
    """Return the sums of all chunks, after waiting for the stream."""
    found: list[list[float]] = sums.copy_to_host(stream=stream)[: rows * width].reshape(rows, width).tolist()
    return found
