"""How fast one coordinate of a quadratic converges: iteration matrix, spectral radius, regime."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.records import Update
from fastmomentum.theory.curvatures import Floats, check_curvature
from fastmomentum.theory.linear import Linear, Settled, read, settled

BLOCK = 1 << 12
"""Points taken at a time, few enough to stay in the cache (measured: twice to eight times as fast as 10⁷ at once)."""

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""Two roots closer than what rounding the hyper-parameters does to them count as one, and 1 − ρ below it as 0."""


def iteration_matrix(lr: Any, momentum: Any, curvature: Any, *, rule: str | Update, **hyper: Any) -> Floats:
    """A of x_{t+1} = A x_t, where x = (p − p*, state), on the quadratic ½h(p − p*)².

    It is read off the rule's own function, applied to unit vectors with the gradient g = h·p. For heavy_ball
    A = [[1 + μ − αh, −μ], [1, 0]]; the matrices of the rules that draw the same trajectory are similar to it.

    Parameters
    ----------
    lr, momentum, curvature : array_like
        α ≥ 0, μ in [0, 1] and h > 0; they broadcast. momentum has no part in rules that do not declare it.
    rule : str, Rule or chain
        A rule that is linear in p, state and g. The state of a position rule is taken relative to p*.
    **hyper
        What else the rule declares, and the options of :func:`fastmomentum.step` (nesterov, lookahead, weight_decay).

    Returns
    -------
    ndarray of float64, shape (..., 1 + s, 1 + s) for s state slots

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Notes
    -----
    On f = ½xᵀHx − bᵀx this holds in every eigenvector of H, with h its eigenvalue; elsewhere near a smooth minimum. All
    of the state counts for the rate, also what p never sees.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.iteration_matrix(0.5, 0.25, 1.0, rule="heavy_ball")
    array([[ 0.75, -0.25],
           [ 1.  ,  0.  ]])
    """
    return read(rule, lr, momentum, curvature, hyper).matrix


def spectral_radius(lr: Any, momentum: Any, curvature: Any, *, rule: str | Update, **hyper: Any) -> Any:
    """ρ(A), the largest modulus of the eigenvalues of the :func:`iteration_matrix`; it broadcasts.

    ‖e_t‖^(1/t) → ρ(A) for almost every start, and ‖A^t‖ ≤ C(ε)·(ρ + ε)^t for every ε > 0 (Gelfand). It is *not* true
    that ‖e_t‖ = O(ρ^t): at critical damping, where the optimal tunings lie, ‖A^t‖ grows like t·ρ^(t−1).

    Parameters, errors and validity are those of :func:`iteration_matrix`.

    Returns
    -------
    float64 or ndarray of float64
        Closed forms for up to one state slot, numpy.linalg.eigvals beyond.

    Notes
    -----
    For heavy ball it is √μ wherever (1 − √(αh))² ≤ μ ≤ (1 + √(αh))², whatever h is (Polyak 1964).

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.spectral_radius([0.1, 1.0, 4.0], 0.81, 1.0, rule="classical"))
    [0.9        0.9        1.71871869]
    """
    chosen = settled(rule, hyper)
    return radius(chosen, *chosen.inputs(lr, momentum), check_curvature(curvature))


def radius(rule: Settled, lr: Any, momentum: Any, curvature: Floats) -> Any:
    """The :func:`spectral_radius` of a rule that has been settled, with arguments that have been checked."""
    if rule.sweeps:
        return _radius(rule.linear(lr, momentum, curvature))
    operands: Any = [lr, momentum, curvature, None]
    purpose: Any = [*[["readonly"]] * 3, ["writeonly", "allocate"]]  # NumPy's annotations know one for all only
    arrays = np.nditer(
        operands,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=purpose,
        op_dtypes=[np.float64] * 4,
        buffersize=BLOCK,
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
    return np.where(np.isfinite(split), found, np.inf)  # squares beyond double precision: it diverges at once


def centre_and_split(map: Linear) -> tuple[Any, Any]:
    """c and d of a 2 × 2 map's eigenvalues c ± √d."""
    (a, b), (c, d) = ([row[key] for key in range(2)] for row in map.rows)
    half = 0.5 * (a - d)
    return 0.5 * (a + d), half * half + b * c


def eigenvalues(map: Linear) -> npt.NDArray[np.complex128]:
    """All of them, the largest modulus first; of the two of a 2 × 2 map in closed form, exactly real or conjugate."""
    if len(map.rows) != 2:
        found = np.linalg.eigvals(map.matrix).astype(np.complex128)
    else:
        centre, split = (np.broadcast_to(value, map.shape) for value in centre_and_split(map))
        root = np.sqrt(split.astype(np.complex128))
        found = np.stack([centre + root, centre - root], axis=-1)
    return np.take_along_axis(found, np.argsort(-np.abs(found), axis=-1, kind="stable"), axis=-1)


def regime(lr: Any, momentum: Any, curvature: Any, *, rule: str | Update, **hyper: Any) -> Any:
    """How the error of one coordinate behaves in the long run; it broadcasts.

    "divergent"
        ρ ≥ 1: it does not converge.
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
        map = read(rule, lr, momentum, curvature, hyper)
        found = eigenvalues(map)
    lead = np.where(np.isfinite(found[..., 0]), found[..., 0], np.inf)
    size = np.abs(lead)
    names = np.where(lead.imag != 0.0, "oscillating", np.where(lead.real < 0.0, "alternating", "monotone"))
    if found.shape[-1] > 1:
        # Rounding moves a double root by the square root of what it moves the matrix.
        gap = np.abs(lead - found[..., 1])
        double = (size > 0.0) & (gap * gap <= 4.0 * ROUNDING * size * size)
        block = (map.matrix != lead[..., None, None].real * np.eye(found.shape[-1])).any(axis=(-2, -1))
        names = np.where(double & block, "critical", names)
    return np.where(size >= 1.0 - ROUNDING, "divergent", names)[()]
