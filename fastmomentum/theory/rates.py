"""Compute how one coordinate of a quadratic converges: iteration matrix, rate, regime, and error after t steps."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.checks import FINITE
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import (
    Floats,
    Ints,
    LinearMap,
    Number,
    ResolvedRule,
    Setting,
    check_affordable,
    check_curvature,
    check_steps,
    companion,
    first_powers,
    growth_bound,
    linear_map,
    powers,
    resolve_rule,
)

GRID_BLOCK = 1 << 12
"""The number of points computed at a time, few enough for the cache (measured: 2 to 8 times as fast as 10⁷ at once)."""

ORBIT_BLOCK = 1024
"""The number of powers of A computed together, if every power up to some step is needed."""

NORM_COST = 600
"""The work of the norm of one power of A, in steps of one coordinate."""

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""The uncertainty of roots: rounding the hyper-parameters moves them by about as much.

Two roots closer than this count as one, and ρ counts as 1 if 1 − ρ is below it.
"""


def iteration_matrix(
    lr: npt.ArrayLike, momentum: npt.ArrayLike, curvature: npt.ArrayLike, *, rule: str | Rule, **hyper: Setting
) -> Floats:
    """Return the matrix A by which one step multiplies error and state on the quadratic ½h(p − p*)².

    x_{t+1} = A x_t, with x = (p − p*, *state)

    It is computed by the rule's own function, with the gradient g = h·(p − p*). For heavy_ball
    A = [[1 + μ − αh, −μ], [1, 0]]; rules with the same trajectory have matrices that are similar to it.

    Parameters
    ----------
    lr, momentum, curvature : array_like
        α ≥ 0, μ in [0, 1] and h > 0; they broadcast. A rule without momentum ignores it.
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
    On f = ½xᵀHx − bᵀx the matrix holds for every eigenvector of H, with its eigenvalue as h. On other functions it
    holds near a smooth minimum. Every state slot has a row and a column, even if p does not depend on it.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.iteration_matrix(0.5, 0.25, 1.0, rule="heavy_ball")
    array([[ 0.75, -0.25],
           [ 1.  ,  0.  ]])
    """
    return linear_map(rule, lr, momentum, curvature, hyper).matrix


def spectral_radius(
    lr: npt.ArrayLike, momentum: npt.ArrayLike, curvature: npt.ArrayLike, *, rule: str | Rule, **hyper: Setting
) -> Any:
    """Return ρ(A), the largest modulus of the eigenvalues of the :func:`iteration_matrix`.

    ‖e_t‖^(1/t) → ρ(A) for almost every start, and ‖A^t‖ ≤ C(ε)·(ρ + ε)^t for every ε > 0 (Gelfand). It is *not* true
    that ‖e_t‖ = O(ρ^t): at critical damping, where the optimal tunings lie, ‖A^t‖ grows like t·ρ^(t−1).

    Parameters and errors are those of :func:`iteration_matrix`. ρ holds for the functions for which the matrix holds.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array
        By closed forms if the rule has at most one state slot, by numpy.linalg.eigvals otherwise.

    Notes
    -----
    For heavy ball ρ = √μ if (1 − √(αh))² ≤ μ ≤ (1 + √(αh))², for any h (Polyak 1964).

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.spectral_radius([0.1, 1.0, 4.0], 0.81, 1.0, rule="classical"))
    [0.9        0.9        1.71871869]
    """
    resolved = resolve_rule(rule, hyper)
    return radius(resolved, *resolved.check_lr_and_momentum(lr, momentum), check_curvature(curvature))


def radius(rule: ResolvedRule, lr: Number, momentum: Number, curvature: Number) -> Any:
    """Return the :func:`spectral_radius` of a resolved rule, for arguments that are already checked."""
    if rule.has_array_values:
        return _radius(rule.linear(lr, momentum, curvature))
    # NumPy's annotations want one entry of op_flags for all operands alone, so the list is declared as Any.
    op_flags: Any = [*[["readonly"]] * 3, ["writeonly", "allocate"]]
    operands: Any = [lr, momentum, curvature, None]
    blocks = np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=op_flags,
        op_dtypes=[np.float64] * 4,
        buffersize=GRID_BLOCK,
    )
    with blocks, np.errstate(over="ignore", invalid="ignore"):
        for lrs, momenta, curvatures, out in blocks:
            out[...] = _radius(rule.linear(lrs, momenta, curvatures))
        return blocks.operands[3][()]


