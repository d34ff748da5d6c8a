"""One caller at a time.

Parameter groups: which arrays an optimiser updates, and with which settings.

What is decided is carried out whole, also where a signal's handler (Ctrl-C) comes between.

What an optimiser keeps between its steps, and every change of it but the steps themselves.

How an optimiser's steps are carried out, and what is looked at again before each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends import make_executor
from fastmomentum.backends.base import ArrayUpdate, Executor, Observer, StepCounter
from fastmomentum.backends.cpu.threads import default
from fastmomentum.optim.groups import Layout, ParamGroup
from fastmomentum.optim.restart import ALL, GRADIENT, GradientRestart, check_restart, epoch, restart_due
from fastmomentum.optim.state import ALL_ROWS, State
from fastmomentum.rules.base import Rule
from fastmomentum.rules.record import resolve_values


def one_caller(lock: Lock) -> Lock:
    """The lock, for ``with``, if nobody holds it; who comes second is refused, at the very same moment waits.

    To wait always would hang a forked child whose parent was in a step. ``with`` on the lock itself cannot be torn
    apart by a signal's handler; an acquire and a try can, and would leave it held for ever.
    """
    if lock.locked():
        raise RuntimeError(
            "one optimiser serves one caller at a time; another is in a step of it, and nothing was changed"
        )
    return lock


class Rows:
    """The hyper-parameters of one step of all groups.

    Called with (group, dtype, whether it is an array's first step from rest), it returns them as a kernel takes them.
    """

    def __init__(self, groups: Sequence[ParamGroup], step: int) -> None:
        self._groups, self._given = groups, [group.values(step) for group in groups]
        self._made: dict[Any, tuple[Any, ...]] = {}

    def __call__(self, group: int, dtype: np.dtype[Any], first: bool) -> tuple[Any, ...]:
        """As a kernel takes them."""
        if (group, dtype, first) not in self._made:
            self._made[group, dtype, first] = self._groups[group].row(dtype, self._given[group], first)
        return self._made[group, dtype, first]

    def differ(self, group: int) -> bool:
        """Whether an array's first step from rest has values of its own."""
        return self.values(group, True) != self.values(group, False)

    def values(self, group: int, first: bool) -> dict[str, Any]:
        """The same as users give them, by name."""
        mine = self._groups[group]
        return resolve_values(mine.update, mine.starting(self._given[group], first), lambda name, value, allowed: value)


class Whole:
    """A launch, and what is owed to the arrays: actions that may be done twice, of which none is left half done."""

    _launch: Executor
    _owed: tuple[int, Callable[[], None]] | None = None  # an action, due once there are so many steps
    _quick: Callable[[list[Any]], bool] | None

    @property
    def steps(self) -> int:
        """Updates done."""
        raise NotImplementedError

    def _carry_out(self, action: Callable[[], None]) -> None:
        """Do this whole; it may be done twice."""
        self._quick, self._owed = None, (0, action)
        self.finish()

    def finish(self) -> None:
        """Do what a signal may have left of a step, and what is owed and due.

        It is done before the signal's exception goes on; where another signal interrupts that, by whatever comes next.
        """
        try:
            self._pay()
        except BaseException:
            self._pay()
            raise

    def _pay(self) -> None:
        if "_launch" in self.__dict__:
            self._launch.finish()
        if self._owed is not None and self.steps >= self._owed[0]:
            self._owed[1]()
            self._owed = None


class Kept(Whole):
    """Parameters, their state and settings.

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
    restart : str or int, optional
        The restart scheme.
    value : float, optional
        The objective that was reported last.
    steps, skipped : int
        Updates done, and updates left out because a gradient was not finite.
    backend, threads
        As chosen, and the number of threads asked for.
    skip_nonfinite : bool
        Whether an update is left out if any gradient holds a NaN or an infinity.
    observer : Observer, optional
        Who watches every update.
    slope : Slope, optional
        What the gradient scheme goes by.
    loads, changes : int
        How often a saved state was given back, and how often state was changed otherwise than by a step.
    lock : Lock
        Held, through :func:`fastmomentum.turns.free`, by what changes more than one thing.
    """

    _stream: Any = None
    restart: str | int | None = None
    _began = 0
    value: float | None = None
    loads = changes = 0
    observer: Observer | None = None
    slope: GradientRestart | None = None
    _active: list[bool]
    _watched: bool

    def __init__(self, layout: Layout, backend: str | None, threads: int | None, skip_nonfinite: bool) -> None:
        self.groups, self.group_of = layout.groups, layout.group_of
        self._count = len(layout.group_of)
        self.backend = backends.choose(backend, layout.params)
        self.threads = default() if threads is None else threads
        self.skip_nonfinite, self.started = skip_nonfinite, [False] * self._count
        self.resets: list[tuple[int, str, str]] = []
        self.lock, self._progress = Lock(), StepCounter()
        self.held = State(layout, self.backend, self.update)
        self.check_arrays()
        self.check_groups(self.groups, 0)
        self._rest(range(self._count), ALL_ROWS, [])
        self.take_groups(self.groups)

    def _build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        raise NotImplementedError

    @property
    def update(self) -> Rule:
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

    @property
    def time(self) -> int:
        """What functions of the step are called with: the number of the update to come, or as a restart scheme says."""
        return self.steps - self._began

    def reset(self, which: Sequence[int], rows: slice, record: tuple[int, str, str]) -> None:
        """Put the state of these arrays to rest, in these rows; the next step of whole arrays is their first again."""
        self.check_arrays()
        self._carry_out(partial(self._rest, which, rows, [*self.resets, record]))

    def _rest(self, which: Sequence[int], rows: slice, resets: list[tuple[int, str, str]]) -> None:
        self.changes += 1
        self.held.rest(self.update, which, rows)
        if rows is ALL_ROWS:
            self.started = [started and i not in which for i, started in enumerate(self.started)]
        self.take_resets(resets)
        self.look_ahead(which)

    def take_resets(self, resets: Sequence[tuple[int, str, str]]) -> None:
        """Have this on the record; where a restart scheme is in use, functions of the step count from the last."""
        self.resets = list(resets)
        self._began = epoch(self.restart, self.resets)

    def adjust(self, name: str, values: Sequence[Any]) -> None:
        """Use these values, one a group, from the next update on; with correct=True state follows lr."""
        self.finish()
        groups = [group.replace(**{name: value}) for group, value in zip(self.groups, values)]
        self.check_groups(groups, self.time)
        moved = self._moved(range(self._count), groups, self.time)
        if moved:
            self.check_arrays()
        self._carry_out(partial(self._adjust, groups, moved))

    def _adjust(self, groups: list[ParamGroup], moved: Sequence[tuple[Any, Any]]) -> None:
        self._put(moved)
        self.take_groups(groups)

    def _put(self, moved: Sequence[tuple[Any, Any]]) -> None:
        self.changes += bool(moved)
        self.held.put(moved)

    def _moved(self, which: Iterable[int], groups: Sequence[ParamGroup], step: int) -> list[tuple[Any, Any]]:
        """The state slots of these arrays that a change to this step's lr of these groups moves, and where to."""
        found = []
        for i in which:
            before, after = self.groups[self.group_of[i]], groups[self.group_of[i]]
            if before.correct:
                lr, lr_next = before.value("lr", self.time), after.value("lr", step)
                found += self.held.moved(i, before.update, lr, lr_next)
        return found

    def load(self, saved: Mapping[str, Any], groups: list[ParamGroup], skip: bool) -> None:
        """Go on from a saved state, which has been checked, with these settings."""
        self.check_arrays()
        self._carry_out(partial(self._load, saved, groups, skip))

    def _load(self, saved: Mapping[str, Any], groups: list[ParamGroup], skip: bool) -> None:
        self.loads += 1
        self.steps, self.skipped, self.skip_nonfinite = saved["steps"], saved["skipped"], skip
        self.resets, self.started, self.value = list(saved["resets"]), list(saved["started"]), saved.get("value")
        self.take_groups(groups)
        self.held.write(saved["state"])

    def report(self, value: float, record: tuple[int, str, str]) -> bool:
        """Restart, with this record, if the objective has risen."""
        risen = self.value is not None and value > self.value
        if risen:
            self.check_arrays()
            self._carry_out(partial(self._risen, value, [*self.resets, record]))
        self.value = value
        return risen

    def _risen(self, value: float, resets: list[tuple[int, str, str]]) -> None:
        self._rest(range(self._count), ALL_ROWS, resets)
        self.value = value

    @property
    def observers(self) -> list[Observer]:
        """Who watches every update."""
        return [observer for observer in (self.slope, self.observer) if observer is not None]

    def check_watchable(self, asked: str) -> None:
        """Refuse what is to watch updates, and is called so, where these are not waited for."""
        if self.backend == "cuda":
            raise TypeError(f"{asked}: expected arrays on the host; got some on a device, where no step is waited for")

    def watch(self, observer: Observer | None, slope: GradientRestart | None) -> None:
        """Have every update observed by these from now on."""
        self.observer, self.slope = observer, slope
        self._launch.watch(self.observers)
        self._active, self._quick = [], None

    def check_arrays(self) -> None:
        """Refuse, before several are written, if one cannot be."""
        self.finish()
        self._build([None] * self._count)
        self._owed = None  # of a step that was refused

    def check_groups(self, groups: Sequence[ParamGroup], step: int) -> None:
        """Refuse settings that the kernel of some array could not take at this step."""
        if check_restart(groups) == GRADIENT:
            self.check_watchable("restart")
        used = {(number, param.dtype) for number, param in zip(self.group_of, self.held.params)}
        for number, group in enumerate(groups):
            if self.backend != "cuda":
                group.refuse_scalars()
            given = group.values(step)
            for dtype in {dtype for used_by, dtype in used if used_by == number} or checks.DTYPES:
                group.row(dtype, given)

    def take_groups(self, groups: list[ParamGroup]) -> None:
        """Use these settings, which have been checked."""
        if [group.update.structure for group in groups] != [group.update.structure for group in self.groups]:
            self._watched = False  # the next step makes its calls anew
        self.groups, self._quick = groups, None
        if (restart := check_restart(groups)) != self.restart:
            self.watch(self.observer, GradientRestart() if restart == GRADIENT else None)
            self.restart = restart
        self.take_resets(self.resets)
        limit = groups[0].settings.get("max_norm")
        self._max_norm = None if limit is None else float(limit)  # NumPy's float32 would make the factor one
        self._measures = self.skip_nonfinite or self._max_norm is not None
        self.look_ahead(range(self._count))

    def look_ahead(self, which: Iterable[int]) -> None:
        """Put the points of these arrays where the momentum of the next update will carry them."""
        rule = self.update
        if rule.gradient_slot == "point":
            groups = [self.groups[number] for number in self.group_of]
            self.held.look_ahead(which, rule, groups, self.time, self._stream)


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
        with one_caller(self.lock):
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
        reason = restart_due(self.restart, self.groups, self.time, self.slope)
        if reason:
            resets = [*self.resets, (self.steps, reason, ALL)]
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
        jobs = [
            ArrayUpdate(self.held.arrays(i), self.groups[group].update, group) for i, group in enumerate(self.group_of)
        ]
        self._active, self._quick, self._watched = [], None, False  # until all is made: counts have left the old launch
        self._launch = make_executor(self.backend, jobs, written, self._progress, self.threads, self.held.device)
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
        with one_caller(self.lock):
            self.finish()
            return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self.lock = Lock()
        self._build([None] * self._count)
