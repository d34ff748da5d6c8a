"""What a finite number of steps does to the error of one coordinate."""

from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.ranges import FINITE
from fastmomentum.records import Update
from fastmomentum.theory.curvatures import Floats
from fastmomentum.theory.linear import read
from fastmomentum.theory.powers import check_affordable, check_steps, companion, growth, powers, run
from fastmomentum.theory.rates import ROUNDING, eigenvalues

BLOCK = 1024
"""Steps looked at together when all steps are looked at."""

NORM = 600
"""What a norm costs, in steps of one coordinate."""


def transient(lr: Any, momentum: Any, curvature: Any, t: Any, *, rule: str | Update, **hyper: Any) -> Any:
    """‖A^t‖₂ in the coordinates (e_t, e_{t−1}), for every rule: how much t steps can magnify an error; it broadcasts.

    The coordinates are the same for rules that draw the same trajectory, so their transients are, too; a rule with two
    state slots or more, s of them, has (e_t, …, e_{t−s}). At critical damping ‖A^t‖/ρ^t grows like t.

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As :func:`iteration_matrix` takes them.
    t : array_like of int
        Numbers of steps, ≥ 0.

    Returns
    -------
    float64 or ndarray of float64
        inf where it is beyond double precision.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Examples
    --------
    At critical damping the quotient ‖A^t‖/ρ^t grows for ever:

    >>> import numpy as np, fastmomentum as fm
    >>> t = np.array([1, 10, 100, 200])
    >>> print((fm.theory.transient(0.01, 0.81, 1.0, t, rule="heavy_ball") / 0.9**t).round(1))
    [  2.4  20.2 201.1 402.2]
    """
    mantissa, exponent = powers(companion(read(rule, lr, momentum, curvature, hyper)), check_steps(t))
    return _scaled(np.linalg.norm(mantissa, 2, axis=(-2, -1)), exponent)


def response(lr: Any, momentum: Any, curvature: Any, t: Any, *, rule: str | Update, **hyper: Any) -> Any:
    """e_t / e_0 of a run started from rest, by the raw formula of :func:`fastmomentum.step`; it broadcasts.

    A run on a quadratic is the sum of these over the eigenvectors of its Hessian, each times its initial error: this
    predicts it to the digits, where ρ^t and ‖A^t‖ do not.

    Parameters and errors are those of :func:`transient`. Momentum's undamped first step of a dampened pytorch rule is
    not in it.

    Returns
    -------
    float64 or ndarray of float64

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.response(0.5, 0.5, 1.0, [0, 1, 2, 3], rule="pytorch"))
    [ 1.     0.5    0.    -0.25]
    """
    map = read(rule, lr, momentum, curvature, hyper)
    mantissa, exponent = powers(map.matrix, check_steps(t))
    return _scaled((mantissa @ map.rest)[..., 0], exponent)


class Peak(NamedTuple):
    """The largest transient, and the step at which it is reached.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.transient_peak(1.0, 0.5, 0.1, rule="pytorch").t
    3
    """

    t: int
    norm: float


def transient_peak(lr: float, momentum: float, curvature: float, *, rule: str | Update, **hyper: Any) -> Peak:
    """The step t at which :func:`transient` is largest, and how large: what an error can grow to before it decays.

    Parameters and errors are those of :func:`iteration_matrix`, for numbers, not arrays.

    Returns
    -------
    Peak
        (t, norm), t the first such step.

    Raises
    ------
    ValueError
        Where ρ ≥ 1, so that there is no largest one.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> peak = fm.theory.transient_peak(0.01, 0.81, 1.0, rule="classical")
    >>> peak.t, round(peak.norm, 3)
    (9, 7.034)
    """
    alpha, mu = checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE)
    map = read(rule, alpha, mu, checks.number("curvature", curvature, FINITE), hyper)
    matrix, radius = companion(map), float(np.abs(eigenvalues(map)).max())
    if radius >= 1.0 - ROUNDING:
        raise ValueError(f"lr, momentum: expected a setting that converges; got spectral radius {radius:.6g}")
    spread = np.sqrt(len(matrix)) * growth(radius, len(matrix))  # ‖A^(t+s)‖ ≤ spread·‖A^t‖ for every s
    check_affordable(np.log(spread) / (1.0 - radius), NORM)
    orbit = run(matrix, BLOCK)
    best, start, reached = Peak(0, 1.0), 0, np.eye(len(matrix))
    while True:
        norms = np.linalg.norm(orbit @ reached, 2, axis=(-2, -1))
        top = int(norms.argmax())
        best = Peak(start + top, float(norms[top])) if norms[top] > best.norm else best
        if spread * norms[-1] <= best.norm:
            return best
        start, reached = start + BLOCK - 1, orbit[-1] @ reached


def _scaled(mantissa: Floats, exponent: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(mantissa, np.clip(exponent, -5000, 5000))[()]
