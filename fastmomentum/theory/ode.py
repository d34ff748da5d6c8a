"""Relate heavy ball to the differential equation that it discretises, a ball with friction (Polyak 1964).

ẍ + γẋ + ∇f(x) = 0
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, AT_LEAST_ZERO, FINITE, UNIT_INTERVAL
from fastmomentum.theory.linear import Floats
from fastmomentum.theory.spectrum import check_values


class TwoStep(NamedTuple):
    """Hold learning rate α and momentum μ of heavy ball, which is a linear two-step method.

    p_{t+1} = p_t − αg + μ(p_t − p_{t−1})

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.two_step(1.0, 1.0).momentum
    0.3333333333333333
    """

    lr: float
    momentum: float


class Motion(NamedTuple):
    """Hold time step s and friction γ of the ball whose motion heavy ball discretises.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.motion(*fm.theory.two_step(0.5, 1.0))
    Motion(step=0.5, friction=1.0)
    """

    step: float
    friction: float


def two_step(step: float, friction: float) -> TwoStep:
    """Return learning rate and momentum of the heavy ball that discretises a ball by central differences.

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

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or s² overflows or underflows.

    Notes
    -----
    A run from the initial state has p_{−1} = p_0, like a ball whose speed is 0 half a step before time 0: its error is
    of first order in s. With heavy_ball's state set to p_{−1} = p_0 − ½s²∇f(p_0) the ball's speed is 0 at time 0, and
    the error is of second order.

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
        raise ValueError(f"step: expected a number whose square neither overflows nor underflows; got {s!r}")
    return TwoStep(lr, (1.0 - half) / (1.0 + half))


def motion(lr: float, momentum: float) -> Motion:
    """Return time step and friction of the ball that heavy ball discretises, the inverse of :func:`two_step`.

    s = √(2α/(1 + μ)), γ = 2(1 − μ)/((1 + μ)s)

    Parameters
    ----------
    lr, momentum : float
        α > 0 and μ in [0, 1] of heavy_ball, classical or pytorch.

    Returns
    -------
    Motion
        (step, friction).

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(round(fm.theory.motion(0.01, 0.9).friction, 3))
    1.026
    """
    alpha, mu = checks.number("lr", lr, ABOVE_ZERO), checks.number("momentum", momentum, UNIT_INTERVAL)
    s = float(np.sqrt(2.0 * alpha / (1.0 + mu)))
    return Motion(s, 2.0 * (1.0 - mu) / ((1.0 + mu) * s))


def ball(grad: Callable[[Floats], npt.ArrayLike], x: npt.ArrayLike, friction: float, times: npt.ArrayLike) -> Floats:
    """Return the positions of a ball with friction that starts at `x` without speed.

    ẍ + γẋ + ∇f(x) = 0

    Parameters
    ----------
    grad : callable
        The function ∇f: it takes and returns an array of shape (n,).
    x : array_like, shape (n,)
        The start.
    friction : float
        The friction γ ≥ 0, per unit of time.
    times : array_like, shape (k,)
        The times, ≥ 0 and in ascending order; s·t is the time of the t-th step of the heavy ball with time step s.

    Returns
    -------
    ndarray of float64, shape (k, n)

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or a gradient has another shape than `x` or is not finite.
    RuntimeError
        If the solver fails.

    Notes
    -----
    The equation is solved by scipy.integrate.solve_ivp with DOP853 and a relative tolerance of 1e-10.

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
    gamma, gradient = checks.number("friction", friction, AT_LEAST_ZERO), check_values("grad", grad, start)

    def derivative(_: float, z: Floats) -> Floats:
        position, velocity = np.split(z, 2)
        return np.concatenate([velocity, -gamma * velocity - gradient(position.copy())])

    if when[-1] == 0.0:
        return np.tile(start, (when.size, 1))
    z = np.concatenate([start, np.zeros_like(start)])
    found = solve_ivp(
        derivative, (0.0, float(when[-1])), z, "DOP853", when, rtol=1e-10, atol=1e-12 * float(np.abs(start).max())
    )
    if not found.success:
        raise RuntimeError(f"ball: scipy.integrate.solve_ivp failed, with the message: {found.message}")
    return np.asarray(found.y[: start.size].T)
