"""Chebyshev semi-iteration: the momentum method that is optimal at every finite number of steps."""

from dataclasses import dataclass, field
from math import exp, inf, log1p, sqrt

from fastmomentum import checks
from fastmomentum.records import Update
from fastmomentum.rules import find
from fastmomentum.schedules.base import Schedule, shown

FORMS = ("heavy_ball", "classical", "pytorch")


@dataclass(frozen=True)
class Chebyshev:
    """Learning rate and momentum, step by step, of the Chebyshev semi-iteration on spectra in [m, L].

    p_{t+1} = p_t − α_t g + μ_t(p_t − p_{t−1}) with α_t = ω_t·2/(L + m), μ_t = ω_t − 1, where ω_0 = 1 and
    ω_t = 2σT_t(σ)/T_{t+1}(σ), σ = (L + m)/(L − m), T_t Chebyshev's polynomials. After t steps the error of every
    eigenvector is at most ‖e_0‖/T_t(σ), and no method that takes one gradient a step has a better bound. α_t and μ_t
    tend to Polyak's tuning.

    Parameters
    ----------
    m, L : float
        The ends of the spectrum, 0 < m ≤ L.
    rule : {"heavy_ball", "classical", "pytorch"}
        The rule whose learning rate and momentum these are.

    Raises
    ------
    TypeError, ValueError
        If an end is no curvature, m > L, or the rule is another.

    Notes
    -----
    Golub and Varga 1961. :attr:`lr` and :attr:`momentum` are schedules: functions of the step alone.

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
    rule: str | Update = field(default="heavy_ball", kw_only=True)

    def __post_init__(self) -> None:
        low, high = checks.ends(self.m, self.L)
        name = find(self.rule).name
        if name not in FORMS or find(name) is not find(self.rule):
            raise ValueError(f"rule: expected one of {', '.join(FORMS)}; got {find(self.rule)}")
        for key, value in {"m": low, "L": high, "rule": name}.items():
            object.__setattr__(self, key, value)

    @property
    def lr(self) -> "ChebyshevLR":
        """The learning rate of each update."""
        return ChebyshevLR(self)

    @property
    def momentum(self) -> "ChebyshevMomentum":
        """The momentum of each update."""
        return ChebyshevMomentum(self)

    def bound(self, t: int) -> float:
        """1/T_t(σ): what ‖e_t‖/‖e_0‖ is at most after t steps, and for some start is.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> round(fm.schedules.Chebyshev(1.0, 4.0).bound(2), 12)  # q = 1/3
        0.219512195122
        """
        power = self._power(checks.whole("t", t))
        return 2.0 * power / (1.0 + power * power)

    def excess(self, t: int) -> float:
        """ω_t − 1 = (q² + q^(2t))/(1 + q^(2t + 2)): nothing cancels however near to 1 ω_t is.

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
        """q^exponent, q = (√L − √m)/(√L + √m): T_t(σ) = (q^t + q^−t)/2, and q is Polyak's rate."""
        part = 2.0 * sqrt(self.m) / (sqrt(self.L) + sqrt(self.m))
        return exp(exponent * (log1p(-part) if part < 1.0 else -inf)) if exponent else 1.0

    def omega(self, t: str) -> str:
        """What ω is, for formulas.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.schedules.Chebyshev(1.0, 4.0).omega("t")
        'ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (4 + 1)/(4 − 1), k = t'
        """
        m, L = shown(self.m), shown(self.L)
        return f"ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = ({L} + {m})/({L} − {m}), k = {t}"


@dataclass(frozen=True)
class ChebyshevLR(Schedule):
    """ω_t·2/(L + m): the learning rate of :class:`Chebyshev`, as its attribute `lr` gives it.

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
        return f"ω_k·2/({shown(self.of.L)} + {shown(self.of.m)}), {self.of.omega(t)}"


@dataclass(frozen=True)
class ChebyshevMomentum(Schedule):
    """ω_t − 1: the momentum of :class:`Chebyshev`, as its attribute `momentum` gives it.

    For the rule pytorch (ω_t − 1)·ω_{t−1}/ω_t: the velocity of classical has the last step's lr in it, that of pytorch
    is multiplied by this step's.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.Chebyshev(1.0, 9.0).momentum)
    ω_k − 1, ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t
    """

    of: Chebyshev

    def _value(self, t: int) -> float:
        own = self.of.excess(t)
        if t and self.of.rule == "pytorch":
            return own * (1.0 + self.of.excess(t - 1)) / (1.0 + own)
        return own

    def _formula(self, t: str) -> str:
        own = "(ω_k − 1)·ω_(k − 1)/ω_k" if self.of.rule == "pytorch" else "ω_k − 1"
        return f"{own}, {self.of.omega(t)}"
