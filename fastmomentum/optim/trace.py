"""The class Trace: a record of the steps of a run, which an optimiser or a user's own loop fills."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.backends.host_arrays import flat_view, read
from fastmomentum.backends.numpy import reductions
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.restart import Reset
from fastmomentum.optim.state import check_state
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import STEP, hyper_row
from fastmomentum.rules.registry import find

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Row(NamedTuple):
    """Hold a recorded step of one group: its settings, and the sums over all elements of its arrays."""

    lr: float
    momentum: float
    sums: StepSums


class StateWrite(NamedTuple):
    """Hold a change of a velocity that was not done by an update, nor by a reset or a load on record.

    Attributes
    ----------
    step : int
        The number of updates done before the change was found.
    group, array : int
        The numbers of the group and of the array.
    left, found : float
        The norm of the velocity after the last recorded update, and before the next one.
    inside : bool
        Whether the velocity that was found is the one that the rule computes from a zero velocity. If it is, the loop
        set the velocity to zero in its update.
    """

    step: int
    group: int
    array: int
    left: float
    found: float
    inside: bool = False


class Start(NamedTuple):
    """Hold the start of a trace, or its continuation after a load.

    Attributes
    ----------
    step : int
        The number of updates done before it.
    at_rest : bool
        Whether the velocity is zero though updates were done before, and no reset is on record.
    """

    step: int
    at_rest: bool


EMPTY = StepSums(*[float("nan")] * len(StepSums._fields))
"""The sums of a group if none of its arrays had a gradient."""


class Series:
    """Hold the recorded steps of one group, or of all groups as one, in read-only arrays with an entry for each step.

    Attributes
    ----------
    steps : ndarray of int
        The number of each update, from 0.
    """

    def __init__(self, steps: Sequence[int], rows: Sequence[Row]) -> None:
        self.steps = np.array(steps, np.int64)
        self.steps.flags.writeable = False
        self._rows = np.array([(row.lr, row.momentum, *row.sums) for row in rows], np.float64)
        self._rows = self._rows.reshape(len(rows), 2 + len(StepSums._fields))

    def __len__(self) -> int:
        return len(self.steps)

    def _column(self, name: str) -> Floats:
        return _read_only(self._rows[:, 2 + StepSums._fields.index(name)])

    def _norm(self, name: str) -> Floats:
        return _read_only(np.sqrt(self._column(name)))

    @property
    def present(self) -> Bools:
        """Whether an array had a gradient."""
        return np.asarray(~np.isnan(self._rows[:, 2:]).all(axis=1))

    @property
    def lr(self) -> Floats:
        """The learning rate; NaN if groups differ."""
        return _read_only(self._rows[:, 0])

    @property
    def momentum(self) -> Floats:
        """The momentum; NaN if groups differ."""
        return _read_only(self._rows[:, 1])

    @property
    def velocity(self) -> Floats:
        """The norm ‖v‖ before the step; 0 for rules that keep no velocity."""
        return self._norm("velocity")

    @property
    def gradient(self) -> Floats:
        """The norm ‖g‖ of the gradient that the step got, before weight decay or clipping."""
        return self._norm("gradient")

    @property
    def cosine(self) -> Floats:
        """The cosine v·g / (‖v‖‖g‖); below 0 velocity and gradient oppose each other, NaN if one of them is 0."""
        with np.errstate(all="ignore"):
            return _read_only(np.clip(self._column("along") / (self.velocity * self.gradient), -1.0, 1.0))

    @property
    def step(self) -> Floats:
        """The norm ‖p⁺ − p‖ of the step."""
        return self._norm("step")

    @property
    def slope(self) -> Floats:
        """The change g·(p⁺ − p) of the objective, to first order; above 0 the step goes up the gradient."""
        return self._column("slope")

    @property
    def left(self) -> Floats:
        """The norm ‖v⁺‖ after the step."""
        return self._norm("left")

    @property
    def size(self) -> Floats:
        """The norm ‖p‖ of the parameters before the step."""
        return self._norm("size")


def combine(all_sums: Sequence[StepSums]) -> StepSums:
    """Return the sums over the elements of several arrays, added in the order of the arrays."""
    found = EMPTY
    for sums in all_sums:
        found = StepSums(*(a + b for a, b in zip(found, sums))) if found is not EMPTY else sums
    return found


def _read_only(values: Floats) -> Floats:
    found = values.copy()
    found.flags.writeable = False
    return found


TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}
"""The relative difference in Σv² that another order of operations in a user's own loop may cause."""


