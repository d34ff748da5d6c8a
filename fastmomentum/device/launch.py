"""The CUDA backend's launch: a few kernels in one stream, and nothing that waits for the device."""

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.cuda import home, launches, streams
from fastmomentum.backends.cuda.arrays import increment_versions, is_tensor
from fastmomentum.backends.cuda.kernels import WORD
from fastmomentum.backends.cuda.mirror import address_of
from fastmomentum.backends.cuda.norms import KINDS
from fastmomentum.backends.numpy import CHUNK
from fastmomentum.device.looks import Looks
from fastmomentum.device.tables import Tables
from fastmomentum.groups import Rows
from fastmomentum.launch import Job, arrange
from fastmomentum.progress import Progress

Launcher = Callable[..., None]


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
        self._tensors = [job.arrays[0].owner for job in jobs if is_tensor(job.arrays[0].owner)]
        self._stream: int | None = None
        self._scratch: dict[str, Any] = {}
        self._frozen: list[Tables] = []
        chunks = sum(-(-job.arrays[0].size // CHUNK) for job in jobs)
        self._room = {"sums": (chunks + 1) * KINDS, "totals": len(jobs) * KINDS, "factor": 1, "skipped": 1}

    def use(self, stream: Any) -> None:
        """See :class:`fastmomentum.launch.Launch`."""
        self._stream = streams.handle_of(stream)

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`fastmomentum.launch.Launch`."""
        self._active = list(active)
        self._tables = Tables(self._jobs, [i for i in self._order if active[i]], self._key)
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
        if skip and "skipped" not in self._scratch:
            skipped = self._memory("skipped", np.int64)
            self.progress.count_skipped(lambda: int(home.fetch(skipped)[0]))
        return self._run(grads, np.inf if max_norm is None else max_norm, skip)

    def _run(self, grads: list[Any], limit: float | None, skip: bool) -> bool:
        told = self._looks.over(grads, self._active, self._tables)
        if told is None:
            return False
        tables = self._tables
        with home.on(self._device):
            kernels = [launches.many_kernel(part.job.update, part.job.dtype, self._device) for part in tables.parts]
            stream = streams.stream_for(self._stream, told, self._device)
            capturing = streams.is_capturing(stream)
            if capturing and tables not in self._frozen:
                self._frozen.append(tables)
                self.progress.keep(self)
            tables.words.send(stream, capturing)
            tables.hyper.send(stream, capturing)
            self._settle(stream)
            if limit is not None and tables.parts:
                self._measure(limit, stream)
            counts = tables.tiles if skip else tables.counts
            for number, (part, kernel) in enumerate(zip(tables.parts, kernels)):
                where = tables.address(part.ends), part.arrays, tables.address(counts + number)
                hyper = tables.hyper.address + part.hyper
                launches.launch(kernel, part.tiles, stream, tables.row(part), *where, hyper)
        increment_versions(self._tensors)
        self.progress.add_step()
        return True

    def _settle(self, stream: Any) -> None:
        """Complete hyper-parameters from scalars in device memory."""
        for job, scalars, values, hyper, rows in self._tables.settled:
            dtypes = {name: scalar.array.dtype for name, scalar in scalars.items()}
            kernel = launches.settle_kernel(job.update, dtypes, job.dtype, self._device)
            addresses = tuple(scalar.array.address for scalar in scalars.values())
            launches.launch(kernel, rows, stream, addresses, values, self._tables.hyper.address + hyper, rows)

    def _measure(self, limit: float, stream: Any) -> None:
        """Find the norm; its factor goes into the rows of hyper-parameters."""
        tables, arrays = self._tables, len(self._jobs[0].arrays) + 1
        sums, totals, factor = (address_of(self._memory(name)) for name in ("sums", "totals", "factor"))
        skipped = address_of(self._memory("skipped", np.int64))
        for part in tables.parts:
            kernel = launches.squares_kernel(part.job.dtype, arrays, self._device)
            where = (
                tables.row(part),
                tables.address(part.chunk_ends),
                part.arrays,
                sums + part.first_chunk * KINDS * WORD,
            )
            launches.launch(kernel, part.chunks, stream, *where, threads=launches.WARP)
        ends, index = tables.address(tables.chunk_ends), tables.address(tables.index)
        launches.launch(
            *(launches.finish_kernel(self._device), 1, stream),
            *(sums, ends, len(tables.members), index, totals, len(self._jobs), limit),
            *(factor, tables.address(tables.counts), tables.address(tables.tiles), len(tables.parts), skipped),
        )
        double = {"norm_factor": np.dtype(np.float64)}
        for part in tables.parts:
            if "norm_factor" in part.job.update.hyper:
                kernel = launches.settle_kernel(part.job.update, double, part.job.dtype, self._device)
                unused = (0.0,) * (len(part.job.update.parameters) + 1)
                hyper = tables.hyper.address + part.hyper
                launches.launch(kernel, part.arrays, stream, (factor,), unused, hyper, part.arrays)

    def _memory(self, name: str, dtype: Any = np.float64) -> Any:
        """Memory that stays where it is, as a captured graph knows no other."""
        if name not in self._scratch:
            with home.on(self._device):
                self._scratch[name] = home.empty(self._room[name], dtype)
                home.zero(self._scratch[name])
        return self._scratch[name]
