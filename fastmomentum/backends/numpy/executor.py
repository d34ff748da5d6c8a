"""Run an optimiser's updates by the NumPy backend, one parameter after another."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from fastmomentum.backends.base import ArrayUpdate, HostExecutor, RowFunction, StepCounter, sum_in_order, uninterrupted
from fastmomentum.backends.host_arrays import flat_view
from fastmomentum.backends.numpy.kernels import kernel
from fastmomentum.backends.numpy.reductions import measure, sum_of_squares
from fastmomentum.backends.step_sums import StepSums


class NumpyExecutor(HostExecutor):
    """Run updates by the reference kernels."""

    checks = False
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # select() binds it, with or without observers

    def __init__(self, jobs: Sequence[ArrayUpdate], counter: StepCounter) -> None:
        self._jobs, self._counter = jobs, counter
        self._kernels = [kernel(job.update) for job in jobs]
        self._flat = [tuple(map(flat_view, job.arrays)) for job in jobs]

    def select(self, active: Sequence[bool]) -> None:
        """Update the parameters that are active until the next call."""
        self._rows = [i for i, is_active in enumerate(active) if is_active]
        self.run = self._observed(self._update)

    def set_hyper(self, rows: RowFunction, first: Container[int]) -> None:
        """Use these hyper-parameters."""
        self._hyper = {i: rows(self._jobs[i].group, self._jobs[i].dtype, i in first) for i in self._rows}

    def sum_squares(self, grads: list[Any]) -> float:
        """Return the sum of squares of all gradients."""
        return sum_in_order(sum_of_squares(flat_view(grads[i])) for i in self._rows)

    def set_clip_factor(self, factor: float) -> None:
        """Set the clip factor."""
        self._hyper = {i: (type(row[0])(factor), *row[1:]) for i, row in self._hyper.items()}

    def measure(self, grads: list[Any]) -> dict[int, StepSums]:
        """Return the sums of the next step."""
        found = {}
        for i in self._rows:
            sums = measure(self._jobs[i].update)(self._flat[i], flat_view(grads[i]), self._hyper[i])
            found[i] = self._step_sums(i, sums)
        return found

    def _update(self, grads: list[Any]) -> bool:
        with uninterrupted():
            for i in self._rows:
                if not self._kernels[i](self._flat[i], flat_view(grads[i]), self._hyper[i]):
                    return False
            self._counter.steps += 1
        return True
