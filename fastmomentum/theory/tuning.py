"""Tunings: the largest learning rate that converges, and the settings that converge fastest.

Every rule of the package draws the trajectory of gradient descent, of Polyak's heavy ball or of Nesterov's method, at
an effective learning rate that is a multiple of its own. The method is recognised by the rule's iteration matrix, so
the closed forms also hold for a rule or chain that a user adds, if its matrix is that of a method.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import elementwise, minimize_scalar

from fastmomentum import checks
from fastmomentum.checks import UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import Floats, Linear, ResolvedRule, between, check_curvature, check_ends, resolve_rule
from fastmomentum.theory.rates import ROUNDING, centre_and_split, radius


class Tuning(NamedTuple):
    """A learning rate, a momentum, and their rate ρ on the worst curvature of the spectrum.

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
    """The closed forms of a method, in its effective learning rate α and momentum μ.

    Attributes
    ----------
    trace, determinant : callable
        (αh, μ) → trace and determinant of the iteration matrix.
    stable : callable
        μ → the αh below which it converges.
    best : callable
        (m, L) → the tuning with the least rate on that spectrum.
    standard : callable
        (m, L) → the tuning usually given, if it is another one.
    """

    trace: Callable[[Any, Any], Any]
    determinant: Callable[[Any, Any], Any]
    stable: Callable[[Any], Any]
    best: Callable[[float, float], Tuning]
    standard: Callable[[float, float], Tuning]


def _cauchy(m: float, L: float) -> Tuning:
    return Tuning(2.0 / (L + m), 0.0, (L - m) / (L + m))


def _polyak(m: float, L: float) -> Tuning:
    low, high = sqrt(m), sqrt(L)
    rate = (high - low) / (high + low)
    return Tuning((2.0 / (high + low)) ** 2, rate * rate, rate)


def _nesterov(m: float, L: float) -> Tuning:
    root = sqrt(3.0 * L / m + 1.0)
    return Tuning(4.0 / (3.0 * L + m), (root - 2.0) / (root + 2.0), 1.0 - 2.0 / root)


def _nesterov_standard(m: float, L: float) -> Tuning:
    root = sqrt(L / m)
    return Tuning(1.0 / L, (root - 1.0) / (root + 1.0), 1.0 - 1.0 / root)


GRADIENT_DESCENT = Method(
    trace=lambda ah, mu: 1.0 - ah,
    determinant=lambda ah, mu: 0.0 * ah,
    stable=lambda mu: 2.0 + 0.0 * mu,
    best=_cauchy,
    standard=lambda m, L: Tuning(1.0 / L, 0.0, 1.0 - m / L),
)
"""Cauchy 1847."""

HEAVY_BALL = Method(
    trace=lambda ah, mu: 1.0 + mu - ah,
    determinant=lambda ah, mu: mu + 0.0 * ah,
    stable=lambda mu: np.where(mu < 1.0, 2.0 * (1.0 + mu), 0.0),
    best=_polyak,
    standard=_polyak,
)
"""Polyak 1964."""

NESTEROV = Method(
    trace=lambda ah, mu: (1.0 + mu) * (1.0 - ah),
    determinant=lambda ah, mu: mu * (1.0 - ah),
    stable=lambda mu: (2.0 + 2.0 * mu) / (1.0 + 2.0 * mu),
    best=_nesterov,
    standard=_nesterov_standard,
)
"""Nesterov 1983; the best tuning on quadratics is that of Lessard, Recht and Packard 2016, proposition 1."""

FAR = 2.0**60
"""A value of lr·h beside which the rest of a matrix is rounding, so that the effective rate can be read off."""


class Known(NamedTuple):
    """A method, and the share by which its effective learning rate is α = share(μ)·lr."""

    method: Method
    share: Callable[[Any], Any]


def known(rule: ResolvedRule, curvature: Any) -> Known | None:
    """Return the method whose trajectory `rule` draws on these curvatures; None if it is not one of the three."""
    if not rule.has("lr"):
        return None
    momenta = np.array([0.2, 0.6, 0.95])
    h = np.array([np.min(curvature), np.max(curvature)])[:, None]
    methods = (HEAVY_BALL, NESTEROV) if rule.has("momentum") else (GRADIENT_DESCENT,)
    for method in methods:

        def share(mu: Any, method: Method = method) -> Any:
            # trace(αh) is linear in αh: its fall from 0 to αh, divided by its fall from 0 to 1, is αh.
            fall = method.trace(0.0, mu) - _invariants(rule.linear(FAR / h[0, 0], mu, h[0, 0]))[0]
            return fall / (method.trace(0.0, mu) - method.trace(1.0, mu)) / FAR

        shares = share(momenta)
        if not np.isfinite(shares).all():
            continue
        units = np.abs(np.where(shares == 0.0, 1.0, shares)) * h
        for ah in (0.3, 0.02):  # lr is chosen so that αh is of order 1, in any units of the gradient
            found = _invariants(rule.linear(ah / units, momenta, h))
            effective = np.sign(shares) * ah + 0.0 * h
            wanted = method.trace(effective, momenta), method.determinant(effective, momenta)
            if not all(np.allclose(ours, theirs, rtol=1e-12, atol=1e-12) for ours, theirs in zip(found, wanted)):
                break
        else:
            return Known(method, share)
    return None


