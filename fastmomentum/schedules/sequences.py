"""Define the schedules that theory gives for momentum: Nesterov's, Sutskever's, and the Chebyshev semi-iteration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, inf, log, log1p, sqrt
from typing import ClassVar

from fastmomentum import checks
from fastmomentum.checks import UNIT_INTERVAL, Range
from fastmomentum.rules.base import Rule
from fastmomentum.rules.registry import find
from fastmomentum.schedules.base import Schedule, format_number


@dataclass(frozen=True)
class Nesterov(Schedule):
    """Give Nesterov's momentum for convex functions.

    μ_k = (t_k − 1)/t_{k+1} at step k, with t_0 = 1 and t_{k+1} = (1 + √(1 + 4t_k²))/2

    Notes
    -----
    Nesterov 1983; Beck and Teboulle 2009 (FISTA), equations 4.2 and 4.3, where k counts from 1. With the rule
    nesterov_positions, which extrapolates at the end of its update, this is FISTA. A rule with a velocity, folded or
    with a look-ahead, multiplies the velocity of the previous step by the momentum of this step, so it needs the
    sequence one step later: ``Constant(0.0).then(Nesterov(), after=1)``.

    For convex functions without strong convexity, and lr = 1/L: f(x_k) − f* ≤ 2L‖x_0 − x*‖²/(k + 1)² after k updates.
    The values are right to 3e-16 at every step, and the time to compute one does not grow with k.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print([round(fm.schedules.Nesterov()(k), 6) for k in (0, 1, 2, 1_000_000)])
    [0.0, 0.281754, 0.434043, 0.999997]
    """

    @property
    def keeps_velocity(self) -> bool:
        """Return True: the first momentum is 0, and the next step uses the velocity."""
        return True

    def _value(self, t: int) -> float:
        current = _nesterov_t(t)
        return (current - 1.0) / _next_t(current)

    def _formula(self, t: str) -> str:
        return f"(t_k − 1)/t_(k + 1), t_(k + 1) = (1 + √(1 + 4t_k²))/2, t_0 = 1, k = {t}"


@dataclass(frozen=True)
class NesterovSimple(Schedule):
    """Give the simple form of Nesterov's momentum for convex functions.

    t/(t + 3) at step t, which is (k − 1)/(k + 2) for the k-th update

    Notes
    -----
    Tseng 2008; Su, Boyd and Candès 2016. It has the bound f(x_k) − f* ≤ 2L‖x_0 − x*‖²/(k + 1)² of :class:`Nesterov`,
    and like that schedule it is made for the rule nesterov_positions. The limit of small steps is ẍ + (3/t)ẋ + ∇f = 0.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> [fm.schedules.NesterovSimple()(t) for t in (0, 1, 3, 9)]
    [0.0, 0.25, 0.5, 0.75]
    """

    @property
    def keeps_velocity(self) -> bool:
        """Return True: the first momentum is 0, and the next step uses the velocity."""
        return True

    def _value(self, t: int) -> float:
        return t / (t + 3)

    def _formula(self, t: str) -> str:
        return f"{t}/({t} + 3)"


@dataclass(frozen=True)
class Sutskever(Schedule):
    """Raise momentum in Sutskever's stairs, 1/2, 3/4, 5/6, 7/8, …, up to a limit.

    min(1 − 2^(−1 − log₂(⌊t/every⌋ + 1)), limit)

    Parameters
    ----------
    limit : float
        The greatest momentum, μ_max in the paper, in [0, 1]; the paper tries 0.999, 0.995, 0.99 and 0.9.
    every : int
        The number of steps of each stair, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If `limit` is out of range, or `every` is not a whole number ≥ 1.

    Notes
    -----
    Sutskever, Martens, Dahl and Hinton 2013, equation 5. The paper lowers momentum to 0.9 for the last 1000 of n steps:
    ``Sutskever(0.999).then(Constant(0.9), after=n - 1000)``.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> capped = fm.schedules.Sutskever(0.9)
    >>> [round(capped(t), 3) for t in (0, 249, 250, 750, 5000)]
    [0.5, 0.5, 0.75, 0.875, 0.9]
    """

    ranges: ClassVar[Mapping[str, Range]] = {"limit": UNIT_INTERVAL}
    limit: float = 0.999
    every: int = 250

    def _value(self, t: int) -> float:
        return min(1.0 - 0.5 / (t // self.every + 1), self.limit)

    def _formula(self, t: str) -> str:
        return f"min(1 − 2^(−1 − log₂(⌊{t}/{self.every}⌋ + 1)), {format_number(self.limit)})"


def _next_t(t: float) -> float:
    return (1.0 + sqrt(1.0 + 4.0 * t * t)) / 2.0


def _correction(t: float) -> float:
    """Return 2t − φ(t), where φ is the function that grows by 1 from each t_k to the next.

    φ(t) = 2t − log(t)/2 − 1/192t² − 1/576t³ + O(t⁻⁴)

    Its coefficients solve φ((1 + √(1 + 4t²))/2) − φ(t) = 1 as a series in 1/t.
    """
    return log(t) / 2.0 + (1.0 / 192.0 + 1.0 / (576.0 * t)) / (t * t)


_FIRST = tuple(accumulate(range(255), lambda t, _: _next_t(t), initial=1.0))
"""The numbers t_0, …, t_255, by the recurrence.

