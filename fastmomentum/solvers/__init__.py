"""Where a minimiser starts, and the bounds within which it stays.

Who hears of a minimiser under way: SciPy's two forms of callback, and whoever reads what is printed.

`minimize`: momentum methods as compiled solvers, with SciPy's manners.
"""

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
from fastmomentum.solvers.run import MinimizeRun, Told
from fastmomentum.solvers.step_sizes import choose_step_sizes


def start_of(x0: Any) -> Any:
    """x0 as an array of our own, of one dimension, float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If it holds no finite numbers, or has more dimensions.
    """
    checks.numbers("x0", x0, FINITE)
    start = np.atleast_1d(np.array(x0))
    if start.ndim != 1 or not start.size:
        raise ValueError(f"x0: expected one dimension, and a parameter at least; got shape {start.shape}")
    return start.astype(np.float32 if start.dtype == np.float32 else np.float64)


def limits_of(bounds: Any, start: Any) -> tuple[Any, ...]:
    """(low, high), each like `start`; () where nothing is bounded.

    Raises
    ------
    TypeError, ValueError
        If `bounds` are no Bounds and no sequence of pairs, not as many as there are parameters, NaN, or crossing.
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
    """`start`, or the nearest point within the limits, with a warning in SciPy's words."""
    if not limits or ((limits[0] <= start) & (start <= limits[1])).all():
        return start
    warnings.warn("Initial guess is not within the specified bounds", OptimizeWarning, stacklevel=3)
    return np.clip(start, *limits)


def told_of(callback: Callable[..., Any] | None, disp: bool) -> Told | None:
    """What hears of a run: SciPy's two forms of callback, and lines that are printed about each second."""
    if callback is None and not disp:
        return None
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function; got {checks.describe(callback)}")
    whole = callback is not None and set(signature(callback).parameters) == {"intermediate_result"}
    last = perf_counter()

    def told(run: MinimizeRun) -> bool:
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

    return told


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
    """min f(x) + l1·‖x‖₁ within bounds, by gradients and momentum: x⁺ = prox(p − lr·g), then the rule's extrapolation.

    With `fun` and `jac` compiled by Numba the whole loop is compiled. Also SciPy's custom method:
    ``scipy.optimize.minimize(fun, x0, jac=..., method=fm.minimize, options={"rule": ...})``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` → f(x), a smooth function; (f, gradient) where `jac` is True. x must be left as it is.
    x0 : array_like
        Where to start, of one dimension. float32 stays float32, all else is float64. Brought within the bounds, with an
        OptimizeWarning, if it lies outside.
    args : tuple
        What `fun`, `jac`, `hess` and `hessp` take beside x.
    jac : callable, True, None, "2-point" or "3-point"
        ``jac(x, *args)`` → gradient, like x; None and "2-point" take differences of `fun`, "3-point" central ones
        (scipy.optimize.minimize hands all strings on as None).
    hess, hessp : callable, optional
        ``hess(x, *args)`` → matrix, ``hessp(x, v, *args)`` → vector; used where a spectrum is to be estimated.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        None and infinities are no bound. `fun` and `jac` are asked within them alone, but where a spectrum is to be
        estimated around x0.
    constraints : None
        Others are refused.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)`` behind each step, as SciPy has it, with the point where the
        next gradient is taken; StopIteration ends it.
    tol : float, optional
        `gtol`, where that is not given.
    rule : {"nesterov_positions", "sgd", "heavy_ball", "chebyshev"}
        Nesterov's method, gradient descent, Polyak's heavy ball, Chebyshev's semi-iteration.
    lr, momentum : float or callable, optional
        Numbers, or functions of the step since the last restart. Where they are not given, by `rule`:
        heavy_ball and chebyshev take both from the spectrum (:func:`fastmomentum.theory.tune`, with its margin of 2 %),
        heavy_ball momentum 0.9 where lr is given. sgd takes lr from a spectrum that is given, else by backtracking.
        nesterov_positions takes both from a spectrum that is given (1/L and (√κ − 1)/(√κ + 1), proven for all convex
        functions with these curvatures); else lr by backtracking and momentum from Nesterov's own sequence
        (:class:`fastmomentum.schedules.Nesterov`).
    spectrum : (m, L), Spectrum or True, optional
        Curvatures of f; True estimates them at x0 (:func:`fastmomentum.theory.spectrum`).
    l1 : float
        λ₁ ≥ 0 of the term λ₁‖x‖₁, which is not in `fun`.
    restart : {"gradient", "function", False}, optional
        When a step is taken again with the rule's state at rest, and lr and momentum from their beginning: where it
        would go up the gradient, or where the objective rises; unless given, by gradient with Nesterov's own sequence,
        else never.
    gtol : float
        Ends where max|p − prox(p − lr·g)|/lr, which is max|g| without l1 and bounds, is within it; 1e-5 unless given.
    ftol : float
        Ends where 10 steps in a row change the objective f by no more than ftol·max(|f|, 1); 0 for never.
    maxiter : int
        Steps at most.
    disp : bool
        Whether to print how it goes, about each second, and how it ended.
    **unknown
        Other options get an OptimizeWarning.

    Returns
    -------
    scipy.optimize.OptimizeResult
        x, fun (with the l1 term), jac (of f alone), nit, nfev, njev, success, status (0 converged, 1 maxiter, 2
        diverged, 3 no step found, 99 stopped by the callback), message, optimality (what gtol is compared with),
        restarts, lr and momentum of the last step. Without success, but for the callback's, x is the last or the best
        point met, whichever has the lower objective; the best one has the lowest objective, or, where values are not
        asked for, the least prox-gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be served; `fun` or its gradient is not finite at x0 or not of the right shape; or a
        spectrum is asked of a function that has no positive curvature there.

    Notes
    -----
    A step costs a gradient and two passes over memory. `fun` itself is evaluated where that is asked for: by
    backtracking, restart="function", ftol, callback, disp. Compiling takes seconds, for each pair of functions and each
    set of such options once. Ctrl-C is heard between slices of a twentieth of a second, or of one step.

    Backtracking: Beck and Teboulle 2009, with steps that may grow again by a twentieth. Restarts: O'Donoghue and Candès
    2015. The extrapolated point is projected on the bounds, too. For Nesterov's own sequence with lr ≤ 1/L that keeps
    Beck and Teboulle's bound: their proof needs the point's distance from ((t − 1)x + x*)/t alone, which lies within
    the bounds, so that the projection does not add to it. With l1 or bounds x is what the proximal map gave, so that
    its zeros are zeros and its bounds are met.

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
    found = descent.result(descent.run(pace, maxiter, told_of(callback, bool(disp)), often=callback is not None))
    if disp:
        print(f"{found.message}: {found.nit:,} steps, objective {found.fun:.10g}, optimality {found.optimality:.2g}")
    return found


def _products(hess: Any, hessp: Any, args: tuple[Any, ...]) -> Callable[[Any, Any], Any] | None:
    if hessp is not None:
        return lambda x, v: hessp(x, v, *args)
    return None if hess is None else lambda x, v: hess(x, *args) @ v
