"""Variants of the rules that the literature has and users ask for, each with its source.

:mod:`fastmomentum.rules` has them beside its own nine, by the same names. `quasi_hyperbolic` is linear and has a
theory; `ema_corrected` divides by a state slot, `signum` and `lion` take signs. Aggregated momentum is in
:mod:`fastmomentum.aggregation`, averages of the parameters in :mod:`fastmomentum.averaging`.

Aggregated momentum: several velocities, each with a β of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.rules.base import Function, Rule, Update, Wrap, identity

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
    ranges={"momentum": checks.BELOW_ONE},
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
    ranges={"nu": checks.UNIT_INTERVAL},
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
    ranges={"beta2": checks.UNIT_INTERVAL},
    formula="p ← p − lr·sign(βv + (1−β)g); v ← β₂v + (1−β₂)g",
)
"""Chen et al. 2023, Algorithm 2, optax.lion, keras.optimizers.Lion; momentum is β₁, and their decay λ is the option
``decoupled_weight_decay=λ``. The sign is that of `signum`."""


def _first(p: Any, v: Any, g: Any, rate: Any, beta: Any) -> tuple[Any, ...]:
    v = beta * v + g
    return p - rate * v, v


def _with_one_more(update: Function, last: Function, slots: int) -> Function:
    """`update`, which has so many velocities, and `last` behind it with a velocity and a β of its own."""
    mine, grad, rate, behind = slots + 1, slots + 2, slots + 3, 2 * slots + 4

    def composed(*everything: Any) -> Any:
        moved = update(*everything[:mine], *everything[grad:behind])
        p, v = last(moved[0], everything[mine], everything[grad], everything[rate], everything[behind])
        return (p, *moved[1:], v)

    return composed


@dataclass(frozen=True)
class Share:
    """lr / K, as a value, which a function inside another is not: it would keep a rule from being pickled."""

    count: int

    def __call__(self, lr: float) -> float:
        """lr / K."""
        return lr / self.count


def in_unit_interval(name: str, value: object) -> float:
    """`value` as a float, if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {checks.UNIT_INTERVAL}; got {value!r}")
    if float(value) not in checks.UNIT_INTERVAL:
        raise ValueError(f"{name}: expected {checks.UNIT_INTERVAL}; got {value!r}")
    return float(value)


@dataclass(frozen=True, eq=False, kw_only=True)
class Aggregated(Update):
    """Momentum with several velocities; made by :func:`aggregated`."""

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (_first,)

    @property
    def update(self) -> Function:
        """The scalar function ``(p, *velocities, g, rate, *betas) -> (p, *velocities)``."""
        return self.build()

    def build(self, wrap: Wrap = identity) -> Function:
        """See :class:`Update`."""
        last = update = wrap(_first)
        for slots in range(1, len(self.state)):
            update = wrap(_with_one_more(update, last, slots))
        return update


def aggregated(betas: Iterable[float], name: str | None = None) -> Aggregated:
    """v_i ← β_i·v_i + g for each i; p ← p − (lr/K)·v₁ − … − (lr/K)·v_K: aggregated momentum.

    Parameters
    ----------
    betas : iterable of float
        β₁, …, β_K, each in [0, 1]. They are defaults: callers of the rule may give others as beta_1, …, beta_K.
    name : str, optional
        What the rule is called.

    Returns
    -------
    Update
        A rule with K velocities of the parameter's size, at rest at zero. It takes no momentum: the β stand for it.

    Raises
    ------
    TypeError, ValueError
        If there is no β, or one is no number or out of range.

    Notes
    -----
    Lucas, Sun, Zemel and Grosse 2019 (their velocities have the other sign), who advise β_i = 1 − 10^(1−i), K = 3: the
    rule "aggmo". With one β it is the rule "pytorch". It has an equivalent in none of torch, optax and Keras.

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
    held = {f"beta_{i}": in_unit_interval(f"betas[{i - 1}]", beta) for i, beta in enumerate(betas, 1)}
    if not held:
        raise ValueError("betas: expected numbers in [0, 1], one at least; got none")
    return Aggregated(
        name=name,
        state=tuple((f"velocity_{i}", "zero") for i in range(1, len(held) + 1)),
        hyper=("rate", *held),
        derived={"rate": Share(len(held))},
        defaults=held,
        ranges=dict.fromkeys(held, checks.UNIT_INTERVAL),
        formula="v_i ← β_i·v_i + g; p ← p − (lr/K)·Σv_i",
    )


aggmo = aggregated((0.0, 0.9, 0.99), name="aggmo")
"""Aggregated momentum with the three β that Lucas et al. 2019 advise; :func:`aggregated` makes others."""
