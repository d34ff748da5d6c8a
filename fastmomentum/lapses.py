"""What steps without a gradient do to rows of a table: a power of the rule's own matrix at g = 0."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.records import Update
from fastmomentum.settings import settle
from fastmomentum.theory.curvatures import Floats
from fastmomentum.theory.linear import Form
from fastmomentum.theory.powers import powers

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class Prepared(NamedTuple):
    """A rule with its stages, its hyper-parameters as a kernel takes them, and its matrix at g = 0 in these numbers.

    `settings` are what it was made from.
    """

    settings: Mapping[str, Any]
    update: Update
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


def prepare(settings: Mapping[str, Any], dtype: np.dtype[Any]) -> Prepared:
    """What these settings come to.

    Raises
    ------
    TypeError, ValueError
        If one is refused, or the rule is not linear.
    """
    for option in ("lookahead", "max_norm"):
        if option in settings:
            raise TypeError(f"{option}: expected of Momentum alone; got {settings[option]!r}")
    settings = {name: checks.held(value) for name, value in settings.items()}
    update, given = settle(**settings)
    hyper = checks.hyper(update, given, dtype)
    size = 1 + len(update.state)
    try:
        forms = update.build()(*(Form({key: 1.0}) for key in range(size)), Form({}), *map(float, hyper))
    except TypeError as error:
        raise ValueError(f"rule: expected one that is linear in p, state and g; got {update}: {error}") from error
    matrix = np.array([[form[key] for key in range(size)] for form in forms])
    return Prepared(settings, update, hyper, matrix)


def added(rows: Ints, grads: Array) -> tuple[Ints, Array]:
    """The rows, each once, and their gradients; those of a row that comes again are added, in the order given."""
    touched, first, place = np.unique(rows, return_index=True, return_inverse=True)
    total, again = grads[first], np.ones(rows.size, bool)
    again[first] = False
    np.add.at(total, place[again], grads[again])
    return touched, total


def numbers_of(rows: Any, count: int) -> Ints:
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
        raise TypeError(f"rows: expected a sequence of row numbers; got {checks.shown(rows)}")
    if found.size and not 0 <= found.min() <= found.max() < count:
        raise ValueError(f"rows: expected numbers from 0 to {count - 1}; got {found.min()} to {found.max()}")
    return found.astype(np.int64)
