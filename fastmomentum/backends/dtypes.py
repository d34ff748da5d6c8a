"""The dtypes that a kernel is compiled for."""

from typing import Any, NamedTuple

import numpy as np


class Dtypes(NamedTuple):
    """Parameter, gradient and every state slot, apart, so that a kernel of mixed precision has a key of its own."""

    param: np.dtype[Any]
    grad: np.dtype[Any]
    state: tuple[np.dtype[Any], ...]
