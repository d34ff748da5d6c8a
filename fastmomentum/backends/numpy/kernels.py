"""Define the reference kernel, which applies the rule's function to whole NumPy arrays.

Each operation allocates a temporary array, as a formula in plain NumPy does.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import cached_kernel

Array = npt.NDArray[np.floating]
Kernel = Callable[..., bool]
"""``kernel((param, *state), grad, hyper, given=()) -> bool``."""


Results = Callable[..., tuple[Array, ...] | None]
"""``results((param, *state), grad, hyper, given=())``: the new arrays, or None if two arrays share memory."""


def kernel(rule: Rule) -> Kernel:
    """Return ``kernel((param, *state), grad, hyper)`` from the cache; rules of the same structure share a kernel.

    It updates param and state in place. If two of the arrays share memory, it writes nothing and returns False.
    """
    return cached_kernel(("numpy", rule.structure), lambda: _make_kernel(results_of(rule)))


def results_of(rule: Rule) -> Results:
    """Return ``results((param, *state), grad, hyper, given=())`` from the cache; it computes an update alone.

    If two of the arrays share memory, it returns None. `given` are the rule's other arrays.
    """
    return cached_kernel(("numpy results", rule.structure), lambda: _make_results(rule))


def write(arrays: Sequence[Array], results: Sequence[Array]) -> None:
    """Write the results of an update to its arrays."""
    for array, result in zip(arrays, results, strict=True):
        array[...] = result


def _make_results(rule: Rule) -> Results:
    update = rule.build()

    def results(
        arrays: tuple[Array, ...], grad: Array, hyper: Sequence[float], given: Sequence[Any] = ()
    ) -> tuple[Array, ...] | None:
        if any(starmap(np.may_share_memory, combinations((*arrays, grad), 2))):  # exact for contiguous arrays
            return None
        cast = grad.dtype.type
        with np.errstate(all="ignore"):
            found = update(*arrays, grad, *given, *[cast(number) for number in hyper])
        # A result may be an input array itself (q ← p in heavy_ball): copy it before another result is written there.
        return tuple(np.copy(result) if any(result is array for array in arrays) else result for result in found)

    return results


def _make_kernel(results: Results) -> Kernel:
    def kernel(arrays: tuple[Array, ...], grad: Array, hyper: Sequence[float], given: Sequence[Any] = ()) -> bool:
        found = results(arrays, grad, hyper, given)
        if found is not None:
            write(arrays, found)
        return found is not None

    return kernel