For later ones t > 130, and the first term that the series leaves out, t⁻⁴/3840, changes μ by 3e-17.
"""

_OFFSET = 2.0 * _FIRST[-1] - _correction(_FIRST[-1]) - (len(_FIRST) - 1)
"""The constant φ(t_k) − k."""


def _nesterov_t(k: int) -> float:
    """Return t_k of Nesterov's sequence; for large k by solving φ(t_k) = k + _OFFSET, without a loop over k."""
    if k < len(_FIRST):
        return _FIRST[k]
    t = k / 2.0
    for _ in range(5):  # the error, at most about 2 for the least t, falls by a factor of 4t > 500 each time
        t = (k + _OFFSET + _correction(t)) / 2.0
    return t


CHEBYSHEV_RULES = ("heavy_ball", "classical", "pytorch")
"""The rules for which the Chebyshev semi-iteration is given."""


@dataclass(frozen=True)
class Chebyshev:
    """Give learning rate and momentum of the Chebyshev semi-iteration on spectra in [m, L].

    p_{t+1} = p_t − α_t g + μ_t(p_t − p_{t−1}) with α_t = ω_t·2/(L + m) and μ_t = ω_t − 1

    Here ω_0 = 1 and ω_t = 2σT_t(σ)/T_{t+1}(σ), with σ = (L + m)/(L − m) and Chebyshev's polynomials T_t. After t steps
    the error of every eigenvector is at most ‖e_0‖/T_t(σ), and no method with one gradient for each step has a better
    bound. α_t and μ_t tend to Polyak's tuning.

    Parameters
    ----------
    m, L : float
        The ends of the spectrum, 0 < m ≤ L.
    rule : {"heavy_ball", "classical", "pytorch"}
        The rule for which learning rate and momentum are given.

    Raises
    ------
    TypeError, ValueError
        If m or L is not a finite number > 0, m > L, or the rule is another one.

    Notes
    -----
    Golub and Varga 1961. The attributes :attr:`lr` and :attr:`momentum` are schedules.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> h, p = np.array([1.0, 5.0, 9.0]), np.ones(3)
    >>> optimal = fm.theory.Chebyshev(1.0, 9.0, rule="classical")
    >>> opt = fm.Momentum(p, rule="classical", lr=optimal.lr, momentum=optimal.momentum)
    >>> for _ in range(5):
    ...     opt.step(h * p)
    >>> print(np.abs(p).max().round(6), round(optimal.bound(5), 6))
    0.062439 0.062439
    """

    m: float
    L: float
    rule: str | Rule = field(default="heavy_ball", kw_only=True)

    def __post_init__(self) -> None:
        low, high = checks.ends(self.m, self.L)
        name = find(self.rule).name
        if name not in CHEBYSHEV_RULES or find(name).functions != find(self.rule).functions:
            raise ValueError(f"rule: expected one of {', '.join(CHEBYSHEV_RULES)}; got {find(self.rule)}")
        for key, value in {"m": low, "L": high, "rule": name}.items():
            object.__setattr__(self, key, value)

    @property
    def lr(self) -> "ChebyshevLR":
        """Return the schedule of the learning rate."""
        return ChebyshevLR(self)

    @property
    def momentum(self) -> "ChebyshevMomentum":
        """Return the schedule of momentum."""
        return ChebyshevMomentum(self)

    def bound(self, t: int) -> float:
        """Return the bound on ‖e_t‖/‖e_0‖ after t steps, 1/T_t(σ); some start reaches it.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> round(fm.schedules.Chebyshev(1.0, 4.0).bound(2), 12)  # q = 1/3
        0.219512195122
        """
        power = self._power(checks.integer("t", t))
        return 2.0 * power / (1.0 + power * power)

    def excess(self, t: int) -> float:
        """Return ω_t − 1, by a form that loses no digits to cancellation as ω_t tends to 1.

        ω_t − 1 = (q² + q^(2t))/(1 + q^(2t + 2)) for t ≥ 1, with q = (√L − √m)/(√L + √m)

        Examples
        --------
        >>> import fastmomentum as fm
        >>> round(fm.schedules.Chebyshev(1.0, 4.0).excess(1), 12)
        0.219512195122
        """
        if t == 0:
            return 0.0
        return (self._power(2) + self._power(2 * t)) / (1.0 + self._power(2 * t + 2))

    def _power(self, exponent: int) -> float:
        """Return q^exponent for Polyak's rate q = (√L − √m)/(√L + √m); T_t(σ) = (q^t + q^−t)/2."""
        distance = 2.0 * sqrt(self.m) / (sqrt(self.L) + sqrt(self.m))  # 1 − q
        return exp(exponent * (log1p(-distance) if distance < 1.0 else -inf)) if exponent else 1.0

    def omega(self, t: str) -> str:
        """Return the definition of ω as text, for the formulas of both schedules; `t` stands for the step.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.schedules.Chebyshev(1.0, 4.0).omega("t")
        'ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (4 + 1)/(4 − 1), k = t'
        """
        m, L = format_number(self.m), format_number(self.L)
        return f"ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = ({L} + {m})/({L} − {m}), k = {t}"


