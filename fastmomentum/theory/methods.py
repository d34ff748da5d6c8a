"""The methods behind the rules: gradient descent, Polyak's heavy ball, Nesterov's.

Every rule of the package draws the trajectory of one of these, at an effective learning rate that is a multiple of its
own. Which, is found by looking at its iteration matrix; so closed forms hold also for a rule or chain that a user adds,
if its matrix is that of a method.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from fastmomentum.theory.linear import Linear, Settled
from fastmomentum.theory.rates import centre_and_split


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


def known(rule: Settled, curvature: Any) -> Known | None:
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
