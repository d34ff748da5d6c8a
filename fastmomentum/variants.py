"""Variants of the rules that the literature has and users ask for, each with its source.

:mod:`fastmomentum.rules` has them beside its own nine, by the same names. `quasi_hyperbolic` is linear and has a
theory; `ema_corrected` divides by a state slot, `signum` and `lion` take signs. Aggregated momentum is in
:mod:`fastmomentum.aggregation`, averages of the parameters in :mod:`fastmomentum.averaging`.
"""

from typing import Any

import numpy as np

from fastmomentum import ranges
from fastmomentum.records import Rule

Out = tuple[Any, ...]


def one() -> float:
    """1."""
    return 1.0


def keep_averaged(momentum: float) -> float:
    """1 − β."""
    return 1.0 - momentum


def keep_second(beta2: float) -> float:
    """1 − β₂."""
    return 1.0 - beta2


def direct_share(nu: float) -> float:
    """1 − ν."""
    return 1.0 - nu


def huge() -> float:
    """2¹²⁷, the largest power of two in float32."""
    return 2.0**127


def _ema_corrected(p: Any, v: Any, c: Any, g: Any, lr: Any, beta: Any, keep: Any) -> Out:
    v = beta * v + keep * g
    c = beta * c + keep
    return p - lr * (v / c), v, c


def _quasi_hyperbolic(p: Any, v: Any, g: Any, lr: Any, beta: Any, keep: Any, nu: Any, direct: Any) -> Out:
    v = beta * v + keep * g
    return p - lr * (direct * g + nu * v), v


# The sign of x is x scaled up, clipped to ±1: 0 stays 0 and NaN stays NaN, where a division by |x| would need a branch.
# Twice by 2¹²⁷, as a hyper-parameter must fit float32, where one factor leaves subnormal numbers below 1 and two none.


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
    state=(("velocity", "zero"), ("weight", "zero")),
    hyper=("lr", "momentum", "keep"),
    derived={"keep": keep_averaged},
    ranges={"momentum": ranges.BELOW_ONE},
    formula="v ← βv + (1−β)g; c ← βc + (1−β); p ← p − lr·(v/c)",
)
"""The exponential average without its bias to zero (Kingma and Ba 2015, Section 3); optax.ema(debias=True).

c = 1 − β^t at a constant β; where β changes it is the weight of all gradients so far, which the power is not. Being a
slot of its own it costs the memory of a second velocity (28 bytes of traffic an element in float32, where ema has 20),
and no element needs to know its step: one that starts later is corrected from its own start."""

quasi_hyperbolic = Rule(
    _quasi_hyperbolic,
    name="quasi_hyperbolic",
    hyper=("lr", "momentum", "keep", "nu", "direct"),
    derived={"keep": keep_averaged, "direct": direct_share},
    defaults={"nu": 0.7},
    ranges={"nu": ranges.UNIT_INTERVAL},
    formula="v ← βv + (1−β)g; p ← p − lr·((1−ν)g + νv)",
)
"""Ma and Yarats 2019, equations 3 and 4, who advise ν = 0.7 and β = 0.999. ν = 1 is ema, ν = β ema_nesterov, ν = 0 sgd
(an infinite gradient apart, of which 0 times is NaN)."""

signum = Rule(
    _signum,
    name="signum",
    hyper=("lr", "momentum", "keep", "huge", "one"),
    derived={"keep": keep_averaged, "huge": huge, "one": one},
    formula="v ← βv + (1−β)g; p ← p − lr·sign(v)",
)
"""Bernstein et al. 2018, Algorithm 2; in optax a chain of ema(debias=False) and scale_by_sign().

The sign of 0 is 0, of NaN NaN, of anything else ±1; but in float64 below 2⁻²⁵⁴ (3e-77), where it is v·2²⁵⁴."""

lion = Rule(
    _lion,
    name="lion",
    hyper=("lr", "momentum", "keep", "beta2", "keep2", "huge", "one"),
    derived={"keep": keep_averaged, "keep2": keep_second, "huge": huge, "one": one},
    defaults={"beta2": 0.99},
    ranges={"beta2": ranges.UNIT_INTERVAL},
    formula="p ← p − lr·sign(βv + (1−β)g); v ← β₂v + (1−β₂)g",
)
"""Chen et al. 2023, Algorithm 2, optax.lion, keras.optimizers.Lion; momentum is β₁, and their decay λ is the option
``decoupled_weight_decay=λ``. The sign is that of `signum`."""
