"""Which launch carries out an optimiser's update: that of the place where its arrays are."""

from collections.abc import Sequence
from typing import Any

from fastmomentum.compiled import CompiledLaunch
from fastmomentum.launch import Job, Launch
from fastmomentum.progress import Progress
from fastmomentum.reference import ReferenceLaunch


def make_launch(
    backend: str, jobs: Sequence[Job], written: Any, progress: Progress, threads: int | None, device: int
) -> Launch:
    """The launch of this backend for these jobs; `written` is where what it writes begins and ends."""
    if backend == "numpy":
        return ReferenceLaunch(jobs, progress)
    if backend == "cpu":
        return CompiledLaunch(jobs, written, progress, threads)
    from fastmomentum.device.launch import CudaLaunch

    return CudaLaunch(jobs, written, progress, device)
