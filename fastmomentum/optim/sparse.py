"""What steps without a gradient do to rows of a table: a power of the rule's own matrix at g = 0.

What :class:`fastmomentum.SparseRows` keeps: put in place as a whole, saved, and taken up again.

`SparseRows`: momentum for tables of which a step touches few rows, an embedding's say, as if all had been updated.

A row without a gradient does not rest: its velocity decays and carries it on. What so many steps do to it is a power of
the rule's own matrix at g = 0 (:mod:`fastmomentum.lapses`), so it can wait until somebody looks at the row.
"""

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.optim.checkpoint import check_mapping, refuse
from fastmomentum.optim.engine import one_caller
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find
from fastmomentum.theory.linear import Floats, LinearForm, powers

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class LinearRule(NamedTuple):
    """A rule with its stages, its hyper-parameters as a kernel takes them, and its matrix at g = 0 in these numbers.

    `settings` are what it was made from.
    """

    settings: Mapping[str, Any]
    update: Rule
    hyper: tuple[Any, ...]
    matrix: Floats

    def caught_up(self, arrays: Sequence[Array], missed: Ints) -> None:
        """Put the rows of (param, *state) where so many steps, a number for each row, bring them.

        What leaves the range of a dtype does so in silence, as in a kernel.
        """
        late = np.flatnonzero(missed)
        different, which = np.unique(missed[late], return_inverse=True)
        with np.errstate(all="ignore"):
            mantissa, exponent = powers(self.matrix, different)
            power = np.ldexp(mantissa, exponent[:, None, None])[which]
            now = power @ np.stack([array[late] for array in arrays], axis=1).astype(np.float64)
            for array, values in zip(arrays, np.moveaxis(now, 1, 0), strict=True):
                array[late] = values


def linearise(settings: Mapping[str, Any], dtype: np.dtype[Any]) -> LinearRule:
    """What these settings come to.

    Raises
    ------
    TypeError, ValueError
        If one is refused, or the rule is not linear.
    """
    for option in ("lookahead", "max_norm"):
        if option in settings:
            raise TypeError(f"{option}: expected of Momentum alone; got {settings[option]!r}")
    settings = {name: checks.unwrap_scalar(value) for name, value in settings.items()}
    update, given = resolve_options(**settings)
    hyper = hyper_row(update, given, dtype)
    size = 1 + len(update.state)
    try:
        forms = update.build()(*(LinearForm({key: 1.0}) for key in range(size)), LinearForm({}), *map(float, hyper))
    except TypeError as error:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}: {error}") from error
    matrix = np.array([[form[key] for key in range(size)] for form in forms])
    return LinearRule(settings, update, hyper, matrix)


def sum_duplicate_rows(rows: Ints, grads: Array) -> tuple[Ints, Array]:
    """The rows, each once, and their gradients; those of a row that comes again are added, in the order given."""
    touched, first, place = np.unique(rows, return_index=True, return_inverse=True)
    total, again = grads[first], np.ones(rows.size, bool)
    again[first] = False
    np.add.at(total, place[again], grads[again])
    return touched, total


