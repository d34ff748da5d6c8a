"""The convergence of one coordinate of a quadratic: iteration matrix, rate, regime, and its error at finite steps."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.checks import FINITE
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import (
    Floats,
    Linear,
    ResolvedRule,
    check_affordable,
    check_curvature,
    check_steps,
    companion,
    growth,
    linear_map,
    powers,
    resolve_rule,
    run,
)

GRID_BLOCK = 1 << 12
"""The number of points computed at a time, few enough for the cache (measured: 2 to 8 times as fast as 10⁷ at once)."""

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""Two roots closer than this count as one, and 1 − ρ below it as 0: rounding the hyper-parameters moves them so far."""


def iteration_matrix(lr: Any, momentum: Any, curvature: Any, *, rule: str | Rule, **hyper: Any) -> Floats:
    """Return the matrix A of x_{t+1} = A x_t, with x = (p − p*, state), on the quadratic ½h(p − p*)².

    It is read off the rule's own function, applied to unit vectors with the gradient g = h·p. For heavy_ball
    A = [[1 + μ − αh, −μ], [1, 0]]; the matrices of the rules that draw the same trajectory are similar to it.

    Parameters
    ----------
    lr, momentum, curvature : array_like
        α ≥ 0, μ in [0, 1] and h > 0; they broadcast. rules that do not declare momentum ignore it.
    rule : str, Rule or chain
        A rule that is linear in p, state and g. The state of a position rule is taken relative to p*.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step` (nesterov, lookahead, weight_decay).

    Returns
    -------
    ndarray of float64, shape (..., 1 + s, 1 + s) for s state slots

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Notes
    -----
    On f = ½xᵀHx − bᵀx this holds for every eigenvector of H, with h its eigenvalue; on other functions near a smooth
    minimum. The rate counts all of the state, also slots that p does not depend on.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.iteration_matrix(0.5, 0.25, 1.0, rule="heavy_ball")
    array([[ 0.75, -0.25],
           [ 1.  ,  0.  ]])
    """
    return linear_map(rule, lr, momentum, curvature, hyper).matrix


def spectral_radius(lr: Any, momentum: Any, curvature: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """Return ρ(A), the largest modulus of the eigenvalues of the :func:`iteration_matrix`; it broadcasts.

    ‖e_t‖^(1/t) → ρ(A) for almost every start, and ‖A^t‖ ≤ C(ε)·(ρ + ε)^t for every ε > 0 (Gelfand). It is *not* true
    that ‖e_t‖ = O(ρ^t): at critical damping, where the optimal tunings lie, ‖A^t‖ grows like t·ρ^(t−1).

    Parameters, errors and validity are those of :func:`iteration_matrix`.

    Returns
    -------
    float64 or ndarray of float64
        By closed forms for up to one state slot, else by numpy.linalg.eigvals.

    Notes
    -----
    For heavy ball it is √μ if (1 − √(αh))² ≤ μ ≤ (1 + √(αh))², for any h (Polyak 1964).

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.spectral_radius([0.1, 1.0, 4.0], 0.81, 1.0, rule="classical"))
    [0.9        0.9        1.71871869]
    """
    chosen = resolve_rule(rule, hyper)
    return radius(chosen, *chosen.inputs(lr, momentum), check_curvature(curvature))


def radius(rule: ResolvedRule, lr: Any, momentum: Any, curvature: Floats) -> Any:
    """Return the :func:`spectral_radius` of a resolved rule, for checked arguments."""
    if rule.sweeps:
        return _radius(rule.linear(lr, momentum, curvature))
    operands: Any = [lr, momentum, curvature, None]
    purpose: Any = [
        *[["readonly"]] * 3,
        ["writeonly", "allocate"],
    ]  # NumPy's annotations allow one entry for all operands only
    arrays = np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=purpose,
        op_dtypes=[np.float64] * 4,
        buffersize=GRID_BLOCK,
    )
    with arrays, np.errstate(over="ignore", invalid="ignore"):
        for rates, momenta, curvatures, out in arrays:
            out[...] = _radius(rule.linear(rates, momenta, curvatures))
        return arrays.operands[3][()]


