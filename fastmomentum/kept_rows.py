"""What :class:`fastmomentum.SparseRows` keeps: put in place as a whole, saved, and taken up again."""

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.lapses import Array, Ints, Prepared, prepare
from fastmomentum.outline import check_mapping, refuse
from fastmomentum.rules import find
from fastmomentum.turns import free

SCHEMA = 1


class Run(NamedTuple):
    """How far rows have come. What changes is put in place as a whole, so that a signal finds it done or not begun.

    Attributes
    ----------
    now : Prepared
        What a step is.
    state : tuple of ndarray
        The rule's state slots.
    seen : ndarray of int64
        For each row the number of updates that are in it.
    steps : int
        Updates done.
    due : tuple, optional
        Rows, and what is to be written there of (param, *state).
    """

    now: Prepared
    state: tuple[Array, ...]
    seen: Ints
    steps: int = 0
    due: tuple[Ints, Sequence[Array]] | None = None


class KeptRows:
    """What SparseRows has for going on after signals, copies and saved states."""

    def __init__(self, param: Array, now: Prepared) -> None:
        state = [param.copy() if rest == "param" else np.zeros_like(param) for _, rest in now.update.state]
        self.param, self._run, self._lock = param, Run(now, tuple(state), np.zeros(len(param), np.int64)), Lock()

    @property
    def state(self) -> tuple[Array, ...]:
        """The rule's state slots, from rest, like `param`; behind as its rows are."""
        return self._run.state

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self._run.steps

    def state_dict(self) -> dict[str, Any]:
        """All that rows need to go on with the same bits, beside the table as it is now; it shares no memory.

        Returns
        -------
        dict
            schema (1); rule and made_of, which tell the rule from others; settings, those beside the rule; steps, the
            updates done; seen, an array of how many of them are in each row; state, a list of the state slots. Table
            and state lack what a row has not seen: flush() first, where others than SparseRows shall read them.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((3, 2))
        >>> opt = fm.SparseRows(table, lr=0.5, momentum=0.5)
        >>> opt.step([0], np.array([[1.0, 1.0]]))
        >>> again = fm.SparseRows(table.copy(), lr=0.5)
        >>> again.load_state_dict(opt.state_dict())
        >>> again.steps, (again.read([0, 1]) == opt.read([0, 1])).all()
        (1, np.True_)
        """
        with free(self._lock):
            self._finish()
            run, rule = self._run, find(self._run.now.settings["rule"])
            return {
                "schema": SCHEMA,
                "rule": rule.name or str(rule),
                "made_of": rule.description,
                "settings": {name: value for name, value in run.now.settings.items() if name != "rule"},
                "steps": run.steps,
                "seen": run.seen.copy(),
                "state": [slot.copy() for slot in run.state],
            }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, on the table of that moment, which is left as it is.

        Raises
        ------
        TypeError, ValueError
            If it does not fit the table and the rule; all differences are listed, and nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt, again = (fm.SparseRows(np.ones((2, 1)), lr=0.5) for _ in range(2))
        >>> opt.step([0], np.array([[1.0]]))
        >>> again.load_state_dict(opt.state_dict())  # on a table that is like the other one
        >>> again.steps
        1
        """
        check_fits(saved, like=self.state_dict())
        now = prepare({**saved["settings"], "rule": self._run.now.settings["rule"]}, self.param.dtype)
        state, seen = tuple(np.array(slot, order="C") for slot in saved["state"]), np.array(saved["seen"])
        with free(self._lock):
            self._run = Run(now, state, seen, saved["steps"])

    def _write(self, rows: Ints, arrays: Sequence[Array], steps: int) -> None:
        """Write this to the rows, each given once, of (param, *state), which then have seen so many steps."""
        for name, array in zip(("param", *self._run.now.update.slots), (self.param, *self.state), strict=True):
            checks.array(name, array)  # which its owner may have made read-only since
        self._run = self._run._replace(steps=steps, due=(rows, arrays))
        self._finish()

    def _finish(self) -> None:
        """Write what is due, once more where a signal has interrupted that."""
        if self._run.due is not None:
            rows, arrays = self._run.due
            for array, values in zip((self.param, *self.state), arrays, strict=True):
                array[rows] = values
            self._run.seen[rows] = self.steps
            self._run = self._run._replace(due=None)

    def __getstate__(self) -> dict[str, Any]:
        with free(self._lock):
            self._finish()
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._lock = Lock()


def check_fits(saved: Any, like: Mapping[str, Any]) -> None:
    """Refuse a saved state that does not fit an optimiser which would save `like`.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If it does not fit; the message lists all differences.
    """
    check_mapping(saved)
    listed = [f"{key}: missing" for key in like if key not in saved]
    listed += [f"{key}: unknown" for key in saved if key not in like]
    refuse(listed or _differences(saved, like), "these rows")


def _differences(saved: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[str]:
    for key in ("schema", "rule", "made_of"):
        if saved[key] != like[key]:
            yield f"{key}: expected {like[key]!r}; got {checks.shown(saved[key])}"
    if not isinstance(saved["settings"], Mapping) or "rule" in saved["settings"]:
        yield f"settings: expected a dict of those beside the rule; got {checks.shown(saved['settings'])}"
    steps = saved["steps"]
    if type(steps) is not int or not 0 <= steps <= 2**62:
        yield f"steps: expected a whole number from 0 to 2**62; got {checks.shown(steps)}"
        steps = 2**62
    for key in ("seen", "state"):
        ours, theirs = _form(like[key]), _form(saved[key])
        if ours != theirs:
            yield f"{key}: expected {ours}; got {theirs}"
        elif key == "seen" and not ((saved[key] >= 0) & (saved[key] <= steps)).all():
            yield f"seen: expected numbers from 0 to steps; got {saved[key].min()} to {saved[key].max()}"


def _form(value: Any) -> str:
    """dtype and shape of an array, or of each in a list."""
    return f"[{', '.join(map(checks.shown, value))}]" if isinstance(value, list) else checks.shown(value)
