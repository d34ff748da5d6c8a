"""The products of the matrices of past steps, by which rows of a table catch up with steps that they have missed.

A row that has had s of t updates is multiplied by M[t−1]·…·M[s], the matrices of the steps that it has missed. No
inverse is taken: with momentum 0 there is none, and a product such as P[t]·P[s]⁻¹ loses its digits as P[s] decays.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.theory.linear import Floats, Ints, limit_exponent, powers, split_exponent

Array = npt.NDArray[np.floating[Any]]

SWEEP = 16
"""The number of rows that a step brings up to date, beside those that it touches, while settings change.

After rows / SWEEP steps no row is later than that, so the number of products that are kept is bounded. A table of 10⁶
rows keeps at most 125,000 of them: 10 MB for a rule with a velocity, where table and velocity have 64 MB at width 8.
"""


class Runs(NamedTuple):
    """Hold for each run of steps with the same matrix its first step, its matrix, and a product as `powers` returns it.

    The product is that of all runs from this one to the end of its block. In the block that is still open, the product
    ends before the last run, so that of the last run is the unit matrix.
    """

    starts: Ints
    matrices: Floats
    mantissas: Floats
    exponents: Ints

    def part(self, start: int, stop: int, capacity: int | None = None) -> "Runs":
        """Return a copy of the runs from `start` to before `stop`, with room for `capacity` runs."""
        found = [np.zeros((capacity or stop - start, *array.shape[1:]), array.dtype) for array in self]
        for new, array in zip(found, self, strict=True):
            new[: stop - start] = array[start:stop]
        return Runs(*found)


class StepProducts:
    """Keep the products of the matrices of past steps that rows of a table have missed.

    The runs of steps with the same matrix are divided into blocks of about √rows. For each run the product from it to
    the end of its block is kept, and for each block the product from its end to the beginning of the last run. Any row
    needs at most one of each, a power of the last run's matrix, and a power of the matrix of the run in which it was
    last updated. A new run changes the products of one block, and one product for each block before.

    Parameters
    ----------
    matrix : ndarray, shape (n, n)
        The matrix of the first step.
    rows : int
        The number of rows of the table.

    Examples
    --------
    >>> import numpy as np
    >>> products = StepProducts(np.array([[0.5]]), rows=3)
    >>> for step, number in enumerate((0.5, 0.5, 0.25)):
    ...     products.add(np.array([[number]]), step)
    >>> table = np.ones((3, 1))
    >>> products.advance_rows([table], np.array([0, 2, 3]), 3)  # rows that have had 0, 2 and 3 of 3 updates
    >>> table
    array([[0.0625], [0.25 ], [1.    ]])
    """

    def __init__(self, matrix: Floats, rows: int) -> None:
        self._rows = rows
        self._set_only_run(Runs(np.zeros(1, np.int64), matrix[None], *_units(1, len(matrix))))

    def __len__(self) -> int:
        """Return the number of runs whose products are kept."""
        return self._count

    @property
    def _period(self) -> int:
        """The number of steps in which a sweep brings every row up to date."""
        return -(-self._rows // SWEEP)

    @property
    def _block(self) -> int:
        """The number of runs in a block."""
        return 1 + isqrt(2 * self._period)

    def _set_only_run(self, run: Runs) -> None:
        self._runs, self._count, self._tails = run, 1, _units(1, run.matrices.shape[-1])

    def rows_of_sweep(self, step: int) -> Ints:
        """Return the rows to bring up to date in this step: none as long as all steps have the same matrix."""
        count, rows = min(SWEEP, self._rows) if self._count > 1 else 0, max(1, self._rows)
        return (step % rows * SWEEP + np.arange(count)) % rows

    def add(self, matrix: Floats, step: int) -> None:
        """Add the matrix of the step of this number, of which the rows of its sweep have been brought up to date.

        A signal handler must not raise meanwhile. Runs that no row needs after this step are forgotten at times.
        """
        last = self._count - 1
        if np.array_equal(matrix, self._runs.matrices[last]):
            if 0 < last == self._first_needed(step):
                self._set_only_run(self._runs.part(last, self._count))
        elif self._runs.starts[last] == step:  # no step has been done with this matrix
            self._runs.matrices[last] = matrix
        else:
            self._append(matrix, step)

    def _first_needed(self, step: int) -> int:
        """Return the number of the first run that a row can need after this step.

        As long as there are several runs, every step sweeps. If the last sweep of all rows began in a run or after it,
        then no row needs the runs before.
        """
        starts = self._runs.starts[: self._count]
        return max(0, int(np.searchsorted(starts, step - self._period, "right")) - 1)

    def _append(self, matrix: Floats, step: int) -> None:
        """Begin a new run at this step."""
        if self._count == len(self._runs.starts):
            self._make_room(step)
        runs, count, block = self._runs, self._count, self._block
        last, begin = count - 1, (count - 1) // block * block
        mantissas, exponents = self._tails
        with np.errstate(all="ignore"):
            power = powers(runs.matrices[last:count], step - runs.starts[last:count])
            products = multiply_scaled(power, (runs.mantissas[begin:count], runs.exponents[begin:count]))
            tails = multiply_scaled(power, (mantissas[:-1], exponents[:-1]))
        new = _units(1 if count % block else 2, len(matrix))  # of a block that is now full, and of the open block
        self._tails = np.concatenate([tails[0], new[0]]), np.concatenate([tails[1], new[1]])
        runs.mantissas[begin:count], runs.exponents[begin:count] = products
        runs.starts[count], runs.matrices[count] = step, matrix
        runs.mantissas[count], runs.exponents[count] = np.eye(len(matrix)), 0
        self._count += 1

    def _make_room(self, step: int) -> None:
        """Forget the blocks that no row needs, and double the room that the others take."""
        blocks = self._first_needed(step) // self._block
        start = blocks * self._block
        self._runs = self._runs.part(start, self._count, max(16, 2 * (self._count - start)))
        self._count -= start
        mantissas, exponents = self._tails
        self._tails = mantissas[blocks:], exponents[blocks:]

    def products(self, seen: Ints, steps: int) -> tuple[Floats, Ints]:
        """Return the products of the matrices from step number `seen` to before step number `steps`, for each `seen`.

        Each is a mantissa and an exponent of 2, as :func:`fastmomentum.theory.linear.powers` returns them. As there,
        the relative error grows like the number of steps times ε.
        """
        runs, last = self._runs, self._count - 1
        starts = runs.starts[: self._count]
        in_last = powers(runs.matrices[last], steps - np.maximum(seen, starts[last]))
        if not last:
            return in_last
        run = np.searchsorted(starts, seen, "right") - 1
        whole = np.minimum(run + (seen > starts[run]), last)  # the first run of which no step has been done
        in_first = powers(runs.matrices[run], np.maximum(starts[whole] - seen, 0))
        mantissas, exponents = self._tails
        block = whole // self._block
        later = multiply_scaled(in_last, (mantissas[block], exponents[block]))
        return multiply_scaled(later, multiply_scaled((runs.mantissas[whole], runs.exponents[whole]), in_first))

    def advance_rows(self, arrays: Sequence[Array], seen: Ints, steps: int) -> None:
        """Advance the rows of (param, *state), in place, from `seen` updates done of each row to `steps` updates.

        Numbers beyond the range of the dtype become infinite without a warning, as in a kernel.
        """
        late = np.flatnonzero(seen != steps)
        different, which = np.unique(seen[late], return_inverse=True)
        with np.errstate(all="ignore"):
            mantissa, exponent = self.products(different, steps)
            power = np.ldexp(mantissa, exponent[:, None, None])[which]
            now = power @ np.stack([array[late] for array in arrays], axis=1).astype(np.float64)
            for array, values in zip(arrays, np.moveaxis(now, 1, 0), strict=True):
                array[late] = values

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        runs = self._runs.part(0, self._count)._asdict()
        return {**runs, "tail_mantissas": self._tails[0], "tail_exponents": self._tails[1]}

    def to_lists(self) -> dict[str, list[Any]]:
        """Return all numbers as nested lists, which JSON can hold, for a saved state."""
        return {name: array.tolist() for name, array in self._arrays().items()}

    def with_matrix(self, matrix: Floats) -> "StepProducts":
        """Return the products of a table of the same size, of which all steps have had this matrix."""
        return StepProducts(matrix, self._rows)

    def with_lists(self, lists: Mapping[str, Any]) -> "StepProducts":
        """Return the products that another table of the same size has saved, after :meth:`differences` found none."""
        arrays = {name: np.array(value) for name, value in lists.items()}
        found = self.with_matrix(arrays["matrices"][0])
        found._runs, found._count = Runs(**{name: arrays[name] for name in Runs._fields}), len(arrays["starts"])
        found._tails = arrays["tail_mantissas"], arrays["tail_exponents"]
        return found

    def differences(self, lists: object, seen: Ints, steps: int) -> Iterator[str]:
        """Yield a sentence if saved lists do not fit this table, which has had this number of updates.

        `seen` has the number of updates done of each row.
        """
        own = self._arrays()
        if not isinstance(lists, Mapping) or lists.keys() != own.keys():
            yield f"products: expected a dict with {', '.join(own)}; got {checks.describe(lists)}"
            return
        runs = np.size(lists["starts"])
        for name, array in own.items():
            count = (runs - 1) // self._block + 1 if name.startswith("tail") else runs
            expected, given = np.empty((count, *array.shape[1:]), array.dtype), _as_array(lists[name])
            if checks.describe(given) != checks.describe(expected) or not runs:
                yield f"products: {name}: expected {checks.describe(expected)}; got {checks.describe(given)}"
                return
        starts = np.array(lists["starts"])
        first = starts[max(0, int(np.searchsorted(starts, steps - 1 - self._period, "right")) - 1)]
        if (np.diff(starts) <= 0).any() or starts[-1] > steps or (runs > 1 and seen.min(initial=steps) < first):
            yield f"products: expected runs that begin in order, from the updates seen by all rows to {steps} steps"


def multiply_scaled(left: tuple[Floats, Ints], right: tuple[Floats, Ints]) -> tuple[Floats, Ints]:
    """Return the products of matrices that are given, and returned, as `powers` returns them; they broadcast.

    (left mantissa · right mantissa) · 2^(left exponent + right exponent)
    """
    mantissa, shift = split_exponent(left[0] @ right[0])
    return mantissa, limit_exponent(left[1] + right[1] + shift)


def _as_array(value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:  # a ragged list
        return np.asarray(None)


def _units(count: int, size: int) -> tuple[Floats, Ints]:
    """Return this number of unit matrices as mantissas and exponents."""
    return np.broadcast_to(np.eye(size), (count, size, size)).copy(), np.zeros(count, np.int64)
