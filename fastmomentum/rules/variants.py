"""Define variants of the momentum rules from the literature.

`quasi_hyperbolic` and aggregated momentum are linear, so the theory covers them; `ema_corrected` changes with the step,
`signum` and `lion` take signs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.rules.assemble import Part
from fastmomentum.rules.base import Rule

Out = tuple[Any, ...]


def one() -> float:
    """Return 1."""
    return 1.0


def keep_averaged(momentum: float) -> float:
    """Return 1 − β."""
    return 1.0 - momentum


def weight_of_average(momentum: float, step: float) -> float:
    """Return 1 − β^t, the sum of the weights of t gradients in an exponential average."""
    weight: float = 1.0 - momentum**step
    return weight


def keep_second(beta2: float) -> float:
    """Return 1 − β₂."""
    return 1.0 - beta2


def direct_share(nu: float) -> float:
    """Return 1 − ν."""
    return 1.0 - nu


def huge() -> float:
    """Return 2¹²⁷, the greatest power of two in float32."""
    return 2.0**127


def _ema_corrected(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, weight: Any) -> Out:
    v = beta * v + keep * g
    return p - lr * (v / weight), v


def _quasi_hyperbolic(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, nu: Any, direct: Any) -> Out:
    v = beta * v + keep * g
    return p - lr * (direct * g + nu * v), v


# The sign of x is computed as x scaled up and clipped to ±1: 0 stays 0 and NaN stays NaN, while a division by |x| would
# need a branch. The scale is 2¹²⁷ applied twice, as a hyper-parameter must fit float32: after one factor subnormal
# numbers of float32 are still below 1.


def _signum(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, huge: Any, one: Any) -> Out:
    v = beta * v + keep * g
    return p - lr * np.minimum(np.maximum(v * huge * huge, -one), one), v


def _lion(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, beta2: Any, keep2: Any, huge: Any, one: Any) -> Out:
    ahead = beta * v + keep * g
    v = beta2 * v + keep2 * g
    return p - lr * np.minimum(np.maximum(ahead * huge * huge, -one), one), v


ema_corrected = Rule(
    _ema_corrected,
    name="ema_corrected",
    hyper=("lr", "momentum", "keep", "weight"),
    derived={"keep": keep_averaged, "weight": weight_of_average},
    ranges={"momentum": checks.BELOW_ONE},
    formula="v ← βv + (1−β)g; p ← p − lr·v/(1−β^t)",
)
"""The exponential average without its bias to zero (Kingma and Ba 2015, Section 3); optax.ema(debias=True).

t is the number of the update that the array gets, from 1: an optimiser counts it for each array, so an array that
starts later is corrected from its own start; step() takes it as ``step=t``. As in optax and in Adam, β is that of this
step: if β changes, 1 − β^t is not quite the sum of the gradients' weights."""

quasi_hyperbolic = Rule(
    _quasi_hyperbolic,
    name="quasi_hyperbolic",
    hyper=("lr", "momentum", "keep", "nu", "direct"),
    derived={"keep": keep_averaged, "direct": direct_share},
    defaults={"nu": 0.7},
    ranges={"nu": checks.UNIT_INTERVAL},
    formula="v ← βv + (1−β)g; p ← p − lr·((1−ν)g + νv)",
)
"""Ma and Yarats 2019, equations 3 and 4, who advise ν = 0.7 and β = 0.999. ν = 1 gives ema, ν = β gives
ema_nesterov, and ν = 0 gives sgd (except for an infinite gradient, as 0 times infinity is NaN)."""

signum = Rule(
    _signum,
    name="signum",
    hyper=("lr", "momentum", "keep", "huge", "one"),
    derived={"keep": keep_averaged, "huge": huge, "one": one},
    formula="v ← βv + (1−β)g; p ← p − lr·sign(v)",
)
"""Bernstein et al. 2018, Algorithm 2; in optax a chain of ema(debias=False) and scale_by_sign().

The sign of 0 is 0, of NaN NaN, and of other numbers ±1; of float64 numbers below 2⁻²⁵⁴ (3e-77) it is v·2²⁵⁴."""