def _radius(map: Linear) -> Any:
    if len(map.rows) == 1:
        return np.abs(map.rows[0][0])
    if len(map.rows) > 2:
        return np.abs(np.linalg.eigvals(map.matrix)).max(axis=-1)
    centre, split = centre_and_split(map)
    real = np.abs(centre) + np.sqrt(np.maximum(split, 0.0))
    found = np.where(split >= 0.0, real, np.sqrt(np.maximum(centre * centre - split, 0.0)))
    return np.where(np.isfinite(split), found, np.inf)  # an overflow of the squares: it diverges at once


def centre_and_split(map: Linear) -> tuple[Any, Any]:
    """Return c and d of the eigenvalues c ± √d of a 2 × 2 map."""
    (a, b), (c, d) = ([row[key] for key in range(2)] for row in map.rows)
    half = 0.5 * (a - d)
    return 0.5 * (a + d), half * half + b * c


def eigenvalues(map: Linear) -> npt.NDArray[np.complex128]:
    """Return all eigenvalues, the largest modulus first; the two of a 2 × 2 map are exactly real or conjugate."""
    if len(map.rows) != 2:
        found = np.linalg.eigvals(map.matrix).astype(np.complex128)
    else:
        centre, split = (np.broadcast_to(value, map.shape) for value in centre_and_split(map))
        root = np.sqrt(split.astype(np.complex128))
        found = np.stack([centre + root, centre - root], axis=-1)
    return np.take_along_axis(found, np.argsort(-np.abs(found), axis=-1, kind="stable"), axis=-1)


