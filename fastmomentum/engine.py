"""How an optimiser's steps are carried out: what is kept between them, and what is looked at again."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends.threads import default
from fastmomentum.compose import Chain
from fastmomentum.groups import Group, Layout, Rows
from fastmomentum.holdings import ALL_ROWS, Holdings
from fastmomentum.launch import Job, Launch
from fastmomentum.launches import make_launch
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
    held : Holdings
        The parameters and their state.
    started : list of bool
        For each parameter whether it has had its first step.
    groups : list of Group
        The settings.
    group_of : list of int
        For each parameter the number of its group.
    resets : list of (int, str, str)
        What was put to rest, when and why.
    steps, skipped : int
        Updates done, and updates left out because a gradient was not finite.
    skip_nonfinite : bool
        Whether an update is left out if any gradient holds a NaN or an infinity.
    lock : Lock
        Held, through :func:`fastmomentum.turns.free`, by what changes more than one thing.
    """

    _stream: Any = None
    _owed: tuple[int, Callable[[], None]] | None = None  # what is to be done, whole, once there are so many steps
    _quick: Callable[[list[Any]], bool] | None

    def __init__(self, layout: Layout, backend: str | None, threads: int | None, skip_nonfinite: bool) -> None:
        self._launch: Launch
        self._active: list[bool]
        self.groups, self.group_of = layout.groups, layout.group_of
        self._count = len(layout.group_of)
        self._backend = backends.choose(backend, layout.params)
        self._threads = default() if threads is None else threads
        self.skip_nonfinite, self.started = skip_nonfinite, [False] * self._count
        self.resets: list[tuple[int, str, str]] = []
        self.lock, self._progress = Lock(), Progress()
        self.held = Holdings(layout, self._backend, self.update)
        self._build([None] * self._count)
        self.check_groups(self.groups, 0)
        self._rest(range(self._count), ALL_ROWS, [])
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

    @property
    def skipped(self) -> int:
        """Updates left out because a gradient was not finite."""
        return self._progress.skipped

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._progress.skipped = value

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
                self._step_anew(checks.sequence("grads", grads, self._count))

    def _run(self, grads: list[Any]) -> bool:
        """Count an update, done or skipped; or answer False, with nothing written, if it cannot be."""
        if self._measures:
            return self._launch.run_measured(grads, self._max_norm, self.skip_nonfinite)
        return self._launch.run(grads)

    def reset(self, which: Sequence[int], rows: slice, record: tuple[int, str, str]) -> None:
        """Put the state of these arrays to rest, in these rows; the next step of whole arrays is their first again."""
        self.check_arrays()
        self._carry_out(partial(self._rest, which, rows, [*self.resets, record]))

    def _rest(self, which: Sequence[int], rows: slice, resets: list[tuple[int, str, str]]) -> None:
        self.held.rest(self.update, which, rows)
        if rows is ALL_ROWS:
            self.started = [started and i not in which for i, started in enumerate(self.started)]
        self.look_ahead(which)
        self.resets = resets

    def adjust(self, groups: list[Group]) -> None:
        """Use these settings, which have been checked, from the next update on; with correct=True state follows lr."""
        moved = self._moved(range(self._count), groups, self.steps)
        if moved:
            self.check_arrays()
        self._carry_out(partial(self._adjust, groups, moved))

    def _adjust(self, groups: list[Group], moved: Sequence[tuple[Any, Any]]) -> None:
        self.held.put(moved)
        self.take_groups(groups)

    def _moved(self, which: Iterable[int], groups: Sequence[Group], step: int) -> list[tuple[Any, Any]]:
        """The state slots of these arrays that a change to this step's lr of these groups moves, and where to."""
        found = []
        for i in which:
            before, after = self.groups[self.group_of[i]], groups[self.group_of[i]]
            if before.correct:
                lr, lr_next = before.value("lr", self.steps), after.value("lr", step)
                found += self.held.moved(i, before.update, lr, lr_next)
        return found

    def _carry_out(self, action: Callable[[], None]) -> None:
        """Do, whole, what may be done twice: where a signal interrupts it, whatever comes next begins with it."""
        self._quick, self._owed = None, (0, action)
        self.finish()

    def check_arrays(self) -> None:
        """Refuse, before several are written, if one cannot be."""
        self._build([None] * self._count)

    def check_groups(self, groups: Sequence[Group], step: int) -> None:
        """Refuse settings that the kernel of some array could not take at this step."""
        used = {(number, param.dtype) for number, param in zip(self.group_of, self.held.params)}
        for number, group in enumerate(groups):
            if self._backend != "cuda":
                group.refuse_scalars()
            given = group.values(step)
            for dtype in {dtype for used_by, dtype in used if used_by == number} or checks.DTYPES:
                group.row(dtype, given)

    def take_groups(self, groups: list[Group]) -> None:
        """Use these settings, which have been checked."""
        before, self.groups = self.groups, groups
        if [group.update.structure for group in groups] != [group.update.structure for group in before]:
            try:
                self._build([None] * self._count)
            except BaseException:
                self.groups = before
                raise
        self._quick = None
        limit = groups[0].settings.get("max_norm")
        self._max_norm = None if limit is None else float(limit)  # NumPy's float32 would make the factor one
        self._measures = self.skip_nonfinite or self._max_norm is not None
        self.look_ahead(range(self._count))

    def _step_anew(self, grads: list[Any]) -> None:
        """A step that updates other arrays than the last, or with other hyper-parameters, or that must be refused."""
        self._quick = None
        if self._owed is not None:
            self.finish()
            self._owed = None  # of a step that was refused
        active = [grad is not None for grad in grads]
        scheduled = any(group.scheduled for group in self.groups)
        rows = Rows(self.groups, self.steps if scheduled else 0)  # a device may have to be waited for to know it
        first = self._at_first_step(active, rows)
        if scheduled:
            idle = [i for i, a in enumerate(active) if not a]
            moved = self._moved(idle, self.groups, self.steps + 1)
            self._owed = self.steps + 1, partial(self._leave, idle, moved)
        # Whether a device left the update out is asked only where what follows depends on it.
        tells = self.skip_nonfinite and (self._backend != "cuda" or bool(first) or scheduled)
        before = self.skipped if tells else 0
        usual = self._watched and self._launched(grads, active, first, rows)
        # Else something is wrong, and is refused in _build, or it is unusual, and gets a table that allows for it.
        if not usual and not self._launched(self._build(grads), active, first, rows):
            raise RuntimeError("arrays were changed by another thread during the step; nothing was written")
        if tells and self.skipped != before:
            return
        self.started = [started or a for started, a in zip(self.started, active)]
        if scheduled:
            self.finish()
        if usual and any(active) and not first and not scheduled:
            self._quick = self._run if self._measures else self._launch.run

    def _leave(self, idle: Sequence[int], moved: Sequence[tuple[Any, Any]]) -> None:
        """Take over to the next update the arrays that were not part of the last."""
        self.held.put(moved)
        self.look_ahead(idle)

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

    def look_ahead(self, which: Iterable[int]) -> None:
        """Put the points of these arrays where the momentum of the next update will carry them."""
        rule = self.update.rule if isinstance(self.update, Chain) else self.update
        if isinstance(rule, LookAhead):
            groups = [self.groups[number] for number in self.group_of]
            self.held.look_ahead(which, rule, groups, self.steps, self._stream)

    def finish(self) -> None:
        """Do what signals may have left of a step, or of what :meth:`_carry_out` was to do."""
        if "_launch" in self.__dict__:
            self._launch.finish()
        if self._owed is not None and self.steps >= self._owed[0]:
            self._owed[1]()
            self._owed = None

    def _build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        self.finish()
        plain, written = self.held.look(grads)
        jobs = [Job(self.held.arrays(i), self.groups[group].update, group) for i, group in enumerate(self.group_of)]
        self._active, self._quick = [], None
        self._launch = make_launch(self._backend, jobs, written, self._progress, self._threads, self.held.device)
        self._launch.use(self._stream)
        # What kernels can look at themselves need not be checked anew at each step: arrays, not our views of others.
        plainly = self._backend == "cuda" or all(type(param) is np.ndarray for param in self.held.given)
        self._watched = self._launch.checks and plainly
        return plain

    def __getstate__(self) -> dict[str, Any]:
        if self._backend == "cuda":
            raise TypeError("an optimiser of arrays on a device cannot be copied or pickled; save() writes its state")
        made = ("_launch", "_active", "_quick", "_watched", "_stream", "lock")
        with free(self.lock):
            self.finish()
            return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self.lock = Lock()
        self._build([None] * self._count)
