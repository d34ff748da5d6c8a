"""Compute the number of iterations that a run on a quadratic needs, and a bound on its error at every step."""

from collections.abc import Callable, Iterator
from math import inf

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, FINITE, INSIDE_UNIT
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import (
    Floats,
    Ints,
    LinearMap,
    Setting,
    check_affordable,
    check_eigenvalues,
    companion,
    first_powers,
    growth_bound,
    linear_map,
    lyapunov,
    powers,
    sample_spectrum,
)
from fastmomentum.theory.rates import ROUNDING, eigenvalues

TINY = 1e-300
"""A number that replaces a modulus of 0 in logarithms and divisions."""

BLOCK = 1 << 17
"""The number of steps times curvatures computed together."""


def iterations(
    lr: float,
    momentum: float,
    spectrum: npt.ArrayLike,
    tol: float,
    *,
    rule: str | Rule,
    error: npt.ArrayLike | None = None,
    **hyper: Setting,
) -> float:
    """Return the number of steps from the initial state that reduce the error of a quadratic to tol·‖e_0‖.

    With the initial `error` the number is exact: the first t with ‖e_t‖ ≤ tol·‖e_0‖, where e_t is the sum of the
    :func:`response` at every eigenvalue times its initial error. Without it the number is a bound for every start: the
    step from which on even the worst eigenvalue's response stays ≤ tol.

    Parameters
    ----------
    lr, momentum : float
        α ≥ 0, μ in [0, 1].
    spectrum : array_like or (m, L)
        The eigenvalues h > 0 of the Hessian. Two numbers without `error` are the ends of the spectrum: the bound then
        also holds for every curvature between them, and oscillating errors are bounded by their envelope.
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
        inf if the run does not converge: if ρ ≥ 1 at an eigenvalue (with `error`: at one whose error is not 0).

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range or the rule is not linear, or if the error oscillates for so long that computing
        every step at every curvature would take minutes (some 10⁹ of both).

    Notes
    -----
    log(tol)/log(ρ) is neither the exact number nor a bound, as it ignores that the error grows before it falls. At the
    optimal tunings the number is 1.03 to 2.05 times as large (measured for heavy ball and Nesterov's method, κ from 10
    to 10⁴, and tol from 1e-3 to 1e-10).

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
    h, weight = check_eigenvalues(spectrum), None
    if error is not None:
        weight = checks.numbers("error", error, FINITE)
        if weight.shape != h.shape:
            raise ValueError(f"error: expected one number for each of {h.size} eigenvalues; got shape {weight.shape}")
        h, weight = h[weight != 0.0], weight[weight != 0.0]
        if not h.size:
            return 0
        weight = weight / np.abs(weight).max()
        weight = weight / np.linalg.norm(weight)
    is_interval = weight is None and h.size == 2
    h = sample_spectrum(h) if is_interval else h
    linear = linear_map(rule, checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE), h, hyper)
    rho = float(np.abs(eigenvalues(linear)).max())
    if rho >= 1.0 - ROUNDING:
        return inf
    if _only_shrinks(linear):
        return _bisect(linear, weight, tol)
    if is_interval and len(linear.rows) == 2:
        return _bound_by_envelope(linear, tol)
    check_affordable(np.log(tol) / np.log(max(rho, TINY)), h.size)
    return _last_crossing(linear, tol, rho) if weight is None else _first_crossing(linear, weight, tol)


def _only_shrinks(linear: LinearMap) -> bool:
    """Return whether |e_t| provably never grows: with one eigenvalue, or with two ≥ 0 if the steps keep their sign.

    The steps d_t = e_{t+1} − e_t obey the same recurrence as the errors. With the roots λ₁ ≥ λ₂ ≥ 0 all steps are ≤ 0
    if d_0 ≤ 0 and d_1 ≤ λ₂d_0.
    """
    if len(linear.rows) == 1:
        return True
    roots = eigenvalues(linear)
    if len(linear.rows) > 2 or (roots.imag != 0.0).any() or (roots.real < 0.0).any():
        return False
    step = linear.matrix @ linear.start - linear.start
    first, second = step[..., 0], (linear.matrix @ step[..., None])[..., 0, 0]
    return bool((first <= 0.0).all() and (second <= roots[..., 1].real * first).all())


def _bisect(linear: LinearMap, weight: Floats | None, tol: float) -> int:
    """Return the first step at which the error is within `tol`, if it never grows."""
    matrix = linear.matrix

    def is_reached(t: Ints) -> bool:
        mantissa, exponent = powers(matrix, t)
        responses = np.ldexp((mantissa @ linear.start)[..., 0], np.maximum(exponent, -2000))
        return bool((np.abs(responses) <= tol).all() if weight is None else _is_within(responses, weight, tol))

    return int(_first_true(is_reached, np.array(0)))


def _first_true(condition: Callable[[Ints], npt.ArrayLike], low: Ints) -> Ints:
    """Return, for each element, the first number above `low` at which the condition holds; it must hold from there on.

    `condition` takes an array of numbers, and returns a bool for each of them, or one for all.
    """
    step = np.ones_like(low)
    while not (holds := np.asarray(condition(low + step))).all():
        step = np.where(holds, step, 2 * step)
    low, high = low + step // 2, low + step
    while (high - low > 1).any():
        middle = (low + high) // 2
        holds = np.asarray(condition(middle))
        low, high = np.where(holds, low, middle), np.where(holds, middle, high)
    return high


def _is_within(responses: Floats, weight: Floats, tol: float, axis: int | None = None) -> npt.NDArray[np.bool_]:
    """Return whether ‖responses · weight‖ ≤ tol, along an axis.

    It is computed as ‖responses · weight/tol‖ ≤ 1, as the squares of very small numbers would underflow.
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.linalg.norm(responses * (weight / tol), axis=axis) <= 1.0)


