"""Where a minimiser starts, and the bounds within which it stays."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, OptimizeWarning

from fastmomentum import checks
from fastmomentum.ranges import FINITE


def start_of(x0: Any) -> Any:
    """x0 as an array of our own, of one dimension, float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If it holds no finite numbers, or has more dimensions.
    """
    checks.numbers("x0", x0, FINITE)
    start = np.atleast_1d(np.array(x0))
    if start.ndim != 1 or not start.size:
        raise ValueError(f"x0: expected one dimension, and a parameter at least; got shape {start.shape}")
    return start.astype(np.float32 if start.dtype == np.float32 else np.float64)


def limits_of(bounds: Any, start: Any) -> tuple[Any, ...]:
    """(low, high), each like `start`; () where nothing is bounded.

    Raises
    ------
    TypeError, ValueError
        If `bounds` are no Bounds and no sequence of pairs, not as many as there are parameters, NaN, or crossing.
    """
    if bounds is None:
        return ()
    if isinstance(bounds, Bounds):
        low, high = bounds.lb, bounds.ub
    else:
        pairs = checks.sequence("bounds", bounds if isinstance(bounds, Sequence) else list(bounds), start.size)
        try:
            low, high = [low for low, _ in pairs], [high for _, high in pairs]
        except (TypeError, ValueError):
            raise ValueError(f"bounds: expected Bounds, or pairs (low, high); got {checks.shown(bounds)}") from None
        low, high = [-np.inf if x is None else x for x in low], [np.inf if x is None else x for x in high]
    try:
        with np.errstate(over="ignore"):
            limits = tuple(np.array(np.broadcast_to(each, start.shape), start.dtype) for each in (low, high))
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected a number, or one for each of {start.size} parameters") from None
    crossing = ~((limits[0] <= limits[1]) & (limits[0] < np.inf) & (limits[1] > -np.inf))
    if crossing.any():
        k = int(np.argmax(crossing))
        raise ValueError(f"bounds: expected low <= high; got {limits[0][k]} and {limits[1][k]} for parameter {k}")
    return limits if np.isfinite(limits).any() else ()


def brought_within(start: Any, limits: tuple[Any, ...]) -> Any:
    """`start`, or the nearest point within the limits, with a warning in SciPy's words."""
    if not limits or ((limits[0] <= start) & (start <= limits[1])).all():
        return start
    warnings.warn("Initial guess is not within the specified bounds", OptimizeWarning, stacklevel=3)
    return np.clip(start, *limits)
