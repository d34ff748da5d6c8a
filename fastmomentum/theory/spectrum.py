"""Estimates the spectrum of a user's problem from gradients, and tunes learning rate and momentum for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from fastmomentum import checks
from fastmomentum.checks import AT_LEAST_ZERO, BELOW_ONE, FINITE, INSIDE_UNIT
from fastmomentum.rules.base import Rule
from fastmomentum.theory.iterations import iterations
from fastmomentum.theory.linear import Floats
from fastmomentum.theory.tuning import max_stable_lr, optimal


def checked(name: str, function: Any, like: Any) -> Callable[..., Floats]:
    """Return `function` with its values checked: finite numbers of this shape, as flat copies in double precision.

    They are copied, as many gradient functions write to the same array at every call.
    """
    if not callable(function):
        raise TypeError(f"{name}: expected a function; got {checks.describe(function)}")

    def call(*arguments: Any) -> Floats:
        found = checks.numbers(name, function(*arguments), FINITE)
        if found.shape != like.shape:
            raise ValueError(f"{name}: expected it to return shape {like.shape}, as x has; got {found.shape}")
        return found.ravel()

    return call


DENSE = 128
"""Up to this number of parameters the whole Hessian is measured: cheaper than Lanczos for the least eigenvalue."""

LANCZOS = 64
"""The number of vectors that Lanczos keeps; eigsh's default of 20 takes several times as many products."""

STRETCHES = (1.0, 2.0, 3.0, 4.0)
"""Difference steps, over the step that balances both errors; the spread of their results estimates the error."""

Gradient = Callable[[Any], Any]
Product = Callable[..., Floats]


class Spectrum(NamedTuple):
    """The least and the greatest curvature at a point, each with a bound on its error."""

    m: float
    L: float
    m_error: float = 0.0
    L_error: float = 0.0


def spectrum(
    grad: Gradient | None, x: Any, *, hessp: Callable[[Floats, Floats], Any] | None = None, tol: float = 1e-3
) -> Spectrum:
    """Estimate the least and the greatest eigenvalue (m, L) of the Hessian at `x`, with their errors, from gradients.

    Hv ≈ (∇f(x + εv) − ∇f(x − εv))/2ε, exact up to rounding on a quadratic. Up to 128 parameters the whole
    Hessian is measured so, at ε, 2ε, 3ε and 4ε; the errors are twice the spread of these, and H − Hᵀ. For more
    parameters Lanczos finds both ends (scipy.sparse.linalg.eigsh), and the errors are its residuals ‖Hv − λv‖.

    Parameters
    ----------
    grad : callable
        The function ∇f(x), whose value is an array like `x`; None if `hessp` is given.
    x : array_like of float32 or float64
        The point: any on a quadratic, else one near the minimum, as curvature changes from point to point.
    hessp : callable, optional
        ``hessp(x, v)`` → Hv, in place of differences (scipy.optimize's convention).
    tol : float
        The relative accuracy that Lanczos is asked for, in (0, 1).

    Returns
    -------
    Spectrum
        (m, L, m_error, L_error). m may be ≤ 0: the function is not convex there, and has no rate.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused, or a gradient is not like `x` or not finite.
    RuntimeError
        If Lanczos does not converge: ask for a larger tol, or find m otherwise (for ridge regression m is at least the
        ridge).

    Notes
    -----
    A residual proves that *some* eigenvalue lies within it. From a random start Lanczos practically never misses the
    ends, but no number of products proves that. :func:`tune` keeps a margin.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> h = np.array([0.5, 3.0, 8.0])
    >>> found = fm.theory.spectrum(lambda x: h * x, np.zeros(3))
    >>> round(found.m, 6), round(found.L, 6), found.L_error < 1e-8
    (0.5, 8.0, True)
    """
    start = checks.numbers("x", x, FINITE)
    tol = checks.number("tol", tol, INSIDE_UNIT)
    if not start.size:
        raise ValueError("x: expected one parameter at least; got none")
    product = _differences(grad, np.asarray(x)) if hessp is None else _given(hessp, np.asarray(x))
    return _whole(product, start.size) if start.size <= DENSE else _ends(product, start.size, tol)