lion = Rule(
    _lion,
    name="lion",
    hyper=("lr", "momentum", "keep", "beta2", "keep2", "huge", "one"),
    derived={"keep": keep_averaged, "keep2": keep_second, "huge": huge, "one": one},
    defaults={"beta2": 0.99},
    ranges={"beta2": checks.UNIT_INTERVAL},
    formula="p ← p − lr·sign(βv + (1−β)g); v ← β₂v + (1−β₂)g",
)
"""Chen et al. 2023, Algorithm 2; equivalent to optax.lion and keras.optimizers.Lion. Momentum is their β₁, their decay
λ is the option ``decoupled_weight_decay=λ``, and the sign is computed as in `signum`."""


# Do not rename: saved states of unnamed aggregated rules contain this function's name.
def _first(p: Any, v: Any, g: Any, rate: Any, beta: Any) -> tuple[Any, ...]:
    v = beta * v + g
    return p - rate * v, v


@dataclass(frozen=True)
class Share:
    """Compute lr/K. This is a class, as a closure would keep rules from being pickled."""

    count: int

    def __call__(self, lr: float) -> float:
        """Return lr/K."""
        return lr / self.count


def aggregated(betas: Iterable[float], name: str | None = None) -> Rule:
    """Return the rule of aggregated momentum, which keeps several velocities, each with a β of its own.

    v_i ← β_i·v_i + g for each i; p ← p − (lr/K)·v₁ − … − (lr/K)·v_K

    Parameters
    ----------
    betas : iterable of float
        β₁, …, β_K, each in [0, 1]. They are defaults: callers of the rule may give others as beta_1, …, beta_K.
    name : str, optional
        The name of the rule.

    Returns
    -------
    Rule
        A rule with K velocities of the parameter's size, which start from zero. It takes β_1, …, β_K but no momentum.

    Raises
    ------
    TypeError, ValueError
        If there is no β, or if one is not a number or is out of range.

    Notes
    -----
    Lucas, Sun, Zemel and Grosse 2019 (their velocities have the other sign), who advise β_i = 1 − 10^(1−i), K = 3: the
    rule "aggmo". With one β it is the rule "pytorch". torch, optax and Keras have no equivalent.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> rule = fm.rules.aggregated([0.0, 0.5])
    >>> p, state = np.array([1.0]), (np.zeros(1), np.zeros(1))
    >>> for g in (1.0, 1.0):
    ...     fm.step(p, state, np.array([g]), rule=rule, lr=0.25)
    >>> p, state
    (array([0.4375]), (array([1.]), array([1.5])))
    """
    if not isinstance(betas, Iterable):
        raise TypeError(f"betas: expected numbers in [0, 1], one at least; got {betas!r}")
    held = {
        f"beta_{i}": checks.number(f"betas[{i - 1}]", beta, checks.UNIT_INTERVAL) for i, beta in enumerate(betas, 1)
    }
    if not held:
        raise ValueError("betas: expected numbers in [0, 1], one at least; got none")
    slots = [f"velocity_{i}" for i in range(1, len(held) + 1)]
    return Rule(
        name=name,
        state=tuple((slot, "zero") for slot in slots),
        hyper=("rate", *held),
        derived={"rate": Share(len(held))},
        defaults=held,
        ranges=dict.fromkeys(held, checks.UNIT_INTERVAL),
        parts=[Part(_first, ("p", v, "g"), ("p", v), ("rate", beta)) for v, beta in zip(slots, held)],
        formula="v_i ← β_i·v_i + g; p ← p − (lr/K)·Σv_i",
    )


aggmo = aggregated((0.0, 0.9, 0.99), name="aggmo")
"""Aggregated momentum with the three β that Lucas et al. 2019 advise; :func:`aggregated` makes others."""
