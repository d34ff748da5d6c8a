"""The methods behind the rules: gradient descent, Polyak's heavy ball, Nesterov's.

Every rule of the package draws the trajectory of one of these, at an effective learning rate that is a multiple of its
own. Which, is found by looking at its iteration matrix; so closed forms hold also for a rule or chain that a user adds,
if its matrix is that of a method.

The largest learning rate that converges, and the settings that converge fastest.
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
    """Learning rate, momentum, and the rate ρ that they give on the worst curvature of the spectrum.

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
    """What is known of a method in closed form, with the effective learning rate α and momentum μ.

    Attributes
    ----------
    trace, determinant : callable
        (αh, μ) → trace and determinant of the iteration matrix.
    stable : callable
        μ → the αh below which it converges.
    best : callable
        (m, L) → the tuning with the least rate on that spectrum.
    standard : callable
        (m, L) → the tuning usually given, where that is another.
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
"""lr·h beside which the rest of a matrix is rounding, so that the effective learning rate can be read off."""


class Known(NamedTuple):
    """A method, and how to get at its effective learning rate α = share(μ)·lr."""

    method: Method
    share: Callable[[Any], Any]


def known(rule: ResolvedRule, curvature: Any) -> Known | None:
    """The method whose trajectory `rule` draws on these curvatures; None if it is none of the three."""
    if not rule.has("lr"):
        return None
    momenta = np.array([0.2, 0.6, 0.95])
    h = np.array([np.min(curvature), np.max(curvature)])[:, None]
    methods = (HEAVY_BALL, NESTEROV) if rule.has("momentum") else (GRADIENT_DESCENT,)
    for method in methods:

        def share(mu: Any, method: Method = method) -> Any:
            # trace(αh) is linear in αh: what it falls by from 0 to αh, over what it falls by from 0 to 1.
            fall = method.trace(0.0, mu) - _invariants(rule.linear(FAR / h[0, 0], mu, h[0, 0]))[0]
            return fall / (method.trace(0.0, mu) - method.trace(1.0, mu)) / FAR

        shares = share(momenta)
        if not np.isfinite(shares).all():
            continue
        units = np.abs(np.where(shares == 0.0, 1.0, shares)) * h
        for ah in (0.3, 0.02):  # lr is chosen so that αh is of order 1, whatever units the gradient has
            found = _invariants(rule.linear(ah / units, momenta, h))
            effective = np.sign(shares) * ah + 0.0 * h
            wanted = method.trace(effective, momenta), method.determinant(effective, momenta)
            if not all(np.allclose(ours, theirs, rtol=1e-12, atol=1e-12) for ours, theirs in zip(found, wanted)):
                break
        else:
            return Known(method, share)
    return None


def _invariants(map: Linear) -> tuple[Any, Any]:
    """Trace and determinant; a map of one row gets a second, of zeros; one of more than two has no place here."""
    if len(map.rows) == 1:
        return map.rows[0][0], 0.0
    if len(map.rows) > 2:
        return np.nan, np.nan
    centre, split = centre_and_split(map)
    return 2.0 * centre, centre * centre - split


OCTAVES = np.exp2(np.arange(-120.0, 120.0, 0.5))
"""Learning rates, over 1/h, among which the last that converges is sought, whatever units the gradient has."""


def max_stable_lr(momentum: Any, curvature: Any, *, rule: str | Rule, **hyper: Any) -> Any:
    """The learning rate below which the rule converges on curvatures up to h; it broadcasts.

    Heavy ball 2(1 + μ)/h, Nesterov (2 + 2μ)/((1 + 2μ)h), gradient descent 2/h, each over 1 − β or 1 − τ where the rule
    averages or dampens; for other rules where ρ reaches 1 for good, found by root finding.

    Parameters
    ----------
    momentum, curvature : array_like
        μ in [0, 1] and h > 0.
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    **hyper
        What else the rule declares, and the options of :func:`fastmomentum.step`.

    Returns
    -------
    float64 or ndarray of float64
        0 where no learning rate converges (heavy ball with μ = 1, say), inf where all do.

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
    """Where ρ reaches 1 for good as the learning rate grows, by looking and root finding."""
    mu, h = np.broadcast_arrays(mu, h)
    tried = OCTAVES / h[..., None]
    good = radius(rule, tried, mu[..., None], h[..., None]) < 1.0 - ROUNDING
    # Learning rates too small to tell ρ from 1 come first, then those that converge, and then none.
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
    """Learning rate and momentum with the least rate on every spectrum in [m, L].

    =====================================  ================  ==============================  ================
    method                                 lr                momentum                        rate
    =====================================  ================  ==============================  ================
    gradient descent                       2/(L + m)         0                               (κ − 1)/(κ + 1)
    heavy ball (Polyak 1964)               (2/(√L + √m))²    ((√κ − 1)/(√κ + 1))²            (√κ − 1)/(√κ + 1)
    Nesterov (Lessard, Recht, Packard      4/(3L + m)        (√(3κ + 1) − 2)/(√(3κ + 1) + 2)  1 − 2/√(3κ + 1)
    2016, proposition 1)
    =====================================  ================  ==============================  ================

    with κ = L/m, and lr over 1 − β or 1 − τ where the rule averages or dampens. For other rules a minimax over lr and
    momentum (none lower has been found, which is no proof).

    Parameters
    ----------
    m, L : float
        The least and the greatest curvature, 0 < m ≤ L.
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    **hyper
        What else the rule declares, and the options of :func:`fastmomentum.step`.

    Returns
    -------
    Tuning
        (lr, momentum, rate); momentum is 0 where the rule has none.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear or takes no lr.

    Notes
    -----
    The rate holds on quadratics, and near a smooth minimum. Polyak's tuning sits on the edge: it diverges when L is
    underestimated by more than about 1/κ, relatively, and away from the minimum it may never converge (Lessard, Recht
    and Packard's example). :func:`tune` keeps a margin.

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
    """The tuning usually given: lr 1/L for gradient descent and Nesterov, with μ = (√κ − 1)/(√κ + 1) for Nesterov.

    Its rate is 1 − 1/κ, or 1 − 1/√κ (Nesterov 1983); for heavy ball it is Polyak's, as :func:`optimal` is. Slower than
    that on quadratics, but proven on all convex functions with curvature in [m, L], for Nesterov's method.

    Parameters and errors are those of :func:`optimal`; a rule that draws no known method's trajectory is a ValueError.

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
    """The least of the largest ρ over [m, L], by SciPy: over the learning rate within, over the momentum without."""
    h = between(m, L, 31)

    def worst(lr: Any, mu: float) -> Any:
        return radius(rule, np.asarray(lr)[..., None], mu, h).max(axis=-1)

    def best(mu: float) -> Tuning:
        top = float(last_stable(rule, np.array(mu), np.array(L)))
        if not 0.0 < top < np.inf:
            return Tuning(0.0, mu, np.inf)
        # The best lr lies close to 0 or to the last stable one (gradient descent's 2/(L + m) is it but for 1/κ).
        tried = top * np.concatenate([np.geomspace(1e-9, 0.5, 40), 1.0 - np.geomspace(0.5, 1e-9, 40)[1:]])
        lr = _least(lambda lr: float(worst(lr, mu)), tried, worst(tried, mu))
        return Tuning(lr, mu, float(worst(lr, mu)))

    if not rule.has("momentum"):
        return _converging(best(0.0))
    # In 1 − μ, as the best momentum tends to 1 like 1 − O(1/√κ).
    tried = np.geomspace(1e-2 * np.sqrt(m / L), 1.0, 32)
    rates = np.array([best(1.0 - rest).rate for rest in tried])
    return _converging(best(1.0 - _least(lambda rest: best(1.0 - rest).rate, tried, rates)))


def _converging(found: Tuning) -> Tuning:
    if not found.rate < 1.0:
        raise ValueError("rule: expected one that converges at some learning rate below a greatest; none was found")
    return found


def _least(function: Callable[[float], float], tried: Floats, values: Floats) -> float:
    """Where `function` is least, near the least of the `values` that it has where it was tried."""
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
        raise ValueError(f"rule: expected one that takes lr, which is what is looked for; got {rule}")
    return chosen
