"""Heavy ball as a discretised differential equation: ẍ + γẋ + ∇f(x) = 0, a ball with friction (Polyak 1964)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, AT_LEAST_ZERO, FINITE, UNIT_INTERVAL
from fastmomentum.theory.linear import Floats
from fastmomentum.theory.spectrum import checked


class TwoStep(NamedTuple):
    """Learning rate α and momentum μ of heavy ball: p_{t+1} = p_t − αg + μ(p_t − p_{t−1}), a linear two-step method.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.two_step(1.0, 1.0).momentum
    0.3333333333333333
    """

    lr: float
    momentum: float


class Motion(NamedTuple):
    """Time step s and friction γ of the ball that heavy ball follows.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.motion(*fm.theory.two_step(0.5, 1.0))
    Motion(step=0.5, friction=1.0)
    """

    step: float
    friction: float


def two_step(step: float, friction: float) -> TwoStep:
    """Return the heavy-ball method that discretises the ball by central differences.

    α = s²/(1 + γs/2), μ = (1 − γs/2)/(1 + γs/2)

    Parameters
    ----------
    step : float
        The time step s > 0, in units of time.
    friction : float
        The friction γ ≥ 0, per unit of time; γs ≤ 2, so that μ ≥ 0.

    Returns
    -------
    TwoStep
        (lr, momentum) for the rules heavy_ball, classical and pytorch.

    Notes
    -----
    A run from the initial state has p_{−1} = p_0, as a ball that stood still half a step before: its error is of first
    order in s. With heavy_ball's state set to p_{−1} = p_0 − ½s²∇f(p_0) the ball stands still at time 0, and the error
    is of second order.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.two_step(0.5, 0.0)
    TwoStep(lr=0.25, momentum=1.0)
    >>> fm.theory.motion(*fm.theory.two_step(0.5, 4.0))
    Motion(step=0.5, friction=4.0)
    """
    s, gamma = checks.number("step", step, ABOVE_ZERO), checks.number("friction", friction, AT_LEAST_ZERO)
    half = 0.5 * gamma * s
    if half > 1.0:
        raise ValueError(f"step: expected at most 2/friction = {2.0 / gamma:g}, or momentum is negative; got {s!r}")
    lr = s * s / (1.0 + half)
    if lr not in ABOVE_ZERO:
        raise ValueError(f"step: expected one whose square is a number; got {s!r}")
    return TwoStep(lr, (1.0 - half) / (1.0 + half))


def motion(lr: float, momentum: float) -> Motion:
    """Return the ball that a heavy-ball method follows, the inverse of :func:`two_step`.

    s = √(2α/(1 + μ)), γ = 2(1 − μ)/((1 + μ)s)

    Parameters
    ----------
    lr, momentum : float
        α > 0 and μ in [0, 1] of heavy_ball, classical or pytorch.

    Returns
    -------
    Motion
        (step, friction).

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(round(fm.theory.motion(0.01, 0.9).friction, 3))
    1.026
    """
    alpha, mu = checks.number("lr", lr, ABOVE_ZERO), checks.number("momentum", momentum, UNIT_INTERVAL)
    s = float(np.sqrt(2.0 * alpha / (1.0 + mu)))
    return Motion(s, 2.0 * (1.0 - mu) / ((1.0 + mu) * s))


def ball(grad: Callable[[Floats], Any], x: Any, friction: float, times: Any) -> Floats:
    """Return the positions of a ball that starts at `x` without speed and follows ẍ + γẋ + ∇f(x) = 0.

    Parameters
    ----------
    grad : callable
        The function ∇f of one point.
    x : array_like, shape (n,)
        The start.
    friction : float
        The friction γ ≥ 0.
    times : array_like, shape (k,)
        The times, ≥ 0 and in ascending order: s·t for the t-th step of the heavy ball with step s.

    Returns
    -------
    ndarray of float64, shape (k, n)

    Raises
    ------
    RuntimeError
        If the solver fails.

    Notes
    -----
    It uses scipy.integrate.solve_ivp with DOP853, which keeps the relative error of each of its steps at 1e-10.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> path = fm.theory.ball(lambda x: x, [1.0], 0.0, [0.0, np.pi])
    >>> print(path.round(6) + 0.0)
    [[ 1.]
     [-1.]]
    """
    start, when = checks.numbers("x", x, FINITE), checks.numbers("times", times, AT_LEAST_ZERO)
    if start.ndim != 1 or when.ndim != 1 or not when.size or (np.diff(when) < 0.0).any():
        raise ValueError(
            f"x, times: expected a point and ascending times, in one dimension; got {checks.describe(x)}, "
            f"{checks.describe(times)}"
        )
    gamma, slope = checks.number("friction", friction, AT_LEAST_ZERO), checked("grad", grad, start)

    def rolls(_: float, z: Floats) -> Floats:
        place, speed = np.split(z, 2)
        return np.concatenate([speed, -gamma * speed - slope(place.copy())])

    if when[-1] == 0.0:
        return np.tile(start, (when.size, 1))
    both = np.concatenate([start, np.zeros_like(start)])
    found = solve_ivp(
        rolls, (0.0, float(when[-1])), both, "DOP853", when, rtol=1e-10, atol=1e-12 * float(np.abs(start).max())
    )
    if not found.success:
        raise RuntimeError(f"ball: {found.message}")
    return np.asarray(found.y[: start.size].T)
