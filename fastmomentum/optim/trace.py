"""The class Trace: a record of the steps of a run, which an optimiser or a user's own loop fills."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.backends.base import StepCounter
from fastmomentum.backends.host_arrays import flat_view, read
from fastmomentum.backends.numpy.reductions import measure
from fastmomentum.backends.step_sums import StepSums, keeps_velocity
from fastmomentum.optim.restart import Reset
from fastmomentum.optim.series import Row, Series, of_all
from fastmomentum.optim.state import check_state
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import STEP, hyper_row
from fastmomentum.rules.registry import find


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
    """Hold the start of a trace, or its continuation after a load or a gap.

    Attributes
    ----------
    step : int
        The number of updates done before it.
    at_rest : bool
        Whether the velocity is zero though updates were done before, and no reset is on record.
    """

    step: int
    at_rest: bool


class Known(NamedTuple):
    """Hold what a trace knows of the run after the last update that it has seen.

    It is replaced as a whole, in one assignment that no signal interrupts.

    Attributes
    ----------
    step : int
        The number of updates done.
    jumps, changes : int
        The number of times that the number of updates was set, and that the state was changed other than by an update.
    left : mapping of int to StepSums
        The sums of the last update of each array whose state has not been changed since.
    from_zero : StepSums or None
        The sums of the last update, had its velocity been zero.
    """

    step: int
    jumps: int = 0
    changes: int = 0
    left: Mapping[int, StepSums] = {}
    from_zero: StepSums | None = None


class Run(NamedTuple):
    """Hold what a trace reads of the optimiser that fills it; nothing here refers to the optimiser.

    Attributes
    ----------
    counter : StepCounter
        The optimiser's count of updates.
    resets : sequence of tuple
        The optimiser's record of resets.
    end : callable
        Function of the trace that ends the recording.
    """

    counter: StepCounter
    resets: Sequence[tuple[int, str, str]]
    end: "Callable[[Trace], None]"


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
        The start of the trace, and its continuation after each load and each gap.

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
        self._first = checks.integer("steps", steps)
        self._known, self._rows, self._steps = Known(self._first), list[tuple[Row, ...]](), list[int]()
        self._resets, self._gaps = list[Reset](), list[int]()
        self._run: Run | None = None

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
            chosen[STEP] = float(self._known.step + 1)
        row = hyper_row(self.update, given | chosen, param.dtype)
        g = np.zeros_like(param)
        if grad is not None:
            g = flat_view(checks.array("grad", read("grad", grad), like=like, write=False, dense=True))
        sums, tolerance = measure(self.update, arrays, g, row), TOLERANCE[param.dtype]
        step = self._known.step
        self._compare(step, {0: sums}, self._known.left, [0], tolerance)
        if grad is None:
            return
        if not self.starts:
            self._begin(step, self._is_at_rest(sums, momentum))
        initial = [param.copy() if kind == "param" else np.zeros_like(param) for _, kind in self.update.state]
        known = Known(step + 1, left={0: sums}, from_zero=measure(self.update, (param, *initial), g, row))
        self._add([Row(float(lr), float(momentum), sums)], known)

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
        self._known = self._known._replace(left={}, from_zero=None)
        self._resets.append(Reset(self._known.step, reason, "all"))

    def _add(self, rows: Sequence[Row] | None, known: Known) -> None:
        """Record the rows of an update, if it has any, and what is known after it.

        A record of the same step was interrupted before the trace knew of it; the new one takes its place.
        """
        if rows is not None:
            if known.step - 1 == self._last_step:
                self._steps.pop()
            del self._rows[len(self._steps) :]  # a signal may have come between the two lists
            self._rows.append(tuple(rows))
            self._steps.append(known.step - 1)
        self._known = known

    @property
    def _last_step(self) -> int | None:
        return self._steps[-1] if self._steps else None

    def _is_due(self, step: int) -> bool:
        """Return whether the update of this number is to be recorded."""
        return (step - self._first) % self.every == 0

    def _open_gaps(self) -> list[int]:
        """Return the updates that were to be recorded, but were not, after the last one that the trace knows of."""
        run, known = self._run, self._known
        if run is None or run.counter.jumps != known.jumps:
            return []
        missed = range(known.step, run.counter.steps)
        return [step for step in missed if self._is_due(step) and step != self._last_step]

    @property
    def gaps(self) -> list[int]:
        """The numbers of the updates that were done but not recorded, as a signal's handler raised in between.

        The state is not compared across a gap, as the trace does not know what the update left.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.Trace().gaps
        []
        """
        return sorted({*self._gaps, *self._open_gaps()})

    def _begin(self, step: int, at_rest: bool) -> None:
        on_purpose = any(reset.step == step for reset in self._all_resets)
        self.starts.append(Start(step, at_rest and step > 0 and not on_purpose))

    def _is_at_rest(self, sums: StepSums, momentum: float) -> bool:
        return keeps_velocity(self.update) and sums.velocity == 0 < sums.gradient and momentum > 0

    def _compare(
        self,
        step: int,
        all_sums: Mapping[int, StepSums],
        left_sums: Mapping[int, StepSums],
        group_of: Sequence[int],
        tolerance: float = 0.0,
    ) -> None:
        """Record the velocities before this step that differ from those that the last update has left."""
        from_zero = self._known.from_zero
        for i, sums in all_sums.items():
            left, found = left_sums.get(i), sums.velocity
            if left is None or _near(found, left.left, tolerance * max(left.left, left.velocity)):
                continue
            inside = from_zero is not None and _near(found, from_zero.left, tolerance * from_zero.left)
            norms = float(np.sqrt(left.left)), float(np.sqrt(found))
            self.written.append(StateWrite(step, group_of[i], i, *norms, inside))

    @property
    def groups(self) -> list[Series]:
        """The record of each group."""
        steps, all_rows = self._columns
        return [Series(steps, rows) for rows in zip(*all_rows)] if all_rows else [Series([], [])]

    @property
    def _columns(self) -> tuple[list[int], list[tuple[Row, ...]]]:
        return self._steps, self._rows[: len(self._steps)]

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
        steps, all_rows = self._columns
        return Series(steps, [of_all(rows) for rows in all_rows])

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
        return self._resets if self._run is None else [Reset(*reset) for reset in self._run.resets]

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
        if self._run is not None:
            self._run.end(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resets": self.resets, "_gaps": self.gaps, "_run": None}  # a copy records no more

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        gaps = f", {len(self.gaps)} more not recorded" if self.gaps else ""
        if not self._steps:
            return f"Trace of rule {self.update}: no step yet{gaps}"
        now, first, last = self.overall, self._steps[0], self._last_step
        lines = [f"Trace of rule {self.update}: {len(self)} steps, {first} to {last}, {len(self.resets)} resets{gaps}"]
        for name in ("gradient", "velocity", "step", "cosine"):
            values = getattr(now, name)
            lines.append(f"  {name:<8} first {values[0]:.3g}, last {values[-1]:.3g}")
        return "\n".join(lines)


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance or found == expected or (found != found and expected != expected)