def _radius(linear: LinearMap) -> Any:
    if len(linear.rows) == 1:
        return np.abs(linear.rows[0][0])
    if len(linear.rows) > 2:
        return np.abs(np.linalg.eigvals(linear.matrix)).max(axis=-1)
    centre, split = centre_and_split(linear)
    real = np.abs(centre) + np.sqrt(np.maximum(split, 0.0))
    found = np.where(split >= 0.0, real, np.sqrt(np.maximum(centre * centre - split, 0.0)))
    return np.where(np.isfinite(split), found, np.inf)  # if the squares overflow, the run diverges at once


def centre_and_split(linear: LinearMap) -> tuple[Number, Number]:
    """Return c and d of the eigenvalues c ± √d of a map of two rows."""
    (a, b), (c, d) = ([row[key] for key in range(2)] for row in linear.rows)
    half = 0.5 * (a - d)
    return 0.5 * (a + d), half * half + b * c


def eigenvalues(linear: LinearMap) -> npt.NDArray[np.complex128]:
    """Return all eigenvalues, the largest modulus first; those of a map of two rows are exactly real or conjugate."""
    if len(linear.rows) != 2:
        found = np.linalg.eigvals(linear.matrix).astype(np.complex128)
    else:
        centre, split = (np.broadcast_to(value, linear.shape) for value in centre_and_split(linear))
        root = np.sqrt(split.astype(np.complex128))
        found = np.stack([centre + root, centre - root], axis=-1)
    return np.take_along_axis(found, np.argsort(-np.abs(found), axis=-1, kind="stable"), axis=-1)


def regime(
    lr: npt.ArrayLike, momentum: npt.ArrayLike, curvature: npt.ArrayLike, *, rule: str | Rule, **hyper: Setting
) -> Any:
    """Return how the error of one coordinate behaves after many steps, as the name of a regime.

    "divergent"
        ρ ≥ 1: the error does not converge.
    "critical"
        The leading eigenvalue is a double root with one Jordan block: the error goes like t·ρ^t, and only here
        ‖e_t‖ = O(ρ^t) is false. For heavy ball this is μ = (1 − √(αh))².
    "oscillating"
        The leading eigenvalues are complex: the error is a damped oscillation.
    "monotone"
        The leading eigenvalue is real and ≥ 0: the error keeps its sign.
    "alternating"
        The leading eigenvalue is real and < 0: the error changes its sign every step.

    Parameters and errors are those of :func:`iteration_matrix`. Critical damping is recognised up to the rounding of
    lr, momentum and curvature.

    Returns
    -------
    str, or ndarray of str if an argument is an array

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.regime([0.001, 0.01, 1.0, 3.615, 4.0], 0.81, 1.0, rule="classical"))
    ['monotone' 'critical' 'oscillating' 'alternating' 'divergent']
    """
    with np.errstate(over="ignore", invalid="ignore"):
        linear = linear_map(rule, lr, momentum, curvature, hyper)
        found = eigenvalues(linear)
    lead = np.where(np.isfinite(found[..., 0]), found[..., 0], np.inf)
    size = np.abs(lead)
    names = np.where(lead.imag != 0.0, "oscillating", np.where(lead.real < 0.0, "alternating", "monotone"))
    if found.shape[-1] > 1:
        # Rounding that moves the matrix by ε moves a double root by √ε.
        gap = np.abs(lead - found[..., 1])
        is_double = (size > 0.0) & (gap * gap <= 4.0 * ROUNDING * size * size)
        has_block = (linear.matrix != lead[..., None, None].real * np.eye(found.shape[-1])).any(axis=(-2, -1))
        names = np.where(is_double & has_block, "critical", names)
    return np.where(size >= 1.0 - ROUNDING, "divergent", names)[()]


