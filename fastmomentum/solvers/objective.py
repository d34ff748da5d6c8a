"""Prepares a user's function and its gradient for the loop of a minimiser."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable

from fastmomentum import checks
from fastmomentum.solvers.loop import ObjectiveFunctions

Function = Callable[..., Any]
EPSILON = float(np.finfo(np.float64).eps)


class Objective(NamedTuple):
    """The smooth function to minimise.

    Attributes
    ----------
    fun, jac : function
        x → f and x → gradient; if `jac` is None, `fun` returns both.
    compiled : bool
        Whether Numba has compiled them.
    """

    fun: Function
    jac: Function | None
    compiled: bool

    def forms(self, valued: bool) -> ObjectiveFunctions:
        """Return the functions that loops call; gradients come with the value if it is wanted or costs nothing."""
        return _compiled(self.fun, self.jac, valued or self.jac is None) if self.compiled else self.checked(valued)

    def checked(self, valued: bool) -> ObjectiveFunctions:
        """Return these functions in Python, with checks of the results of the user's functions."""
        return _interpreted(self.fun, self.jac, valued or self.jac is None)


def objective_of(fun: Any, jac: Any, limits: tuple[Any, ...]) -> Objective:
    """Return the objective with the value ``fun(x, *args)``, and a gradient given in one of SciPy's ways.

    Parameters
    ----------
    fun : callable
        x → f, or (f, gradient) if `jac` is True.
    jac : callable, True, None, "2-point" or "3-point"
        x → gradient; None and "2-point" take differences, "3-point" central ones.
    limits : tuple of two arrays, or ()
        The bounds within which differences are taken.

    Raises
    ------
    TypeError, ValueError
        If `fun` or `jac` is something else.
    """
    if not callable(fun):
        raise TypeError(f"fun: expected a function; got {checks.describe(fun)}")
    if jac is True:
        return Objective(fun, None, isinstance(fun, Dispatcher))
    if callable(jac):
        return Objective(fun, jac, isinstance(fun, Dispatcher) and isinstance(jac, Dispatcher))
    if not isinstance(jac, str | bool | None) or jac not in (None, False, "2-point", "3-point"):
        raise ValueError(f"jac: expected a function, True, None, '2-point' or '3-point'; got {checks.describe(jac)}")
    return Objective(fun, Differences(fun, jac == "3-point", limits), False)


@lru_cache(maxsize=64)
def _compiled(fun: Any, jac: Any, valued: bool) -> ObjectiveFunctions:
    def evaluate_both(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        value, g[:] = fun(x, *args)
        return float(value)

    def evaluate_gradient(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls[1] += 1
        g[:] = jac(x, *args)
        return 0.0

    def evaluate_each(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        g[:] = jac(x, *args)
        return float(fun(x, *args))

    def value_of_both(x: Any, calls: Any, args: Any) -> Any:
        calls[0] += 1
        return float(fun(x, *args)[0])

    def value_alone(x: Any, calls: Any, args: Any) -> Any:
        calls[0] += 1
        return float(fun(x, *args))

    evaluate = evaluate_both if jac is None else evaluate_each if valued else evaluate_gradient
    value_at = value_of_both if jac is None else value_alone
    return ObjectiveFunctions(register_jitable(evaluate), register_jitable(value_at), valued)


def _interpreted(fun: Function, jac: Function | None, valued: bool) -> ObjectiveFunctions:
    def both_at(x: Any, args: Any) -> Any:
        found = fun(x.copy(), *args)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(
                f"fun: expected it to return (f, gradient), as jac=True says; got {checks.describe(found)}"
            )
        return found

    def value_at(x: Any, calls: Any, args: Any) -> float:
        calls[0] += 1
        return _number(both_at(x, args)[0] if jac is None else fun(x.copy(), *args))

    def evaluate(x: Any, g: Any, calls: Any, args: Any) -> float:
        value: Any = 0.0
        if jac is None:
            calls += 1
            value, slope = both_at(x, args)
        else:
            if valued:
                value = value_at(x, calls, args)
            slope = jac(x.copy(), *args)
            calls[1] += 1
        slope = np.asarray(slope)
        if slope.shape != x.shape or slope.dtype.kind not in "iufO":
            raise ValueError(
                f"jac: expected it to return numbers of shape {x.shape}, as x0 has; got {checks.describe(slope)}"
            )
        g[:] = slope
        return _number(value)

    return ObjectiveFunctions(evaluate, value_at, valued)


def _number(value: Any) -> float:
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "iufO":
        raise ValueError(f"fun: expected it to return a number; got {checks.describe(value)}")
    return float(found.reshape(())[()])


class Differences:
    """The gradient by differences of `fun`, in double precision, within the bounds; `asked` counts the values."""

    def __init__(self, fun: Function, central: bool, limits: tuple[Any, ...]) -> None:
        self._fun, self._central, self._limits = fun, central, limits
        self.asked = 0

    def __call__(self, x: Any, *args: Any) -> Any:
        """Return the gradient at x."""
        x = x.astype(np.float64)
        low, high = self._limits or (-np.inf, np.inf)
        size = np.cbrt(EPSILON) if self._central else np.sqrt(EPSILON)
        step, above, below = size * np.maximum(np.abs(x), 1.0), high - x, x - low
        # If neither side has room for a full step, the wider side decides; the slope of a fixed parameter is 0.
        narrow = np.where(above >= below, above, -below)
        first = np.where(step <= above, step, np.where(step <= below, -step, narrow))
        both = self._central & (step <= above) & (step <= below)
        slope, here = np.zeros_like(x), self._value(x, args)
        for i in map(int, np.flatnonzero(first)):
            ahead = self._value(x, args, i, first[i])
            behind, way = (self._value(x, args, i, -first[i]), 2.0 * first[i]) if both[i] else (here, first[i])
            slope[i] = (ahead - behind) / way
        return slope

    def _value(self, x: Any, args: Any, i: int = 0, way: float = 0.0) -> float:
        there = x.copy()
        there[i] += way
        self.asked += 1
        return _number(self._fun(there, *args))
