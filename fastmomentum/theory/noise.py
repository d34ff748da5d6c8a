"""Compute the averages of gradients that momentum forms, and the variance of p that noise in the gradient causes."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from fastmomentum import checks
from fastmomentum.checks import AT_LEAST_ZERO, BELOW_ONE, FINITE, UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import NOISE, Floats, Setting, check_steps, linear_map, lyapunov, resolve_rule
from fastmomentum.theory.rates import ROUNDING, eigenvalues


def terminal_velocity(
    grad: npt.ArrayLike,
    lr: npt.ArrayLike,
    momentum: npt.ArrayLike,
    *,
    rule: str | Rule,
    t: npt.ArrayLike | None = None,
    **hyper: Setting,
) -> Any:
    """Return the limit of the velocity under a constant gradient g, or its value after t steps from zero.

    classical lr·g/(1 − μ), pytorch g/(1 − μ), ema g; after t steps each times 1 − μ^t

    For a position rule with the previous position q the velocity is q − p; for heavy_ball it equals that of classical.

    Parameters
    ----------
    grad : array_like
        The gradient g; it broadcasts with lr, momentum and t.
    lr, momentum : array_like
        α ≥ 0, μ in [0, 1).
    rule : str, Rule or chain
        A rule that is linear in p, state and g, with one state slot that does not depend on p (no weight decay).
    t : array_like of int, optional
        The numbers of steps, ≥ 0. Without it the limit is returned.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule has no such state slot, or its velocity has no limit.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> [float(fm.theory.terminal_velocity(2.0, 0.25, 0.5, rule=rule)) for rule in ("classical", "pytorch", "ema")]
    [1.0, 4.0, 2.0]
    >>> print(fm.theory.terminal_velocity(2.0, 0.25, 0.5, rule="pytorch", t=[1, 2, 3]))
    [2.  3.  3.5]
    """
    grad, mu = checks.numbers("grad", grad, FINITE), checks.numbers("momentum", momentum, BELOW_ONE)
    linear = resolve_rule(rule, hyper).linear(checks.numbers("lr", lr, FINITE), mu, 0.0)
    if len(linear.rows) != 2:
        raise ValueError(f"rule: expected one with one state slot; got {rule}, with {len(linear.rows) - 1}")
    # With s = 1 for a position rule and 0 for others, the velocity is v − s·p.
    (p, v), s = linear.rows, linear.start[1]
    decay, gain = v[1] - s * p[1], v[NOISE] - s * p[NOISE]
    if np.any(np.abs(v[0] + s * (decay - p[0])) > ROUNDING):
        raise ValueError(
            f"rule: expected one that does not decay p, as the velocity then depends on p and has no limit; got {rule}"
        )
    if np.any(np.abs(decay) >= 1.0):
        raise ValueError(
            f"rule: expected one whose velocity has a limit; {rule} scales it by {np.max(np.abs(decay)):g} each step"
        )
    limit = np.asarray(grad * gain / (1.0 - decay))
    return (limit if t is None else limit * (1.0 - decay ** check_steps(t)))[()]


def effective_window(momentum: npt.ArrayLike) -> Any:
    """Return the number of steps over which momentum averages gradients.

    1/(1 − μ)

    Parameters
    ----------
    momentum : array_like
        μ in [0, 1).

    Returns
    -------
    float64, or ndarray of float64 if `momentum` is an array

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.effective_window([0.5, 0.75]))
    [2. 4.]
    """
    return (1.0 / (1.0 - checks.numbers("momentum", momentum, BELOW_ONE)))[()]


def ema_weights(momentum: float, t: int) -> Floats:
    """Return the weights of the last t gradients in the velocity of rule "ema", the newest gradient first.

    (1 − β)β^k for the gradient k steps back, k = 0, …, t − 1

    Their sum is 1 − β^t; the missing part, β^t, is the weight of the zero from which the average started. In the rule
    "pytorch" the weights are β^k.

    Parameters
    ----------
    momentum : float
        β in [0, 1].
    t : int
        The number of steps done, ≥ 0.

    Returns
    -------
    ndarray of float64, shape (t,)

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.ema_weights(0.5, 3)
    array([0.5  , 0.25 , 0.125])
    """
    beta = checks.number("momentum", momentum, UNIT_INTERVAL)
    steps = check_steps(t)
    if steps.ndim:
        raise ValueError(f"t: expected one number of steps; got shape {steps.shape}")
    return (1.0 - beta) * beta ** np.arange(int(steps), dtype=np.float64)


def bias_corrected(velocity: npt.ArrayLike, momentum: npt.ArrayLike, t: npt.ArrayLike) -> Any:
    """Return the velocity of rule "ema" after t steps from zero, corrected to a weighted mean of the gradients.

    v/(1 − β^t)

    Parameters
    ----------
    velocity : array_like
        The velocity v after t steps.
    momentum : array_like
        β in [0, 1).
    t : array_like of int
        The number of steps done, ≥ 1.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Kingma and Ba 2015, section 3.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.bias_corrected([1.0, 1.5, 1.75], 0.5, [1, 2, 3]))
    [2. 2. 2.]
    """
    steps = check_steps(t)
    if (steps == 0).any():
        raise ValueError("t: expected whole numbers >= 1, as there is no mean of no gradients; got 0")
    beta = checks.numbers("momentum", momentum, BELOW_ONE)
    return (checks.numbers("velocity", velocity, FINITE) / -np.expm1(xlogy(steps, beta)))[()]


def stationary_variance(
    lr: npt.ArrayLike,
    momentum: npt.ArrayLike,
    curvature: npt.ArrayLike,
    noise_variance: npt.ArrayLike,
    *,
    rule: str | Rule,
    **hyper: Setting,
) -> Any:
    """Return the stationary variance of p about p* under independent noise of variance σ² in every gradient.

    heavy ball: ασ²(1 + μ) / (h(1 − μ)(2(1 + μ) − αh))

    In general it is the (0, 0) entry of the solution of X = AXAᵀ + σ²bbᵀ, where b is the rule's update of p = 0 and
    state 0 with g = 1.

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As for :func:`iteration_matrix`.
    noise_variance : array_like
        σ² ≥ 0, in the gradient's units squared; it broadcasts with the other arguments.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array
        inf if ρ ≥ 1, as the variance then grows without bound; 0 if there is no noise.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Notes
    -----
    Momentum averages the gradient's noise, but does not reduce the variance: at the same effective learning rate
    α/(1 − μ), the variance for small steps is that of gradient descent, ασ²/(2h(1 − μ)), for any μ.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> round(fm.theory.stationary_variance(0.1, 0.9, 2.0, 1.0, rule="pytorch"), 6)
    np.float64(0.263889)
    """
    linear = linear_map(rule, lr, momentum, curvature, hyper)
    variance = checks.numbers("noise_variance", noise_variance, AT_LEAST_ZERO)
    converges = np.abs(eigenvalues(linear)[..., 0]) < 1.0 - ROUNDING
    found = np.full(linear.shape, np.inf)
    b = linear.noise[converges]
    found[converges] = lyapunov(linear.matrix[converges].swapaxes(-2, -1), b[:, :, None] * b[:, None, :])[:, 0, 0]
    with np.errstate(invalid="ignore"):
        return np.where(variance == 0.0, 0.0, found * variance)[()]