@dataclass(frozen=True)
class ChebyshevLR(Schedule):
    """Give the learning rate of :class:`Chebyshev`, as its attribute `lr`.

    ω_t·2/(L + m)

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.Chebyshev(1.0, 9.0).lr)
    ω_k·2/(9 + 1), ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t
    """

    of: Chebyshev

    def _value(self, t: int) -> float:
        return (1.0 + self.of.excess(t)) / (self.of.L / 2.0 + self.of.m / 2.0)

    def _formula(self, t: str) -> str:
        return f"ω_k·2/({format_number(self.of.L)} + {format_number(self.of.m)}), {self.of.omega(t)}"


@dataclass(frozen=True)
class ChebyshevMomentum(Schedule):
    """Give the momentum of :class:`Chebyshev`, as its attribute `momentum`.

    ω_t − 1, and for the rule pytorch (ω_t − 1)·ω_{t−1}/ω_t

    The rules differ as the velocity of classical contains the lr of the previous step, while the velocity of pytorch is
    multiplied by the lr of this step.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.Chebyshev(1.0, 9.0).momentum)
    ω_k − 1, ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t
    """

    @property
    def keeps_velocity(self) -> bool:
        """Return True: the first momentum is 0, and the next step uses the velocity."""
        return True

    of: Chebyshev

    def _value(self, t: int) -> float:
        momentum = self.of.excess(t)
        if t and self.of.rule == "pytorch":
            return momentum * (1.0 + self.of.excess(t - 1)) / (1.0 + momentum)
        return momentum

    def _formula(self, t: str) -> str:
        momentum = "(ω_k − 1)·ω_(k − 1)/ω_k" if self.of.rule == "pytorch" else "ω_k − 1"
        return f"{momentum}, {self.of.omega(t)}"
