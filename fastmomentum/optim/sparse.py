"""The class SparseRows: momentum for a table of which few rows get a gradient in each step, such as an embedding.

A row without a gradient does not stay as it is: its velocity decays, and moves the row. A step at g = 0 multiplies
(p, *state) by the rule's matrix, so steps can wait until the row is read or gets a gradient, and are done as one.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from threading import Lock
from typing import Any, Never, Self

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.backends.interrupts import one_caller, uninterrupted
from fastmomentum.backends.tensors import count_writes
from fastmomentum.optim import row_state
from fastmomentum.optim.matching import cast_slots
from fastmomentum.optim.row_gradients import gradients_by_row, row_numbers
from fastmomentum.optim.row_settings import LinearRule, RowSettings, Setting
from fastmomentum.optim.state import check_counts
from fastmomentum.optim.step_products import StepProducts
from fastmomentum.rules.base import Rule

Array = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

BLOCK = 4096
"""The number of rows that a flush updates at a time, so that its arrays stay small."""


class SparseRows:
    """Update the rows of a table that have gradients; update the other rows when they are read.

    For "pytorch", k steps at g = 0 are: p ← p − lr·v·μ(1 − μ^k)/(1 − μ); v ← μ^k·v

    Every linear rule has such a form, a product of k matrices. So do its Nesterov form, both kinds of weight decay, and
    an exponential average of p.

    Parameters
    ----------
    param : ndarray
        The table, of shape (rows, width), float32 or float64, C-contiguous; it is updated in place. Steps of a row
        without gradients may still be to do: get rows by :meth:`read`, or call :meth:`flush` before you use the table.
    lr : float or callable
        Learning rate, ≥ 0. A callable is called once for each step, with the number of updates done, 0 for the first
        one, and returns the value for the next update: a float, or a scalar of any library.
    momentum : float or callable
        μ in [0, 1].
    rule : str or Rule
        A rule that is linear in p, state and g.
    backend : {None, "cpu", "numpy"}
        The backend that updates the rows with gradients; None is "cpu".
    **settings
        The rule's other hyper-parameters, and the options of :func:`fastmomentum.step` that are linear, numbers or
        callables, too.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value, or the rule is not linear.

    Notes
    -----
    Every numeric setting can be assigned at any time, a number or a callable, and is read as a float: the value for the
    next update, or the last one if the callable raises. Late steps of a row are done with the settings of their time.

    The result is that of :func:`fastmomentum.step` on the whole table, with gradient 0 in the other rows, up to
    rounding: a product of matrices is computed in double precision, while k steps round k times. A row with a gradient
    in every step has the same bits. Numbers must be finite. In torch.optim.SparseAdam, another method, the other rows
    do not move.

    Reading or updating m rows costs O(m·width), and O(log k) products of small matrices for each different number k of
    late steps. Besides param and state, the optimiser needs 8 bytes a row. While settings change, a step also updates
    16 rows in turn, so that a matrix and a product are kept for at most rows/8 steps; and it multiplies about √rows
    small matrices. After Ctrl-C the table has had :attr:`steps` whole steps.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> table = np.ones((3, 2))
    >>> opt = fm.SparseRows(table, lr=0.5, momentum=0.5)
    >>> opt.step([0], np.array([[1.0, 1.0]]))
    >>> opt.step([2], np.array([[1.0, 0.0]]))
    >>> opt.read([0])
    array([[0.25, 0.25]])
    >>> opt.lr = fm.schedules.Linear(0.5, 0.0, steps=4)
    >>> opt.lr
    0.25
    >>> opt.flush()
    >>> table
    array([[0.25, 0.25], [1.  , 1.  ], [0.5 , 1.  ]])
    """

    def __init__(
        self,
        param: Array,
        *positional: Never,
        lr: Setting,
        momentum: Setting = 0.9,
        rule: str | Rule = "pytorch",
        backend: str | None = None,
        **settings: Any,
    ) -> None:
        checks.refuse_positional("SparseRows", positional)
        param = checks.array("param", param)
        if param.ndim != 2:
            raise ValueError(f"param: expected a table of rows, of two dimensions; got shape {param.shape}")
        self._backend = backends.choose(backend, ())
        if self._backend == "cuda":
            raise ValueError("backend: expected None, 'cpu' or 'numpy', as rows lie on the host; got 'cuda'")
        self._param = param
        self._settings = RowSettings.make({"rule": rule, "lr": lr, "momentum": momentum, **settings}, param.dtype)
        first = self._settings.last
        self._products = StepProducts(first.matrix, len(param))
        self._state = tuple(
            param.copy() if initial == "param" else np.zeros_like(param) for _, initial in first.update.state
        )
        self._seen = np.zeros(len(param), np.int64)  # for each row the number of updates done of it
        self._steps = 0
        self._lock = Lock()

    @property
    def param(self) -> Array:
        """The table; some steps of rows may still be to do."""
        return self._param

    @property
    def state(self) -> tuple[Array, ...]:
        """The rule's state slots, each like `param`; some steps of rows may still be to do."""
        return self._state

    @property
    def steps(self) -> int:
        """The number of updates done."""
        return self._steps

    def read(self, rows: Sequence[int] | Ints) -> Array:
        """Return a copy of these rows after all updates, of shape (len(rows), width).

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
            arrays, late = self._caught_up(different), self._seen[different] != self._steps
            if late.any():
                self._write(different[late], [array[late] for array in arrays], self._steps)
        return np.array(arrays[0][place])

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
            If an argument or a value of a function has a wrong type or value; nothing has been written then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
        >>> opt.step([0, 2, 0], np.array([[0.5], [2.0], [0.5]]))  # row 0 twice
        >>> opt.param
        array([[0.5], [1. ], [0. ]])
        """
        touched, total = gradients_by_row(rows, grads, self.param)
        with one_caller(self._lock):
            check_counts(self._steps)
            rule = self._settings.rule_at(self._steps)
            swept = self._products.rows_of_sweep(self._steps)
            swept = swept[(swept[:, None] != touched).all(axis=1)]
            total = np.concatenate([total, np.zeros((swept.size, *total.shape[1:]), total.dtype)])
            updated = np.concatenate([touched, swept])
            arrays = self._caught_up(updated)
            kernel = backends.one_array_kernel(self._backend, rule.update, self.param.dtype)
            kernel(tuple(array.reshape(-1) for array in arrays), total.reshape(-1), rule.hyper)
            self._write(updated, arrays, self._steps + 1, rule)

    def flush(self) -> None:
        """Do the late steps of all rows, before other code uses or saves the table.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((2, 1)), lr=0.5, momentum=0.5)
        >>> opt.step([0], np.array([[1.0]]))
        >>> opt.step([1], np.array([[1.0]]))
        >>> opt.flush()  # row 0 moves on by its velocity
        >>> opt.param
        array([[0.25], [0.5 ]])
        """
        with one_caller(self._lock):
            late = np.flatnonzero(self._seen != self._steps)
            for start in range(0, late.size, BLOCK):
                rows = late[start : start + BLOCK]
                self._write(rows, self._caught_up(rows), self._steps)

    def change(self, **settings: Any) -> None:
        """Use other settings from the next step on: ``change(lr=0.01, momentum=0.95)``; all of them, or none.

        The state stays as it is. Whether a new lr acts at once on the velocity depends on the rule: see `Momentum`.

        Raises
        ------
        TypeError, ValueError
            If a setting has a wrong type or value; nothing has been changed then.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt = fm.SparseRows(np.ones((1, 1)), lr=0.5)
        >>> opt.change(lr=0.25, momentum=0.5)
        >>> opt.lr, opt.momentum
        (0.25, 0.5)
        """
        with one_caller(self._lock):
            self._settings = self._settings.changed(settings, self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything, except the table, that a run needs to continue with the same bits.

        Save the table, too, without a step, a read or a flush between. Call flush() before both, if other code than
        SparseRows reads them. :mod:`fastmomentum.optim.row_state` describes the dict.

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
            return {
                **row_state.describe_settings(self._settings, self._steps),
                "steps": self._steps,
                "seen": self._seen.copy(),
                "state": [slot.copy() for slot in self._state],
                "products": self._products.to_lists(),
            }

    def load_state_dict(self, saved: Mapping[str, Any], *, cast: bool = False) -> None:
        """Continue from a dict that :meth:`state_dict` returned; `param` must hold the table of that moment.

        With `cast`, a state of another precision is converted to that of the table.

        Raises
        ------
        TypeError, ValueError
            If the dict does not fit table and rule; the message lists all differences, and nothing has been changed.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> opt, again = fm.SparseRows(np.ones((3, 1)), lr=0.5), fm.SparseRows(np.ones((3, 1)), lr=0.1)
        >>> again.load_state_dict(opt.state_dict())
        >>> again.lr
        0.5
        """
        row_state.check_saved(saved, self.state_dict(), self._settings.given, self._products, cast)
        settings = row_state.restore_settings(saved, self._settings, self.param.dtype)
        products = row_state.restore_products(saved, self._products, settings.last.matrix)
        state = tuple(cast_slots([saved["state"]], [self.param])[0])
        seen = np.array(saved["seen"])
        with one_caller(self._lock), uninterrupted():
            self._settings, self._products = settings, products
            self._state, self._seen, self._steps = state, seen, saved["steps"]

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`state_dict` to a file, as a whole or not at all: an uncompressed .npz, without pickle.

        The table is not in the file. Save it, too, before this call or after it, as for :meth:`state_dict`.

        Raises
        ------
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm, os, tempfile
        >>> opt = fm.SparseRows(np.ones((3, 1)), lr=fm.schedules.Exponential(0.5, 0.5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "rows.npz"))
        ...     fm.SparseRows.load(os.path.join(folder, "rows.npz"), opt.param.copy())
        SparseRows(rule='pytorch', lr=0.5, momentum=0.9, rows=3, steps=0)
        """
        row_state.write_file(path, self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        param: Array,
        *,
        rule: str | Rule | None = None,
        backend: str | None = None,
        cast: bool = False,
        **settings: Setting,
    ) -> Self:
        """Return the object that :meth:`save` wrote, for the table of that moment, which is not written to.

        Parameters
        ----------
        path : path-like
            The file.
        param : ndarray
            The table.
        rule : Rule, optional
            The rule, if no rule is registered under the saved name.
        backend : optional
            As for the constructor; the file does not hold it.
        cast : bool
            Whether a state of another precision is converted to that of the table.
        **settings
            As for :meth:`fastmomentum.Momentum.load`, but no lists.

        Raises
        ------
        TypeError, ValueError
            If the file is damaged, does not fit the table, or lacks a function, or if a setting is refused.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm, os, tempfile
        >>> rate, table = (lambda step: 0.5 / (1 + step)), np.ones((3, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fm.SparseRows(table, lr=rate).save(os.path.join(folder, "rows.npz"))
        ...     fm.SparseRows.load(os.path.join(folder, "rows.npz"), table, lr=rate).lr
        0.5
        """
        return row_state.load_file(cls, path, param, settings, cast, rule, backend)

    def __getattr__(self, name: str) -> float:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return self._settings.find(name, self._steps)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self._settings.find(name, self._steps)  # a misspelt setting would do nothing
            self.change(**{name: value})

    def __repr__(self) -> str:
        rule, settings = self._settings.last.update, f"lr={self.lr!r}, momentum={self.momentum!r}"
        return f"{type(self).__name__}(rule={rule}, {settings}, rows={len(self.param)}, steps={self.steps})"

    def _caught_up(self, rows: Ints) -> list[Array]:
        """Return copies of these rows of (param, *state) after all updates, the late ones included."""
        arrays = [array[rows] for array in (self.param, *self._state)]
        self._products.advance_rows(arrays, self._seen[rows], self._steps)
        return arrays

    def _write(self, rows: Ints, arrays: Sequence[Array], steps: int, rule: LinearRule | None = None) -> None:
        """Write these rows, each given once, of (param, *state), of which this number of updates has been done.

        If the rule of an update is given, the update is counted.
        """
        for name, array in zip(("param", *self._settings.last.update.slots), (self.param, *self._state), strict=True):
            checks.array(name, array)  # the user may have made it read-only since
        with uninterrupted():
            if rule is not None:
                self._products.add(rule.matrix, self._steps)
            for array, values in zip((self.param, *self._state), arrays, strict=True):
                array[rows] = values
            count_writes([self.param])
            self._seen[rows] = steps
            self._steps = steps

    def __getstate__(self) -> dict[str, Any]:
        with one_caller(self._lock):
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._lock = Lock()
