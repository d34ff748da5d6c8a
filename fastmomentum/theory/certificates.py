"""Theorem 1 made useful: a bound on the error with its constant, from a Lyapunov equation."""

from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.ranges import ABOVE_ZERO, FINITE
from fastmomentum.records import Update
from fastmomentum.theory.curvatures import curvatures
from fastmomentum.theory.linear import read
from fastmomentum.theory.lyapunov import lyapunov
from fastmomentum.theory.powers import companion, run
from fastmomentum.theory.rates import eigenvalues


def certificate(lr: float, momentum: float, spectrum: Any, r: float, *, rule: str | Update, **hyper: Any) -> float:
    """The constant C with ‖e_t‖ ≤ C·r^t·‖e_0‖ for every t, of every run from rest on a quadratic with this spectrum.

    For every r > ρ(A) the equation P = I + (A/r)ᵀP(A/r) has a positive definite solution, and then
    ‖z_t‖ ≤ √cond(P)·r^t·‖z_0‖ for z = (e_t, e_{t−1}), whatever z_0 is. C is the largest √cond(P) over the spectrum, or
    what a start at rest needs where that is more. It is finite at critical damping, too; as r comes
    down to ρ it grows without bound there: that is the price which O(ρ^t) hides.

    Parameters
    ----------
    lr, momentum, spectrum, rule, **hyper
        As :func:`iterations` takes them; two numbers are the ends of the spectrum.
    r : float
        The rate to certify, above the spectral radius everywhere in the spectrum.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the rule is not linear, or r is not above the spectral radius.

    Examples
    --------
    Critical damping, where ρ = 0.9 and no constant would do for r = 0.9 itself:

    >>> import fastmomentum as fm
    >>> for r in (0.99, 0.95, 0.91, 0.901):
    ...     print(r, round(fm.theory.certificate(0.01, 0.81, [1.0], r, rule="heavy_ball"), 1))
    0.99 19.3
    0.95 35.3
    0.91 180.0
    0.901 1809.0
    """
    h = curvatures(spectrum)
    r = checks.number("r", r, ABOVE_ZERO)
    map = read(rule, checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE), h, hyper)
    radius = float(np.abs(eigenvalues(map)).max())
    if not r > radius:
        raise ValueError(f"r: expected a rate above the spectral radius, {radius:.9g}; got {r!r}")
    matrix = companion(map)
    size = matrix.shape[-1]
    energy = lyapunov(matrix / r, np.eye(size))
    # From rest, the first errors as they are, then |e_t|² ≤ (P⁻¹)₀₀·r^(2(t − s))·zᵀPz with z = (e_s, …, e_0).
    first = (run(map.matrix, size) @ map.rest)[..., 0] / r ** np.arange(size)[:, None]
    z = (first * r ** np.arange(size)[:, None])[::-1] / r ** (size - 1)
    reach = np.linalg.inv(energy)[:, 0, 0] * np.einsum("ik,kij,jk->k", z, energy, z)
    return float(max(np.sqrt(max(np.linalg.cond(energy).max(), reach.max())), np.abs(first).max()))
