"""Putting state to rest, on purpose and on the record: all of it, a group's, an array's or that of some rows."""

from typing import Any, NamedTuple

from fastmomentum import checks
from fastmomentum.engine import Engine
from fastmomentum.holdings import ALL_ROWS
from fastmomentum.ranges import FINITE
from fastmomentum.restarts import FUNCTION, WHOLE
from fastmomentum.turns import free


class Reset(NamedTuple):
    """One reset on the record: the number of updates done before it, why, and of what."""

    step: int
    reason: str
    scope: str


class Scope(NamedTuple):
    """What is reset: the numbers of the arrays, which of their rows, and how that is said."""

    which: list[int]
    rows: slice
    said: str


class Resettable:
    """What :class:`fastmomentum.Momentum` has for putting its state to rest."""

    _engine: Engine

    def reset(
        self,
        reason: str,
        *,
        group: int | None = None,
        array: int | None = None,
        rows: int | slice | tuple[int, int] | None = None,
    ) -> None:
        """v ← 0, q ← p, whatever rest is to the rule's state; the next step is a first step again.

        Parameters
        ----------
        reason : str
            Why; kept in :attr:`resets` with the number of updates done.
        group, array : int, optional
            The number of a group, or of an array, flat and in the order of all groups: only its state is reset.
        rows : int, slice or (int, int), optional
            Only these entries along the array's first axis, a range without a step, as new rows of an embedding need.
            Where there is one array `array` may be left out. A range is at rest, but has no first step of its own, as
            the array has had it: with dampening, the rows' first velocity is dampened.

        Raises
        ------
        TypeError, ValueError
            If no reason is given, or there is no such group, array or range; nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum([np.ones(2), np.ones(3)], lr=0.1)
        >>> opt.step([np.ones(2), np.ones(3)])
        >>> opt.reset("a new word", array=1, rows=2)
        >>> opt.velocity
        [array([1., 1.]), array([1., 1., 0.])]
        >>> opt.reset("the data changed")
        >>> opt.resets[-1]
        Reset(step=1, reason='the data changed', scope='all')
        """
        if not isinstance(reason, str):
            raise TypeError(f"reason: expected a str that says why; got {checks.shown(reason)}")
        if not reason.strip():
            raise ValueError("reason: expected a str that says why; got an empty one")
        engine = self._engine
        which, part, said = _scope(engine, group, array, rows)
        with free(engine.lock):
            engine.reset(which, part, Reset(engine.steps, str(reason), said))

    @property
    def restart(self) -> str | int | None:
        """The restart scheme.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> fm.Momentum(np.ones(2), lr=0.1, restart="gradient").restart
        'gradient'
        """
        return self._engine.restart

    def report(self, value: float) -> bool:
        """Tell the objective at the parameters as they are; with ``restart="function"`` a rise resets the whole.

        To be called before the gradient of the next update is taken.

        Parameters
        ----------
        value : float
            The objective.

        Returns
        -------
        bool
            Whether it had risen since the last report, and state is at rest now.

        Raises
        ------
        TypeError, ValueError
            If it is no finite number, or the restart scheme is another.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([1.0])
        >>> opt = fm.Momentum(p, lr=1.0, momentum=0.9, restart="function")
        >>> for _ in range(4):
        ...     if opt.report(float(p[0] ** 2)):
        ...         print(opt.resets[-1])
        ...     opt.step(p.copy())
        Reset(step=2, reason='function scheme: the objective rose from 0 to 0.81', scope='all')
        """
        engine = self._engine
        value = checks.number("value", value, FINITE)
        if engine.restart != FUNCTION:
            raise ValueError(
                f"restart: expected 'function' of the optimiser that is told values; got {engine.restart!r}"
            )
        with free(engine.lock):
            reason = f"function scheme: the objective rose from {engine.value or 0.0:.6g} to {value:.6g}"
            return engine.report(value, Reset(engine.steps, reason, WHOLE))

    @property
    def resets(self) -> list[Reset]:
        """All resets: (step, reason, scope).

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.Momentum(np.ones((3, 2)), lr=0.1)
        >>> opt.reset("a new row", rows=1)
        >>> opt.resets
        [Reset(step=0, reason='a new row', scope='array 0, rows 1:2')]
        """
        return [Reset(*reset) for reset in self._engine.resets]


def _scope(engine: Engine, group: Any, array: Any, rows: Any) -> Scope:
    """What these arguments of reset() mean."""
    count = len(engine.group_of)
    if rows is not None and array is None and count == 1:
        array = 0
    if rows is not None and (array is None or group is not None):
        raise TypeError("rows: expected with array, the number of the one array whose rows they are, and without group")
    if group is not None and array is not None:
        raise TypeError("group, array: expected one of them; got both")
    if group is not None:
        number = _numbered("group", group, len(engine.groups))
        return Scope([i for i, mine in enumerate(engine.group_of) if mine == number], ALL_ROWS, f"group {number}")
    if array is None:
        return Scope(list(range(count)), ALL_ROWS, WHOLE)
    i = _numbered("array", array, count)
    if rows is None:
        return Scope([i], ALL_ROWS, f"array {i}")
    shape = engine.held.params[i].shape
    part = _range(rows, shape)
    whole = part == slice(0, shape[0])
    return Scope([i], ALL_ROWS if whole else part, f"array {i}, rows {part.start}:{part.stop}")


def _numbered(name: str, value: Any, count: int) -> int:
    number = checks.whole(name, value)
    if number >= count:
        raise ValueError(f"{name}: expected a number below {count}, as there are so many; got {number}")
    return number


def _range(rows: Any, shape: tuple[int, ...]) -> slice:
    """The rows as a slice from 0 ≤ start ≤ stop ≤ the length, if there are such."""
    if not shape:
        raise ValueError("rows: expected an array that has a first axis; got one of no dimensions")
    ends = (rows.start, rows.stop, rows.step) if isinstance(rows, slice) else rows
    if isinstance(rows, tuple) and len(rows) == 2:
        ends = (*rows, None)
    if not isinstance(ends, tuple):
        first = checks.whole("rows", rows)
        ends = (first, first + 1, None)
    if len(ends) != 3 or ends[2] not in (None, 1):
        raise ValueError(f"rows: expected a range (start, stop), or a slice without a step; got {rows!r}")
    start = 0 if ends[0] is None else checks.whole("rows", ends[0])
    stop = shape[0] if ends[1] is None else checks.whole("rows", ends[1])
    if not start <= stop <= shape[0]:
        raise ValueError(f"rows: expected 0 <= start <= stop <= {shape[0]}, the array's length; got {start}:{stop}")
    return slice(start, stop)
