"""Define the schedule-free rules, whose gradients are taken between an average of the points and the last point."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.rules.adaptive import root_scale
from fastmomentum.rules.assemble import Part
from fastmomentum.rules.base import Rule
from fastmomentum.rules.variants import keep_second

# The parameter is the point y = (1 − β)z + βx at which gradients are taken; z is the slot "base". The average x follows
# from both, if β is not 0. With lr_t = lr·min(1, t/warmup) an update is
#
#     z ← z − lr_t·u          w = t^r·(largest lr_t so far)^power; W ← W + w; c = w/W
#     x ← (1 − c)x + c·z      y ← (1 − β)z + βx
#
# With x = z + (y − z)/β₀, where β₀ is the β of the update before, this is for y, with the z before
#
#     y ← ρ·y + (1 − ρ)·z + lr_t·(β(1 − c) − 1)·u          ρ = (1 − c)·β/β₀


def warm_rate(lr: float, warmup: float, step: float) -> float:
    """Return lr·min(1, t/warmup)."""
    return lr * min(1.0, step / warmup) if warmup else lr


def largest_rate(lr: float, warmup: float, step: float, largest: float) -> float:
    """Return the largest rate so far."""
    return max(largest, warm_rate(lr, warmup, step))


def _weight(lr: float, warmup: float, step: float, largest: float, r: float, power: float) -> float:
    weight: float = step**r * largest_rate(lr, warmup, step, largest) ** power
    return weight


def weight_sum(lr: float, warmup: float, step: float, largest: float, weights: float, r: float, power: float) -> float:
    """Return the sum of the weights so far."""
    return weights + _weight(lr, warmup, step, largest, r, power)


def new_share(lr: float, warmup: float, step: float, largest: float, weights: float, r: float, power: float) -> float:
    """Return c, the weight of the new point in the average; 0 while all rates are 0."""
    weight = _weight(lr, warmup, step, largest, r, power)
    return weight / (weights + weight) if weight else 0.0


def _change(momentum: float, last_momentum: float) -> float:
    """Return β/β₀; 1 before the first update, where all points are one."""
    return momentum / last_momentum if last_momentum else 1.0


def share(
    lr: float, momentum: float, warmup: float, step: float, largest: float, weights: float, last_momentum: float,
    r: float, power: float,
) -> float:  # fmt: skip
    """Return 1 − ρ, without the rounding of 1 − (1 − c) if momentum stays as it is."""
    c, change = new_share(lr, warmup, step, largest, weights, r, power), _change(momentum, last_momentum)
    return c * change + (1.0 - change)


def rest(
    lr: float, momentum: float, warmup: float, step: float, largest: float, weights: float, last_momentum: float,
    r: float, power: float,
) -> float:  # fmt: skip
    """Return ρ = (1 − c)·β/β₀."""
    return (1.0 - new_share(lr, warmup, step, largest, weights, r, power)) * _change(momentum, last_momentum)


def pull(
    lr: float, momentum: float, warmup: float, step: float, largest: float, weights: float, r: float, power: float
) -> float:
    """Return lr_t·(β(1 − c) − 1), the factor of the direction in y."""
    c = new_share(lr, warmup, step, largest, weights, r, power)
    return warm_rate(lr, warmup, step) * (momentum * (1.0 - c) - 1.0)


def new_momentum(momentum: float) -> float:
    """Return β."""
    return momentum


def _with_decay(g: Any, p: Any, weight_decay: Any) -> Any:
    return g + weight_decay * p


def _average_square(s: Any, g: Any, beta2: Any, keep2: Any) -> Any:
    return beta2 * s + keep2 * (g * g)


def _scaled(g: Any, s: Any, p: Any, scale: Any, eps: Any, weight_decay: Any) -> Any:
    return g / (np.sqrt(s) * scale + eps) + weight_decay * p


def _move(p: Any, z: Any, u: Any, rate: Any, share: Any, rest: Any, pull: Any) -> tuple[Any, ...]:
    return rest * p + share * z + pull * u, z - rate * u


def average_of(p: Any, base: Any, last_momentum: float) -> Any:
    """Return the average x = y + (1 − 1/β₀)(z − y) of the points; before the first update y, which x then is."""
    return p + (1.0 - 1.0 / last_momentum) * (base - p) if last_momentum else p.copy()


MOVE = Part(_move, ("p", "base", "u"), ("p", "base"), ("rate", "share", "rest", "pull"))
MEMORY = {"largest": 0.0, "weights": 0.0, "last_momentum": 0.0}
DERIVED: dict[str, Callable[..., float]] = {
    "rate": warm_rate,
    "share": share,
    "rest": rest,
    "pull": pull,
    "largest": largest_rate,
    "weights": weight_sum,
    "last_momentum": new_momentum,
}
RANGES = {"momentum": checks.INSIDE_UNIT, **dict.fromkeys(("warmup", "r", "power"), checks.AT_LEAST_ZERO)}
DEFAULTS = {"momentum": 0.9, "weight_decay": 0.0, "warmup": 0.0, "r": 0.0, "power": 2.0}

schedule_free_sgd = Rule(
    name="schedule_free_sgd",
    parts=[Part(_with_decay, ("g", "p"), ("u",), ("weight_decay",)), MOVE],
    state=(("base", "param"),),
    hyper=("rate", "weight_decay", "share", "rest", "pull"),
    derived=DERIVED,
    defaults=DEFAULTS,
    evaluation=average_of,
    formula="z ← z − lr_t·(g + λp); x ← (1−c)x + c·z; p ← (1−β)z + βx, the point of the gradient; evaluate() gives x",
    ranges=RANGES,
    memory=MEMORY,
)
"""Defazio et al. 2024, Equations 3 to 5, with the weights of their code: c = w/Σw, w = t^r·max(lr_t)^power; equivalent
to schedulefree.SGDScheduleFree. β is momentum, λ weight_decay, and lr_t = lr·min(1, t/warmup). A
momentum that changes moves p alone; it must not be 0, as p would then not hold x."""

schedule_free_adamw = Rule(
    name="schedule_free_adamw",
    parts=[
        Part(_average_square, ("square", "g"), ("square",), ("beta2", "keep2")),
        Part(_scaled, ("g", "square", "p"), ("u",), ("scale", "eps", "weight_decay")),
        MOVE,
    ],
    state=(("base", "param"), ("square", "zero")),
    hyper=("rate", "beta2", "keep2", "scale", "eps", "weight_decay", "share", "rest", "pull"),
    derived={**DERIVED, "keep2": keep_second, "scale": root_scale},
    defaults={**DEFAULTS, "beta2": 0.999, "eps": 1e-8},
    evaluation=average_of,
    formula="s ← β₂s + (1−β₂)g²; as schedule_free_sgd, with g/(√(s/(1−β₂^t)) + ε) in place of g",
    ranges={**RANGES, "beta2": checks.BELOW_ONE, "eps": checks.AT_LEAST_ZERO},
    memory=MEMORY,
)
"""Defazio et al. 2024, Algorithm 1, with the weights of their code; equivalent to schedulefree.AdamWScheduleFree. The
paper multiplies lr_t by √(1 − β₂^t) in place of correcting s."""
