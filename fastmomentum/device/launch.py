"""The CUDA backend's launch: a few kernels in one stream, and nothing that waits for the device."""

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.cuda import home, launches, streams
from fastmomentum.backends.cuda.arrays import increment_versions, is_tensor
from fastmomentum.backends.cuda.kernels import WORD
from fastmomentum.backends.cuda.mirror import address_of
from fastmomentum.backends.cuda.norms import KINDS
from fastmomentum.backends.cuda.scalars import DeviceScalar, view
from fastmomentum.backends.numpy import CHUNK
from fastmomentum.device.looks import Looks, read
from fastmomentum.device.tables import Tables
from fastmomentum.groups import Rows
from fastmomentum.launch import Job, Observer, arrange
from fastmomentum.progress import Progress

KEPT = 16
"""How many sets of arrays that had a gradient have their tables kept."""


class CudaLaunch:
    """See :class:`fastmomentum.launch.Launch`.

    What a signal's handler interrupts between two of several launches (arrays of two dtypes, or groups with other
    stages) is not taken up again: whether a launch took place is known to the driver alone.
    """

    checks = True
    progress: Progress

    def __init__(self, jobs: Sequence[Job], written: npt.NDArray[np.int64], progress: Progress, device: int) -> None:
        self.progress = progress
        self._jobs, self._device = jobs, device
        self._key, self._order = arrange(jobs)
        self._looks = Looks(jobs, written, device)
        self._stream: int | None = None
        self._known: dict[tuple[bool, ...], Tables] = {}
        self._frozen: list[Tables] = []
        self._scalars: dict[DeviceScalar, Any] = {}
        self._counts = False
        # Memory that stays where it is, as a captured graph knows no other.
        chunks = sum(-(-job.arrays[0].size // CHUNK) for job in jobs)
        sizes = {"sums": (chunks + 1) * KINDS, "totals": len(jobs) * KINDS, "factor": 1, "done": 2}
        with home.on(device):
            self._memory = {name: home.empty(size, np.float64) for name, size in sizes.items()}
            home.zero(self._memory["done"])
            self._address = {name: address_of(memory) for name, memory in self._memory.items()}

    def use(self, stream: Any) -> None:
        """See :class:`fastmomentum.launch.Launch`."""
        self._stream = streams.handle_of(stream)

    def watch(self, observers: Sequence[Observer]) -> None:
        """See :class:`fastmomentum.launch.Launch`; there are none, as what they would look at is not on the host."""

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`fastmomentum.launch.Launch`."""
        self._active = tuple(active)
        if self._active not in self._known:
            if len(self._known) == KEPT:
                del self._known[next(iter(self._known))]
            self._known[self._active] = Tables(self._jobs, [i for i in self._order if active[i]], self._key)
        self._tables = self._known[self._active]
        owners = [job.arrays[0].owner for job, is_active in zip(self._jobs, active) if is_active]
        self._tensors = [owner for owner in owners if is_tensor(owner)]
        self._looks.forget()

    def take_hyper(self, rows: Rows, first: Container[int]) -> None:
        """See :class:`fastmomentum.launch.Launch`."""
        self._tables.take_hyper(rows, first)

    def finish(self) -> None:
        """See :class:`fastmomentum.launch.Launch`; nothing is kept of such a step."""

    def run(self, grads: list[Any]) -> bool:
        """See :class:`fastmomentum.launch.Launch`."""
        return self._run(grads, None, False)

    def run_measured(self, grads: list[Any], max_norm: float | None, skip: bool) -> bool:
        """See :class:`fastmomentum.launch.Launch`; what is left out is known to the device alone, which counts it."""
        if skip and not self._counts:
            self.progress.count_elsewhere(self._counted)
            self._counts = True
        return self._run(grads, np.inf if max_norm is None else max_norm, skip)

    def _counted(self) -> tuple[int, int]:
        with home.on(self._device):
            done, skipped = home.fetch(self._memory["done"]).view(np.int64).tolist()
        return done, skipped

    def _run(self, grads: list[Any], limit: float | None, skip: bool) -> bool:
        told = self._looks.over(grads, self._active, self._tables)
        if told is None:
            return False
        tables = self._tables
        told += [stream for name, scalar in tables.scalars() for stream in self._look_at(name, scalar)]
        with home.on(self._device):
            kernels = [launches.many_kernel(part.job.update, part.job.dtype, self._device) for part in tables.parts]
            stream, others = streams.streams_for(self._stream, told, self._device)
            for other in others:
                streams.let_wait(stream, other)
            capturing = streams.is_capturing(stream)
            if capturing and tables not in self._frozen:
                self._frozen.append(tables)
                self.progress.keep(self)
            tables.words.send(stream, capturing)
            tables.hyper.send(stream, capturing)
            self._settle(stream)
            if limit is not None and tables.members:
                self._measure(limit, stream)
            counts = tables.tiles if skip else tables.counts
            for number, (part, kernel) in enumerate(zip(tables.parts, kernels)):
                where = tables.address(part.ends), part.arrays, tables.address(counts + number)
                hyper = tables.hyper.address + part.hyper
                launches.launch(kernel, part.tiles, stream, tables.row(part), *where, hyper)
            for other in others:
                streams.let_wait(other, stream)
        increment_versions(self._tensors)
        if not capturing and not (skip and tables.members):
            self.progress.add_step()
        return True

    def _look_at(self, name: str, scalar: DeviceScalar) -> list[int | None]:
        """The stream of a scalar; where it lies elsewhere than in the last step, it is checked anew."""
        try:
            look, stream = read(scalar.owner)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        if self._scalars.get(scalar) != look:
            array = view(name, scalar.owner)
            if home.device_of(array) != self._device:
                raise ValueError(f"{name}: expected a number on device {self._device}, as the arrays are")
            if not self._looks.is_apart(array):
                raise ValueError(f"{name}: expected memory of its own; got memory that is written to")
            scalar.array, self._scalars[scalar] = array, look
        return [stream]

    def _settle(self, stream: Any) -> None:
        """Complete hyper-parameters from scalars in device memory."""
        for job, scalars, values, hyper, rows in self._tables.settled:
            dtypes = {name: scalar.array.dtype for name, scalar in scalars.items()}
            kernel = launches.settle_kernel(job.update, dtypes, job.dtype, self._device)
            addresses = tuple(scalar.array.address for scalar in scalars.values())
            launches.launch(kernel, 1, stream, addresses, values, self._tables.hyper.address + hyper, rows)

    def _measure(self, limit: float, stream: Any) -> None:
        """Find the norm; its factor goes into the rows of hyper-parameters."""
        tables, arrays = self._tables, len(self._jobs[0].arrays) + 1
        at = self._address
        for part in tables.parts:
            kernel = launches.squares_kernel(part.job.dtype, arrays, self._device)
            sums = at["sums"] + part.first_chunk * KINDS * WORD
            where = tables.row(part), tables.address(part.chunk_ends), part.arrays, sums
            launches.launch(kernel, part.chunks, stream, *where, threads=launches.WARP)
        ends, index = tables.address(tables.chunk_ends), tables.address(tables.index)
        launches.launch(
            *(launches.finish_kernel(self._device), 1, stream),
            *(at["sums"], ends, len(tables.members), index, at["totals"], len(self._jobs), limit),
            *(at["factor"], tables.address(tables.counts), tables.address(tables.tiles), len(tables.parts), at["done"]),
        )
        double = {"norm_factor": np.dtype(np.float64)}
        for part in tables.parts:
            if "norm_factor" in part.job.update.hyper:
                kernel = launches.settle_kernel(part.job.update, double, part.job.dtype, self._device)
                unused = (0.0,) * (len(part.job.update.parameters) + 1)
                hyper = tables.hyper.address + part.hyper
                launches.launch(kernel, 1, stream, (at["factor"],), unused, hyper, part.arrays)
