"""`SparseRows`: momentum for tables of which a step touches few rows, an embedding's say, as if all had been updated.

A row without a gradient does not rest: its velocity decays and carries it on. What so many steps do to it is a power of
the rule's own matrix at g = 0, so it can wait until somebody looks at the row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import backends, checks
from fastmomentum.records import Update
from fastmomentum.settings import settle
from fastmomentum.theory.curvatures import Floats
from fastmomentum.theory.linear import Form
from fastmomentum.theory.powers import powers

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

BLOCK = 4096
"""Rows that a flush takes at a time, so that what it needs in double precision stays small beside the table."""


class Prepared(NamedTuple):
    """A rule with its stages, its hyper-parameters as a kernel takes them, and its matrix at g = 0 in these numbers."""

    update: Update
    hyper: tuple[Any, ...]
    matrix: Floats


def _prepare(settings: Mapping[str, Any], dtype: np.dtype[Any]) -> Prepared:
    for option in ("lookahead", "max_norm"):
        if option in settings:
            raise TypeError(f"{option}: expected of Momentum alone; got {settings[option]!r}")
    update, given = settle(**settings)
    hyper = checks.hyper(update, given, dtype)
    size = 1 + len(update.state)
    try:
        forms = update.build()(*(Form({key: 1.0}) for key in range(size)), Form({}), *map(float, hyper))
    except TypeError as error:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}: {error}") from error
    return Prepared(update, hyper, np.array([[form[key] for key in range(size)] for form in forms]))


class SparseRows:
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

    Attributes
    ----------
    state : tuple of ndarray
        The rule's state slots, from rest, like `param`; behind as its rows are.
    steps : int
        Updates done.

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
        self.param = checks.array("param", param)
        if self.param.ndim != 2:
            raise ValueError(f"param: expected a table of rows, of two dimensions; got shape {self.param.shape}")
        self._backend = backends.choose(backend, ())
        if self._backend == "cuda":
            raise ValueError("backend: expected None, 'cpu' or 'numpy', as rows lie on the host; got 'cuda'")
        self._settings = {"rule": rule, "lr": lr, "momentum": momentum, **settings}
        self._now = _prepare(self._settings, self.param.dtype)
        self.state: tuple[Array, ...] = tuple(
            self.param.copy() if rest == "param" else np.zeros_like(self.param) for _, rest in self._now.update.state
        )
        self.steps = 0
        self._seen = np.zeros(len(self.param), np.int64)

    def read(self, rows: Sequence[int] | Array) -> Array:
        """A copy of these rows as they are now, of shape (len(rows), width): what a forward pass looks up.

        Raises
        ------
        TypeError, ValueError
            If `rows` is no sequence of row numbers from 0.
        """
        found = self._check_rows(rows)
        self._catch_up(np.unique(found))
        copy: Array = self.param[found]
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
        """
        found = self._check_rows(rows)
        like = np.empty((found.size, self.param.shape[1]), self.param.dtype)
        grads = checks.array("grads", grads, like=like, write=False)
        touched, place = np.unique(found, return_inverse=True)
        total = np.zeros((touched.size, self.param.shape[1]), self.param.dtype)
        np.add.at(total, place, grads)
        self._catch_up(touched)
        arrays = tuple(array[touched].reshape(-1) for array in (self.param, *self.state))
        kernel = backends.kernel(self._now.update, self.param.dtype, self._backend)
        kernel(arrays, total.reshape(-1), self._now.hyper)
        for array, values in zip((self.param, *self.state), arrays, strict=True):
            array[touched] = values.reshape(total.shape)
        self.steps += 1
        self._seen[touched] = self.steps

    def flush(self) -> None:
        """Bring all rows up to date, before the table is saved, say, or used elsewhere."""
        for start in range(0, len(self.param), BLOCK):
            self._catch_up(np.arange(start, min(start + BLOCK, len(self.param))))

    def change(self, **settings: Any) -> None:
        """Go on with other settings, ``change(lr=0.01)``, from the next step on; it flushes, under the old ones.

        Raises
        ------
        TypeError, ValueError
            If a setting is refused; nothing has changed then.
        """
        if "rule" in settings:
            raise TypeError("rule: expected of SparseRows alone, as the state is the rule's; got it in change")
        prepared = _prepare(self._settings | settings, self.param.dtype)
        self.flush()
        self._settings |= settings
        self._now = prepared

    def _check_rows(self, rows: Any) -> Ints:
        found = np.asarray(rows) if np.size(rows) else np.zeros(np.shape(rows), np.int64)
        if found.ndim != 1 or found.dtype.kind not in "iu" or isinstance(rows, np.ma.MaskedArray):
            raise TypeError(f"rows: expected a sequence of row numbers; got {checks.shown(rows)}")
        if found.size and not 0 <= found.min() <= found.max() < len(self.param):
            last = len(self.param) - 1
            raise ValueError(f"rows: expected numbers from 0 to {last}; got {found.min()} to {found.max()}")
        return found.astype(np.int64)

    def _catch_up(self, rows: Ints) -> None:
        """What these rows, each given once, have missed."""
        missed = self.steps - self._seen[rows]
        rows, missed = rows[missed > 0], missed[missed > 0]
        different, which = np.unique(missed, return_inverse=True)
        mantissa, exponent = powers(self._now.matrix, different)
        power = np.ldexp(mantissa, exponent[:, None, None])[which]
        arrays = (self.param, *self.state)
        now = np.stack([array[rows] for array in arrays], axis=1).astype(np.float64)
        for array, values in zip(arrays, np.moveaxis(power @ now, 1, 0), strict=True):
            array[rows] = values
        self._seen[rows] = self.steps
