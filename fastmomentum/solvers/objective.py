"""Prepare a user's function and its gradient for the loop of a minimiser."""

from typing import Any, NamedTuple

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable

from fastmomentum import checks
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.cache import bounded
from fastmomentum.solvers.loop import ObjectiveFunctions, assign
from fastmomentum.solvers.passes import Floats, Limits

EPSILON = float(np.finfo(np.float64).eps)


class Objective(NamedTuple):
    """Hold the smooth function to minimise.

    Attributes
    ----------
    fun, jac : callable
        ``fun(x, *args)`` returns f and ``jac(x, *args)`` the gradient; if `jac` is None, `fun` returns both.
    compiled : bool
        Whether Numba has compiled them.
    """

    fun: Function
    jac: Function | None
    compiled: bool

    def functions(self, valued: bool) -> ObjectiveFunctions:
        """Return the functions that a loop calls; the gradient comes with the value if `valued` or if `jac` is None."""
        if not self.compiled:
            return self.checked(valued)
        return _compiled_functions(self.fun, self.jac, valued or self.jac is None)

    def checked(self, valued: bool) -> ObjectiveFunctions:
        """Return the same functions in Python, with checks of the results of the user's functions."""
        return _checked_functions(self.fun, self.jac, valued or self.jac is None)


def make_objective(fun: Function, jac: Function | str | bool | None, limits: Limits) -> Objective:
    """Return the objective with the value ``fun(x, *args)`` and the gradient that `jac` describes, as in SciPy.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` → f, or (f, gradient) if `jac` is True.
    jac : callable, True, None, "2-point" or "3-point"
        ``jac(x, *args)`` → gradient; None and "2-point" stand for forward differences, "3-point" for central ones.
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


class Differences:
    """Compute the gradient by differences of `fun`, in double precision, within the bounds.

    Attributes
    ----------
    evaluations : int
        The number of evaluations of `fun` for these differences.
    """

    def __init__(self, fun: Function, central: bool, limits: Limits) -> None:
        self._fun, self._central, self._limits = fun, central, limits
        self.evaluations = 0

    def __call__(self, x: Floats, *args: object) -> Floats:
        """Return the gradient at x."""
        x = x.astype(np.float64)
        low, high = self._limits or (-np.inf, np.inf)
        size = np.cbrt(EPSILON) if self._central else np.sqrt(EPSILON)
        step, above, below = size * np.maximum(np.abs(x), 1.0), high - x, x - low
        # If neither side has room for a full step, the difference is taken to the bound on the wider side. The
        # derivative by a parameter whose bounds are equal is 0.
        narrow = np.where(above >= below, above, -below)
        shifts = np.where(step <= above, step, np.where(step <= below, -step, narrow))
        both_sides = self._central & (step <= above) & (step <= below)
        gradient, here = np.zeros_like(x), self._value(x, args)
        for i in zip(*np.nonzero(shifts)):
            forward, backward, distance = self._value(x, args, i, shifts[i]), here, shifts[i]
            if both_sides[i]:
                backward, distance = self._value(x, args, i, -shifts[i]), 2.0 * shifts[i]
            gradient[i] = (forward - backward) / distance
        return gradient

    def _value(self, x: Floats, args: tuple[object, ...], i: tuple[int, ...] = (), shift: float = 0.0) -> float:
        """Return f at x with x[i] moved by `shift`."""
        point = x.copy()
        if shift:
            point[i] += shift
        self.evaluations += 1
        return _as_number(self._fun(point, *args))


@bounded(64)
def _compiled_functions(fun: Function, jac: Function | None, valued: bool) -> ObjectiveFunctions:
    def evaluate_both(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        value, gradient = fun(x, *args)
        assign(g, gradient)
        return float(value)

    def evaluate_gradient(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls[1] += 1
        assign(g, jac(x, *args))  # type: ignore[misc]
        return 0.0

    def evaluate_each(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        assign(g, jac(x, *args))  # type: ignore[misc]
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


Counts = np.ndarray[tuple[int], np.dtype[np.int64]]


def _checked_functions(fun: Function, jac: Function | None, valued: bool) -> ObjectiveFunctions:
    def both_at(x: Floats, args: tuple[object, ...]) -> tuple[object, object]:
        found = fun(x.copy(), *args)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(
                f"fun: expected it to return (f, gradient), as jac=True says; got {checks.describe(found)}"
            )
        return found[0], found[1]

    def value_at(x: Floats, calls: Counts, args: tuple[object, ...]) -> float:
        calls[0] += 1
        return _as_number(both_at(x, args)[0] if jac is None else fun(x.copy(), *args))

    def evaluate(x: Floats, g: Floats, calls: Counts, args: tuple[object, ...]) -> float:
        value: object = 0.0
        if jac is None:
            calls += 1
            value, gradient = both_at(x, args)
        else:
            if valued:
                value = value_at(x, calls, args)
            gradient = jac(x.copy(), *args)
            calls[1] += 1
        gradient = np.asarray(gradient)
        if gradient.shape != x.shape or gradient.dtype.kind not in "iufO":
            raise ValueError(
                f"jac: expected it to return numbers of shape {x.shape}, as x0 has; got {checks.describe(gradient)}"
            )
        g[:] = gradient
        return _as_number(value)

    return ObjectiveFunctions(evaluate, value_at, valued)


def _as_number(value: object) -> float:
    """Return a value of `fun` as a float: a number, or an array of one number."""
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "iufO":
        raise ValueError(f"fun: expected it to return a number; got {checks.describe(value)}")
    return float(found.reshape(())[()])
