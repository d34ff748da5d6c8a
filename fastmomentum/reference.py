"""The NumPy backend's launch."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from fastmomentum import backends
from fastmomentum.backends.motion import Motion
from fastmomentum.backends.numpy import sum_of_squares
from fastmomentum.groups import Rows
from fastmomentum.launch import HostLaunch, Job, in_order
from fastmomentum.progress import Progress


class ReferenceLaunch(HostLaunch):
    """The NumPy backend: one parameter after the other."""

    checks = False
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # bound by :meth:`select`, which knows who watches

    def __init__(self, jobs: Sequence[Job], progress: Progress) -> None:
        self._jobs, self.progress = jobs, progress
        self._kernels = [backends.kernel(job.update, job.dtype, "numpy") for job in jobs]

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self._rows = [i for i, is_active in enumerate(active) if is_active]
        self.run = self._observed(self._update)

    def take_hyper(self, rows: Rows, first: Container[int]) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: rows(self._jobs[i].group, self._jobs[i].dtype, i in first) for i in self._rows}

    def measure(self, grads: list[Any]) -> float:
        """See :class:`Launch`."""
        return in_order(sum_of_squares(grads[i]) for i in self._rows)

    def take_factor(self, factor: float) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: (type(row[0])(factor), *row[1:]) for i, row in self._hyper.items()}

    def look(self, grads: list[Any]) -> dict[int, Motion]:
        """See :class:`HostLaunch`."""
        looks = {i: backends.look(self._jobs[i].update) for i in self._rows}
        return {i: self._turned(i, look(self._jobs[i].arrays, grads[i], self._hyper[i])) for i, look in looks.items()}

    def _update(self, grads: list[Any]) -> bool:
        if not all([self._kernels[i](self._jobs[i].arrays, grads[i], self._hyper[i]) for i in self._rows]):
            return False
        self.progress.steps += 1
        return True

    def finish(self) -> None:
        """See :class:`Launch`; nothing is kept of such a step."""
