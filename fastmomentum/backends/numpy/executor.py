"""Run an optimiser's updates by the NumPy backend, one parameter after another."""

from collections.abc import Callable, Sequence
from typing import Any

from fastmomentum.backends.base import NO_ROW, ArrayUpdate, HostExecutor, StepCounter, StepRows
from fastmomentum.backends.host_arrays import flat_view
from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.backends.numpy.kernels import results_of, write
from fastmomentum.backends.numpy.reductions import measure, sum_up
from fastmomentum.backends.step_sums import StepSums, make_square
from fastmomentum.backends.tensors import counted
from fastmomentum.backends.weak import weakly


class NumpyExecutor(HostExecutor):
    """Run updates by the reference kernels."""

    checks = False
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # select() binds it, with or without observers

    def __init__(self, jobs: Sequence[ArrayUpdate], counter: StepCounter) -> None:
        self._jobs, self._counter = jobs, counter
        self._results = [results_of(job.update) for job in jobs]
        self._flat = [tuple(map(flat_view, job.arrays)) for job in jobs]

    def select(self, row_of: Sequence[int]) -> None:
        """Update the parameters that have a row of hyper-parameters until the next call."""
        self._row_of = row_of
        self._active = [i for i, row in enumerate(row_of) if row != NO_ROW]
        run = self._observed(weakly(self._update))
        self.run = counted(run, [array for i in self._active for array in self._jobs[i].arrays])

    def set_hyper(self, rows: StepRows) -> None:
        """Use these hyper-parameters."""
        self._hyper = {i: list(rows.numbers[self._row_of[i]]) for i in self._active}

    def sum_squares(self, grads: list[Any]) -> list[float]:
        """Return the sum of squares of each gradient."""
        found = [0.0] * len(self._jobs)
        for i in self._active:
            job = self._jobs[i]
            (found[i],) = sum_up(make_square(job.update), self._flat[i], flat_view(grads[i]), (), job.given)
        return found

    def set_factors(self, name: str, factors: Sequence[float]) -> None:
        """Set the hyper-parameter `name` of each parameter whose rule has it."""
        for i, row in self._hyper.items():
            job = self._jobs[i]
            if name in job.update.hyper:
                row[job.update.hyper.index(name)] = factors[i]

    def measure(self, grads: list[Any]) -> dict[int, StepSums]:
        """Return the sums of the next step."""
        found = {}
        for i in self._active:
            job = self._jobs[i]
            row = tuple([job.dtype.type(number) for number in self._hyper[i]])
            found[i] = self._step_sums(i, measure(job.update, self._flat[i], flat_view(grads[i]), row, job.given))
        return found

    def _update(self, grads: list[Any]) -> bool:
        """Compute the results of all parameters, then write them: a rule's function that raises has written nothing."""
        found = []
        for i in self._active:
            results = self._results[i](self._flat[i], flat_view(grads[i]), self._hyper[i], self._jobs[i].given)
            if results is None:
                return False
            found.append(results)
        with uninterrupted():
            for i, results in zip(self._active, found):
                write(self._flat[i], results)
            self._counter.add_step()
        return True
