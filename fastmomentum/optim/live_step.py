"""Do a step again in which only gradients and the values of settings are new."""

from collections.abc import Callable
from typing import Any

from fastmomentum.backends.base import Executor, StepCounter
from fastmomentum.backends.sums import Skips
from fastmomentum.optim.plan import FunctionCalls, Rows


class LiveStep:
    """Repeat the last step, with the same settings or with new values of them.

    The engine stores the methods of this object; they hold no reference to the engine, which would make a cycle.

    Attributes
    ----------
    rows : Rows
        The rows of hyper-parameters.
    """

    __slots__ = (
        "_ask",
        "_counter",
        "_epoch",
        "_executor",
        "_groups",
        "_is_up_to_date",
        "_skips",
        "rows",
    )

    def __init__(
        self,
        ask: FunctionCalls,
        rows: Rows,
        executor: Executor,
        counter: StepCounter,
        epoch: int,
        skips: Skips | None,
    ) -> None:
        self.rows = rows
        self._groups, self._ask, self._executor, self._counter, self._epoch = ask.groups, ask, executor, counter, epoch
        self._skips, self._is_up_to_date = skips, False

    @property
    def with_same_values(self) -> Callable[[list[Any]], bool]:
        """The function that does a step with the hyper-parameters of the last one."""
        return self._executor.run if self._skips is None else self._run_summed

    def _run_summed(self, grads: list[Any]) -> bool:
        assert self._skips is not None
        return self._executor.run_summed(grads, self._skips)

    def with_new_values(self, grads: list[Any]) -> bool:
        """Do one step with the values of settings at this step; return False if it must be planned.

        The values are kept for the plan, so that no function of the step is called twice.
        """
        steps, rows = self._counter.steps, self.rows
        values = self._ask(steps - self._epoch)
        if rows.compute(values, steps):
            for group, own in zip(self._groups, values):
                group.values = own
            executor = self._executor
            executor.set_hyper(rows)
            done = executor.run(grads) if self._skips is None else executor.run_summed(grads, self._skips)
            if done:
                return True
        self._ask.kept = values
        return False

    def after_assignment(self, grads: list[Any]) -> bool:
        """Do one step after numbers have been assigned to settings; all further steps have the same values."""
        if self._is_up_to_date:
            return self.with_same_values(grads)
        self._is_up_to_date = self.with_new_values(grads)
        return self._is_up_to_date

    def use_assigned(self) -> Callable[[list[Any]], bool]:
        """Return the function that does the next step after numbers have been assigned to settings.

        If there is one group, its hyper-parameters are written now, which saves the next steps a call.
        """
        groups = self._groups
        if len(groups) == 1 and self._skips is None and self.rows.compute([groups[0].values], 0):
            self._executor.set_hyper(self.rows)
            return self._executor.run
        self._is_up_to_date = False
        return self.after_assignment
