"""Prepare a user's function and its gradient for the loop of a minimiser."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable

from fastmomentum import checks
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.cache import bounded
from fastmomentum.solvers.loop import ObjectiveFunctions, assign
from fastmomentum.solvers.passes import Floats, Limits

FLOAT64 = np.dtype(np.float64)

NO_RETURN = ". Does it end without a return?"
"""The end of messages about a function that returns None."""


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
        """Return the same functions in Python, with checks of the results of the user's functions.

        Differences need the value at the point itself, so that the gradient comes with it.
        """
        return _checked_functions(self.fun, self.jac, valued or self.jac is None or isinstance(self.jac, Differences))


def make_objective(
    fun: Function, jac: Function | str | bool | None, limits: Limits, dtype: np.dtype[Any] = FLOAT64
) -> Objective:
    """Return the objective with the value ``fun(x, *args)`` and the gradient that `jac` describes, as in SciPy.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` → f, or (f, gradient) if `jac` is True.
    jac : callable, True, None, "2-point" or "3-point"
        ``jac(x, *args)`` → gradient; "2-point" stands for forward differences, "3-point" for central ones, and None for
        forward ones in float64, central ones in float32.
    limits : tuple of two arrays, or ()
        The bounds within which differences are taken.
    dtype : dtype
        The dtype of x.

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
    # Forward differences move the minimum by half a step, which is 2e-4 in float32.
    is_central = jac == "3-point" or (jac in (None, False) and dtype == np.float32)
    return Objective(fun, Differences(fun, is_central, limits), False)


class Differences:
    """Compute the gradient by differences of `fun`, within the bounds and in the dtype of x.

    Attributes
    ----------
    evaluations : int
        The number of evaluations of `fun` for these differences, without those at the point itself.
    fixed : ndarray of bool
        Which parameters are fixed by equal bounds. The derivative by them needs points outside of the bounds, and is
        given as 0.
    """

    def __init__(self, fun: Function, central: bool, limits: Limits) -> None:
        self._fun, self._central = fun, central
        low, high = limits or (np.array(-np.inf), np.array(np.inf))
        self._low, self._high = low.astype(np.float64), high.astype(np.float64)
        self.fixed: npt.NDArray[np.bool_] = low == high
        self.evaluations = 0

    def __call__(self, x: Floats, value: float, args: tuple[object, ...]) -> npt.NDArray[np.float64]:
        """Return the gradient at x, where `fun` has this value; NaN if the value is not finite."""
        if not np.isfinite(value):
            return np.full(x.shape, np.nan)
        place, low, high = x.astype(np.float64), self._low, self._high
        epsilon = float(np.finfo(x.dtype).eps)
        size = np.cbrt(epsilon) if self._central else np.sqrt(epsilon)
        step, above, below = size * np.maximum(np.abs(place), 1.0), high - place, place - low
        # If neither side has room for a full step, the difference is taken to the bound on the wider side.
        narrow = np.where(above >= below, above, -below)
        shifts = np.where(step <= above, step, np.where(step <= below, -step, narrow))
        other_shifts = np.where((step <= above) & (step <= below), -shifts, 0.0) if self._central else 0.0 * shifts
        # Rounding of x + shift must not leave the bounds, and belongs to the distance.
        forward, backward = (np.clip(place + each, low, high).astype(x.dtype) for each in (shifts, other_shifts))
        distances = forward.astype(np.float64) - backward.astype(np.float64)
        gradient = np.zeros_like(place)
        for i in zip(*np.nonzero(distances)):
            other = self._value(x, i, backward[i], args) if other_shifts[i] else value
            gradient[i] = (self._value(x, i, forward[i], args) - other) / distances[i]
        return gradient

    def _value(self, x: Floats, i: tuple[np.intp, ...], moved: np.floating, args: tuple[object, ...]) -> float:
        """Return f at x with another x[i]."""
        point = x.copy()
        point[i] = moved
        self.evaluations += 1
        return _as_number(self._fun(point, *args))


@bounded(64)
def _compiled_functions(fun: Function, jac: Function | None, valued: bool) -> ObjectiveFunctions:
    def value_of_both(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        value, gradient = fun(x, *args)
        assign(g, gradient)
        return float(value)

    def value_alone(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls[0] += 1
        return float(fun(x, *args))

    def gradient_of_both(x: Any, g: Any, value: Any, calls: Any, args: Any) -> Any:
        return

    def gradient_alone(x: Any, g: Any, value: Any, calls: Any, args: Any) -> Any:
        calls[1] += 1
        assign(g, jac(x, *args))  # type: ignore[misc]

    # These two call `fun` and `jac` themselves, as a function between takes a tenth of a second to compile.
    def evaluate_each(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls += 1
        assign(g, jac(x, *args))  # type: ignore[misc]
        return float(fun(x, *args))

    def evaluate_gradient(x: Any, g: Any, calls: Any, args: Any) -> Any:
        calls[1] += 1
        assign(g, jac(x, *args))  # type: ignore[misc]
        return 0.0

    functions = (evaluate_each if valued else evaluate_gradient), value_alone, gradient_alone
    if jac is None:
        functions = value_of_both, value_of_both, gradient_of_both
    evaluate, value_at, gradient_at = map(register_jitable, functions)
    return ObjectiveFunctions(evaluate, value_at, gradient_at, valued)


Counts = np.ndarray[tuple[int], np.dtype[np.int64]]


def _checked_functions(fun: Function, jac: Function | None, valued: bool) -> ObjectiveFunctions:
    def value_at(x: Floats, g: Floats, calls: Counts, args: tuple[object, ...]) -> float:
        calls[0] += 1
        found = fun(x.copy(), *args)
        if jac is not None:
            return _as_number(found)
        calls[1] += 1
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise ValueError(
                f"fun: expected it to return (f, gradient), as jac=True says; got {checks.describe(found)}"
                f"{NO_RETURN if found is None else ''}"
            )
        value = _as_number(found[0])
        # A function that is not defined at x may return no gradient.
        _write_gradient(g, g * np.nan if found[1] is None and not np.isfinite(value) else found[1])
        return value

    def gradient_at(x: Floats, g: Floats, value: float, calls: Counts, args: tuple[object, ...]) -> None:
        if jac is None:
            return
        calls[1] += 1
        _write_gradient(g, jac(x, value, args) if isinstance(jac, Differences) else jac(x.copy(), *args))

    def evaluate(x: Floats, g: Floats, calls: Counts, args: tuple[object, ...]) -> float:
        value = value_at(x, g, calls, args) if valued else 0.0
        gradient_at(x, g, value, calls, args)
        return value

    return ObjectiveFunctions(evaluate, value_at, gradient_at, valued)


def _as_number(value: object) -> float:
    """Return a value of `fun` as a float: a number, or an array of one number."""
    try:
        found = np.asarray(value)
        if found.size == 1 and found.dtype.kind in "iufO":
            return float(found.reshape(())[()])
    except (TypeError, ValueError):  # a ragged list, or an object that is no number
        pass
    raise ValueError(
        f"fun: expected it to return a number; got {checks.describe(value)}{NO_RETURN if value is None else ''}"
    )


def _write_gradient(g: Floats, gradient: object) -> None:
    """Write a result of `jac` to g: an array of its shape or, if g has one element, a number."""
    try:
        found = np.asarray(gradient)
        if (found.shape == g.shape or (found.ndim == 0 and g.size == 1)) and found.dtype.kind in "iufO":
            if found.dtype.kind == "O":  # NumPy would write None as NaN; float refuses it
                found = np.reshape([float(each) for each in found.flat], found.shape)
            if found.dtype == g.dtype:
                g[...] = found
            else:
                with np.errstate(over="ignore"):  # a gradient beyond float32 is inf, and ends the run
                    g[...] = found
            return
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"jac: expected it to return numbers of shape {g.shape}, as x0 has; got {checks.describe(gradient)}"
        f"{NO_RETURN if gradient is None else ''}"
    )
