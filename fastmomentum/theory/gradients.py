"""What users' functions return, checked."""

from collections.abc import Callable
from typing import Any

from fastmomentum import checks
from fastmomentum.ranges import FINITE
from fastmomentum.theory.curvatures import Floats


def checked(name: str, function: Any, like: Any) -> Callable[..., Floats]:
    """`function`, whose values must be finite numbers of this shape; they come as flat copies, in double precision.

    Copies, as many a gradient writes to the same array at every call.
    """
    if not callable(function):
        raise TypeError(f"{name}: expected a function; got {checks.shown(function)}")

    def call(*arguments: Any) -> Floats:
        found = checks.numbers(name, function(*arguments), FINITE)
        if found.shape != like.shape:
            raise ValueError(f"{name}: expected it to return shape {like.shape}, as x has; got {found.shape}")
        return found.ravel()

    return call
