"""minimize(): momentum methods as compiled solvers, with the arguments and results of scipy.optimize.minimize."""

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning

from fastmomentum import checks, theory
from fastmomentum.checks import AT_LEAST_ZERO
from fastmomentum.rules.base import Rule
from fastmomentum.solvers.arguments import check_options, make_limits, make_start
from fastmomentum.solvers.loop import RUNNING
from fastmomentum.solvers.objective import make_objective
from fastmomentum.solvers.passes import Floats
from fastmomentum.solvers.run import MinimizeRun
from fastmomentum.solvers.step_sizes import Value, check_accepted, choose_step_sizes, method_name
from fastmomentum.theory.spectrum import Spectrum

REPORT_SECONDS = 1.0
"""The seconds between two lines of progress with disp=True."""


def minimize(
    fun: Callable[..., Any],
    x0: npt.ArrayLike,
    args: Any = (),
    *,
    jac: Callable[..., Any] | str | bool | None = None,
    hess: Callable[..., Floats] | None = None,
    hessp: Callable[..., Floats] | None = None,
    bounds: Bounds | Sequence[tuple[float | None, float | None]] | None = None,
    constraints: Sequence[object] | None = (),
    callback: Callable[..., object] | None = None,
    tol: float | None = None,
    rule: str | Rule = "nesterov_positions",
    lr: Value | None = None,
    momentum: Value | None = None,
    spectrum: Spectrum | tuple[float, float] | bool | None = None,
    l1: float = 0.0,
    restart: str | bool | None = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    maxiter: float | None = 100_000,
    disp: bool = False,
    **settings: object,
) -> OptimizeResult:
    """Minimise f(x) + l1·‖x‖₁ within bounds, by gradients and momentum.

    x⁺ = prox(p − lr·g), then the rule's extrapolation from x⁺ to the next p; with rule "fire" its own step

    If Numba has compiled `fun` and `jac`, the whole loop is compiled; with rule "fire" it runs in Python.
    `minimize` can also be passed to SciPy as a method:
    ``scipy.optimize.minimize(fun, x0, jac=..., method=fm.minimize, options={"rule": ...})``.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` → f(x), a smooth function; (f, gradient) if `jac` is True. `fun` must not write to x.
    x0 : array_like
        The start, of one dimension; with rule "fire" of any number of dimensions. float32 stays float32, also in calls
        of `fun` and `jac`; other dtypes become float64. A start outside of the bounds is moved to the nearest point
        within, with an OptimizeWarning unless the bounds are equal there.
    args : tuple
        Further arguments of `fun`, `jac`, `hess` and `hessp`; a single argument need not be in a tuple.
    jac : callable, True, None, "2-point" or "3-point"
        ``jac(x, *args)`` → gradient, like x, or a number if x has one element; "2-point" stands for forward differences
        of `fun`, "3-point" for central ones, and None for forward ones in float64, central ones in float32
        (scipy.optimize.minimize passes all strings on as None).
    hess, hessp : callable, optional
        ``hess(x, *args)`` → matrix, ``hessp(x, v, *args)`` → vector. They are used to estimate a spectrum.
    bounds : scipy.optimize.Bounds or sequence of (low, high), optional
        None and infinities stand for no bound. `fun` and `jac` are called within the bounds alone, except to estimate a
        spectrum around x0.
    constraints : None or ()
        scipy.optimize.minimize passes it. Constraints are not supported, and raise a ValueError.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result)`` after each step, as in SciPy, with the point at which
        the next gradient is taken; StopIteration ends the run.
    tol : float, optional
        The default of `gtol`.
    rule : {"nesterov_positions", "sgd", "heavy_ball", "chebyshev", "fire"}
        Nesterov's method, gradient descent, Polyak's heavy ball, Chebyshev's semi-iteration, and FIRE, which adapts its
        time step dt by itself and is made for the positions of atoms:
        F = −g; v ← (1−α)v + α‖v‖F/‖F‖ if F·v > 0, else 0; v ← v + dt·F; p ← p + dt·v, at most max_step long.
        FIRE has no bounds, l1, momentum, spectrum or restart: to give one is a ValueError.
    lr, momentum : float or callable, optional
        Numbers, or functions of the step since the last restart. The defaults depend on `rule`:

        - heavy_ball: both from the spectrum, given or estimated (:func:`fastmomentum.theory.tune`, with its margin of
          2 %); momentum 0.9 if lr is given.
        - chebyshev: both from the spectrum, given or estimated; they cannot be given.
        - sgd: lr from the spectrum if it is given, else by backtracking.
        - nesterov_positions: both from the spectrum if it is given (1/L and (√κ − 1)/(√κ + 1), proven for all convex
          functions with these curvatures); else lr by backtracking, and momentum from Nesterov's own sequence
          (:class:`fastmomentum.schedules.Nesterov`).
        - fire: lr is the first time step, a number, 0.1 unless given.
    spectrum : (m, L), Spectrum or True, optional
        The least and the greatest curvature of f; True estimates them at x0 (:func:`fastmomentum.theory.spectrum`).
    l1 : float
        λ₁ ≥ 0 of the term λ₁‖x‖₁, which is not in `fun`.
    restart : {"gradient", "function", False}, optional
        When to restart: "gradient", if the step would go up the gradient; "function", if it would increase the
        objective; False, never. A restart repeats the step from the rule's initial state, with lr and momentum of step
        0. The default is "gradient" with Nesterov's own sequence, else False.
    gtol : float
        The run ends when max|p − prox(p − lr·g)|/lr, which is max|g| without l1 and bounds, is at most gtol. The
        default is `tol` or, without it, 1e-5.
    ftol : float
        The run ends when 10 steps in a row change the objective F = f + l1·‖x‖₁ by at most ftol·max(|F|, 1); 0 for
        never.
    maxiter : int or None
        The greatest number of steps; None stands for 100,000.
    disp : bool
        Whether to print the progress, about every second, and the result; a run without success warns by an
        OptimizeWarning, too.
    **settings
        The other settings of rule "fire" (:data:`fastmomentum.rules.fire`), as :class:`fastmomentum.Optimizer` takes
        them: max_step (0.2), the longest step, as a norm over all of x; max_dt (1.0), the greatest time step; patience
        (5), dt_growth (1.1), dt_shrink (0.5), alpha_start (0.1) and alpha_shrink (0.99). Other options are a TypeError.

    Returns
    -------
    scipy.optimize.OptimizeResult
        x, fun (with the l1 term), jac (of f alone; differences by parameters with equal bounds are NaN, as in SciPy),
        nit, nfev, njev (also of gradients by differences), success, status (0 converged, 1 maxiter, 2 fun or its
        gradient is not finite, at x0 or later, 3 no step found, 99 stopped by the callback), message, optimality (the
        number compared with gtol), restarts (their number), lr and momentum (of the last step; of rule "fire" the first
        time step, and 0; NaN if none can be taken). After status 1, 2 or 3, x is the last or the best point of the run:
        the one of the two with the lower objective. The best point has the lowest objective of the run or, if the run
        does not compute objectives, the least prox-gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or has a wrong type or value, if `fun` returns no number or the gradient has another
        shape than x, or if a spectrum is to be estimated of a function that has no positive curvature at x0.

    Notes
    -----
    A step costs a gradient and two passes over memory. Steps evaluate `fun` itself only for backtracking,
    restart="function", ftol, callback and disp. Compilation takes seconds, once for each pair of functions and each set
    of these options. Ctrl-C takes effect after about 0.05 seconds, or after one step if a step takes longer.

    FIRE: Bitzek et al. 2006, integrated as in ase.optimize.FIRE, whose points it has if downhill_check is False.
    lr, max_dt and max_step have the units of the problem; the defaults, those of ASE, suit forces in eV/Å.

    Backtracking: Beck and Teboulle 2009, but lr may grow again by 5 % a step, and where rounding can hide the change of
    f (a part √ε of the largest |f| met), gradients decide: ⟨∇f(x⁺) − ∇f(p), x⁺ − p⟩ ≤ ‖x⁺ − p‖²/lr. This is TFOCS's
    test (Becker, Candès and Grant 2011) without its factor 2, as it is exact for quadratic functions; the approximate
    Wolfe conditions of Hager and Zhang 2005 serve the same purpose. If the prox-gradient does not halve in 100 steps
    and three times those before, hidden steps end the run with status 3. Values of f that are NaN or inf at x⁺ shorten
    the step; −inf ends the run with status 2, as then f has no lower bound.

    Restarts: O'Donoghue and Candès 2015. The extrapolated point is projected on the bounds, too. For Nesterov's own
    sequence with lr ≤ 1/L this keeps Beck and Teboulle's bound: their proof needs only the distance of the extrapolated
    point from ((t − 1)x + x*)/t, and the projection does not increase this distance, because ((t − 1)x + x*)/t lies
    within the bounds. With l1 or bounds, x is the result of the proximal map, so its zeros are exact and it lies within
    the bounds.

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
    >>> print(fm.minimize(fun, np.zeros(2), (A, b), jac=jac, rule="fire", lr=0.2, max_step=1.0).x.round(4))
    [ 1.2 -2.6]
    """
    method = method_name(rule)
    check_options(settings, method, list(signature(minimize).parameters))
    if constraints is not None and (not isinstance(constraints, tuple | list) or len(constraints)):
        raise ValueError(
            f"constraints: expected none; got {checks.describe(constraints)}. Only bounds are supported, by bounds=, "
            "except with rule 'fire'"
        )
    l1, ftol = (checks.number(name, each, AT_LEAST_ZERO) for name, each in (("l1", l1), ("ftol", ftol or 0.0)))
    check_accepted(
        method,
        momentum=momentum,
        spectrum=spectrum,
        restart=None if restart is False else restart,
        l1=l1 or None,
        bounds=bounds,
    )
    start = make_start(x0, any_shape=method == "fire")
    limits = make_limits(bounds, start)
    if limits:
        within = np.clip(start, *limits)
        if (within != start)[limits[0] < limits[1]].any():  # to fix a parameter, its bounds are enough
            warnings.warn("Initial guess is not within the specified bounds", OptimizeWarning, stacklevel=2)
        start = within
    args = args if isinstance(args, tuple) else (args,)
    gtol = checks.number("gtol", next(each for each in (gtol, tol, 1e-5) if each is not None), AT_LEAST_ZERO)
    maxiter = 100_000 if maxiter is None else maxiter
    maxiter = checks.integer(
        "maxiter", int(maxiter) if isinstance(maxiter, float) and maxiter.is_integer() else maxiter
    )

    def estimate() -> Spectrum:
        if run.status != RUNNING:
            return Spectrum(1.0, 1.0, 0.0, 0.0)  # the run takes no step, and uses none
        return theory.spectrum(run.gradient, start, hessp=_hessian_product(hess, hessp, args))

    run = MinimizeRun(make_objective(fun, jac, limits, start.dtype), start, args, limits, l1, gtol, ftol)
    step_sizes = choose_step_sizes(method, lr, momentum, spectrum, restart, estimate)
    after_step = _make_callback(callback, bool(disp))
    status = run.run(step_sizes, maxiter, after_step, every_step=callback is not None, settings=settings)
    found = run.result(status)
    if disp:
        if not found.success:
            warnings.warn(found.message, OptimizeWarning, stacklevel=2)
        print(f"{found.message}: {found.nit:,} steps, objective {found.fun:.10g}, optimality {found.optimality:.2g}")
    return found


