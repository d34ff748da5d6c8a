"""minimize(): momentum methods as compiled solvers, with the arguments and results of scipy.optimize.minimize."""

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from time import perf_counter
from typing import Any

import numpy as np
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning

from fastmomentum import checks, theory
from fastmomentum.checks import AT_LEAST_ZERO, FINITE
from fastmomentum.solvers.objective import objective_of
from fastmomentum.solvers.run import Callback, MinimizeRun
from fastmomentum.solvers.step_sizes import choose_step_sizes


def start_of(x0: Any) -> Any:
    """Return x0 as a new array of one dimension, float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If it does not hold finite numbers, or has more dimensions.
    """
    checks.numbers("x0", x0, FINITE)
    start = np.atleast_1d(np.array(x0))
    if start.ndim != 1 or not start.size:
        raise ValueError(f"x0: expected one dimension, and a parameter at least; got shape {start.shape}")
    return start.astype(np.float32 if start.dtype == np.float32 else np.float64)


def limits_of(bounds: Any, start: Any) -> tuple[Any, ...]:
    """Return (low, high), each like `start`; () if there are no bounds.

    Raises
    ------
    TypeError, ValueError
        If `bounds` is neither a Bounds nor a sequence of pairs, has another length than `start`, holds a NaN, or if a
        lower bound exceeds an upper one.
    """
    if bounds is None:
        return ()
    if isinstance(bounds, Bounds):
        low, high = bounds.lb, bounds.ub
    else:
        pairs = checks.sequence("bounds", bounds if isinstance(bounds, Sequence) else list(bounds), start.size)
        try:
            low, high = [low for low, _ in pairs], [high for _, high in pairs]
        except (TypeError, ValueError):
            raise ValueError(f"bounds: expected Bounds, or pairs (low, high); got {checks.describe(bounds)}") from None
        low, high = [-np.inf if x is None else x for x in low], [np.inf if x is None else x for x in high]
    try:
        with np.errstate(over="ignore"):
            limits = tuple(np.array(np.broadcast_to(each, start.shape), start.dtype) for each in (low, high))
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected a number, or one for each of {start.size} parameters") from None
    crossing = ~((limits[0] <= limits[1]) & (limits[0] < np.inf) & (limits[1] > -np.inf))
    if crossing.any():
        k = int(np.argmax(crossing))
        raise ValueError(f"bounds: expected low <= high; got {limits[0][k]} and {limits[1][k]} for parameter {k}")
    return limits if np.isfinite(limits).any() else ()


def brought_within(start: Any, limits: tuple[Any, ...]) -> Any:
    """Return `start`, or the nearest point within the bounds, with SciPy's warning."""
    if not limits or ((limits[0] <= start) & (start <= limits[1])).all():
        return start
    warnings.warn("Initial guess is not within the specified bounds", OptimizeWarning, stacklevel=3)
    return np.clip(start, *limits)


