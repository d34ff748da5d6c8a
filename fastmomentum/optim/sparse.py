"""The class SparseRows: momentum for a table of which few rows get a gradient in each step, such as an embedding.

A row without a gradient does not stay as it is: its velocity decays, and moves the row. k steps at g = 0 multiply
(p, *state) by the k-th power of the rule's matrix, so they can wait until the row is read or gets a gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.backends.base import one_caller, uninterrupted
from fastmomentum.optim.checkpoint import check_mapping, refuse, rule_differences
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import hyper_row
from fastmomentum.rules.registry import find
from fastmomentum.theory.linear import Floats, LinearForm, powers

Array = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

SCHEMA = 1
BLOCK = 4096
"""The number of rows that a flush updates at a time, so that its arrays stay small."""


class LinearRule(NamedTuple):
    """Hold a rule, its settings, its hyper-parameters as a kernel takes them, and its matrix: (p, *state) at g = 0."""

    settings: Mapping[str, Any]
    update: Rule
    hyper: tuple[Any, ...]
    matrix: Floats

    def advance_rows(self, arrays: Sequence[Array], steps: Ints) -> None:
        """Advance each row of (param, *state), in place, by its number of steps at g = 0.

        Numbers beyond the range of the dtype become infinite without a warning, as in a kernel.
        """
        late = np.flatnonzero(steps)
        different, which = np.unique(steps[late], return_inverse=True)
        with np.errstate(all="ignore"):
            mantissa, exponent = powers(self.matrix, different)
            power = np.ldexp(mantissa, exponent[:, None, None])[which]
            now = power @ np.stack([array[late] for array in arrays], axis=1).astype(np.float64)
            for array, values in zip(arrays, np.moveaxis(now, 1, 0), strict=True):
                array[late] = values


def linearise(settings: Mapping[str, Any], dtype: np.dtype[Any]) -> LinearRule:
    """Return the rule that these settings resolve to, with its matrix at g = 0.

    Raises
    ------
    TypeError, ValueError
        If a setting has a wrong type or value, or the rule is not linear.
    """
    for option in ("lookahead", "max_norm"):
        if option in settings:
            raise TypeError(f"{option}: expected only by Momentum, not by SparseRows; got {settings[option]!r}")
    settings = {name: checks.unwrap_scalar(value) for name, value in settings.items()}
    update, given = resolve_options(**settings)
    hyper = hyper_row(update, given, dtype)
    size = 1 + len(update.state)
    try:
        forms = update.update(*(LinearForm({key: 1.0}) for key in range(size)), LinearForm({}), *map(float, hyper))
    except TypeError as error:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}: {error}") from error
    matrix = np.array([[form[key] for key in range(size)] for form in forms])
    return LinearRule(settings, update, hyper, matrix)


def sum_duplicate_rows(rows: Ints, grads: Array) -> tuple[Ints, Array]:
    """Return the different rows and their gradients; gradients of a repeated row are added in the order given."""
    different, first, place = np.unique(rows, return_index=True, return_inverse=True)
    total, repeated = grads[first], np.ones(rows.size, bool)
    repeated[first] = False
    np.add.at(total, place[repeated], grads[repeated])
    return different, total


def row_numbers(rows: Any, count: int) -> Ints:
    """Return `rows` as an array, if they are row numbers of a table of `count` rows."""
    try:
        found = np.asarray(rows) if np.size(rows) else np.zeros(np.shape(rows), np.int64)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "iu" or isinstance(rows, np.ma.MaskedArray):
        raise TypeError(f"rows: expected a sequence of row numbers; got {checks.describe(rows)}")
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError(f"rows: expected numbers from 0 to {count - 1}; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


class SparseRows:
    """Update the rows of a table that have gradients; update the other rows when they are read.

    For "pytorch", k steps at g = 0 are: p ← p − lr·v·μ(1 − μ^k)/(1 − μ); v ← μ^k·v

    Every linear rule has such a form, the k-th power of its matrix. So do its Nesterov form, both kinds of weight
    decay, and an exponential average of p.

    Parameters
    ----------
    param : ndarray
        The table, of shape (rows, width), float32 or float64, C-contiguous; it is updated in place. Steps of a row
        without gradients may still be to do: get rows by :meth:`read`, or call :meth:`flush` before you use the table.
    lr : float
        Learning rate, ≥ 0; not a function of the step.
    momentum : float
        μ in [0, 1].
    rule : str or Rule
        A rule that is linear in p, state and g.
    backend : {None, "cpu", "numpy"}
        The backend that updates the rows with gradients; None is "cpu".
    **settings
        The rule's other hyper-parameters, and the options of :func:`fastmomentum.step` that are linear.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value, or the rule is not linear.

    Notes
    -----
    The result is that of :func:`fastmomentum.step` on the whole table, with gradient 0 in the other rows, up to
    rounding: a power is computed in double precision, while k steps round k times. A row with a gradient in every step
    has the same bits. Numbers must be finite. In torch.optim.SparseAdam, another method, the other rows do not move.

    Reading or updating m rows costs O(m·width), and O(log k) products of small matrices for each different k. Besides
    param and state, the optimiser needs 8 bytes a row. After Ctrl-C the table has had :attr:`steps` whole steps.

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
        self.param = param
        self._rule = linearise({"rule": rule, "lr": lr, "momentum": momentum, **settings}, param.dtype)
        self._state = tuple(
            param.copy() if initial == "param" else np.zeros_like(param) for _, initial in self._rule.update.state
        )
        self._seen = np.zeros(len(param), np.int64)  # for each row the number of updates done of it
        self._steps = 0
        self._lock = Lock()

    @property
    def state(self) -> tuple[Array, ...]:
        """The rule's state slots, each like `param`; some steps of rows may still be to do, as in `param`."""
        return self._state

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self._steps

    def read(self, rows: Sequence[int] | Ints) -> Array:
        """Return a copy of these rows after all updates, of shape (len(rows), width): the input of a forward pass.

        Raises
        ------
        TypeError, ValueError
            If `rows` is not a sequence of row numbers from 0.

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
            self._write(different, arrays, self._steps)
        copy: Array = arrays[0][place]
        return copy

    def step(self, rows: Sequence[int] | Ints, grads: Array) -> None:
        """Do one update of the whole table, in which all rows but these have the gradient zero.

        Parameters
        ----------
        rows : sequence of int
            Row numbers, in any order; gradients of a repeated row are added, in the order given.
        grads : ndarray
            Of shape (len(rows), width) and the table's dtype.

        Raises
        ------
        TypeError, ValueError
            If an argument has a wrong type or value; nothing has been written then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((3, 1))
        >>> fm.SparseRows(table, lr=0.5).step([0, 2, 0], np.array([[0.5], [2.0], [0.5]]))  # row 0 twice
        >>> table
        array([[0.5], [1. ], [0. ]])
        """
        found = row_numbers(rows, len(self.param))
        shape = (found.size, self.param.shape[1])
        if isinstance(grads, np.ndarray) and grads.shape != shape:
            raise ValueError(f"grads: expected shape {shape}, a row for each of rows; got {grads.shape}")
        grads = checks.array("grads", grads, like=np.empty(shape, self.param.dtype), write=False)
        different, total = sum_duplicate_rows(found, grads)
        with one_caller(self._lock):
            arrays = self._caught_up(different)
            kernel = backends.one_array_kernel(self._backend, self._rule.update, self.param.dtype)
            kernel(tuple(array.reshape(-1) for array in arrays), total.reshape(-1), self._rule.hyper)
            self._write(different, arrays, self._steps + 1)

    def flush(self) -> None:
        """Do the late steps of all rows, before other code uses or saves the table.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> table = np.ones((2, 1))
        >>> opt = fm.SparseRows(table, lr=0.5, momentum=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> opt.step([1], np.array([[1.0]]))
        >>> before = table.copy()
        >>> opt.flush()  # row 0 moves on by its velocity
        >>> before, table
        (array([[0.5], [0.5]]), array([[0.25], [0.5 ]]))
        """
        with one_caller(self._lock):
            self._flush()

    def change(self, **settings: Any) -> None:
        """Flush the table, and use other settings from the next step on: ``change(lr=0.01)``.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value; nothing has been changed then.

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
            given = settings["rule"]
            raise TypeError(f"rule: expected only by the constructor, as the state belongs to the rule; got {given!r}")
        with one_caller(self._lock):
            rule = linearise({**self._rule.settings, **settings}, self.param.dtype)
            self._flush()
            self._rule = rule

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything, except the table, that a run needs to continue with the same bits.

        Returns
        -------
        dict
            schema (1); rule and made_of, which tell the rule from others; settings, except the rule; steps, the number
            of updates done; seen, an array with the number of updates done of each row; state, a list of the state
            slots. Save the table at the same moment. Call flush() before, if other code than SparseRows reads them.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> saved = opt.state_dict()
        >>> saved["rule"], saved["steps"], saved["seen"]
        ('pytorch', 1, array([1, 0, 0]))
        """
        with one_caller(self._lock):
            rule, settings = find(self._rule.settings["rule"]), self._rule.settings
            return {
                "schema": SCHEMA,
                "rule": rule.name or str(rule),
                "made_of": rule.description,
                "settings": {name: value for name, value in settings.items() if name != "rule"},
                "steps": self._steps,
                "seen": self._seen.copy(),
                "state": [slot.copy() for slot in self._state],
            }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from a dict that :meth:`state_dict` returned; `param` must hold the table of that moment.

        Raises
        ------
        TypeError, ValueError
            If the dict does not fit table and rule; the message lists all differences, and nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> again = fm.SparseRows(opt.param.copy(), lr=0.1)
        >>> again.load_state_dict(opt.state_dict())
        >>> again.steps
        1
        """
        check_mapping(saved)
        like = self.state_dict()
        listed = [f"{key}: missing" for key in like if key not in saved]
        listed += [f"{key}: unknown" for key in saved if key not in like]
        refuse(listed or _differences(saved, like), "these rows")
        rule = linearise({**saved["settings"], "rule": self._rule.settings["rule"]}, self.param.dtype)
        state = tuple(np.array(slot, order="C") for slot in saved["state"])
        seen = np.array(saved["seen"])
        with one_caller(self._lock), uninterrupted():
            self._rule, self._state, self._seen, self._steps = rule, state, seen, saved["steps"]

    def _caught_up(self, rows: Ints) -> list[Array]:
        """Return copies of these rows of (param, *state) after all updates, the late ones included."""
        arrays = [array[rows] for array in (self.param, *self._state)]
        self._rule.advance_rows(arrays, self._steps - self._seen[rows])
        return arrays

    def _flush(self) -> None:
        late = np.flatnonzero(self._seen != self._steps)
        for start in range(0, late.size, BLOCK):
            rows = late[start : start + BLOCK]
            self._write(rows, self._caught_up(rows), self._steps)

    def _write(self, rows: Ints, arrays: Sequence[Array], steps: int) -> None:
        """Write these rows, each given once, of (param, *state), of which this number of updates has been done."""
        for name, array in zip(("param", *self._rule.update.slots), (self.param, *self._state), strict=True):
            checks.array(name, array)  # the user may have made it read-only since
        with uninterrupted():
            for array, values in zip((self.param, *self._state), arrays, strict=True):
                array[rows] = values
            self._seen[rows] = steps
            self._steps = steps

    def __getstate__(self) -> dict[str, Any]:
        with one_caller(self._lock):
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._lock = Lock()


def _differences(saved: Mapping[str, Any], like: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each way in which a saved state does not fit rows whose own saved state is `like`."""
    if saved["schema"] != like["schema"]:
        yield f"schema: expected {like['schema']!r}; got {checks.describe(saved['schema'])}"
    yield from rule_differences(saved, like)
    if not isinstance(saved["settings"], Mapping) or "rule" in saved["settings"]:
        yield f"settings: expected a dict of settings without the rule; got {checks.describe(saved['settings'])}"
    steps = saved["steps"]
    if type(steps) is not int or not 0 <= steps <= 2**62:
        yield f"steps: expected a whole number from 0 to 2**62; got {checks.describe(steps)}"
        steps = 2**62
    for key in ("seen", "state"):
        expected, given = _form(like[key]), _form(saved[key])
        if given != expected:
            yield f"{key}: expected {expected}; got {given}"
        elif key == "seen" and not ((saved[key] >= 0) & (saved[key] <= steps)).all():
            yield f"seen: expected numbers from 0 to steps; got {saved[key].min()} to {saved[key].max()}"


def _form(value: Any) -> str:
    """Return a text with the dtype and shape of an array, or of each array in a list."""
    return f"[{', '.join(map(checks.describe, value))}]" if isinstance(value, list) else checks.describe(value)
