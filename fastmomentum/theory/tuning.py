"""Compute the largest learning rate that converges, and the learning rate and momentum that converge fastest.

A rule of :mod:`fastmomentum.rules.momentum` follows the trajectory of gradient descent, of Polyak's heavy ball or of
Nesterov's method, at an effective learning rate that is a multiple of its own. The method is recognised by the rule's
iteration matrix, so its closed forms are also used for a chain or a user's rule with the matrix of a method. The tuning
of other linear rules is searched numerically.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import elementwise, minimize_scalar

from fastmomentum import checks
from fastmomentum.checks import UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import (
    Floats,
    LinearMap,
    Number,
    ResolvedRule,
    Setting,
    check_curvature,
    check_ends,
    resolve_rule,
    sample_interval,
)
from fastmomentum.theory.rates import ROUNDING, centre_and_split, radius

LARGE = 2.0**60
"""A value of lr·h for which terms of a matrix without lr are rounding errors, so that the factor of lr can be read."""

LR_GRID = np.exp2(np.arange(-120.0, 120.0, 0.5))
"""The learning rates tried, in units of 1/h; the range is wide, as the gradient may be in any units."""


class Tuning(NamedTuple):
    """Hold a learning rate, a momentum, and their rate.

    Attributes
    ----------
    lr, momentum : float
        The settings of the rule that was asked for.
    rate : float
        The largest spectral radius ρ over the spectrum.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> lr, momentum, rate = fm.theory.optimal(1.0, 4.0, rule="heavy_ball")
    >>> round(rate, 6)
    0.333333
    """

    lr: float
    momentum: float
    rate: float


class Method(NamedTuple):
    """Hold the closed forms of a method, in its effective learning rate α and momentum μ.

    Attributes
    ----------
    trace, determinant : callable
        (αh, μ) → trace and determinant of the iteration matrix.
    stable : callable
        μ → the αh below which the method converges.
    best : callable
        (m, L) → the tuning with the least rate on that spectrum.
    standard : callable
        (m, L) → the tuning that textbooks give; for heavy ball it is `best`.
    """

    trace: Callable[[Number, Number], Number]
    determinant: Callable[[Number, Number], Number]
    stable: Callable[[Number], Number]
    best: Callable[[float, float], Tuning]
    standard: Callable[[float, float], Tuning]


def _gradient_descent_best(m: float, L: float) -> Tuning:
    return Tuning(2.0 / (L + m), 0.0, (L - m) / (L + m))


def _gradient_descent_standard(m: float, L: float) -> Tuning:
    return Tuning(1.0 / L, 0.0, 1.0 - m / L)


def _heavy_ball_best(m: float, L: float) -> Tuning:
    low, high = sqrt(m), sqrt(L)
    rate = (high - low) / (high + low)
    return Tuning((2.0 / (high + low)) ** 2, rate * rate, rate)


def _nesterov_best(m: float, L: float) -> Tuning:
    root = sqrt(3.0 * L / m + 1.0)
    return Tuning(4.0 / (3.0 * L + m), (root - 2.0) / (root + 2.0), 1.0 - 2.0 / root)


def _nesterov_standard(m: float, L: float) -> Tuning:
    root = sqrt(L / m)
    return Tuning(1.0 / L, (root - 1.0) / (root + 1.0), 1.0 - 1.0 / root)


GRADIENT_DESCENT = Method(
    trace=lambda ah, mu: 1.0 - ah,
    determinant=lambda ah, mu: 0.0 * ah,
    stable=lambda mu: 2.0 + 0.0 * mu,
    best=_gradient_descent_best,
    standard=_gradient_descent_standard,
)
"""Gradient descent: Cauchy 1847."""

HEAVY_BALL = Method(
    trace=lambda ah, mu: 1.0 + mu - ah,
    determinant=lambda ah, mu: mu + 0.0 * ah,
    stable=lambda mu: np.where(mu < 1.0, 2.0 * (1.0 + mu), 0.0),
    best=_heavy_ball_best,
    standard=_heavy_ball_best,
)
"""Heavy ball: Polyak 1964."""

NESTEROV = Method(
    trace=lambda ah, mu: (1.0 + mu) * (1.0 - ah),
    determinant=lambda ah, mu: mu * (1.0 - ah),
    stable=lambda mu: (2.0 + 2.0 * mu) / (1.0 + 2.0 * mu),
    best=_nesterov_best,
    standard=_nesterov_standard,
)
"""Nesterov 1983; the best tuning on quadratics is that of Lessard, Recht and Packard 2016, proposition 1."""


class MatchedMethod(NamedTuple):
    """Hold the method whose trajectory a rule follows, and the factor from the rule's learning rate to the method's.

    Attributes
    ----------
    method : Method
        The method.
    lr_factor : callable
        μ → α/lr, where α is the effective learning rate.
    """

    method: Method
    lr_factor: Callable[[Number], Number]


def find_method(rule: ResolvedRule, curvature: npt.ArrayLike) -> MatchedMethod | None:
    """Return the method whose trajectory `rule` follows on these curvatures; None if it is not one of the three."""
    if not rule.takes("lr"):
        return None
    momenta = np.array([0.2, 0.6, 0.95])
    h = np.array([np.min(curvature), np.max(curvature)])[:, None]
    methods = (HEAVY_BALL, NESTEROV) if rule.takes("momentum") else (GRADIENT_DESCENT,)
    for method in methods:

        def lr_factor(mu: Number, method: Method = method) -> Number:
            # trace(αh) is linear in αh: its fall from 0 to αh, divided by its fall from 0 to 1, is αh.
            fall = method.trace(0.0, mu) - _trace_and_determinant(rule.linear(LARGE / h[0, 0], mu, h[0, 0]))[0]
            return fall / (method.trace(0.0, mu) - method.trace(1.0, mu)) / LARGE

        factors = lr_factor(momenta)
        if not np.isfinite(factors).all():
            continue
        units = np.abs(np.where(factors == 0.0, 1.0, factors)) * h
        for ah in (0.3, 0.02):  # lr is chosen so that αh is of order 1, in any units of the gradient
            found = _trace_and_determinant(rule.linear(ah / units, momenta, h))
            effective = np.sign(factors) * ah + 0.0 * h
            expected = method.trace(effective, momenta), method.determinant(effective, momenta)
            if not all(np.allclose(ours, theirs, rtol=1e-12, atol=1e-12) for ours, theirs in zip(found, expected)):
                break
        else:
            return MatchedMethod(method, lr_factor)
    return None


def _trace_and_determinant(linear: LinearMap) -> tuple[Number, Number]:
    """Return trace and determinant of a map of two rows, or of one row completed by zeros; NaN for more rows."""
    if len(linear.rows) == 1:
        return linear.rows[0][0], 0.0
    if len(linear.rows) > 2:
        return np.nan, np.nan
    centre, split = centre_and_split(linear)
    return 2.0 * centre, centre * centre - split


def max_stable_lr(momentum: npt.ArrayLike, curvature: npt.ArrayLike, *, rule: str | Rule, **hyper: Setting) -> Any:
    """Return the learning rate below which the rule converges on curvatures up to h.

    heavy ball 2(1 + μ)/h, Nesterov (2 + 2μ)/((1 + 2μ)h), gradient descent 2/h

    Each is divided by 1 − β or 1 − τ if the rule averages or dampens. For other rules it is the learning rate from
    which on ρ ≥ 1, found by root finding.

    Parameters
    ----------
    momentum, curvature : array_like
        μ in [0, 1] and h > 0; they broadcast.
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    float64, or ndarray of float64 if an argument is an array
        0 if no learning rate converges (heavy ball with μ = 1, for example), inf if all do.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear or takes no lr.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.theory.max_stable_lr([0.0, 0.5, 0.9], 2.0, rule="classical"))
    [1.  1.5 1.9]
    >>> print(fm.theory.max_stable_lr(0.5, 2.0, rule="ema"))
    3.0
    """
    resolved, h = _resolve_rule_with_lr(rule, hyper), check_curvature(curvature)
    mu = checks.numbers("momentum", momentum, UNIT_INTERVAL)
    found = find_method(resolved, h) if h.size else None
    if found is None:
        return last_stable_lr(resolved, mu, h)[()]
    # αh = ratio·lr, and the method converges if αh is below the limit.
    ratio, limit = np.broadcast_arrays(found.lr_factor(mu) * h, found.method.stable(mu))
    return np.divide(limit, ratio, out=np.zeros(limit.shape), where=ratio > 0.0)[()]


def last_stable_lr(rule: ResolvedRule, mu: Floats, h: Floats) -> Floats:
    """Return the lr from which on ρ ≥ 1, by a search on a grid and root finding; 0 or inf if none is found."""
    mu, h = np.broadcast_arrays(mu, h)
    tried = LR_GRID / h[..., None]
    converges = radius(rule, tried, mu[..., None], h[..., None]) < 1.0 - ROUNDING
    # First come learning rates too small to tell ρ from 1, then those that converge, then those that do not.
    is_last = converges[..., :-1] & ~converges[..., 1:]
    found = np.where(converges[..., -1], np.inf, 0.0)
    has_last = is_last.any(axis=-1)
    if has_last.any():
        at = LR_GRID.size - 2 - np.argmax(is_last[has_last][:, ::-1], axis=-1)[:, None]
        low, high = (np.take_along_axis(tried[has_last], k, axis=-1)[:, 0] for k in (at, at + 1))
        root = elementwise.find_root(
            lambda lr, mu, h: radius(rule, lr, mu, h) - (1.0 - ROUNDING), (low, high), args=(mu[has_last], h[has_last])
        )
        found[has_last] = root.x
    return found


def optimal(m: float, L: float, *, rule: str | Rule, **hyper: Setting) -> Tuning:
    """Return learning rate and momentum with the least rate on every spectrum in [m, L].

    =====================================  ================  ==============================  ================
    method                                 lr                momentum                        rate
    =====================================  ================  ==============================  ================
    gradient descent                       2/(L + m)         0                               (κ − 1)/(κ + 1)
    heavy ball (Polyak 1964)               (2/(√L + √m))²    ((√κ − 1)/(√κ + 1))²            (√κ − 1)/(√κ + 1)
    Nesterov (Lessard, Recht, Packard      4/(3L + m)        (√(3κ + 1) − 2)/(√(3κ + 1) + 2)  1 − 2/√(3κ + 1)
    2016, proposition 1)
    =====================================  ================  ==============================  ================

    with κ = L/m, and lr divided by 1 − β or 1 − τ if the rule averages or dampens. For other rules the tuning is
    found by a numerical minimax search over lr and momentum, which does not prove that no lower rate exists.

    Parameters
    ----------
    m, L : float
        The least and the greatest curvature, 0 < m ≤ L.
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    Tuning
        (lr, momentum, rate); momentum is 0 if the rule takes none.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear or takes no lr.

    Notes
    -----
    The rate holds on quadratics, and near a smooth minimum. Polyak's tuning lies on the edge of stability: it diverges
    if L is underestimated by more than about 1/κ, relatively, and away from the minimum it may never converge (an
    example is in Lessard, Recht and Packard 2016). :func:`tune` keeps a margin.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.optimal(1.0, 9.0, rule="heavy_ball")
    Tuning(lr=0.25, momentum=0.25, rate=0.5)
    >>> fm.theory.optimal(1.0, 9.0, rule="sgd")
    Tuning(lr=0.2, momentum=0.0, rate=0.8)
    """
    low, high = check_ends(m, L)
    resolved = _resolve_rule_with_lr(rule, hyper)
    found = find_method(resolved, [low, high])
    if found is None:
        return minimax(resolved, low, high)
    return _to_lr_of_rule(found, found.method.best(low, high))


def standard(m: float, L: float, *, rule: str | Rule, **hyper: Setting) -> Tuning:
    """Return the textbook tuning: lr = 1/L for gradient descent and for Nesterov's method.

    For Nesterov's method μ = (√κ − 1)/(√κ + 1), and the rate is 1 − 1/√κ (Nesterov 1983); for gradient descent the rate
    is 1 − 1/κ. For heavy ball the tuning is Polyak's, as in :func:`optimal`. On quadratics the tuning is slower than
    :func:`optimal`, but for Nesterov's method it is proven on all convex functions with curvature in [m, L].

    Parameters and errors are those of :func:`optimal`. A ValueError is also raised for a rule that does not draw the
    trajectory of one of these three methods.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.standard(1.0, 9.0, rule="pytorch", nesterov=True)
    Tuning(lr=0.1111111111111111, momentum=0.5, rate=0.6666666666666667)
    """
    low, high = check_ends(m, L)
    found = find_method(_resolve_rule_with_lr(rule, hyper), [low, high])
    if found is None:
        raise ValueError(
            "rule: expected one that follows the trajectory of gradient descent, heavy ball or Nesterov's method; "
            f"got {rule}. optimal() searches a tuning for other rules"
        )
    return _to_lr_of_rule(found, found.method.standard(low, high))


def minimax(rule: ResolvedRule, m: float, L: float) -> Tuning:
    """Return the tuning with the least of the largest ρ over [m, L], by nested minimisation with SciPy."""
    h = sample_interval(m, L, 31)

    def worst_rate(lr: Number, mu: float) -> Floats:
        rates: Floats = radius(rule, np.asarray(lr)[..., None], mu, h).max(axis=-1)
        return rates

    def best_for(mu: float) -> Tuning:
        limit = float(last_stable_lr(rule, np.array(mu), np.array(L)))
        if not 0.0 < limit < np.inf:
            return Tuning(0.0, mu, np.inf)
        # The best lr lies close to 0 or to the last stable one (for gradient descent 2/(L + m), up to 1/κ).
        tried = limit * np.concatenate([np.geomspace(1e-9, 0.5, 40), 1.0 - np.geomspace(0.5, 1e-9, 40)[1:]])
        lr = _argmin(lambda lr: float(worst_rate(lr, mu)), tried, worst_rate(tried, mu))
        return Tuning(lr, mu, float(worst_rate(lr, mu)))

    if not rule.takes("momentum"):
        return _check_converges(best_for(0.0))
    # The search is over 1 − μ, as the best momentum tends to 1 like 1 − O(1/√κ).
    tried = np.geomspace(1e-2 * np.sqrt(m / L), 1.0, 32)
    rates = np.array([best_for(1.0 - distance).rate for distance in tried])
    return _check_converges(best_for(1.0 - _argmin(lambda distance: best_for(1.0 - distance).rate, tried, rates)))


def _check_converges(tuning: Tuning) -> Tuning:
    if not tuning.rate < 1.0:
        raise ValueError(
            "rule: expected one that converges for small learning rates and diverges for large ones; found no such "
            "learning rate"
        )
    return tuning


def _argmin(function: Callable[[float], float], tried: Floats, values: Floats) -> float:
    """Return the argument at which `function` is least, near the least of its `values` at the points tried."""
    k = int(np.argmin(values))
    ends = np.log(tried[[max(k - 1, 0), min(k + 1, len(tried) - 1)]])
    found = minimize_scalar(
        lambda u: function(float(np.exp(u))), bounds=ends, method="bounded", options={"xatol": 1e-13}
    )
    return float(np.exp(found.x)) if found.fun < values[k] else float(tried[k])


def _to_lr_of_rule(found: MatchedMethod, tuning: Tuning) -> Tuning:
    """Return the tuning with the rule's own learning rate in place of the effective one."""
    factor = float(found.lr_factor(tuning.momentum))
    if factor < 0.0:
        raise ValueError(
            "rule, maximize: expected a rule that descends; this rule goes up the gradient, and converges at no lr"
        )
    if factor == 0.0:
        raise ValueError(
            "dampening: expected less than 1; this rule's update does not depend on the gradient, as with dampening=1"
        )
    return tuning._replace(lr=tuning.lr / factor)


def _resolve_rule_with_lr(rule: str | Rule, hyper: Mapping[str, Setting]) -> ResolvedRule:
    resolved = resolve_rule(rule, hyper)
    if not resolved.takes("lr"):
        raise ValueError(f"rule: expected one that takes lr, as lr is the result; got {rule}")
    return resolved
