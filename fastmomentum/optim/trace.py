"""What a trace holds: numbers step by step, and what was noticed between two steps.

A light record of a run's steps, kept by an optimiser or by hand.

Watching an optimiser: how its steps come to a trace.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.backends.base import HostExecutor
from fastmomentum.backends.numpy import reductions
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.engine import Engine, one_caller
from fastmomentum.optim.restart import Reset
from fastmomentum.optim.state import check_state
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find

Floats = npt.NDArray[np.float64]


class Row(NamedTuple):
    """What a recorded step was for one group: its settings, and the motion of its arrays together."""

    lr: float
    momentum: float
    motion: StepSums


class StateWrite(NamedTuple):
    """A velocity that a step did not find as the step before had left it.

    Attributes
    ----------
    step, group, array : int
        The number of updates done by then; whose velocity.
    left, found : float
        Its norm, as the update before left it, and as it was.
    inside : bool
        Whether it is what the rule makes of a velocity at rest, so that it was put to rest within the update.
    """

    step: int
    group: int
    array: int
    left: float
    found: float
    inside: bool = False


class Start(NamedTuple):
    """Where a trace begins or goes on behind a load: the updates done by then, and whether the velocity is at rest."""

    step: int
    at_rest: bool


EMPTY = StepSums(*[float("nan")] * len(StepSums._fields))
"""Of a group none of whose arrays had a gradient."""


class Series:
    """The recorded steps of one group, or of all arrays together, as read-only arrays with an entry a record.

    Attributes
    ----------
    steps : ndarray of int
        The number of each update, from 0: how many had been done before.
    """

    def __init__(self, steps: Sequence[int], rows: Sequence[Row]) -> None:
        self.steps = np.array(steps, np.int64)
        self.steps.flags.writeable = False
        self._rows = np.array([(row.lr, row.momentum, *row.motion) for row in rows], np.float64)
        self._rows = self._rows.reshape(len(rows), 2 + len(StepSums._fields))

    def __len__(self) -> int:
        return len(self.steps)

    def _column(self, name: str) -> Floats:
        return _fixed(self._rows[:, 2 + StepSums._fields.index(name)])

    def _norm(self, name: str) -> Floats:
        return _fixed(np.sqrt(self._column(name)))

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether any of its arrays had a gradient."""
        return np.asarray(~np.isnan(self._rows[:, 2:]).all(axis=1))

    @property
    def lr(self) -> Floats:
        """The learning rate; NaN where groups differ."""
        return _fixed(self._rows[:, 0])

    @property
    def momentum(self) -> Floats:
        """The momentum; NaN where groups differ."""
        return _fixed(self._rows[:, 1])

    @property
    def velocity(self) -> Floats:
        """‖v‖, as the step found it; 0 for rules that keep none."""
        return self._norm("velocity")

    @property
    def gradient(self) -> Floats:
        """‖g‖, as given."""
        return self._norm("gradient")

    @property
    def cosine(self) -> Floats:
        """v·g / (‖v‖‖g‖), −1 to 1; below 0 they are opposed, at NaN one of them is 0."""
        with np.errstate(all="ignore"):
            return _fixed(np.clip(self._column("along") / (self.velocity * self.gradient), -1.0, 1.0))

    @property
    def step(self) -> Floats:
        """‖p⁺ − p‖."""
        return self._norm("step")

    @property
    def slope(self) -> Floats:
        """g·(p⁺ − p): what the step changes the function by, to first order; above 0 it goes uphill."""
        return self._column("slope")

    @property
    def left(self) -> Floats:
        """‖v⁺‖, as the step leaves it."""
        return self._norm("left")

    @property
    def size(self) -> Floats:
        """‖p‖."""
        return self._norm("size")


def combine(motions: Sequence[StepSums]) -> StepSums:
    """The motion of several arrays as if they were one; their sums are added in order."""
    found = EMPTY
    for motion in motions:
        found = StepSums(*(a + b for a, b in zip(found, motion))) if found is not EMPTY else motion
    return found


