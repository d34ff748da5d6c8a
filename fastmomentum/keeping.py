"""What an optimiser keeps between its steps, and every change of it but the steps themselves."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

from fastmomentum import backends, checks
from fastmomentum.backends.threads import default
from fastmomentum.compose import Chain
from fastmomentum.groups import Group, Layout
from fastmomentum.holdings import ALL_ROWS, Holdings
from fastmomentum.launch import Observer
from fastmomentum.lookahead import LookAhead
from fastmomentum.progress import Progress
from fastmomentum.records import Update
from fastmomentum.restarts import GRADIENT, Slope, began, check_restart
from fastmomentum.wholeness import Whole


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
    slope: Slope | None = None
    _active: list[bool]
    _watched: bool

    def __init__(self, layout: Layout, backend: str | None, threads: int | None, skip_nonfinite: bool) -> None:
        self.groups, self.group_of = layout.groups, layout.group_of
        self._count = len(layout.group_of)
        self.backend = backends.choose(backend, layout.params)
        self.threads = default() if threads is None else threads
        self.skip_nonfinite, self.started = skip_nonfinite, [False] * self._count
        self.resets: list[tuple[int, str, str]] = []
        self.lock, self._progress = Lock(), Progress()
        self.held = Holdings(layout, self.backend, self.update)
        self.check_arrays()
        self.check_groups(self.groups, 0)
        self._rest(range(self._count), ALL_ROWS, [])
        self.take_groups(self.groups)

    def _build(self, grads: Sequence[Any]) -> list[Any]:
        """Check all arrays; make the table of them; return the gradients as plain arrays."""
        raise NotImplementedError

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
        self._began = began(self.restart, self.resets)

    def adjust(self, name: str, values: Sequence[Any]) -> None:
        """Use these values, one a group, from the next update on; with correct=True state follows lr."""
        self.finish()
        groups = [group.replace(**{name: value}) for group, value in zip(self.groups, values)]
        self.check_groups(groups, self.time)
        moved = self._moved(range(self._count), groups, self.time)
        if moved:
            self.check_arrays()
        self._carry_out(partial(self._adjust, groups, moved))

    def _adjust(self, groups: list[Group], moved: Sequence[tuple[Any, Any]]) -> None:
        self._put(moved)
        self.take_groups(groups)

    def _put(self, moved: Sequence[tuple[Any, Any]]) -> None:
        self.changes += bool(moved)
        self.held.put(moved)

    def _moved(self, which: Iterable[int], groups: Sequence[Group], step: int) -> list[tuple[Any, Any]]:
        """The state slots of these arrays that a change to this step's lr of these groups moves, and where to."""
        found = []
        for i in which:
            before, after = self.groups[self.group_of[i]], groups[self.group_of[i]]
            if before.correct:
                lr, lr_next = before.value("lr", self.time), after.value("lr", step)
                found += self.held.moved(i, before.update, lr, lr_next)
        return found

    def load(self, saved: Mapping[str, Any], groups: list[Group], skip: bool) -> None:
        """Go on from a saved state, which has been checked, with these settings."""
        self.check_arrays()
        self._carry_out(partial(self._load, saved, groups, skip))

    def _load(self, saved: Mapping[str, Any], groups: list[Group], skip: bool) -> None:
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

    def watch(self, observer: Observer | None, slope: Slope | None) -> None:
        """Have every update observed by these from now on."""
        self.observer, self.slope = observer, slope
        self._launch.watch(self.observers)
        self._active, self._quick = [], None

    def check_arrays(self) -> None:
        """Refuse, before several are written, if one cannot be."""
        self.finish()
        self._build([None] * self._count)
        self._owed = None  # of a step that was refused

    def check_groups(self, groups: Sequence[Group], step: int) -> None:
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

    def take_groups(self, groups: list[Group]) -> None:
        """Use these settings, which have been checked."""
        if [group.update.structure for group in groups] != [group.update.structure for group in self.groups]:
            self._watched = False  # the next step makes its calls anew
        self.groups, self._quick = groups, None
        if (restart := check_restart(groups)) != self.restart:
            self.watch(self.observer, Slope() if restart == GRADIENT else None)
            self.restart = restart
        self.take_resets(self.resets)
        limit = groups[0].settings.get("max_norm")
        self._max_norm = None if limit is None else float(limit)  # NumPy's float32 would make the factor one
        self._measures = self.skip_nonfinite or self._max_norm is not None
        self.look_ahead(range(self._count))

    def look_ahead(self, which: Iterable[int]) -> None:
        """Put the points of these arrays where the momentum of the next update will carry them."""
        rule = self.update.rule if isinstance(self.update, Chain) else self.update
        if isinstance(rule, LookAhead):
            groups = [self.groups[number] for number in self.group_of]
            self.held.look_ahead(which, rule, groups, self.time, self._stream)
