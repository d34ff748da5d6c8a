"""The NumPy backend's launch."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from fastmomentum.backends.base import ArrayUpdate, HostExecutor, RowFunction, StepCounter, in_order
from fastmomentum.backends.numpy.kernels import kernel
from fastmomentum.backends.numpy.reductions import measure, sum_of_squares
from fastmomentum.backends.step_sums import StepSums


class NumpyExecutor(HostExecutor):
    """The NumPy backend: one parameter after the other."""

    checks = False
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # bound by :meth:`select`, which knows who watches

    def __init__(self, jobs: Sequence[ArrayUpdate], progress: StepCounter) -> None:
        self._jobs, self.progress = jobs, progress
        self._kernels = [kernel(job.update) for job in jobs]

    def select(self, active: Sequence[bool]) -> None:
        """See :class:`Launch`."""
        self._rows = [i for i, is_active in enumerate(active) if is_active]
        self.run = self._observed(self._update)

    def take_hyper(self, rows: RowFunction, first: Container[int]) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: rows(self._jobs[i].group, self._jobs[i].dtype, i in first) for i in self._rows}

    def measure(self, grads: list[Any]) -> float:
        """See :class:`Launch`."""
        return in_order(sum_of_squares(grads[i]) for i in self._rows)

    def take_factor(self, factor: float) -> None:
        """See :class:`Launch`."""
        self._hyper = {i: (type(row[0])(factor), *row[1:]) for i, row in self._hyper.items()}

    def look(self, grads: list[Any]) -> dict[int, StepSums]:
        """See :class:`HostLaunch`."""
        looks = {i: measure(self._jobs[i].update) for i in self._rows}
        return {i: self._turned(i, look(self._jobs[i].arrays, grads[i], self._hyper[i])) for i, look in looks.items()}

    def _update(self, grads: list[Any]) -> bool:
        if not all([self._kernels[i](self._jobs[i].arrays, grads[i], self._hyper[i]) for i in self._rows]):
            return False
        self.progress.steps += 1
        return True

    def finish(self) -> None:
        """See :class:`Launch`; nothing is kept of such a step."""
