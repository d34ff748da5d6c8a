"""A user's function and its gradient, in the form in which a minimiser's loop calls them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable
from scipy.optimize import approx_fprime

from fastmomentum import checks

Function = Callable[..., Any]


class Forms(NamedTuple):
    """An objective as loops call it.

    Attributes
    ----------
    evaluate : function
        ``evaluate(x, g, counts, args) -> f``: the gradient at x to g, and the value where `valued`, else 0. `counts`
        counts values and gradients.
    value_at : function
        ``value_at(x, counts, args) -> f``.
    valued : bool
        Whether `evaluate` tells the value.
    """

    evaluate: Function
    value_at: Function
    valued: bool


class Objective(NamedTuple):
    """What is minimised, beside terms with a proximal map.

    Attributes
    ----------
    fun, jac : function
        x → f and x → gradient; where `jac` is None, `fun` returns both.
    compiled : bool
        Whether they are compiled by Numba.
    """

    fun: Function
    jac: Function | None
    compiled: bool

    def forms(self, valued: bool) -> Forms:
        """In the form that tells the value with each gradient, where it is wanted or comes for nothing."""
        return (_compiled if self.compiled else _interpreted)(self.fun, self.jac, valued or self.jac is None)


def objective_of(fun: Any, jac: Any, limits: tuple[Any, ...]) -> Objective:
    """The objective whose value is ``fun(x, *args)``, with a gradient in one of the ways that SciPy knows.

    Parameters
    ----------
    fun : callable
        x → f, or (f, gradient) where `jac` is True.
    jac : callable, True, None, "2-point" or "3-point"
        x → gradient; None and "2-point" take differences, "3-point" central ones.
    limits : tuple of two arrays, or ()
        Bounds that differences stay within.

    Raises
    ------
    TypeError, ValueError
        If `fun` or `jac` is none of these.
    """
    if not callable(fun):
        raise TypeError(f"fun: expected a function; got {checks.shown(fun)}")
    if jac is True:
        return Objective(fun, None, isinstance(fun, Dispatcher))
    if callable(jac):
        return Objective(fun, jac, isinstance(fun, Dispatcher) and isinstance(jac, Dispatcher))
    if not isinstance(jac, str | bool | None) or jac not in (None, False, "2-point", "3-point"):
        raise ValueError(f"jac: expected a function, True, None, '2-point' or '3-point'; got {checks.shown(jac)}")
    return Objective(fun, _make_differences(fun, jac == "3-point", limits), False)


@lru_cache(maxsize=64)
def _compiled(fun: Any, jac: Any, valued: bool) -> Forms:
    def evaluate_both(x: Any, g: Any, counts: Any, args: Any) -> Any:
        counts += 1
        value, g[:] = fun(x, *args)
        return float(value)

    def evaluate_gradient(x: Any, g: Any, counts: Any, args: Any) -> Any:
        counts[1] += 1
        g[:] = jac(x, *args)
        return 0.0

    def evaluate_each(x: Any, g: Any, counts: Any, args: Any) -> Any:
        counts += 1
        g[:] = jac(x, *args)
        return float(fun(x, *args))

    def value_of_both(x: Any, counts: Any, args: Any) -> Any:
        counts[0] += 1
        return float(fun(x, *args)[0])

    def value_alone(x: Any, counts: Any, args: Any) -> Any:
        counts[0] += 1
        return float(fun(x, *args))

    evaluate = evaluate_both if jac is None else evaluate_each if valued else evaluate_gradient
    value_at = value_of_both if jac is None else value_alone
    return Forms(register_jitable(evaluate), register_jitable(value_at), valued)


def _interpreted(fun: Function, jac: Function | None, valued: bool) -> Forms:
    def evaluate(x: Any, g: Any, counts: Any, args: Any) -> float:
        counts += valued, True
        value, slope = fun(x.copy(), *args) if jac is None else (0.0, jac(x.copy(), *args))
        slope = np.asarray(slope)
        if slope.shape != x.shape:
            raise ValueError(f"jac: expected it to return shape {x.shape}, as x0 has; got {slope.shape}")
        g[:] = slope
        return _number(fun(x.copy(), *args) if valued and jac is not None else value)

    def value_at(x: Any, counts: Any, args: Any) -> float:
        counts[0] += 1
        value = fun(x.copy(), *args)
        return _number(value[0] if jac is None else value)

    return Forms(evaluate, value_at, valued)


def _number(value: Any) -> float:
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "iuf":
        raise ValueError(f"fun: expected it to return a number; got {checks.shown(value)}")
    return float(found.reshape(())[()])


def _make_differences(fun: Function, central: bool, limits: tuple[Any, ...]) -> Function:
    """The gradient by differences of `fun`, in double precision; steps that would leave the bounds go the other way."""
    size = np.cbrt(np.finfo(np.float64).eps) if central else np.sqrt(np.finfo(np.float64).eps)

    def gradient(x: Any, *args: Any) -> Any:
        x = x.astype(np.float64)
        low, high = limits or (-np.inf, np.inf)
        step = size * np.maximum(np.abs(x), 1.0)
        up, down = x + step <= high, x - step >= low
        first = np.where(up, step, -step)
        forward = approx_fprime(x, lambda x: _number(fun(x, *args)), first)
        if not central:
            return forward
        second = np.where(up & down, -step, first)
        return (forward + approx_fprime(x, lambda x: _number(fun(x, *args)), second)) / 2.0

    return gradient
