"""How an optimiser's steps are carried out: what is kept between them, and what is looked at again."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.backends.threads import default
from fastmomentum.checks import Array
from fastmomentum.compose import Chain
from fastmomentum.groups import SCHEDULED, Group, Layout
from fastmomentum.launch import CompiledLaunch, Job, Launch, ReferenceLaunch, RowOf, is_finite
from fastmomentum.lookahead import LookAhead
from fastmomentum.progress import Progress
from fastmomentum.records import Update
from fastmomentum.turns import free


class Engine:
    """Parameters, their state and settings, and the kernel calls that update them.

    A step takes the quick way, one look at all arrays in compiled code and the update; where other arrays than in the
    last step have a gradient, or hyper-parameters are new, the calls are made anew; and where the look finds anything
    that is not as it must be, everything is checked again.

    Attributes
    ----------
    given : list of ndarray
        The parameters, as the user passed them.
    states : list of tuple of ndarray
        For each parameter its state slots.
    started : list of bool
        For each parameter whether it has had its first step.
    groups : list of Group
        The settings.
    group_of : list of int
        For each parameter the number of its group.
    steps, skipped : int
        Updates done, and updates left out because a gradient was not finite.
    skip_nonfinite : bool
        Whether an update is left out if any gradient holds a NaN or an infinity.
    lock : Lock
        Held, through :func:`fastmomentum.turns.free`, by what changes more than one thing.
    """

    def __init__(self, layout: Layout, backend: str, threads: int | None, skip_nonfinite: bool) -> None:
        self._launch: Launch
        self._active: list[bool]
        self.given, self._names, self.groups, self.group_of = (
            layout.params,
            layout.names,
            layout.groups,
            layout.group_of,
        )
        self._grad_names = ["grads"] if layout.single else [f"grads[{i}]" for i in range(len(self.given))]
        self._backend, self._threads = backend, default() if threads is None else threads
        self.skip_nonfinite = skip_nonfinite
        self.lock, self._progress = Lock(), Progress()
        self.skipped = 0
        params = [checks.array(name, p) for name, p in zip(self._names, self.given)]
        self.states = [tuple(np.empty_like(p) for _ in self.update.state) for p in params]
        self._build([None] * len(params))
        self.check_groups(self.groups, 0)
        self.rest()
        self.take_groups(self.groups)

    @property
    def update(self) -> Update:
        """The rule of the first group; the others' have the same state."""
        return self.groups[0].update

    @property
    def steps(self) -> int:
        """Updates done."""
        return self._progress.steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._progress.steps = value

    def step(self, grads: list[Any]) -> None:
        """One update by a list that nobody else has; a refused one changes nothing.

        The list keeps the gradients alive while the kernel, which holds no lock, runs.
        """
        with free(self.lock):
            if not (self._ready and len(grads) == len(self.given) and self._run(grads)):
                self._step_anew(checks.sequence("grads", grads, len(self.given)))

    def _run(self, grads: list[Any]) -> bool:
        """Count an update, done or skipped; or answer False, with nothing written, if it cannot be."""
        if self._measures:
            squares = self._launch.measure(grads)
            if squares < 0:
                return False
            if self.skip_nonfinite and not is_finite(squares, grads):
                self.skipped += 1
                return True
            if self._max_norm is not None:
                factor = self._max_norm / (math.sqrt(squares) + 1e-6)
                self._launch.take_factor(1.0 if factor > 1.0 else factor)  # a NaN stays one
        return self._launch.run(grads)

    def rest(self) -> None:
        """Put the state to rest; the next step of every array is its first again."""
        self.check_arrays()
        for param, state in zip(self._params, self.states):
            for values, (_, rest) in zip(state, self.update.state):
                values[...] = param if rest == "param" else 0.0
        self.started = [False] * len(self.given)

    def check_arrays(self) -> None:
        """Refuse, before several are written, if one cannot be."""
        self._build([None] * len(self.given))

    def check_groups(self, groups: Sequence[Group], step: int) -> None:
        """Refuse settings that the kernel of some array could not take at this step."""
        used = {(number, param.dtype) for number, param in zip(self.group_of, self._params)}
        for number, group in enumerate(groups):
            given = group.values(step)
            for dtype in {dtype for used_by, dtype in used if used_by == number} or checks.DTYPES:
                group.row(dtype, given)

    def take_groups(self, groups: list[Group]) -> None:
        """Use these settings, which have been checked."""
        before, self.groups = self.groups, groups
        if [group.update.structure for group in groups] != [group.update.structure for group in before]:
            try:
                self._build([None] * len(self.given))
            except BaseException:
                self.groups = before
                raise
        self._ready = False
        limit = groups[0].settings.get("max_norm")
        self._max_norm = None if limit is None else float(limit)  # NumPy's float32 would make the factor one
        self._measures = self.skip_nonfinite or self._max_norm is not None
        self.look_ahead(range(len(self.given)))

    def _step_anew(self, grads: list[Any]) -> None:
        """A step that updates other arrays than the last, or with other hyper-parameters, or that must be refused."""
        self._ready = False
        before = self.steps
        active = [grad is not None for grad in grads]
        first = self._at_first_step(active)
        given = [group.values(before) for group in self.groups]
        row_of = cache(lambda group, dtype, first: self.groups[group].row(dtype, given[group], first))
        usual = self._watched and self._launched(grads, active, first, row_of)
        # Else something is wrong, and is refused in _build, or it is unusual, and gets a table that allows for it.
        if not usual and not self._launched(self._build(grads), active, first, row_of):
            raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
        if self.steps == before:
            return
        self.started = [started or a for started, a in zip(self.started, active)]
        scheduled = any(group.scheduled for group in self.groups)
        if scheduled:
            self.look_ahead([i for i, a in enumerate(active) if not a])
        self._ready = usual and any(active) and not first and not scheduled

    def _launched(self, grads: list[Any], active: list[bool], first: set[int], row_of: RowOf) -> bool:
        if active != self._active:
            self._active = []  # what a signal's handler interrupts is done again
            self._launch.select(active)
            self._active = active
        self._launch.take_hyper(row_of, first)
        return self._run(grads)

    def _at_first_step(self, active: list[bool]) -> set[int]:
        """The arrays whose first step from rest this is, where the rule has one of its own.

        A state that was written to is not at rest, and continues by the raw formula.
        """
        waiting = (i for i, (started, a) in enumerate(zip(self.started, active)) if a and not started)
        return {i for i in waiting if self.groups[self.group_of[i]].update.first and not self._moves(i)}

    def _moves(self, i: int) -> bool:
        return any(values.any() for values, (_, rest) in zip(self.states[i], self.update.state) if rest == "zero")

    def look_ahead(self, which: Iterable[int]) -> None:
        """Put the points of these arrays where the momentum of the next update will carry them."""
        rule = self.update.rule if isinstance(self.update, Chain) else self.update
        if not isinstance(rule, LookAhead):
            return
        points = {}
        with np.errstate(all="ignore"):
            for i in which:
                param, velocity, group = self._params[i], self.states[i][0], self.groups[self.group_of[i]]
                values = (param.dtype.type(float(group.value(name, self.steps))) for name in SCHEDULED)
                points[i] = rule.ahead(param, velocity, *values)
        for i, point in points.items():
            self.states[i][1][...] = point

    def finish(self) -> None:
        """Do what two signals, one behind the other, may have left of a step."""
        if "_launch" in self.__dict__:
            self._launch.finish()

    def _build(self, grads: Sequence[Any]) -> list[Array | None]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        self.finish()
        self._params = [checks.array(name, param) for name, param in zip(self._names, self.given)]
        writes = dict(zip(self._names, self._params))
        for name, param, state in zip(self._names, self._params, self.states):
            for slot, values in zip(self.update.slots, state):
                writes[f"the {slot} of {name}"] = checks.array(f"the {slot} of {name}", values, like=param)
        plain = [
            grad if grad is None else checks.array(name, grad, like=param, write=False)
            for name, grad, param in zip(self._grad_names, grads, self._params)
        ]
        reads = {name: grad for name, grad in zip(self._grad_names, plain) if grad is not None}
        written = checks.apart([*writes, *reads], [*writes.values(), *reads.values()], read=len(reads))
        jobs = [
            Job((param, *state), self.groups[group].update, group)
            for param, state, group in zip(self._params, self.states, self.group_of)
        ]
        self._active, self._ready = [], False
        if self._backend == "numpy":
            self._launch = ReferenceLaunch(jobs, self._progress)
        else:
            self._launch = CompiledLaunch(jobs, written, self._progress, self._threads)
        # What kernels can look at themselves need not be checked anew at each step: arrays, not our views of others.
        self._watched = self._launch.checks and all(type(param) is np.ndarray for param in self.given)
        return plain

    def __getstate__(self) -> dict[str, Any]:
        made = ("_params", "_launch", "_active", "_ready", "_watched", "lock")
        with free(self.lock):
            return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self.lock = Lock()
        self._build([None] * len(self.given))