def _differences(grad: Gradient | None, x: Any) -> Product:
    """Return Hv by central differences, over the step that balances their two errors, times `stretch`."""
    slope = checked("grad", grad, x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    step = float(np.cbrt(np.finfo(dtype).eps)) * (1.0 + float(np.linalg.norm(x)))

    def product(v: Floats, stretch: float = 1.0) -> Floats:
        towards = v.reshape(x.shape) * (step * stretch / float(np.linalg.norm(v)))
        there, here = ((x + sign * towards).astype(dtype) for sign in (1.0, -1.0))
        way = (
            there.astype(np.float64) - here
        )  # the rounded difference: in float32 it differs from 2εv by parts in a thousand
        return (slope(there) - slope(here)) * float(np.linalg.norm(v) / np.linalg.norm(way))

    return product


def _given(hessp: Callable[[Any, Any], Any], x: Any) -> Product:
    apply = checked("hessp", hessp, x)
    return lambda v, stretch=1.0: apply(x.copy(), v.reshape(x.shape).copy())


def _whole(product: Product, size: int) -> Spectrum:
    found = [np.stack([product(unit, stretch) for unit in np.eye(size)]) for stretch in STRETCHES]
    near = found[0]
    doubt = 2.0 * max(np.linalg.norm(near - other, 2) for other in found[1:]) + np.linalg.norm(near - near.T, 2) / 2.0
    values = np.linalg.eigvalsh((near + near.T) / 2.0)
    doubt += np.finfo(np.float64).eps * size * np.abs(values).max()
    return Spectrum(float(values[0]), float(values[-1]), float(doubt), float(doubt))


def _ends(product: Product, size: int, tol: float) -> Spectrum:
    rng = np.random.default_rng(0)  # any seed, so that results repeat
    start = rng.standard_normal(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    if not product(start).any():
        return Spectrum(0.0, 0.0)
    try:
        values, vectors = eigsh(operator, k=2, which="BE", v0=start, tol=tol, ncv=min(size, LANCZOS), rng=rng)
    except ArpackError as error:
        raise RuntimeError(
            f"spectrum: Lanczos did not converge to tol = {tol:g}; ask for less, or give m and L to tune yourself"
        ) from error
    errors = [float(np.linalg.norm(product(vector, 2.0) - value * vector)) for value, vector in zip(values, vectors.T)]
    return Spectrum(float(values[0]), float(values[1]), *errors)


def check_spectrum(value: Any) -> Spectrum:
    """Return `value` as a Spectrum, if m ≤ L and the errors are at least 0."""
    if not isinstance(value, tuple | list) or not 2 <= len(value) <= 4:
        raise TypeError(f"spectrum: expected a Spectrum, or (m, L); got {checks.describe(value)}")
    found = Spectrum(*(checks.number(name, each, FINITE) for name, each in zip(Spectrum._fields, value)))
    if found.m > found.L:
        raise ValueError(f"spectrum: expected m <= L; got m = {found.m:.6g}, L = {found.L:.6g}")
    for name in ("m_error", "L_error"):
        checks.number(name, getattr(found, name), AT_LEAST_ZERO)
    return found


class Tuned(NamedTuple):
    """Settings for a problem, and their predicted convergence.

    Attributes
    ----------
    lr, momentum : float
        The settings of the rule that was asked for.
    rate : float
        The largest ρ on spectra in [m, L].
    iterations : int
        A bound on the number of iterations, for every start and every spectrum in [m, L].
    m, L : float
        The ends that were used: the estimated ends, widened by their errors and the margin.
    headroom : float
        The relative amount by which lr may be too large (or L larger than estimated) before the run diverges.
    """

    lr: float
    momentum: float
    rate: float
    iterations: float
    m: float
    L: float
    headroom: float


def tune(
    spectrum: Spectrum | tuple[float, float],
    tol: float = 1e-6,
    *,
    rule: str | Rule,
    margin: float = 0.02,
    **hyper: Any,
) -> Tuned:
    """Return learning rate and momentum for a problem with this spectrum, and their predicted convergence.

    They are the :func:`optimal` tuning for L plus its error and m minus its error, both widened by `margin`: the
    optimum for the estimates themselves would diverge if L were underestimated by 1/κ. The margin costs next to
    nothing, as L is no longer at critical damping with it (measured on three real problems and κ = 10⁴, with L
    estimated 1 % low: 0.76 to 1.01 times the steps of the optimal tuning).

    Parameters
    ----------
    spectrum : Spectrum or (m, L)
        The result of :func:`spectrum`, or both ends.
    tol : float
        The part of the initial error to reach, in (0, 1).
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    margin : float
        The relative margin, in [0, 1).
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    Tuned

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or m − m_error is not above 0, as no rate can be promised then.

    Notes
    -----
    The prediction is exact on quadratics. On other functions it holds near the minimum, with the spectrum taken there.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> tuned = fm.theory.tune((1.0, 100.0), 1e-6, rule="heavy_ball")
    >>> round(tuned.rate, 4), tuned.iterations, round(tuned.headroom, 3)
    (0.8215, 97, 0.03)
    """
    found = check_spectrum(spectrum)
    margin = checks.number("margin", margin, BELOW_ONE)
    m, L = (found.m - found.m_error) * (1.0 - margin), (found.L + found.L_error) * (1.0 + margin)
    if m <= 0.0:
        raise ValueError(
            f"spectrum: expected m above its error, as without curvature there is no rate; got m = {found.m:.6g} ± "
            f"{found.m_error:.2g}. Weight decay λ makes it m + λ"
        )
    lr, momentum, rate = optimal(m, L, rule=rule, **hyper)
    steps = iterations(lr, momentum, (m, L), tol, rule=rule, **hyper)
    headroom = float(max_stable_lr(momentum, found.L, rule=rule, **hyper)) / lr - 1.0
    return Tuned(lr, momentum, rate, steps, m, L, headroom)