def regime(lr: Any, momentum: Any, curvature: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """Return how the error of one coordinate behaves in the long run; it broadcasts.

    "divergent"
        ρ ≥ 1: the error does not converge.
    "critical"
        A double root, in one Jordan block: the error goes like t·ρ^t. For heavy ball at μ = (1 − √(αh))². Only here
        ‖e_t‖ = O(ρ^t) is false.
    "oscillating"
        The leading eigenvalues are complex: a damped oscillation.
    "monotone", "alternating"
        The leading eigenvalue is real and ≥ 0, or < 0: in the end the error keeps its sign, or changes it every step.

    Parameters, errors and validity are those of :func:`iteration_matrix`. Critical damping is recognised up to the
    rounding of lr, momentum and curvature.

    Returns
    -------
    str or ndarray of str

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.regime([0.001, 0.01, 1.0, 3.615, 4.0], 0.81, 1.0, rule="classical"))
    ['monotone' 'critical' 'oscillating' 'alternating' 'divergent']
    """
    with np.errstate(over="ignore", invalid="ignore"):
        map = linear_map(rule, lr, momentum, curvature, hyper)
        found = eigenvalues(map)
    lead = np.where(np.isfinite(found[..., 0]), found[..., 0], np.inf)
    size = np.abs(lead)
    names = np.where(lead.imag != 0.0, "oscillating", np.where(lead.real < 0.0, "alternating", "monotone"))
    if found.shape[-1] > 1:
        # Rounding that moves the matrix by ε moves a double root by √ε.
        gap = np.abs(lead - found[..., 1])
        double = (size > 0.0) & (gap * gap <= 4.0 * ROUNDING * size * size)
        block = (map.matrix != lead[..., None, None].real * np.eye(found.shape[-1])).any(axis=(-2, -1))
        names = np.where(double & block, "critical", names)
    return np.where(size >= 1.0 - ROUNDING, "divergent", names)[()]


ORBIT_BLOCK = 1024
"""The number of steps computed together, if all steps are computed."""

NORM = 600
"""The cost of a norm, in steps of one coordinate."""


def transient(lr: Any, momentum: Any, curvature: Any, t: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """Return ‖A^t‖₂ in the coordinates (e_t, e_{t−1}): how much t steps can magnify an error; it broadcasts.

    The coordinates are the same for rules that draw the same trajectory, and so are their transients; a rule with
    s ≥ 2 state slots has (e_t, …, e_{t−s}). At critical damping ‖A^t‖/ρ^t grows like t.

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As for :func:`iteration_matrix`.
    t : array_like of int
        The numbers of steps, ≥ 0.

    Returns
    -------
    float64 or ndarray of float64
        inf if it exceeds double precision.

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
    mantissa, exponent = powers(companion(linear_map(rule, lr, momentum, curvature, hyper)), check_steps(t))
    return _scaled(np.linalg.norm(mantissa, 2, axis=(-2, -1)), exponent)


def response(lr: Any, momentum: Any, curvature: Any, t: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """Return e_t / e_0 of a run from the initial state, by the raw formula of :func:`fastmomentum.step`; it broadcasts.

    A run on a quadratic is the sum of these responses over the eigenvectors of its Hessian, each times its initial
    error. So they predict the run to the last digits, while ρ^t and ‖A^t‖ do not.

    Parameters and errors are those of :func:`transient`. The undamped first step that Momentum takes with
    a dampened pytorch rule is not included.

    Returns
    -------
    float64 or ndarray of float64

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.response(0.5, 0.5, 1.0, [0, 1, 2, 3], rule="pytorch"))
    [ 1.     0.5    0.    -0.25]
    """
    map = linear_map(rule, lr, momentum, curvature, hyper)
    mantissa, exponent = powers(map.matrix, check_steps(t))
    return _scaled((mantissa @ map.rest)[..., 0], exponent)


class Peak(NamedTuple):
    """The largest transient, and the step at which it occurs.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.transient_peak(1.0, 0.5, 0.1, rule="pytorch").t
    3
    """

    t: int
    norm: float


def transient_peak(lr: float, momentum: float, curvature: float, *, rule: str | Rule, **hyper: Any) -> Peak:
    """Return the step t at which :func:`transient` is largest, and its value: how far an error can grow first.

    Parameters and errors are those of :func:`iteration_matrix`, for numbers, not arrays.

    Returns
    -------
    Peak
        (t, norm), t the first such step.

    Raises
    ------
    ValueError
        If ρ ≥ 1, as there is no largest one then.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> peak = fm.theory.transient_peak(0.01, 0.81, 1.0, rule="classical")
    >>> peak.t, round(peak.norm, 3)
    (9, 7.034)
    """
    alpha, mu = checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE)
    map = linear_map(rule, alpha, mu, checks.number("curvature", curvature, FINITE), hyper)
    matrix, radius = companion(map), float(np.abs(eigenvalues(map)).max())
    if radius >= 1.0 - ROUNDING:
        raise ValueError(f"lr, momentum: expected a setting that converges; got spectral radius {radius:.6g}")
    spread = np.sqrt(len(matrix)) * growth(radius, len(matrix))  # ‖A^(t+s)‖ ≤ spread·‖A^t‖ for every s
    check_affordable(np.log(spread) / (1.0 - radius), NORM)
    orbit = run(matrix, ORBIT_BLOCK)
    best, start, reached = Peak(0, 1.0), 0, np.eye(len(matrix))
    while True:
        norms = np.linalg.norm(orbit @ reached, 2, axis=(-2, -1))
        top = int(norms.argmax())
        best = Peak(start + top, float(norms[top])) if norms[top] > best.norm else best
        if spread * norms[-1] <= best.norm:
            return best
        start, reached = start + ORBIT_BLOCK - 1, orbit[-1] @ reached


def _scaled(mantissa: Floats, exponent: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(mantissa, np.clip(exponent, -5000, 5000))[()]