def _bound_by_envelope(linear: LinearMap, tol: float) -> int:
    """Return the first step at which the envelopes of all curvatures are ≤ tol, and from which on they only fall.

    e_t = c₁λ₁^t + c₂λ₂^t = λ₁^t + (e_1 − λ₁)u_t, where u_t is the impulse response, |u_t| ≤ t·ρ^(t−1). So |e_t| is at
    most the smaller of (|c₁| + |c₂|)·ρ^t and (1 + bt)·ρ^t with b = |e_1 − λ₁|/ρ. Unlike the error itself both are
    smooth in the curvature, so curvatures between those computed are no worse.
    """
    roots = eigenvalues(linear)
    lead, gap = roots[:, 0], roots[:, 0] - roots[:, 1]
    first = (linear.matrix @ linear.start)[:, 0]
    rho = np.maximum(np.abs(lead), TINY)
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficients = np.where(gap != 0.0, np.abs((first - roots[:, 1]) / gap) + np.abs((lead - first) / gap), np.inf)
    b, log_rho = np.abs(first - lead) / rho, np.log(rho)

    by_coefficients = np.ceil((np.log(tol) - np.log(coefficients)) / log_rho)
    # (1 + bt)·ρ^t falls from t = −1/log ρ − 1/b on.
    turn = np.floor(np.maximum(-1.0 / log_rho - 1.0 / np.maximum(b, TINY), 0.0)).astype(np.int64)
    by_impulse = _first_true(lambda t: np.log1p(b * t) + log_rho * t <= np.log(tol), turn)
    return int(np.minimum(by_coefficients, by_impulse).max())


def _response_blocks(linear: LinearMap) -> Iterator[tuple[int, Floats]]:
    """Yield the responses block by block: the step t of the first row, and e_t, e_{t+1}, … as (steps, curvatures)."""
    matrix = linear.matrix
    orbit = first_powers(matrix, max(len(linear.rows), BLOCK // len(matrix)))
    rows, next_block = np.ascontiguousarray(orbit[:, :, 0]), orbit[-1] @ matrix
    start, x = 0, np.broadcast_to(linear.start, matrix.shape[:-1])
    while True:
        yield start, np.einsum("tkn,kn->tk", rows, x)
        start, x = start + len(rows), np.einsum("kmn,kn->km", next_block, x)


def _first_crossing(linear: LinearMap, weight: Floats, tol: float) -> int:
    """Return the first step at which the error is within `tol`."""
    for start, responses in _response_blocks(linear):
        reached = _is_within(responses, weight, tol, axis=1)
        if reached.any():
            return start + int(reached.argmax())
    raise AssertionError("a run that converges reaches tol")


def _last_crossing(linear: LinearMap, tol: float, rho: float) -> int:
    """Return the step from which on every response stays within `tol`."""
    count = len(linear.rows)
    limit = tol / growth_bound(rho, count)  # `count` responses in a row below this limit stay below tol for good
    last = 0
    for start, responses in _response_blocks(linear):
        sizes = np.abs(responses).max(axis=1)
        above = np.flatnonzero(sizes > tol)
        last = start + int(above[-1]) if above.size else last
        if sizes[-count:].max() <= limit:
            return last + 1
    raise AssertionError("a run that converges reaches tol")


def certificate(
    lr: float, momentum: float, spectrum: npt.ArrayLike, r: float, *, rule: str | Rule, **hyper: Setting
) -> float:
    """Return a constant C that bounds the error of every run on a quadratic with this spectrum.

    ‖e_t‖ ≤ C·r^t·‖e_0‖ for every t

    For every r > ρ(A) the equation P = I + (A/r)ᵀP(A/r) has a positive definite solution, and then
    ‖z_t‖ ≤ √cond(P)·r^t·‖z_0‖ for z = (e_t, e_{t−1}) and any z_0. C is the largest √cond(P) over the spectrum, or the
    constant of a start from the initial state if that is larger. C is finite at critical damping, too, but grows there
    without bound as r falls to ρ: the error is not O(ρ^t).

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
    Critical damping, where ρ = 0.9, and no constant exists for r = 0.9 itself:

    >>> import fastmomentum as fm
    >>> for r in (0.99, 0.95, 0.91, 0.901):
    ...     print(r, round(fm.theory.certificate(0.01, 0.81, [1.0], r, rule="heavy_ball"), 1))
    0.99 19.3
    0.95 35.3
    0.91 180.0
    0.901 1809.0
    """
    h = sample_spectrum(spectrum)
    r = checks.number("r", r, ABOVE_ZERO)
    linear = linear_map(rule, checks.number("lr", lr, FINITE), checks.number("momentum", momentum, FINITE), h, hyper)
    rho = float(np.abs(eigenvalues(linear)).max())
    if not r > rho:
        raise ValueError(f"r: expected a rate above the spectral radius, {rho:.9g}; got {r!r}")
    matrix = companion(linear)
    size = matrix.shape[-1]
    energy = lyapunov(matrix / r, np.eye(size))
    # From the initial state: |e_t|/r^t for the first steps, then |e_t|² ≤ (P⁻¹)₀₀·r^(2(t − s))·zᵀPz with
    # z = (e_s, …, e_0).
    first = (first_powers(linear.matrix, size) @ linear.start)[..., 0] / r ** np.arange(size)[:, None]
    z = (first * r ** np.arange(size)[:, None])[::-1] / r ** (size - 1)
    from_start = np.linalg.inv(energy)[:, 0, 0] * np.einsum("ik,kij,jk->k", z, energy, z)
    return float(max(np.sqrt(max(np.linalg.cond(energy).max(), from_start.max())), np.abs(first).max()))
