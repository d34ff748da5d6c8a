"""Estimate the spectrum of a user's problem from gradients, and tune learning rate and momentum for it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from fastmomentum import checks
from fastmomentum.checks import AT_LEAST_ZERO, BELOW_ONE, FINITE, INSIDE_UNIT, Array
from fastmomentum.rules.base import Rule
from fastmomentum.theory.iterations import iterations
from fastmomentum.theory.linear import Floats, Setting
from fastmomentum.theory.tuning import max_stable_lr, optimal

DENSE = 128
"""Up to this number of parameters the whole Hessian is measured: cheaper than Lanczos for the least eigenvalue."""

LANCZOS_VECTORS = 64
"""The number of vectors that Lanczos keeps; eigsh's default of 20 takes several times as many products."""

STRETCHES = (1.0, 2.0, 3.0, 4.0)
"""Difference steps, in units of the step that balances the errors of rounding and of truncation.

The spread of their results estimates the error.
"""

# The user's functions get arrays of the dtype of x, which is float32 or float64.
Gradient = Callable[[Array], npt.ArrayLike]
HessianProduct = Callable[[Array, Array], npt.ArrayLike]


class Product(Protocol):
    """Compute Hessian-vector products Hv: the type of the functions that do this."""

    def __call__(self, v: Floats, stretch: float = 1.0) -> Floats:
        """Return Hv for a vector v of shape (n,), with a difference step that is `stretch` times the usual one."""


class Spectrum(NamedTuple):
    """Hold the least and the greatest curvature at a point, each with a bound on its error.

    Attributes
    ----------
    m, L : float
        The least and the greatest eigenvalue of the Hessian.
    m_error, L_error : float
        The bounds on their errors, ≥ 0.
    """

    m: float
    L: float
    m_error: float = 0.0
    L_error: float = 0.0


def spectrum(
    grad: Gradient | None, x: npt.ArrayLike, *, hessp: HessianProduct | None = None, tol: float = 1e-3
) -> Spectrum:
    """Estimate the least and the greatest eigenvalue (m, L) of the Hessian at `x`, with their errors, from gradients.

    Hv ≈ (∇f(x + εv) − ∇f(x − εv))/2ε

    The difference is exact up to rounding on a quadratic. Up to 128 parameters the whole Hessian is measured in this
    way, at ε, 2ε, 3ε and 4ε; the errors are twice the spread of the four results, plus half of ‖H − Hᵀ‖. For more
    parameters Lanczos finds both ends (scipy.sparse.linalg.eigsh), and the errors are its residuals ‖Hv − λv‖.

    Parameters
    ----------
    grad : callable
        The function ∇f(x), whose value is an array like `x`; None if `hessp` is given.
    x : array_like of float32 or float64
        The point: any point on a quadratic, otherwise one near the minimum, as curvature changes from point to point.
    hessp : callable, optional
        ``hessp(x, v)`` returns Hv, in place of differences (scipy.optimize's convention).
    tol : float
        The relative accuracy that Lanczos is asked for, in (0, 1).

    Returns
    -------
    Spectrum
        (m, L, m_error, L_error). If m ≤ 0, the function is not strongly convex at `x`, and has no rate.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or a gradient has another shape than `x` or is not finite.
    RuntimeError
        If Lanczos does not converge: pass a larger tol, or find m in another way (for ridge regression m is at least
        the ridge).

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
    product = _product_by_differences(grad, np.asarray(x)) if hessp is None else _product_of(hessp, np.asarray(x))
    return _measure_whole(product, start.size) if start.size <= DENSE else _measure_ends(product, start.size, tol)


def check_values(name: str, function: Callable[..., npt.ArrayLike] | None, like: Array) -> Callable[..., Floats]:
    """Return a function that calls `function` and checks its value: finite numbers, of the shape of `like`.

    The values are flat copies in double precision, as many gradient functions write to the same array at every call.
    """
    if function is None or not callable(function):
        raise TypeError(f"{name}: expected a function; got {checks.describe(function)}")

    def call(*arguments: Array) -> Floats:
        found = checks.numbers(name, function(*arguments), FINITE)
        if found.shape != like.shape:
            raise ValueError(f"{name}: expected it to return shape {like.shape}, as x has; got {found.shape}")
        return found.ravel()

    return call


def _product_by_differences(grad: Gradient | None, x: Array) -> Product:
    """Return a function that computes Hv by central differences of gradients, with two calls of `grad`."""
    gradient = check_values("grad", grad, x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    step = float(np.cbrt(np.finfo(dtype).eps)) * (1.0 + float(np.linalg.norm(x)))

    def product(v: Floats, stretch: float = 1.0) -> Floats:
        shift = v.reshape(x.shape) * (step * stretch / float(np.linalg.norm(v)))
        forward, backward = ((x + sign * shift).astype(dtype) for sign in (1.0, -1.0))
        # The difference of the rounded points: in float32 it differs from 2εv by parts in a thousand.
        distance = np.linalg.norm(forward.astype(np.float64) - backward)
        return (gradient(forward) - gradient(backward)) * float(np.linalg.norm(v) / distance)

    return product


def _product_of(hessp: HessianProduct, x: Array) -> Product:
    """Return a function that computes Hv by the user's `hessp`, which gets copies of x and v."""
    apply = check_values("hessp", hessp, x)
    return lambda v, stretch=1.0: apply(x.copy(), v.reshape(x.shape).copy())


