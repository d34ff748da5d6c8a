"""A light record of a run's steps, kept by an optimiser or by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends.motion import Motion, keeps_velocity
from fastmomentum.engine import Engine
from fastmomentum.records import Update
from fastmomentum.resets import Reset
from fastmomentum.rules import find
from fastmomentum.settings import settle
from fastmomentum.tracks import NOTHING, Row, Start, Track, Written, together

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

    def __init__(self, rule: str | Update = "pytorch", *, steps: int = 0, **settings: Any) -> None:
        self._settings = {"rule": rule, **settings}
        self.update, _ = settle(**self._settings, lr=0.0, momentum=0.0)
        self._groups: Sequence[Mapping[str, Any]] = [self._settings]
        self.every, self.written, self.starts = 1, list[Written](), list[Start]()
        self._done, self._rows, self._steps = checks.whole("steps", steps), list[tuple[Row, ...]](), list[int]()
        self._resets, self._left = list[Reset](), dict[int, Motion]()
        self._told_by: Engine | None = None
        self._rested: Motion | None = None
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
        arrays = (param, *(slot.copy() for slot in checks.state(self.update, state, param)))
        chosen = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if name in self.update.parameters}
        _, given = settle(**self._settings, lr=lr, momentum=momentum)
        row = checks.hyper(self.update, given | chosen, param.dtype)
        g = np.zeros_like(param) if grad is None else checks.array("grad", grad, like=param, write=False)
        look = backends.look(self.update)
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

    def _add(self, step: int, rows: Sequence[Row], left: Mapping[int, Motion]) -> None:
        self._steps.append(step)
        self._rows.append(tuple(rows))
        self._left.update(left)

    def _begin(self, step: int, at_rest: bool) -> None:
        on_purpose = any(reset.step == step for reset in self._all_resets)
        self.starts.append(Start(step, at_rest and step > 0 and not on_purpose))

    def _is_at_rest(self, motion: Motion, momentum: float) -> bool:
        return keeps_velocity(self.update) and motion.velocity == 0 < motion.gradient and momentum > 0

    def _compare(
        self, motions: Mapping[int, Motion], group_of: Sequence[int], rested: Motion | None, tolerance: float
    ) -> None:
        """Note which velocities are not as they were left, where that is known."""
        for i, motion in motions.items():
            left, found = self._left.get(i), motion.velocity
            if left is None or _near(found, left.left, tolerance * max(left.left, left.velocity)):
                continue
            inside = rested is not None and _near(found, rested.left, tolerance * rested.left)
            sizes = float(np.sqrt(left.left)), float(np.sqrt(found))
            self.written.append(Written(self._done, group_of[i], i, *sizes, inside))

    @property
    def groups(self) -> list[Track]:
        """See :class:`Trace`."""
        return [Track(self._steps, rows) for rows in zip(*self._rows)] if self._rows else [Track([], [])]

    @property
    def updates(self) -> list[tuple[Update, dict[str, Any]]]:
        """For each group the rule, and what the theory takes beside lr and momentum; a limit on gradients is no part.

        Near a minimum gradients are within it.
        """
        own = ("rule", "lr", "momentum", "max_norm", "clip_value", "correct", "restart")
        chosen = [{name: value for name, value in group.items() if name not in own} for group in self._groups]
        return [(find(group["rule"]), options) for group, options in zip(self._groups, chosen)]

    @property
    def overall(self) -> Track:
        """The numbers of all arrays together, which the trace itself has as well."""
        return Track(self._steps, [_of_all(rows) for rows in self._rows])

    def __getattr__(self, name: str) -> Any:
        if name == "steps" or isinstance(getattr(Track, name, None), property):
            return getattr(self.overall, name)
        raise AttributeError(f"a trace has no {name!r}")

    @property
    def resets(self) -> list[Reset]:
        """Those on the record since the trace began."""
        begin = self.starts[0].step if self.starts else 0
        return [reset for reset in self._all_resets if reset.step >= begin]

    @property
    def _all_resets(self) -> list[Reset]:
        return self._resets if self._told_by is None else [Reset(*reset) for reset in self._told_by.resets]

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
    motions = [row.motion for row in rows if row.motion is not NOTHING]
    one = [values.pop() if len(values) == 1 else float("nan") for values in (lr, momentum)]
    return Row(one[0], one[1], together(motions))


def _near(found: float, expected: float, tolerance: float) -> bool:
    return abs(found - expected) <= tolerance or found == expected or (found != found and expected != expected)
