"""The effect of momentum on a stream of gradients: averages, and the variance that noise in the gradient keeps up."""

from typing import Any

import numpy as np
from scipy.special import xlogy

from fastmomentum import checks
from fastmomentum.checks import AT_LEAST_ZERO, BELOW_ONE, FINITE, UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import NOISE, Floats, check_steps, linear_map, lyapunov, resolve_rule
from fastmomentum.theory.rates import ROUNDING, eigenvalues


def terminal_velocity(grad: Any, lr: Any, momentum: Any, *, rule: str | Rule, t: Any = None, **hyper: Any) -> Any:
    """Return the limit of the velocity under a constant gradient g, or its value after t steps from zero.

    classical lr·g/(1 − μ), pytorch g/(1 − μ), ema g; after t steps times 1 − μ^t. For a position rule it is q − p,
    which for heavy_ball equals the velocity of classical.

    Parameters
    ----------
    grad : array_like
        The gradient; it broadcasts with lr, momentum and t.
    lr, momentum : array_like
        α ≥ 0, μ in [0, 1).
    rule : str, Rule or chain
        A rule that is linear in p, state and g, with one state slot that does not depend on p (no weight decay).
    t : array_like of int, optional
        The numbers of steps.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    float64 or ndarray of float64

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule keeps no such state.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> [float(fm.theory.terminal_velocity(2.0, 0.25, 0.5, rule=rule)) for rule in ("classical", "pytorch", "ema")]
    [1.0, 4.0, 2.0]
    >>> print(fm.theory.terminal_velocity(2.0, 0.25, 0.5, rule="pytorch", t=[1, 2, 3]))
    [2.  3.  3.5]
    """
    grad, mu = checks.numbers("grad", grad, FINITE), checks.numbers("momentum", momentum, BELOW_ONE)
    map = resolve_rule(rule, hyper).linear(checks.numbers("lr", lr, FINITE), mu, 0.0)
    if len(map.rows) != 2:
        raise ValueError(f"rule: expected one with one state slot; got {rule}, with {len(map.rows) - 1}")
    (p, v), position = map.rows, map.rest[1]
    keep, pull = v[1] - position * p[1], v[NOISE] - position * p[NOISE]
    if np.any(np.abs(v[0] + position * (keep - p[0])) > ROUNDING):
        raise ValueError(f"rule: expected one that does not decay p, which would move the velocity; got {rule}")
    if np.any(np.abs(keep) >= 1.0):
        raise ValueError(
            f"rule: expected one whose velocity settles; {rule} keeps {np.max(np.abs(keep)):g} of it a step"
        )
    limit = np.asarray(grad * pull / (1.0 - keep))
    return (limit if t is None else limit * (1.0 - keep ** check_steps(t)))[()]


def effective_window(momentum: Any) -> Any:
    """Return 1/(1 − μ), the number of steps over which momentum averages; μ in [0, 1) broadcasts.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.effective_window([0.5, 0.75]))
    [2. 4.]
    """
    return (1.0 / (1.0 - checks.numbers("momentum", momentum, BELOW_ONE)))[()]


def ema_weights(momentum: float, t: int) -> Floats:
    """Return the weights (1 − β)β^k, k = 0, …, t − 1, of the gradient k steps back in the average of rule "ema".

    Their sum is 1 − β^t; the rest to 1 is the weight of the zero that the average started from. In "pytorch" the
    weights are β^k.

    Parameters
    ----------
    momentum : float
        β in [0, 1].
    t : int
        The number of steps done, ≥ 0.

    Returns
    -------
    ndarray of float64, shape (t,)

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


def bias_corrected(velocity: Any, momentum: Any, t: Any) -> Any:
    """Return v/(1 − β^t): the velocity of rule "ema" after t steps from zero as a weighted mean of the gradients.

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
    float64 or ndarray of float64

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
        raise ValueError("t: expected whole numbers >= 1, as a velocity at rest has averaged nothing; got 0")
    beta = checks.numbers("momentum", momentum, BELOW_ONE)
    return (checks.numbers("velocity", velocity, FINITE) / -np.expm1(xlogy(steps, beta)))[()]


def stationary_variance(
    lr: Any, momentum: Any, curvature: Any, noise_variance: Any, *, rule: str | Rule, **hyper: Any
) -> Any:
    """Return the stationary variance of p about p* under independent noise of variance σ² in every gradient.

    It broadcasts. It is the (0, 0) entry of X = AXAᵀ + σ²bbᵀ, where b is the rule applied to p = 0, state 0 and g = 1.
    For heavy ball ασ²(1 + μ) / (h(1 − μ)(2(1 + μ) − αh)).

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As for :func:`iteration_matrix`.
    noise_variance : array_like
        σ² ≥ 0, in the gradient's units squared.

    Returns
    -------
    float64 or ndarray of float64
        inf if ρ ≥ 1, as no state is stationary then, unless there is no noise.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Notes
    -----
    Momentum averages the gradient's noise, but gains nothing by it: at the same effective learning rate α/(1 − μ), the
    variance for small steps is that of gradient descent, ασ²/(2h(1 − μ)), for any μ.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> round(fm.theory.stationary_variance(0.1, 0.9, 2.0, 1.0, rule="pytorch"), 6)
    np.float64(0.263889)
    """
    map = linear_map(rule, lr, momentum, curvature, hyper)
    variance = checks.numbers("noise_variance", noise_variance, AT_LEAST_ZERO)
    settles = np.abs(eigenvalues(map)[..., 0]) < 1.0 - ROUNDING
    found = np.full(map.shape, np.inf)
    b = map.noise[settles]
    found[settles] = lyapunov(map.matrix[settles].swapaxes(-2, -1), b[:, :, None] * b[:, None, :])[:, 0, 0]
    with np.errstate(invalid="ignore"):
        return np.where(variance == 0.0, 0.0, found * variance)[()]
