"""How an optimiser's steps are carried out, and what is looked at again before each."""

from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.groups import Rows
from fastmomentum.holdings import ALL_ROWS
from fastmomentum.keeping import Kept
from fastmomentum.launch import Job
from fastmomentum.launches import make_launch
from fastmomentum.restarts import WHOLE, reason_for
from fastmomentum.turns import free


class Engine(Kept):
    """Parameters, their state and settings, and the kernel calls that update them.

    A step takes the quick way, one look at all arrays in compiled code and the update; where other arrays than in the
    last step have a gradient, or hyper-parameters are new, the calls are made anew; and where the look finds anything
    that is not as it must be, everything is checked again.
    """

    def step(self, grads: list[Any], stream: Any = None) -> None:
        """One update by a list that nobody else has; a refused one changes nothing.

        The list keeps the gradients alive while the kernel, which holds no lock, runs.
        """
        with free(self.lock):
            if stream is not self._stream:
                self._launch.use(stream)
                self._stream = stream
            quick = self._quick
            if quick is None or len(grads) != self._count or not quick(grads):
                try:
                    self._step_anew(checks.sequence("grads", grads, self._count))
                finally:
                    self.finish()

    def _run(self, grads: list[Any]) -> bool:
        """Count an update, done or skipped; or answer False, with nothing written, if it cannot be."""
        if self._measures:
            return self._launch.run_measured(grads, self._max_norm, self.skip_nonfinite)
        return self._launch.run(grads)

    def _step_anew(self, grads: list[Any]) -> None:
        """A step that updates other arrays than the last, or with other hyper-parameters, or that must be refused."""
        self._quick = None
        self.finish()
        self._owed = None  # of a step that was refused
        active = [grad is not None for grad in grads]
        scheduled = any(group.scheduled for group in self.groups)
        follows = scheduled or self.restart is not None
        rows = Rows(self.groups, self.time if scheduled else 0)  # a device may have to be waited for to know it
        first = self._at_first_step(active, rows)
        if follows:
            idle = [i for i, a in enumerate(active) if not a]
            moved = self._moved(idle, self.groups, self.time + 1)
            self._owed = self.steps + 1, partial(self._follow, idle, moved)
        # Whether a device left the update out is asked only where what follows depends on it.
        tells = self.skip_nonfinite and (self.backend != "cuda" or bool(first) or scheduled)
        before = self.skipped if tells else 0
        usual = self._watched and self._launched(grads, active, first, rows)
        # Else something is wrong, and is refused in _build, or it is unusual, and gets a table that allows for it.
        if not usual and not self._launched(self._build(grads), active, first, rows):
            raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
        if tells and self.skipped != before:
            return
        self.started = [started or a for started, a in zip(self.started, active)]
        if usual and any(active) and not first and not follows:
            self._quick = self._run if self._measures else self._launch.run

    def _follow(self, idle: Sequence[int], moved: Sequence[tuple[Any, Any]]) -> None:
        """What comes with an update: arrays that were no part of it go over to the next, and a restart may be due."""
        self._put(moved)
        self.look_ahead(idle)
        reason = reason_for(self.restart, self.groups, self.time, self.slope)
        if reason:
            resets = [*self.resets, (self.steps, reason, WHOLE)]
            self._carry_out(partial(self._rest, range(self._count), ALL_ROWS, resets))

    def _launched(self, grads: list[Any], active: list[bool], first: set[int], rows: Rows) -> bool:
        if active != self._active:
            self._active = []  # what a signal's handler interrupts is done again
            self._launch.select(active)
            self._active = active
        self._launch.take_hyper(rows, first)
        return self._run(grads)

    def _at_first_step(self, active: list[bool], rows: Rows) -> set[int]:
        """The arrays whose first step from rest this is, where the rule has one of its own.

        A state that was written to is not at rest, and continues by the raw formula.
        """
        waiting = (i for i, (started, a) in enumerate(zip(self.started, active)) if a and not started)
        own = {i for i in waiting if rows.differ(self.group_of[i])}
        return {i for i in own if not self.held.is_moving(i, self.update)}

    def _build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        plain, written = self.held.look(grads)
        jobs = [Job(self.held.arrays(i), self.groups[group].update, group) for i, group in enumerate(self.group_of)]
        self._active, self._quick, self._watched = [], None, False  # until all is made: counts have left the old launch
        self._launch = make_launch(self.backend, jobs, written, self._progress, self.threads, self.held.device)
        self._launch.use(self._stream)
        self._launch.watch(self.observers)
        # What kernels can look at themselves need not be checked anew at each step: arrays, not our views of others.
        plainly = self.backend == "cuda" or all(type(param) is np.ndarray for param in self.held.given)
        self._watched = self._launch.checks and plainly
        return plain

    def __getstate__(self) -> dict[str, Any]:
        if self.backend == "cuda":
            raise TypeError("an optimiser of arrays on a device cannot be copied or pickled; save() writes its state")
        made = ("_launch", "_active", "_quick", "_watched", "_stream", "lock", "observer")
        with free(self.lock):
            self.finish()
            return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self.lock = Lock()
        self._build([None] * self._count)
