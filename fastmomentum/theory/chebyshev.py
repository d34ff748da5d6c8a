"""Chebyshev semi-iteration: the momentum method that is optimal at every finite number of steps."""

from math import exp, inf, log1p, sqrt

from fastmomentum.records import Update
from fastmomentum.rules import find
from fastmomentum.theory.curvatures import check_ends
from fastmomentum.theory.powers import check_steps

FORMS = ("heavy_ball", "classical", "pytorch")


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
    Golub and Varga 1961. The schedules are functions of the step alone, so that a run can be saved and resumed.

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

    def __init__(self, m: float, L: float, *, rule: str | Update = "heavy_ball") -> None:
        low, high = check_ends(m, L)
        name = find(rule).name
        if name not in FORMS:
            raise ValueError(f"rule: expected one of {', '.join(FORMS)}; got {find(rule)}")
        self.m, self.L, self.rule = low, high, name
        # q = (√L − √m)/(√L + √m): what T_t(σ) = (q^t + q^−t)/2 is made of, and Polyak's rate.
        part = 2.0 * sqrt(low) / (sqrt(high) + sqrt(low))
        self._log = log1p(-part) if part < 1.0 else -inf

    def __repr__(self) -> str:
        return f"Chebyshev({self.m!r}, {self.L!r}, rule={self.rule!r})"

    def lr(self, step: int) -> float:
        """The learning rate of the update with this number, from 0."""
        return (1.0 + self._own(step)) / (self.L / 2.0 + self.m / 2.0)

    def momentum(self, step: int) -> float:
        """The momentum of the update with this number, from 0."""
        own = self._own(step)
        # The velocity of classical has the last step's lr in it; that of pytorch is multiplied by this step's.
        return own * self.lr(step - 1) / self.lr(step) if step and self.rule == "pytorch" else own

    def bound(self, t: int) -> float:
        """1/T_t(σ): what ‖e_t‖/‖e_0‖ is at most after t steps, and for some start is."""
        power = self._power(_whole("t", t))
        return 2.0 * power / (1.0 + power * power)

    def _own(self, step: int) -> float:
        """ω − 1 = (q² + q^(2t))/(1 + q^(2t + 2)): nothing cancels however near to 1 it is."""
        t = _whole("step", step)
        if t == 0:
            return 0.0
        return (self._power(2) + self._power(2 * t)) / (1.0 + self._power(2 * t + 2))

    def _power(self, exponent: int) -> float:
        return exp(exponent * self._log) if exponent else 1.0


def _whole(name: str, value: int) -> int:
    steps = check_steps(value, name)
    if steps.ndim:
        raise ValueError(f"{name}: expected one number of steps; got shape {steps.shape}")
    return int(steps)