def _fixed(values: Floats) -> Floats:
    found = values.copy()
    found.flags.writeable = False
    return found


TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}
"""How far a loop written by hand may be from our order of operations, relative to the squares that go in."""


class Trace:
    """‖v‖, ‖g‖, cos∠(v, g) and ‖p⁺ − p‖, step by step, of all arrays together and of each group.

    :meth:`fastmomentum.Momentum.trace` makes one that grows by itself; made here it is for a loop of one's own, around
    :func:`fastmomentum.step` or anything else, on one parameter array, which calls :meth:`record` before each update.
    :func:`fastmomentum.diagnose` says in words what happened.

    Parameters
    ----------
    rule : str, Rule or chain
        By what the loop updates.
    steps : int
        How many updates had been done before, where the loop takes up a run.
    **settings
        What else the loop's update would be given as an option of :func:`fastmomentum.step`.

    Attributes
    ----------
    every : int
        Which steps are recorded.
    groups : list of Track
        The numbers of each group, as those of all arrays together are on the trace itself.
    written : list of Written
        Steps that did not find the velocity as the update before had left it.
    starts : list of Start
        Where the trace begins, and goes on behind each load.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or a setting cannot be served.

    Notes
    -----
    The velocity of a rule that keeps the position before (heavy_ball) is q − p; of one that keeps several (aggmo) their
    sum, of which the step takes a fixed share.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p, v = np.array([1.0]), np.array([0.0])
    >>> trace = fm.Trace(rule="ema")
    >>> for g in ([0.5], [0.5], [0.5]):
    ...     trace.record(p, v, np.array(g), lr=0.5, momentum=0.5)
    ...     v = 0.5 * v + 0.5 * np.array(g)
    ...     p = p - 0.5 * v
    >>> trace.velocity, trace.step
    (array([0.   , 0.25 , 0.375]), array([0.125  , 0.1875 , 0.21875]))
    """

    def __init__(self, rule: str | Rule = "pytorch", *, steps: int = 0, **settings: Any) -> None:
        self._settings = {"rule": rule, **settings}
        self.update, _ = resolve_options(**self._settings, lr=0.0, momentum=0.0)
        self._groups: Sequence[Mapping[str, Any]] = [self._settings]
        self.every, self.written, self.starts = 1, list[StateWrite](), list[Start]()
        self._done, self._rows, self._steps = checks.integer("steps", steps), list[tuple[Row, ...]](), list[int]()
        self._resets, self._left = list[Reset](), dict[int, StepSums]()
        self._told_by: Engine | None = None
        self._rested: StepSums | None = None
        self._end: Callable[[], None] | None = None

    def record(self, param: Any, state: Any, grad: Any, *, lr: float = 0.0, momentum: float = 0.9) -> None:
        """Take down the update that is to come; nothing is written.

        Parameters
        ----------
        param, state, grad, lr, momentum
            What the update works on, and is given, as in :func:`fastmomentum.step`. Without a gradient (None) only
            what the last update left is looked at: behind the loop, say.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> trace = fm.Trace(rule="classical")
        >>> trace.record(np.zeros(2), np.array([3.0, 4.0]), np.ones(2), lr=0.5)
        >>> trace.velocity
        array([5.])
        """
        param = checks.array("param", param, write=False)
        arrays = (param, *(slot.copy() for slot in check_state(self.update, state, param)))
        chosen = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if name in self.update.parameters}
        _, given = resolve_options(**self._settings, lr=lr, momentum=momentum)
        row = hyper_row(self.update, given | chosen, param.dtype)
        g = np.zeros_like(param) if grad is None else checks.array("grad", grad, like=param, write=False)
        look = reductions.measure(self.update)
        motion, tolerance = look(arrays, g, row), TOLERANCE[param.dtype]
        self._compare({0: motion}, [0], self._rested, tolerance)
        if grad is None:
            return
        if not self.starts:
            self._begin(self._done, self._is_at_rest(motion, momentum))
        at_rest = [param.copy() if rest == "param" else np.zeros_like(param) for _, rest in self.update.state]
        self._rested = look((param, *at_rest), g, row)
        self._add(self._done, [Row(float(lr), float(momentum), motion)], {0: motion})
        self._done += 1

    def reset(self, reason: str) -> None:
        """Say that the loop has put its state to rest on purpose.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> trace = fm.Trace()
        >>> trace.reset("a new epoch")
        >>> trace.resets
        [Reset(step=0, reason='a new epoch', scope='all')]
        """
        self._resets.append(Reset(self._done, reason, "all"))
        self._left = {}

    def _add(self, step: int, rows: Sequence[Row], left: Mapping[int, StepSums]) -> None:
        self._steps.append(step)
        self._rows.append(tuple(rows))
        self._left.update(left)

    def _begin(self, step: int, at_rest: bool) -> None:
        on_purpose = any(reset.step == step for reset in self._all_resets)
        self.starts.append(Start(step, at_rest and step > 0 and not on_purpose))

    def _is_at_rest(self, motion: StepSums, momentum: float) -> bool:
        return keeps_velocity(self.update) and motion.velocity == 0 < motion.gradient and momentum > 0

    def _compare(
        self, motions: Mapping[int, StepSums], group_of: Sequence[int], rested: StepSums | None, tolerance: float
    ) -> None:
        """Note which velocities are not as they were left, where that is known."""
        for i, motion in motions.items():
            left, found = self._left.get(i), motion.velocity
            if left is None or _near(found, left.left, tolerance * max(left.left, left.velocity)):
                continue
            inside = rested is not None and _near(found, rested.left, tolerance * rested.left)
            sizes = float(np.sqrt(left.left)), float(np.sqrt(found))
            self.written.append(StateWrite(self._done, group_of[i], i, *sizes, inside))

    @property
    def groups(self) -> list[Series]:
        """See :class:`Trace`."""
        return [Series(self._steps, rows) for rows in zip(*self._rows)] if self._rows else [Series([], [])]

    @property
    def updates(self) -> list[tuple[Rule, dict[str, Any]]]:
        """For each group the rule, and what the theory takes beside lr and momentum; a limit on gradients is no part.

        Near a minimum gradients are within it.
        """
        own = ("rule", "lr", "momentum", "max_norm", "clip_value", "correct", "restart")
        chosen = [{name: value for name, value in group.items() if name not in own} for group in self._groups]
        return [(find(group["rule"]), options) for group, options in zip(self._groups, chosen)]

    @property
    def overall(self) -> Series:
        """The numbers of all arrays together, which the trace itself has as well."""
        return Series(self._steps, [_of_all(rows) for rows in self._rows])

    def __getattr__(self, name: str) -> Any:
        if name == "steps" or isinstance(getattr(Series, name, None), property):
            return getattr(self.overall, name)
        raise AttributeError(f"a trace has no {name!r}")

    @property
    def resets(self) -> list[Reset]:
        """Those on the record since the trace began."""
        begin = self.starts[0].step if self.starts else 0
        return [reset for reset in self._all_resets if reset.step >= begin]

    @property
    def _all_resets(self) -> list[Reset]:
        return self._resets if self._told_by is None else [Reset(*reset) for reset in self._told_by.state.resets]

    def stop(self) -> None:
        """Record no more; what is recorded stays.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones(2), lr=0.1)
        >>> trace = opt.trace()
        >>> opt.step(np.ones(2))
        >>> trace.stop()
        >>> opt.step(np.ones(2))
        >>> len(trace), opt.steps
        (1, 2)
        """
        if self._end is not None:
            self._end()
            self._end = None

    def __getstate__(self) -> dict[str, Any]:
        """Of what is recorded; a copy, or what was pickled, records no more."""
        return {**self.__dict__, "_resets": self.resets, "_told_by": None, "_end": None}

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        if not self._steps:
            return f"Trace of rule {self.update}: no step yet"
        now, first, last = self.overall, self._steps[0], self._steps[-1]
        lines = [f"Trace of rule {self.update}: {len(self)} steps, {first} to {last}, {len(self.resets)} resets"]
        for name in ("gradient", "velocity", "step", "cosine"):
            values = getattr(now, name)
            lines.append(f"  {name:<8} first {values[0]:.3g}, last {values[-1]:.3g}")
        return "\n".join(lines)