class Trace:
    """Record ‖v‖, ‖g‖, cos∠(v, g) and ‖p⁺ − p‖ in each step, of all arrays as one vector and of each group.

    :meth:`fastmomentum.Momentum.trace` returns a trace that the optimiser fills. The constructor makes a trace for a
    loop of your own on one parameter array, with :func:`fastmomentum.step` or any other code for the update: call
    :meth:`record` before each update. :func:`fastmomentum.diagnose` finds the troubles of the run.

    Parameters
    ----------
    rule : str or Rule
        The rule of the loop.
    steps : int
        The number of updates done before the loop, if it continues a run.
    **settings
        The options of :func:`fastmomentum.step` that the loop uses, such as weight_decay.

    Attributes
    ----------
    every : int
        Every n-th step is recorded.
    groups : list of Series
        The record of each group. The record of all arrays as one vector has the same attributes, on the trace itself.
    written : list of StateWrite
        The changes of velocities that were not done by an update, nor by a reset or a load on record.
    starts : list of Start
        The start of the trace, and its continuation after each load.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or a setting has a wrong type or value.

    Notes
    -----
    For a rule that keeps the previous position q (heavy_ball), v is q − p. For a rule that keeps several velocities
    (aggmo), v is their sum; its step uses their mean.

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
        self._engine: Engine | None = None
        self._from_zero: StepSums | None = None  # the sums of the last recorded step, had its velocity been zero
        self._end: Callable[[], None] | None = None

    def record(self, param: Any, state: Any, grad: Any, *, lr: float = 0.0, momentum: float = 0.9) -> None:
        """Record the update that follows, before it is done; the arrays are only read.

        Parameters
        ----------
        param, state, grad, lr, momentum
            The arguments of the update, as for :func:`fastmomentum.step`. If `grad` is None, no update is recorded: the
            state is only compared with the state that the last update should have left. Do this after the loop.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type or value.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> trace = fm.Trace(rule="classical")
        >>> trace.record(np.zeros(2), np.array([3.0, 4.0]), np.ones(2), lr=0.5)
        >>> trace.velocity
        array([5.])
        """
        like = checks.array("param", param, write=False, dense=True)
        param, *slots = map(flat_view, (like, *check_state(self.update, state, like, dense=True)))
        arrays = (param, *(slot.copy() for slot in slots))
        chosen = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if name in self.update.parameters}
        _, given = resolve_options(**self._settings, lr=lr, momentum=momentum)
        if STEP in self.update.parameters:
            chosen[STEP] = float(self._done + 1)
        row = hyper_row(self.update, given | chosen, param.dtype)
        g = np.zeros_like(param)
        if grad is not None:
            g = flat_view(checks.array("grad", read("grad", grad), like=like, write=False, dense=True))
        measure = reductions.measure(self.update)
        sums, tolerance = measure(arrays, g, row), TOLERANCE[param.dtype]
        self._compare({0: sums}, [0], self._from_zero, tolerance)
        if grad is None:
            return
        if not self.starts:
            self._begin(self._done, self._is_at_rest(sums, momentum))
        initial = [param.copy() if kind == "param" else np.zeros_like(param) for _, kind in self.update.state]
        self._from_zero = measure((param, *initial), g, row)
        self._add(self._done, [Row(float(lr), float(momentum), sums)], {0: sums})
        self._done += 1

    def reset(self, reason: str) -> None:
        """Record that the loop has reset its state on purpose.

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

    def _is_at_rest(self, sums: StepSums, momentum: float) -> bool:
        return keeps_velocity(self.update) and sums.velocity == 0 < sums.gradient and momentum > 0

    def _compare(
        self, all_sums: Mapping[int, StepSums], group_of: Sequence[int], from_zero: StepSums | None, tolerance: float
    ) -> None:
        """Record the velocities that differ from those that the last step left, if the last step was recorded."""
        for i, sums in all_sums.items():
            left, found = self._left.get(i), sums.velocity
            if left is None or _near(found, left.left, tolerance * max(left.left, left.velocity)):
                continue
            inside = from_zero is not None and _near(found, from_zero.left, tolerance * from_zero.left)
            norms = float(np.sqrt(left.left)), float(np.sqrt(found))
            self.written.append(StateWrite(self._done, group_of[i], i, *norms, inside))

    @property
    def groups(self) -> list[Series]:
        """The record of each group."""
        return [Series(self._steps, rows) for rows in zip(*self._rows)] if self._rows else [Series([], [])]

    @property
    def updates(self) -> list[tuple[Rule, dict[str, Any]]]:
        """For each group its rule, and the settings except lr and momentum that the theory takes.

        Limits on gradients (max_norm, clip_value) are left out, as gradients near a minimum are below them.
        """
        left_out = ("rule", "lr", "momentum", "max_norm", "clip_norm", "clip_value", "correct", "restart")
        chosen = [{name: value for name, value in group.items() if name not in left_out} for group in self._groups]
        return [(find(group["rule"]), options) for group, options in zip(self._groups, chosen)]

    @property
    def overall(self) -> Series:
        """The record of all arrays as one vector; its attributes are attributes of the trace, too."""
        return Series(self._steps, [_of_all(rows) for rows in self._rows])

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        if name == "steps" or isinstance(getattr(Series, name, None), property):
            values: npt.NDArray[Any] = getattr(self.overall, name)
            return values
        raise AttributeError(f"a trace has no {name!r}")

    @property
    def resets(self) -> list[Reset]:
        """The resets since the trace began."""
        begin = self.starts[0].step if self.starts else 0
        return [reset for reset in self._all_resets if reset.step >= begin]

    @property
    def _all_resets(self) -> list[Reset]:
        return self._resets if self._engine is None else [Reset(*reset) for reset in self._engine.state.resets]

    def stop(self) -> None:
        """Stop recording; the trace keeps what it has recorded.

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
        return {**self.__dict__, "_resets": self.resets, "_engine": None, "_end": None}  # a copy records no more

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
    """Return the row of all groups as one."""
    lr, momentum = ({getattr(row, name) for row in rows} for name in ("lr", "momentum"))
    sums = [row.sums for row in rows if row.sums is not EMPTY]
    one = [values.pop() if len(values) == 1 else float("nan") for values in (lr, momentum)]
    return Row(one[0], one[1], combine(sums))


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance or found == expected or (found != found and expected != expected)