def _measure_whole(product: Product, size: int) -> Spectrum:
    """Measure the whole Hessian, one product for each unit vector and each difference step."""
    found = [np.stack([product(unit, stretch) for unit in np.eye(size)]) for stretch in STRETCHES]
    hessian = found[0]
    spread = max(np.linalg.norm(hessian - other, 2) for other in found[1:])
    error = 2.0 * spread + np.linalg.norm(hessian - hessian.T, 2) / 2.0
    values = np.linalg.eigvalsh((hessian + hessian.T) / 2.0)
    error += np.finfo(np.float64).eps * size * np.abs(values).max()
    return Spectrum(float(values[0]), float(values[-1]), float(error), float(error))


def _measure_ends(product: Product, size: int, tol: float) -> Spectrum:
    """Measure both ends of the spectrum by Lanczos, with eigsh."""
    rng = np.random.default_rng(0)  # any seed, so that results repeat
    start = rng.standard_normal(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    if not product(start).any():
        return Spectrum(0.0, 0.0)
    try:
        values, vectors = eigsh(operator, k=2, which="BE", v0=start, tol=tol, ncv=min(size, LANCZOS_VECTORS), rng=rng)
    except ArpackError as error:
        raise RuntimeError(
            f"spectrum: Lanczos did not converge to tol = {tol:g}; pass a larger tol, or find m and L in another way"
        ) from error
    errors = [float(np.linalg.norm(product(vector, 2.0) - value * vector)) for value, vector in zip(values, vectors.T)]
    return Spectrum(float(values[0]), float(values[1]), *errors)


def check_spectrum(value: object) -> Spectrum:
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
    """Hold the settings for a problem, and their predicted convergence.

    Attributes
    ----------
    lr, momentum : float
        The settings of the rule that was asked for.
    rate : float
        The largest spectral radius ρ on spectra in [m, L].
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
    **hyper: Setting,
) -> Tuned:
    """Return learning rate and momentum for a problem with this spectrum, and their predicted convergence.

    The tuning is the :func:`optimal` one for m minus its error and L plus its error, both widened by `margin`. The
    optimum for the estimates themselves would diverge if L were underestimated by 1/κ, relatively. The margin costs
    hardly any steps, as it moves L away from critical damping (measured on three real problems and κ = 10⁴, with L
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
        If an argument is out of range, or m − m_error is not above 0, as there may be no rate then.

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
            f"{found.m_error:.2g}. Weight decay λ increases it to m + λ"
        )
    lr, momentum, rate = optimal(m, L, rule=rule, **hyper)
    steps = iterations(lr, momentum, (m, L), tol, rule=rule, **hyper)
    headroom = float(max_stable_lr(momentum, found.L, rule=rule, **hyper)) / lr - 1.0
    return Tuned(lr, momentum, rate, steps, m, L, headroom)