def _invariants(map: Linear) -> tuple[Any, Any]:
    """Return trace and determinant of a map of one row, completed by zeros, or of two rows."""
    if len(map.rows) == 1:
        return map.rows[0][0], 0.0
    if len(map.rows) > 2:
        return np.nan, np.nan
    centre, split = centre_and_split(map)
    return 2.0 * centre, centre * centre - split


OCTAVES = np.exp2(np.arange(-120.0, 120.0, 0.5))
"""Learning rates, over 1/h, among which the last that converges is searched, for any units of the gradient."""


def max_stable_lr(momentum: Any, curvature: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """Return the learning rate below which the rule converges on curvatures up to h; it broadcasts.

    Heavy ball 2(1 + μ)/h, Nesterov (2 + 2μ)/((1 + 2μ)h), gradient descent 2/h, each divided by 1 − β or 1 − τ if the
    rule averages or dampens. For other rules it is the learning rate from which on ρ ≥ 1, found by root finding.

    Parameters
    ----------
    momentum, curvature : array_like
        μ in [0, 1] and h > 0.
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    **hyper
        The rule's other hyper-parameters, and options of :func:`fastmomentum.step`.

    Returns
    -------
    float64 or ndarray of float64
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
    chosen, h = _tunable(rule, hyper), check_curvature(curvature)
    mu = checks.numbers("momentum", momentum, UNIT_INTERVAL)
    found = known(chosen, h) if h.size else None
    if found is None:
        return last_stable(chosen, mu, h)[()]
    pull, limit = np.broadcast_arrays(found.share(mu) * h, found.method.stable(mu))
    return np.divide(limit, pull, out=np.zeros(limit.shape), where=pull > 0.0)[()]


def last_stable(rule: ResolvedRule, mu: Floats, h: Floats) -> Floats:
    """Return the learning rate from which on ρ ≥ 1, by a search on a grid and root finding."""
    mu, h = np.broadcast_arrays(mu, h)
    tried = OCTAVES / h[..., None]
    good = radius(rule, tried, mu[..., None], h[..., None]) < 1.0 - ROUNDING
    # First come learning rates too small to tell ρ from 1, then those that converge, then those that do not.
    ends = good[..., :-1] & ~good[..., 1:]
    found = np.where(good[..., -1], np.inf, 0.0)
    inside = ends.any(axis=-1)
    if inside.any():
        at = OCTAVES.size - 2 - np.argmax(ends[inside][:, ::-1], axis=-1)[:, None]
        low, high = (np.take_along_axis(tried[inside], k, axis=-1)[:, 0] for k in (at, at + 1))
        done = elementwise.find_root(
            lambda lr, mu, h: radius(rule, lr, mu, h) - (1.0 - ROUNDING), (low, high), args=(mu[inside], h[inside])
        )
        found[inside] = done.x
    return found


def optimal(m: float, L: float, *, rule: str | Rule, **hyper: Any) -> Tuning:
    """Return learning rate and momentum with the least rate on every spectrum in [m, L].

    =====================================  ================  ==============================  ================
    method                                 lr                momentum                        rate
    =====================================  ================  ==============================  ================
    gradient descent                       2/(L + m)         0                               (κ − 1)/(κ + 1)
    heavy ball (Polyak 1964)               (2/(√L + √m))²    ((√κ − 1)/(√κ + 1))²            (√κ − 1)/(√κ + 1)
    Nesterov (Lessard, Recht, Packard      4/(3L + m)        (√(3κ + 1) − 2)/(√(3κ + 1) + 2)  1 − 2/√(3κ + 1)
    2016, proposition 1)
    =====================================  ================  ==============================  ================

    with κ = L/m, and lr divided by 1 − β or 1 − τ if the rule averages or dampens. For other rules it is a minimax over
    lr and momentum by numerical search: no lower rate was found, which proves nothing.

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
    if L is underestimated by more than about 1/κ, relatively, and away from the minimum it may never converge (Lessard,
    Recht and Packard's example). :func:`tune` keeps a margin.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.optimal(1.0, 9.0, rule="heavy_ball")
    Tuning(lr=0.25, momentum=0.25, rate=0.5)
    >>> fm.theory.optimal(1.0, 9.0, rule="sgd")
    Tuning(lr=0.2, momentum=0.0, rate=0.8)
    """
    low, high = check_ends(m, L)
    chosen = _tunable(rule, hyper)
    found = known(chosen, [low, high])
    if found is None:
        return minimax(chosen, low, high)
    return _in_its_own_lr(found, found.method.best(low, high))


def standard(m: float, L: float, *, rule: str | Rule, **hyper: Any) -> Tuning:
    """Return the tuning usually given: lr 1/L for gradient descent and Nesterov's method.

    For Nesterov's method μ = (√κ − 1)/(√κ + 1).

    Its rate is 1 − 1/κ, or 1 − 1/√κ (Nesterov 1983); for heavy ball it is Polyak's tuning, as in :func:`optimal`. On
    quadratics it is slower than :func:`optimal`, but for Nesterov's method it is proven on all convex functions with
    curvature in [m, L].

    Parameters and errors are those of :func:`optimal`; a rule that does not draw a known method's trajectory is a
    ValueError.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.theory.standard(1.0, 9.0, rule="pytorch", nesterov=True)
    Tuning(lr=0.1111111111111111, momentum=0.5, rate=0.6666666666666667)
    """
    low, high = check_ends(m, L)
    chosen = _tunable(rule, hyper)
    found = known(chosen, [low, high])
    if found is None:
        raise ValueError(f"rule: expected one that draws the trajectory of a known method; got {rule}. See optimal")
    return _in_its_own_lr(found, found.method.standard(low, high))


def minimax(rule: ResolvedRule, m: float, L: float) -> Tuning:
    """Return the tuning with the least of the largest ρ over [m, L], by nested minimisation with SciPy."""
    h = between(m, L, 31)

    def worst(lr: Any, mu: float) -> Any:
        return radius(rule, np.asarray(lr)[..., None], mu, h).max(axis=-1)

    def best(mu: float) -> Tuning:
        top = float(last_stable(rule, np.array(mu), np.array(L)))
        if not 0.0 < top < np.inf:
            return Tuning(0.0, mu, np.inf)
        # The best lr lies close to 0 or to the last stable one (for gradient descent 2/(L + m), up to 1/κ).
        tried = top * np.concatenate([np.geomspace(1e-9, 0.5, 40), 1.0 - np.geomspace(0.5, 1e-9, 40)[1:]])
        lr = _least(lambda lr: float(worst(lr, mu)), tried, worst(tried, mu))
        return Tuning(lr, mu, float(worst(lr, mu)))

    if not rule.has("momentum"):
        return _converging(best(0.0))
    # The search is over 1 − μ, as the best momentum tends to 1 like 1 − O(1/√κ).
    tried = np.geomspace(1e-2 * np.sqrt(m / L), 1.0, 32)
    rates = np.array([best(1.0 - rest).rate for rest in tried])
    return _converging(best(1.0 - _least(lambda rest: best(1.0 - rest).rate, tried, rates)))


def _converging(found: Tuning) -> Tuning:
    if not found.rate < 1.0:
        raise ValueError("rule: expected one that converges at some learning rate below a greatest; none was found")
    return found


def _least(function: Callable[[float], float], tried: Floats, values: Floats) -> float:
    """Return the argument at which `function` is least, near the least of its `values` at the points tried."""
    k = int(np.argmin(values))
    ends = np.log(tried[[max(k - 1, 0), min(k + 1, len(tried) - 1)]])
    found = minimize_scalar(
        lambda u: function(float(np.exp(u))), bounds=ends, method="bounded", options={"xatol": 1e-13}
    )
    return float(np.exp(found.x)) if found.fun < values[k] else float(tried[k])


def _in_its_own_lr(found: Known, tuning: Tuning) -> Tuning:
    share = float(found.share(tuning.momentum))
    if share < 0.0:
        raise ValueError("maximize: expected a rule that descends; this one goes up the gradient, and diverges")
    if share == 0.0:
        raise ValueError("dampening: expected less than 1; with 1 the rule takes no gradient")
    return tuning._replace(lr=tuning.lr / share)


def _tunable(rule: str | Rule, hyper: Any) -> ResolvedRule:
    chosen = resolve_rule(rule, hyper)
    if not chosen.has("lr"):
        raise ValueError(f"rule: expected one that takes lr, as lr is the result; got {rule}")
    return chosen