def transient(
    lr: npt.ArrayLike,
    momentum: npt.ArrayLike,
    curvature: npt.ArrayLike,
    t: npt.ArrayLike,
    *,
    rule: str | Rule,
    **hyper: Setting,
) -> Any:
    """Return the greatest factor by which t steps can multiply an error: ‖A^t‖₂ in the coordinates (e_t, e_{t−1}).

    Rules with the same trajectory have the same transients in these coordinates. For a rule with s ≥ 2 state slots
    the coordinates are (e_t, …, e_{t−s}). At critical damping ‖A^t‖/ρ^t grows like t.

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As for :func:`iteration_matrix`.
    t : array_like of int
        The numbers of steps, ≥ 0; they broadcast with the other arguments.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array
        inf if the norm exceeds double precision.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Examples
    --------
    At critical damping the quotient ‖A^t‖/ρ^t grows without bound:

    >>> import numpy as np, fastmomentum as fm
    >>> t = np.array([1, 10, 100, 200])
    >>> print((fm.theory.transient(0.01, 0.81, 1.0, t, rule="heavy_ball") / 0.9**t).round(1))
    [  2.4  20.2 201.1 402.2]
    """
    mantissa, exponent = powers(companion(linear_map(rule, lr, momentum, curvature, hyper)), check_steps(t))
    return _times_power_of_two(np.linalg.norm(mantissa, 2, axis=(-2, -1)), exponent)


def response(
    lr: npt.ArrayLike,
    momentum: npt.ArrayLike,
    curvature: npt.ArrayLike,
    t: npt.ArrayLike,
    *,
    rule: str | Rule,
    **hyper: Setting,
) -> Any:
    """Return e_t / e_0 of a run of :func:`fastmomentum.step` from the initial state.

    A run on a quadratic is the sum of these responses over the eigenvectors of its Hessian, each times its initial
    error. So they predict the run up to rounding, while ρ^t and ‖A^t‖ do not.

    Parameters and errors are those of :func:`transient`. The undamped first step that Momentum takes with a dampened
    pytorch rule is not included.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.response(0.5, 0.5, 1.0, [0, 1, 2, 3], rule="pytorch"))
    [ 1.     0.5    0.    -0.25]
    """
    linear = linear_map(rule, lr, momentum, curvature, hyper)
    mantissa, exponent = powers(linear.matrix, check_steps(t))
    return _times_power_of_two((mantissa @ linear.start)[..., 0], exponent)


class Peak(NamedTuple):
    """Hold the largest transient of a run, and the step at which it occurs.

    Attributes
    ----------
    t : int
        The first step at which :func:`transient` is largest.
    norm : float
        The transient at this step.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.transient_peak(1.0, 0.5, 0.1, rule="pytorch").t
    3
    """

    t: int
    norm: float


def transient_peak(lr: float, momentum: float, curvature: float, *, rule: str | Rule, **hyper: Setting) -> Peak:
    """Return the step at which :func:`transient` is largest, and its value there: by how much an error can grow.

    Parameters and errors are those of :func:`iteration_matrix`, but for numbers, not arrays.

    Returns
    -------
    Peak
        (t, norm).

    Raises
    ------
    ValueError
        If ρ ≥ 1, as the transients then grow without bound or stay at their largest.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> peak = fm.theory.transient_peak(0.01, 0.81, 1.0, rule="classical")
    >>> peak.t, round(peak.norm, 3)
    (9, 7.034)
    """
    alpha, mu = checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE)
    linear = linear_map(rule, alpha, mu, checks.number("curvature", curvature, FINITE), hyper)
    matrix, rho = companion(linear), float(np.abs(eigenvalues(linear)).max())
    if rho >= 1.0 - ROUNDING:
        raise ValueError(f"lr, momentum: expected a setting that converges; got spectral radius {rho:.6g}")
    bound = np.sqrt(len(matrix)) * growth_bound(rho, len(matrix))  # ‖A^(t+s)‖ ≤ bound·‖A^t‖ for every s
    check_affordable(np.log(bound) / (1.0 - rho), NORM_COST)
    block = first_powers(matrix, ORBIT_BLOCK)
    best, start, power = Peak(0, 1.0), 0, np.eye(len(matrix))
    while True:
        norms = np.linalg.norm(block @ power, 2, axis=(-2, -1))
        top = int(norms.argmax())
        best = Peak(start + top, float(norms[top])) if norms[top] > best.norm else best
        if bound * norms[-1] <= best.norm:
            return best
        start, power = start + ORBIT_BLOCK - 1, block[-1] @ power


def _times_power_of_two(mantissa: Floats, exponent: Ints) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(mantissa, np.clip(exponent, -5000, 5000))[()]