def make_callback(callback: Callable[..., Any] | None, disp: bool) -> Callback | None:
    """Return the function to call after steps: SciPy's two forms of callback, and a line printed about every second."""
    if callback is None and not disp:
        return None
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function; got {checks.describe(callback)}")
    whole = callback is not None and set(signature(callback).parameters) == {"intermediate_result"}
    last = perf_counter()

    def report(run: MinimizeRun) -> bool:
        nonlocal last
        if disp and perf_counter() - last > 1.0:
            last = perf_counter()
            print(f"step {run.steps:,}: objective {run.value:.10g}")
        if callback is None:
            return False
        try:
            if whole:
                callback(intermediate_result=OptimizeResult(x=run.point, fun=run.value, nit=run.steps))
            else:
                callback(run.point)
        except StopIteration:
            return True
        return False

    return report


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    hess: Callable[..., Any] | None = None,
    hessp: Callable[..., Any] | None = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    tol: float | None = None,
    rule: Any = "nesterov_positions",
    lr: Any = None,
    momentum: Any = None,
    spectrum: Any = None,
    l1: float = 0.0,
    restart: Any = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    maxiter: float = 100_000,
    disp: bool = False,
    **unknown: Any,
) -> OptimizeResult:
    """Minimise f(x) + l1·‖x‖₁ within bounds, by gradients and momentum.

    x⁺ = prox(p − lr·g), then the rule's extrapolation.

    If `fun` and `jac` are compiled by Numba, the whole loop is compiled. It also serves as a custom method of SciPy:
    ``scipy.optimize.minimize(fun, x0, jac=..., method=fm.minimize, options={"rule": ...})``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` → f(x), a smooth function; (f, gradient) if `jac` is True. It must not write to x.
    x0 : array_like
        The start, of one dimension. float32 stays float32, other dtypes become float64. A start outside of the bounds
        is moved to the nearest point within, with an OptimizeWarning.
    args : tuple
        Further arguments of `fun`, `jac`, `hess` and `hessp`.
    jac : callable, True, None, "2-point" or "3-point"
        ``jac(x, *args)`` → gradient, like x; None and "2-point" take differences of `fun`, "3-point" central ones
        (scipy.optimize.minimize passes all strings on as None).
    hess, hessp : callable, optional
        ``hess(x, *args)`` → matrix, ``hessp(x, v, *args)`` → vector; used if a spectrum is to be estimated.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        None and infinities stand for no bound. `fun` and `jac` are called within the bounds alone, except to estimate a
        spectrum around x0.
    constraints : None
        Constraints are refused.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)`` after each step, as in SciPy, with the point at which
        the next gradient is taken; StopIteration ends the run.
    tol : float, optional
        The value of `gtol`, if `gtol` is not given.
    rule : {"nesterov_positions", "sgd", "heavy_ball", "chebyshev"}
        Nesterov's method, gradient descent, Polyak's heavy ball, Chebyshev's semi-iteration.
    lr, momentum : float or callable, optional
        Numbers, or functions of the step since the last restart. If they are not given, they depend on `rule`:
        heavy_ball and chebyshev take both from the spectrum (:func:`fastmomentum.theory.tune`, with its margin of 2 %),
        heavy_ball has momentum 0.9 if lr is given. sgd takes lr from a given spectrum, else by backtracking.
        nesterov_positions takes both from a given spectrum (1/L and (√κ − 1)/(√κ + 1), proven for all convex
        functions with these curvatures); else lr by backtracking and momentum from Nesterov's own sequence
        (:class:`fastmomentum.schedules.Nesterov`).
    spectrum : (m, L), Spectrum or True, optional
        Curvatures of f; True estimates them at x0 (:func:`fastmomentum.theory.spectrum`).
    l1 : float
        λ₁ ≥ 0 of the term λ₁‖x‖₁, which is not in `fun`.
    restart : {"gradient", "function", False}, optional
        The condition under which a step is repeated with the rule's initial state, and with lr and momentum from their
        start: if the step would go up the gradient, or if the objective rises. If it is not given: "gradient" with
        Nesterov's own sequence, else never.
    gtol : float
        The run ends when max|p − prox(p − lr·g)|/lr, which is max|g| without l1 and bounds, is at most gtol; 1e-5
        unless given.
    ftol : float
        The run ends when 10 steps in a row change the objective f by at most ftol·max(|f|, 1); 0 for never.
    maxiter : int
        The greatest number of steps.
    disp : bool
        Whether to print the progress, about every second, and the result.
    **unknown
        Other options cause an OptimizeWarning.

    Returns
    -------
    scipy.optimize.OptimizeResult
        x, fun (with the l1 term), jac (of f alone), nit, nfev, njev, success, status (0 converged, 1 maxiter, 2
        diverged, 3 no step found, 99 stopped by the callback), message, optimality (compared with gtol),
        restarts, lr and momentum of the last step. Without success, except after the callback's stop, x is the last or
        the best point, the one with the lower objective; the best point has the lowest objective or, if values are not
        computed, the least prox-gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused, if `fun` or its gradient is not finite at x0 or has another shape, or if a spectrum
        is to be estimated of a function that has no positive curvature there.

    Notes
    -----
    A step costs a gradient and two passes over memory. `fun` itself is evaluated only for backtracking,
    restart="function", ftol, callback and disp. Compilation takes seconds, once for each pair of functions and each set
    of such options. Ctrl-C takes effect between slices of a twentieth of a second, or of one step.

    Backtracking: Beck and Teboulle 2009, with steps that may grow again by 5 %. Restarts: O'Donoghue and Candès
    2015. The extrapolated point is projected on the bounds, too. For Nesterov's own sequence with lr ≤ 1/L that keeps
    Beck and Teboulle's bound: their proof needs only the point's distance from ((t − 1)x + x*)/t, which lies within
    the bounds, so the projection does not increase it. With l1 or bounds, x is the result of the proximal map, so its
    zeros are exact and it lies within the bounds.

    Examples
    --------
    >>> import numba, numpy as np, fastmomentum as fm
    >>> @numba.njit
    ... def fun(x, A, b):
    ...     return 0.5 * x @ (A @ x) - b @ x
    >>> @numba.njit
    ... def jac(x, A, b):
    ...     return A @ x - b
    >>> A, b = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, -4.0])
    >>> found = fm.minimize(fun, np.zeros(2), (A, b), jac=jac, rule="heavy_ball", gtol=1e-9)
    >>> print(found.x.round(6), found.success)
    [ 1.2 -2.6] True
    >>> print(fm.minimize(fun, np.zeros(2), (A, b), jac=jac, bounds=[(0, None), (0, None)]).x.round(4))
    [0.3333 0.    ]
    """
    if unknown:
        warnings.warn(f"Unknown solver options: {', '.join(unknown)}", OptimizeWarning, stacklevel=2)
    if constraints is not None and (not isinstance(constraints, tuple | list) or len(constraints)):
        raise ValueError("constraints: expected none but bounds; a proximal map serves no others")
    start = start_of(x0)
    limits = limits_of(bounds, start)
    start = brought_within(start, limits)
    args = args if isinstance(args, tuple) else (args,)
    l1, ftol = (checks.number(name, each, AT_LEAST_ZERO) for name, each in (("l1", l1), ("ftol", ftol or 0.0)))
    gtol = checks.number("gtol", next(each for each in (gtol, tol, 1e-5) if each is not None), AT_LEAST_ZERO)
    maxiter = checks.integer(
        "maxiter", int(maxiter) if isinstance(maxiter, float) and maxiter.is_integer() else maxiter
    )

    def estimate() -> theory.Spectrum:
        return theory.spectrum(descent.gradient, start, hessp=_products(hess, hessp, args))

    descent = MinimizeRun(objective_of(fun, jac, limits), start, args, limits, l1, gtol, ftol)
    pace = choose_step_sizes(rule, lr, momentum, spectrum, restart, estimate)
    found = descent.result(descent.run(pace, maxiter, make_callback(callback, bool(disp)), often=callback is not None))
    if disp:
        print(f"{found.message}: {found.nit:,} steps, objective {found.fun:.10g}, optimality {found.optimality:.2g}")
    return found


def _products(hess: Any, hessp: Any, args: tuple[Any, ...]) -> Callable[[Any, Any], Any] | None:
    if hessp is not None:
        return lambda x, v: hessp(x, v, *args)
    return None if hess is None else lambda x, v: hess(x, *args) @ v
