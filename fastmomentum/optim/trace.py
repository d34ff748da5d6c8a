"""The record of a run's steps, kept by an optimiser or by a loop of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.backends.numpy import reductions
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.restart import Reset
from fastmomentum.optim.state import check_state
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find

Floats = npt.NDArray[np.float64]


class Row(NamedTuple):
    """A recorded step of one group: its settings, and the sums of its arrays together."""

    lr: float
    momentum: float
    sums: StepSums


class StateWrite(NamedTuple):
    """A write to a velocity between two steps: a step did not find it as the step before had left it.

    Attributes
    ----------
    step : int
        The number of updates done before the write was found.
    group, array : int
        The numbers of the group and of the array.
    left, found : float
        The norm of the velocity, as the update before left it, and as the step found it.
    inside : bool
        Whether the found velocity is what the rule makes of a zero velocity, so that it was zeroed within the update.
    """

    step: int
    group: int
    array: int
    left: float
    found: float
    inside: bool = False


class Start(NamedTuple):
    """The start of a trace, or its continuation after a load.

    Attributes
    ----------
    step : int
        The number of updates done before it.
    at_rest : bool
        Whether the velocity is zero though it should not be.
    """

    step: int
    at_rest: bool


EMPTY = StepSums(*[float("nan")] * len(StepSums._fields))
"""The sums of a group none of whose arrays had a gradient."""


class Series:
    """The recorded steps of one group, or of all arrays together, as read-only arrays with one entry for each step.

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
        return _fixed(self._rows[:, 2 + StepSums._fields.index(name)])

    def _norm(self, name: str) -> Floats:
        return _fixed(np.sqrt(self._column(name)))

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether any of the arrays had a gradient."""
        return np.asarray(~np.isnan(self._rows[:, 2:]).all(axis=1))

    @property
    def lr(self) -> Floats:
        """The learning rate; NaN if groups differ."""
        return _fixed(self._rows[:, 0])

    @property
    def momentum(self) -> Floats:
        """The momentum; NaN if groups differ."""
        return _fixed(self._rows[:, 1])

    @property
    def velocity(self) -> Floats:
        """The norm ‖v‖ before the step; 0 for rules that keep no velocity."""
        return self._norm("velocity")

    @property
    def gradient(self) -> Floats:
        """The norm ‖g‖ of the gradient as given."""
        return self._norm("gradient")

    @property
    def cosine(self) -> Floats:
        """The cosine v·g / (‖v‖‖g‖); below 0 velocity and gradient oppose each other, NaN if one of them is 0."""
        with np.errstate(all="ignore"):
            return _fixed(np.clip(self._column("along") / (self.velocity * self.gradient), -1.0, 1.0))

    @property
    def step(self) -> Floats:
        """The norm ‖p⁺ − p‖ of the step."""
        return self._norm("step")

    @property
    def slope(self) -> Floats:
        """The change g·(p⁺ − p) of the function, to first order; above 0 the step goes uphill."""
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
    """Return the sums of several arrays as if they were one; they are added in order."""
    found = EMPTY
    for sums in all_sums:
        found = StepSums(*(a + b for a, b in zip(found, sums))) if found is not EMPTY else sums
    return found


def _fixed(values: Floats) -> Floats:
    found = values.copy()
    found.flags.writeable = False
    return found


TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}
"""The difference that another order of operations in a loop written by hand may make, relative to the squares."""


class Trace:
    """Records ‖v‖, ‖g‖, cos∠(v, g) and ‖p⁺ − p‖, step by step, of all arrays together and of each group.

    :meth:`fastmomentum.Momentum.trace` returns one that grows by itself. A trace made here is for a loop of the user's
    own, around :func:`fastmomentum.step` or anything else, on one parameter array, which calls :meth:`record` before
    each update. :func:`fastmomentum.diagnose` says in words what happened.

    Parameters
    ----------
    rule : str or Rule
        The rule of the loop.
    steps : int
        The number of updates done before, if the loop continues a run.
    **settings
        Other options of :func:`fastmomentum.step` that the loop's update has.

    Attributes
    ----------
    every : int
        Every n-th step is recorded.
    groups : list of Series
        The numbers of each group; those of all arrays together are attributes of the trace itself.
    written : list of StateWrite
        Writes to a velocity between two steps.
    starts : list of Start
        The start of the trace, and its continuation after each load.

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or a setting is refused.

    Notes
    -----
    The velocity of a rule that keeps the position before (heavy_ball) is q − p; for a rule that keeps several (aggmo)
    it is their sum, of which the step takes a fixed share.

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
        """Record the update that is to come; nothing is written.

        Parameters
        ----------
        param, state, grad, lr, momentum
            The arguments of the update, as for :func:`fastmomentum.step`. With None as gradient, after the loop for
            example, only the state that the last update left is compared.

        Raises
        ------
        TypeError, ValueError
            If an argument is refused.

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
        """Record the velocities that are not as the last step left them, if that is known."""
        for i, sums in all_sums.items():
            left, found = self._left.get(i), sums.velocity
            if left is None or _near(found, left.left, tolerance * max(left.left, left.velocity)):
                continue
            inside = from_zero is not None and _near(found, from_zero.left, tolerance * from_zero.left)
            norms = float(np.sqrt(left.left)), float(np.sqrt(found))
            self.written.append(StateWrite(self._done, group_of[i], i, *norms, inside))

    @property
    def groups(self) -> list[Series]:
        """The recorded numbers of each group."""
        return [Series(self._steps, rows) for rows in zip(*self._rows)] if self._rows else [Series([], [])]

    @property
    def updates(self) -> list[tuple[Rule, dict[str, Any]]]:
        """For each group its rule, and the settings beside lr and momentum that the theory takes.

        A limit on gradients is not among them, as gradients near a minimum are within it.
        """
        own = ("rule", "lr", "momentum", "max_norm", "clip_value", "correct", "restart")
        chosen = [{name: value for name, value in group.items() if name not in own} for group in self._groups]
        return [(find(group["rule"]), options) for group, options in zip(self._groups, chosen)]

    @property
    def overall(self) -> Series:
        """The numbers of all arrays together, which are attributes of the trace as well."""
        return Series(self._steps, [_of_all(rows) for rows in self._rows])

    def __getattr__(self, name: str) -> Any:
        if name == "steps" or isinstance(getattr(Series, name, None), property):
            return getattr(self.overall, name)
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
        """Stop recording; the record stays.

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
    """Return the row of all groups together."""
    lr, momentum = ({getattr(row, name) for row in rows} for name in ("lr", "momentum"))
    sums = [row.sums for row in rows if row.sums is not EMPTY]
    one = [values.pop() if len(values) == 1 else float("nan") for values in (lr, momentum)]
    return Row(one[0], one[1], combine(sums))


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance or found == expected or (found != found and expected != expected)
