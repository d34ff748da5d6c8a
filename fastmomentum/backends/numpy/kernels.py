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


def kernel(rule: Rule) -> Kernel:
    """Return ``kernel((param, *state), grad, hyper)`` from the cache; rules of the same structure share a kernel."""
    return cached_kernel(("numpy", rule.structure), lambda: make_kernel(rule))


def make_kernel(rule: Rule) -> Kernel:
    """Return ``kernel((param, *state), grad, hyper, given=())``, which updates param and state in place.

    If two of the arrays share memory, the kernel writes nothing and returns False. `given` are the rule's other arrays.
    """
    update = rule.build()

    def kernel(arrays: tuple[Array, ...], grad: Array, hyper: Sequence[float], given: Sequence[Any] = ()) -> bool:
        if any(starmap(np.may_share_memory, combinations((*arrays, grad), 2))):  # exact for contiguous arrays
            return False
        cast = grad.dtype.type
        with np.errstate(all="ignore"):
            results = update(*arrays, grad, *given, *[cast(number) for number in hyper])
        # A result may be an input array itself (q ← p in heavy_ball): copy it before another result is written there.
        results = tuple(np.copy(result) if any(result is array for array in arrays) else result for result in results)
        for array, result in zip(arrays, results, strict=True):
            array[...] = result
        return True

    return kernel
