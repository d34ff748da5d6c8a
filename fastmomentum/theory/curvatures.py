"""Curvatures: the eigenvalues of a Hessian, one by one or as the ends of an interval."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.ranges import ABOVE_ZERO

Floats = npt.NDArray[np.float64]

BETWEEN = 256
"""Curvatures looked at between the ends of a spectrum, where only these are known."""


def check_curvature(value: Any, name: str = "curvature") -> Floats:
    """`value` as an array of curvatures, each > 0.

    Raises
    ------
    ValueError
        If one is not: without curvature nothing calls the parameter back, and there is no rate.
    """
    try:
        return checks.numbers(name, value, ABOVE_ZERO)
    except ValueError as error:
        raise ValueError(f"{error}. Weight decay adds curvature where the function has none") from None


def check_spectrum(value: Any) -> Floats:
    """`value` as a 1-D array of curvatures, one at least."""
    found = check_curvature(value, "spectrum")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"spectrum: expected the eigenvalues in one dimension, or (m, L); got shape {found.shape}")
    return found


def check_ends(m: Any, L: Any) -> tuple[float, float]:
    """The ends of a spectrum, 0 < m ≤ L, as floats."""
    check_curvature(m, "m")
    check_curvature(L, "L")
    return checks.ends(m, L)


def curvatures(spectrum: Any) -> Floats:
    """The eigenvalues; where only two are given, these are the ends (m, L), and others are taken between them."""
    found = check_spectrum(spectrum)
    return between(*check_ends(*found)) if found.size == 2 else found


def between(m: float, L: float, count: int = BETWEEN) -> Floats:
    """m and L, to the bit, and so many curvatures between them, spread evenly in their logarithm."""
    return np.concatenate([[m], np.geomspace(m, L, count + 2)[1:-1], [L]])
