"""`SparseRows`: momentum for tables of which a step touches few rows, an embedding's say, as if all had been updated.

A row without a gradient does not rest: its velocity decays and carries it on. What so many steps do to it is a power of
the rule's own matrix at g = 0 (:mod:`fastmomentum.lapses`), so it can wait until somebody looks at the row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.kept_rows import KeptRows
from fastmomentum.lapses import Array, Ints, added, numbers_of, prepare
from fastmomentum.records import Update
from fastmomentum.turns import free

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
        rule: str | Update = "pytorch",
        backend: str | None = None,
        **settings: Any,
    ) -> None:
        param = checks.array("param", param)
        if param.ndim != 2:
            raise ValueError(f"param: expected a table of rows, of two dimensions; got shape {param.shape}")
        self._backend = backends.choose(backend, ())
        if self._backend == "cuda":
            raise ValueError("backend: expected None, 'cpu' or 'numpy', as rows lie on the host; got 'cuda'")
        super().__init__(param, prepare({"rule": rule, "lr": lr, "momentum": momentum, **settings}, param.dtype))

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
        different, place = np.unique(numbers_of(rows, len(self.param)), return_inverse=True)
        with free(self._lock):
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
        found = numbers_of(rows, len(self.param))
        shape = (found.size, self.param.shape[1])
        if isinstance(grads, np.ndarray) and grads.shape != shape:
            raise ValueError(f"grads: expected shape {shape}, a row for each of rows; got {grads.shape}")
        grads = checks.array("grads", grads, like=np.empty(shape, self.param.dtype), write=False)
        touched, total = added(found, grads)
        with free(self._lock):
            arrays = self._caught_up(touched)
            now = self._run.now
            kernel = backends.kernel(now.update, self.param.dtype, self._backend)
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
        with free(self._lock):
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
        with free(self._lock):
            now = prepare({**self._run.now.settings, **settings}, self.param.dtype)
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
