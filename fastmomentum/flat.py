"""Many arrays as one: a flat buffer, and views of it in the arrays' shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import Array


def flatten(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
    """One flat array with what `arrays` hold, one behind the other, and views of it in their shapes.

    An update of the flat array is one of all views. For thousands of small arrays that is less work than to update
    each, and it makes their gradients one argument: flatten them once, and write each step's into the views. What is
    given up is to leave single arrays out of a step.

    Parameters
    ----------
    arrays : sequence of ndarray
        Of one dtype, float32 or float64, strided or not; they are copied, not kept.

    Returns
    -------
    flat : ndarray, 1-D
    views : list of ndarray
        In the order of `arrays`; contiguous, writing to them writes to `flat`.

    Raises
    ------
    TypeError, ValueError
        If it is no sequence of arrays, or one is of another dtype than the first.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> flat, (weights, bias) = fm.flatten([np.ones((2, 3)), np.zeros(2)])
    >>> opt = fm.Momentum(flat, lr=0.5)
    >>> grads, (of_weights, of_bias) = fm.flatten([np.full((2, 3), 0.5), np.ones(2)])
    >>> opt.step(grads)
    >>> weights[0], bias
    (array([0.75, 0.75, 0.75]), array([-0.5, -0.5]))
    """
    if not isinstance(arrays, list | tuple | Sequence):
        raise TypeError(f"arrays: expected a sequence of arrays; got {checks.shown(arrays)}")
    # A copy is whole and in order, whatever it was made of.
    copies = [array.copy() if isinstance(array, np.ndarray) else array for array in arrays]
    given: list[Any] = [checks.array(f"arrays[{i}]", array) for i, array in enumerate(copies)]
    if not given:
        raise ValueError("arrays: expected one at least; got none")
    for i, array in enumerate(given):
        if array.dtype != given[0].dtype:
            raise TypeError(f"arrays[{i}]: expected {given[0].dtype}, as the first has; got {array.dtype}")
    flat = np.concatenate([array.reshape(-1) for array in given])
    ends = np.cumsum([array.size for array in given])
    views = [flat[end - array.size : end].reshape(array.shape) for end, array in zip(ends, given)]
    return flat, views