def _make_callback(callback: Callable[..., object] | None, disp: bool) -> Callable[[MinimizeRun], bool] | None:
    """Return the function that a run calls after steps, or None if neither a callback nor `disp` is given.

    The function calls the user's callback, in either of SciPy's two forms, and prints a line of progress about every
    second if `disp`. It returns True to end the run.
    """
    if callback is None and not disp:
        return None
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function; got {checks.describe(callback)}")
    takes_result = callback is not None and _parameters(callback) == ["intermediate_result"]
    last_report = perf_counter()

    def after_step(run: MinimizeRun) -> bool:
        nonlocal last_report
        if disp and perf_counter() - last_report > REPORT_SECONDS:
            last_report = perf_counter()
            print(f"step {run.steps:,}: objective {run.value:.10g}")
        if callback is None:
            return False
        try:
            if takes_result:
                callback(intermediate_result=OptimizeResult(x=run.point, fun=run.value, nit=run.steps))
            else:
                callback(run.point)
        except StopIteration:
            return True
        return False

    return after_step


def _parameters(function: Callable[..., object]) -> list[str]:
    """Return the names of a function's parameters; none if Python does not know them, as of some built-in functions."""
    try:
        return list(signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _hessian_product(
    hess: Callable[..., Floats] | None, hessp: Callable[..., Floats] | None, args: tuple[Any, ...]
) -> Callable[[Floats, Floats], Floats] | None:
    """Return ``product(x, v)``, the Hessian at x times v, if the user gave `hessp` or `hess`."""
    if hessp is not None:
        return lambda x, v: hessp(x, v, *args)
    return None if hess is None else lambda x, v: hess(x, *args) @ v