def row_numbers(rows: Any, count: int) -> Ints:
    """`rows` as an array, if they are numbers of rows of a table that has so many.

    Raises
    ------
    TypeError, ValueError
        If they are not.
    """
    try:
        found = np.asarray(rows) if np.size(rows) else np.zeros(np.shape(rows), np.int64)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "iu" or isinstance(rows, np.ma.MaskedArray):
        raise TypeError(f"rows: expected a sequence of row numbers; got {checks.describe(rows)}")
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError(f"rows: expected numbers from 0 to {count - 1}; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


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

    now: LinearRule
    state: tuple[Array, ...]
    seen: Ints
    steps: int = 0
    due: tuple[Ints, Sequence[Array]] | None = None


class KeptRows:
    """What SparseRows has for going on after signals, copies and saved states."""

    def __init__(self, param: Array, now: LinearRule) -> None:
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
        with one_caller(self._lock):
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
        check_rows_fit(saved, like=self.state_dict())
        now = linearise({**saved["settings"], "rule": self._run.now.settings["rule"]}, self.param.dtype)
        state, seen = tuple(np.array(slot, order="C") for slot in saved["state"]), np.array(saved["seen"])
        with one_caller(self._lock):
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
        with one_caller(self._lock):
            self._finish()
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._lock = Lock()


def check_rows_fit(saved: Any, like: Mapping[str, Any]) -> None:
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
    refuse(listed or _row_differences(saved, like), "these rows")


def _row_differences(saved: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[str]:
    for key in ("schema", "rule", "made_of"):
        if saved[key] != like[key]:
            yield f"{key}: expected {like[key]!r}; got {checks.describe(saved[key])}"
    if not isinstance(saved["settings"], Mapping) or "rule" in saved["settings"]:
        yield f"settings: expected a dict of those beside the rule; got {checks.describe(saved['settings'])}"
    steps = saved["steps"]
    if type(steps) is not int or not 0 <= steps <= 2**62:
        yield f"steps: expected a whole number from 0 to 2**62; got {checks.describe(steps)}"
        steps = 2**62
    for key in ("seen", "state"):
        ours, theirs = _form(like[key]), _form(saved[key])
        if ours != theirs:
            yield f"{key}: expected {ours}; got {theirs}"
        elif key == "seen" and not ((saved[key] >= 0) & (saved[key] <= steps)).all():
            yield f"seen: expected numbers from 0 to steps; got {saved[key].min()} to {saved[key].max()}"


def _form(value: Any) -> str:
    """dtype and shape of an array, or of each in a list."""
    return f"[{', '.join(map(checks.describe, value))}]" if isinstance(value, list) else checks.describe(value)


BLOCK = 4096
"""Rows that a flush takes at a time, so that what it needs in double precision stays small beside the table."""


class SparseRows(KeptRows):
    """Rows that are touched get the rule's update; the others what the same rule does at g = 0, when they are needed.

    For "pytorch", k steps at g = 0 are v ← μ^k·v, p ← p − lr·v·μ(1 − μ^k)/(1 − μ). Every linear rule has such a form,
    and so have its Nesterov form, both decays and an exponential average of p: the k-th power of its matrix.

    Parameters
    ----------
    param : ndarray
        The table, of shape (rows, width), float32 or float64, C-contiguous; updated in place. A row may be behind:
        look at it by :meth:`read`, or after :meth:`flush`.
    lr : float
        Learning rate, ≥ 0; no function of the step.
    momentum : float
        μ in [0, 1].
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    backend : {None, "cpu", "numpy"}
        Where the rows that are touched are updated; None is "cpu".
    **settings
        What else the rule declares, and the options of :func:`fastmomentum.step` that are linear.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be served, or the rule is not linear.

    Notes
    -----
    It is the dense run of the raw formula (:func:`fastmomentum.step`), to rounding: a power is formed in double
    precision, where k steps would round k times; a row that every step touches has the same bits. Numbers must be
    finite. torch.optim.SparseAdam is lazy in another sense: there rows without gradient rest, which is another method.

    Reading or touching m rows costs O(m·width), and O(log k) products of small matrices for each k among them. Beside
    param and state it keeps eight bytes a row.

    What a signal (Ctrl-C) interrupts is done whole or not at all; :attr:`steps` tells which. A table may be half
    written then until the next call of any method, which writes the rest first.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> table = np.ones((3, 2))
    >>> opt = fm.SparseRows(table, lr=0.5, momentum=0.5)
    >>> opt.step([0], np.array([[1.0, 1.0]]))
    >>> opt.step([2], np.array([[1.0, 0.0]]))
    >>> opt.read([0])
    array([[0.25, 0.25]])
    >>> opt.flush()
    >>> table
    array([[0.25, 0.25], [1.  , 1.  ], [0.5 , 1.  ]])
    """

    def __init__(
        self,
        param: Array,
        *,
        lr: float,
        momentum: float = 0.9,
        rule: str | Rule = "pytorch",
        backend: str | None = None,
        **settings: Any,
    ) -> None:
        param = checks.array("param", param)
        if param.ndim != 2:
            raise ValueError(f"param: expected a table of rows, of two dimensions; got shape {param.shape}")
        self._backend = backends.choose(backend, ())
        if self._backend == "cuda":
            raise ValueError("backend: expected None, 'cpu' or 'numpy', as rows lie on the host; got 'cuda'")
        super().__init__(param, linearise({"rule": rule, "lr": lr, "momentum": momentum, **settings}, param.dtype))

    def read(self, rows: Sequence[int] | Array) -> Array:
        """A copy of these rows as they are now, of shape (len(rows), width): what a forward pass looks up.

        Raises
        ------
        TypeError, ValueError
            If `rows` is no sequence of row numbers from 0.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> opt.read([2, 0])
        array([[1. ], [0.5]])
        """
        different, place = np.unique(row_numbers(rows, len(self.param)), return_inverse=True)
        with one_caller(self._lock):
            arrays = self._caught_up(different)
            self._write(different, arrays, self.steps)
        copy: Array = arrays[0][place]
        return copy

    def step(self, rows: Sequence[int] | Array, grads: Array) -> None:
        """One update of the whole table, where all rows but these have the gradient zero.

        Parameters
        ----------
        rows : sequence of int
            Row numbers, in any order; gradients of a row that comes twice are added, in the order given.
        grads : ndarray
            Of shape (len(rows), width) and the table's dtype.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be served; nothing has been written then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((3, 1))
        >>> fm.SparseRows(table, lr=0.5).step([0, 2, 0], np.array([[0.5], [2.0], [0.5]]))  # 0 comes twice
        >>> table
        array([[0.5], [1. ], [0. ]])
        """
        found = row_numbers(rows, len(self.param))
        shape = (found.size, self.param.shape[1])
        if isinstance(grads, np.ndarray) and grads.shape != shape:
            raise ValueError(f"grads: expected shape {shape}, a row for each of rows; got {grads.shape}")
        grads = checks.array("grads", grads, like=np.empty(shape, self.param.dtype), write=False)
        touched, total = sum_duplicate_rows(found, grads)
        with one_caller(self._lock):
            arrays = self._caught_up(touched)
            now = self._run.now
            kernel = backends.one_array_kernel(self._backend, now.update, self.param.dtype)
            kernel(tuple(array.reshape(-1) for array in arrays), total.reshape(-1), now.hyper)
            self._write(touched, arrays, self.steps + 1)

    def flush(self) -> None:
        """Bring all rows up to date, before the table is saved, say, or used elsewhere.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((2, 1))
        >>> opt = fm.SparseRows(table, lr=0.5, momentum=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> opt.step([1], np.array([[1.0]]))
        >>> before = table.copy()
        >>> opt.flush()  # row 0 goes on by its velocity
        >>> before, table
        (array([[0.5], [0.5]]), array([[0.25], [0.5 ]]))
        """
        with one_caller(self._lock):
            self._flush()

    def change(self, **settings: Any) -> None:
        """Go on with other settings, ``change(lr=0.01)``, from the next step on; it flushes, under the old ones.

        Raises
        ------
        TypeError, ValueError
            If a setting is refused; nothing has changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((1, 1))
        >>> opt = fm.SparseRows(table, lr=0.5)
        >>> opt.change(lr=0.25)
        >>> opt.step([0], np.array([[1.0]]))
        >>> table
        array([[0.75]])
        """
        if "rule" in settings:
            raise TypeError("rule: expected of SparseRows alone, as the state is the rule's; got it in change")
        with one_caller(self._lock):
            now = linearise({**self._run.now.settings, **settings}, self.param.dtype)
            self._flush()
            self._run = self._run._replace(now=now)

    def _caught_up(self, rows: Ints) -> list[Array]:
        """Copies of these rows of (param, *state) as they are now."""
        self._finish()
        arrays = [array[rows] for array in (self.param, *self.state)]
        self._run.now.caught_up(arrays, self.steps - self._run.seen[rows])
        return arrays

    def _flush(self) -> None:
        self._finish()
        late = np.flatnonzero(self._run.seen != self.steps)
        for start in range(0, late.size, BLOCK):
            rows = late[start : start + BLOCK]
            self._write(rows, self._caught_up(rows), self.steps)
