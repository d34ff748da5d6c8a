"""The number of iterations that a run needs, and a bound on its error with its constant."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, FINITE, INSIDE_UNIT
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import (
    Floats,
    Linear,
    check_affordable,
    check_spectrum,
    companion,
    curvatures,
    growth,
    linear_map,
    lyapunov,
    powers,
    run,
)
from fastmomentum.theory.rates import ROUNDING, eigenvalues

NEVER = float("inf")
TINY = 1e-300
BLOCK = 1 << 17
"""The number of steps times curvatures computed together."""


def iterations(
    lr: float,
    momentum: float,
    spectrum: Any,
    tol: float,
    *,
    rule: str | Rule,
    error: Any = None,
    **hyper: Any,
) -> float:
    """Return the number of steps from the initial state that bring the error of a quadratic down to tol·‖e_0‖.

    With the initial `error` it is exact: the first t with ‖e_t‖ ≤ tol·‖e_0‖, where e_t is the sum of :func:`response`
    at every eigenvalue times its initial error. Without it, it is a bound for every start: the step from which on even
    the worst eigenvalue's response stays ≤ tol.

    Parameters
    ----------
    lr, momentum : float
        α ≥ 0, μ in [0, 1].
    spectrum : array_like or (m, L)
        The eigenvalues h > 0 of the Hessian. Two numbers without `error` are the ends of the spectrum: then the bound
        holds for every curvature between them, too, and is that of the envelope of an oscillation.
    tol : float
        The part of the initial error to reach, in (0, 1).
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    error : array_like, optional
        e_0 = p_0 − p* in the eigenbasis: one number for each eigenvalue.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    int, or float inf
        inf if the run does not converge (ρ ≥ 1 at an eigenvalue, and an error there if `error` is given).

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range or the rule is not linear, or if the error oscillates too long, and computing
        every step and curvature would take minutes (some 10⁹ of both).

    Notes
    -----
    log(tol)/log(ρ) is neither exact nor a bound: it ignores that the error grows before it decays, which at the optimal
    tunings (critical damping at both ends of the spectrum) costs a fifth more steps.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> tuning = fm.theory.optimal(1.0, 100.0, rule="heavy_ball")
    >>> fm.theory.iterations(tuning.lr, tuning.momentum, [1, 10, 100], 1e-6, rule="heavy_ball", error=[1, 1, 1])
    92
    >>> fm.theory.iterations(tuning.lr, tuning.momentum, (1, 100), 1e-6, rule="heavy_ball")
    95
    """
    tol = checks.number("tol", tol, INSIDE_UNIT)
    h, weight = check_spectrum(spectrum), None
    if error is not None:
        weight = checks.numbers("error", error, FINITE)
        if weight.shape != h.shape:
            raise ValueError(f"error: expected one number for each of {h.size} eigenvalues; got shape {weight.shape}")
        h, weight = h[weight != 0.0], weight[weight != 0.0]
        if not h.size:
            return 0
        weight = weight / np.abs(weight).max()
        weight = weight / np.linalg.norm(weight)
    ends_alone = weight is None and h.size == 2
    h = curvatures(h) if ends_alone else h
    map = linear_map(rule, checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE), h, hyper)
    radius = float(np.abs(eigenvalues(map)).max())
    if radius >= 1.0 - ROUNDING:
        return NEVER
    if _only_shrinks(map):
        return _bisected(map, weight, tol)
    if ends_alone and len(map.rows) == 2:
        return _under_envelope(map, tol)
    check_affordable(np.log(tol) / np.log(max(radius, TINY)), h.size)
    return _last_crossing(map, tol, radius) if weight is None else _first_crossing(map, weight, tol)


def _only_shrinks(map: Linear) -> bool:
    """Return whether |e_t| provably never grows: for one eigenvalue, or two ≥ 0 if the steps keep their sign.

    The steps d_t = e_{t+1} − e_t obey the same recurrence: with roots λ₁ ≥ λ₂ ≥ 0 all are ≤ 0 if d_0 ≤ 0 and
    d_1 ≤ λ₂d_0.
    """
    if len(map.rows) == 1:
        return True
    roots = eigenvalues(map)
    if len(map.rows) > 2 or (roots.imag != 0.0).any() or (roots.real < 0.0).any():
        return False
    step = map.matrix @ map.rest - map.rest
    first, second = step[..., 0], (map.matrix @ step[..., None])[..., 0, 0]
    return bool((first <= 0.0).all() and (second <= roots[..., 1].real * first).all())


def _bisected(map: Linear, weight: Floats | None, tol: float) -> int:
    matrix = map.matrix

    def small(t: Any) -> bool:
        mantissa, exponent = powers(matrix, t)
        found = np.ldexp((mantissa @ map.rest)[..., 0], np.maximum(exponent, -2000))
        return _is_small(found, weight, tol)

    return int(_first(small, np.array(0)))


def _first(holds: Callable[[Any], Any], low: Any) -> Any:
    """Return for each element the first number above `low` for which the condition holds, as it does from there on."""
    step = np.ones_like(low)
    while not (done := np.asarray(holds(low + step))).all():
        step = np.where(done, step, 2 * step)
    low, high = low + step // 2, low + step
    while (high - low > 1).any():
        middle = (low + high) // 2
        done = np.asarray(holds(middle))
        low, high = np.where(done, low, middle), np.where(done, middle, high)
    return high


def _is_small(response: Floats, weight: Floats | None, tol: float) -> bool:
    if weight is None:
        return bool((np.abs(response) <= tol).all())
    with np.errstate(over="ignore"):
        return bool(np.linalg.norm(response * (weight / tol)) <= 1.0)  # scaled, as the squares would underflow


def _under_envelope(map: Linear, tol: float) -> int:
    """Return the first step at which the envelopes of all curvatures are ≤ tol, and from which on they only fall.

    e_t = c₁λ₁^t + c₂λ₂^t = λ₁^t + (e_1 − λ₁)u_t, where u_t is the impulse response, |u_t| ≤ t·ρ^(t−1). So |e_t| is at
    most the smaller of (|c₁| + |c₂|)·ρ^t and (1 + bt)·ρ^t with b = |e_1 − λ₁|/ρ. Unlike the error itself both are
    smooth in the curvature, so curvatures between those computed are no worse.
    """
    roots = eigenvalues(map)
    lead, gap = roots[:, 0], roots[:, 0] - roots[:, 1]
    first = (map.matrix @ map.rest)[:, 0]
    size = np.maximum(np.abs(lead), TINY)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(gap != 0.0, np.abs((first - roots[:, 1]) / gap) + np.abs((lead - first) / gap), np.inf)
    climb, fall = np.abs(first - lead) / size, np.log(size)

    capped = np.ceil((np.log(tol) - np.log(share)) / fall)
    # (1 + bt)·ρ^t falls from t = −1/log ρ − 1/b on.
    turn = np.floor(np.maximum(-1.0 / fall - 1.0 / np.maximum(climb, TINY), 0.0)).astype(np.int64)
    climbing = _first(lambda t: np.log1p(climb * t) + fall * t <= np.log(tol), turn)
    return int(np.minimum(capped, climbing).max())


def _blocks(map: Linear) -> Iterator[tuple[int, Floats]]:
    """Yield block after block: the number t of its first step, and e_t, e_{t+1}, …, of shape (steps, curvatures)."""
    matrix = map.matrix
    orbit = run(matrix, max(len(map.rows), BLOCK // len(matrix)))
    rows, leap = np.ascontiguousarray(orbit[:, :, 0]), orbit[-1] @ matrix
    start, x = 0, np.broadcast_to(map.rest, matrix.shape[:-1])
    while True:
        yield start, np.einsum("tkn,kn->tk", rows, x)
        start, x = start + len(rows), np.einsum("kmn,kn->km", leap, x)


def _first_crossing(map: Linear, weight: Floats, tol: float) -> int:
    for start, responses in _blocks(map):
        with np.errstate(over="ignore"):
            reached = (
                np.linalg.norm(responses * (weight / tol), axis=1) <= 1.0
            )  # scaled, as the squares would underflow
        if reached.any():
            return start + int(reached.argmax())
    raise AssertionError("a run that converges gets there")


def _last_crossing(map: Linear, tol: float, radius: float) -> int:
    count = len(map.rows)
    limit = tol / growth(radius, count)  # if a response is below it for `count` steps in a row, it stays below tol
    last = 0
    for start, responses in _blocks(map):
        sizes = np.abs(responses).max(axis=1)
        above = np.flatnonzero(sizes > tol)
        last = start + int(above[-1]) if above.size else last
        if sizes[-count:].max() <= limit:
            return last + 1
    raise AssertionError("a run that converges gets there")


def certificate(lr: float, momentum: float, spectrum: Any, r: float, *, rule: str | Rule, **hyper: Any) -> float:
    """Return a constant C with ‖e_t‖ ≤ C·r^t·‖e_0‖ for every t and every run on a quadratic with this spectrum.

    For every r > ρ(A) the equation P = I + (A/r)ᵀP(A/r) has a positive definite solution, and then
    ‖z_t‖ ≤ √cond(P)·r^t·‖z_0‖ for z = (e_t, e_{t−1}) and any z_0. C is the largest √cond(P) over the spectrum, or the
    constant of a start from the initial state if that is larger. It is finite at critical damping, too; as r falls to
    ρ it grows without bound there, which O(ρ^t) does not show.

    Parameters
    ----------
    lr, momentum, spectrum, rule, **hyper
        As for :func:`iterations`; two numbers are the ends of the spectrum.
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
    map = linear_map(rule, checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE), h, hyper)
    radius = float(np.abs(eigenvalues(map)).max())
    if not r > radius:
        raise ValueError(f"r: expected a rate above the spectral radius, {radius:.9g}; got {r!r}")
    matrix = companion(map)
    size = matrix.shape[-1]
    energy = lyapunov(matrix / r, np.eye(size))
    # From the initial state: the first errors are computed, then |e_t|² ≤ (P⁻¹)₀₀·r^(2(t − s))·zᵀPz with z = (e_s, …,
    # e_0).
    first = (run(map.matrix, size) @ map.rest)[..., 0] / r ** np.arange(size)[:, None]
    z = (first * r ** np.arange(size)[:, None])[::-1] / r ** (size - 1)
    reach = np.linalg.inv(energy)[:, 0, 0] * np.einsum("ik,kij,jk->k", z, energy, z)
    return float(max(np.sqrt(max(np.linalg.cond(energy).max(), reach.max())), np.abs(first).max()))
