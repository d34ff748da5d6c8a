"""Run an optimiser's updates by the NumPy backend, one parameter after another."""

from collections.abc import Callable, Sequence
from typing import Any

from fastmomentum.backends.base import NO_ROW, ArrayUpdate, HostExecutor, StepCounter, StepRows
from fastmomentum.backends.host_arrays import flat_view
from fastmomentum.backends.interrupts import uninterrupted
from fastmomentum.backends.numpy.kernels import results_of, write
from fastmomentum.backends.numpy.reductions import measure, sum_up
from fastmomentum.backends.step_sums import StepSums
from fastmomentum.backends.sums import make_round_summands, plan_rounds
from fastmomentum.backends.tensors import counted
from fastmomentum.backends.weak import weakly
from fastmomentum.rules.assemble import identity


class NumpyExecutor(HostExecutor):
    """Run updates by the reference kernels."""

    checks = False
    run: Callable[[list[Any]], bool]  # type: ignore[assignment]  # select() binds it, with or without observers

    def __init__(self, jobs: Sequence[ArrayUpdate], counter: StepCounter) -> None:
        self._jobs, self._counter = jobs, counter
        self._rounds = plan_rounds([job.update for job in jobs])
        self._results = [results_of(job.update) for job in jobs]
        self._flat = [tuple(map(flat_view, job.arrays)) for job in jobs]

    def select(self, row_of: Sequence[int]) -> None:
        """Update the parameters that have a row of hyper-parameters until the next call."""
        self._row_of, self._derivations = row_of, None
        self._active = [i for i, row in enumerate(row_of) if row != NO_ROW]
        run = self._observed(weakly(self._update))
        self.run = counted(run, [array for i in self._active for array in self._jobs[i].arrays])

    def set_hyper(self, rows: StepRows) -> None:
        """Use these hyper-parameters."""
        self._rows = rows
        self._hyper_of = {
            i: list(rows.numbers[self._row_of[i]][: len(self._jobs[i].update.hyper)]) for i in self._active
        }

    def sum_round(self, number: int, with_square: bool, grads: list[Any]) -> list[list[float]]:
        """Return the sums of a round for each parameter."""
        found: list[list[float]] = [[] for _ in self._jobs]
        links = self._rounds[number] if self._rounds else {}
        for i in self._active:
            job = self._jobs[i]
            row = tuple([job.dtype.type(value) for value in self._hyper_of[i]])
            summands = make_round_summands(with_square, links.get(i))(job.update, identity)
            if with_square or i in links:
                found[i] = sum_up(summands, self._flat[i], flat_view(grads[i]), row, job.given)
        return found

    def measure(self, grads: list[Any]) -> dict[int, StepSums]:
        """Return the sums of the next step."""
        found = {}
        for i in self._active:
            job = self._jobs[i]
            row = tuple([job.dtype.type(number) for number in self._hyper_of[i]])
            found[i] = self._step_sums(i, measure(job.update, self._flat[i], flat_view(grads[i]), row, job.given))
        return found

    def _update(self, grads: list[Any]) -> bool:
        """Compute the results of all parameters, then write them: a rule's function that raises has written nothing."""
        found = []
        for i in self._active:
            results = self._results[i](self._flat[i], flat_view(grads[i]), self._hyper_of[i], self._jobs[i].given)
            if results is None:
                return False
            found.append(results)
        with uninterrupted():
            for i, results in zip(self._active, found):
                write(self._flat[i], results)
            self._counter.add_step()
        return True