def _of_all(rows: Sequence[Row]) -> Row:
    """All groups together."""
    lr, momentum = ({getattr(row, name) for row in rows} for name in ("lr", "momentum"))
    motions = [row.motion for row in rows if row.motion is not EMPTY]
    one = [values.pop() if len(values) == 1 else float("nan") for values in (lr, momentum)]
    return Row(one[0], one[1], combine(motions))


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance or found == expected or (found != found and expected != expected)


class Recorder:
    """What an engine calls at each update, for a trace."""

    def __init__(self, trace: Trace, engine: Engine) -> None:
        self._trace, self._engine = trace, engine
        self._loads, self._changes = -1, 0
        self._first = self._next = engine.state.counter.steps

    def before_step(self, grads: list[Any], executor: HostExecutor) -> Callable[[], None] | None:
        """See :class:`fastmomentum.launch.Observer`."""
        trace, engine = self._trace, self._engine
        step, time, loads, changes = engine.state.counter.steps, engine.schedule_step, engine.loads, engine.changes
        begins = step != self._next or loads != self._loads
        if begins or changes != self._changes:
            trace._left = {}
        trace._done = step
        if not begins and (step - self._first) % trace.every:
            trace._left = {}
            return lambda: self._go_on(step, loads, changes)
        motions = executor.measure(grads)
        if motions is None:
            return None

        def end() -> None:
            self._go_on(step, loads, changes)
            self._take(step, time, motions, begins)

        return end

    def _go_on(self, step: int, loads: int, changes: int) -> None:
        self._next, self._loads, self._changes = step + 1, loads, changes

    def _take(self, step: int, time: int, motions: dict[int, StepSums], begins: bool) -> None:
        trace, engine = self._trace, self._engine
        if begins and motions:
            trace._begin(step, self._is_at_rest(time, motions))
        trace._compare(motions, engine.group_of, None, 0.0)
        if motions:
            rows = [EMPTY] * len(engine.groups)
            for group, members in groupby(sorted(motions, key=lambda i: (engine.group_of[i], i)), self._group):
                rows[group] = combine([motions[i] for i in members])
            values = [(group.value("lr", time), group.value("momentum", time)) for group in engine.groups]
            found = [Row(float(lr), float(momentum), row) for (lr, momentum), row in zip(values, rows)]
            trace._add(step, found, motions)

    def _group(self, i: int) -> int:
        return self._engine.group_of[i]

    def _is_at_rest(self, time: int, motions: dict[int, StepSums]) -> bool:
        """Whether a velocity that should have gathered something is at rest: of arrays that had a step, if any had."""
        engine = self._engine
        looked = [i for i in motions if engine.state.started[i] or not any(engine.state.started)]
        before = [engine.groups[engine.group_of[i]].value("lr", time - 1) for i in looked] if time else []
        lasting = any(engine.groups[self._group(i)].value("momentum", time) for i in looked)
        if not (lasting and all(lr > 0 for lr in before) and keeps_velocity(engine.update)):
            return False
        found = [motions[i] for i in looked]
        return not any(m.velocity for m in found) and any(m.gradient and m.step for m in found)


def start_trace(engine: Engine, every: int) -> Trace:
    """Let a new trace record every n-th step of an optimiser from now on, and return it.

    Raises
    ------
    TypeError
        If the arrays are on a device.
    """
    engine.check_observable("trace")
    trace = Trace(engine.update)
    trace.every, trace._groups = every, [group.settings for group in engine.groups]
    trace._told_by = engine
    recorder = Recorder(trace, engine)
    with one_caller(engine.lock):
        engine.observe(recorder, engine.gradient_restart)

    def end() -> None:
        with one_caller(engine.lock):
            trace._resets, trace._told_by = trace.resets, None
            if engine.observer is recorder:
                engine.observe(None, engine.gradient_restart)

    trace._end = end
    return trace
