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
# from both. With lr_t = lr·min(1, t/warmup) an update is
#
#     z ← z − lr_t·u          w = t^r·(largest lr_t so far)^power; W ← W + w; c = w/W
#     x ← (1 − c)x + c·z      y ← (1 − β)z + βx
#
# and for y, with the z before: y ← (1 − c)y + c·z + lr_t·(β(1 − c) − 1)·u.


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


def share(lr: float, warmup: float, step: float, largest: float, weights: float, r: float, power: float) -> float:
    """Return c, the weight of the new point in the average; 0 while all rates are 0."""
    weight = _weight(lr, warmup, step, largest, r, power)
    return weight / (weights + weight) if weight else 0.0


def rest(lr: float, warmup: float, step: float, largest: float, weights: float, r: float, power: float) -> float:
    """Return 1 − c."""
    return 1.0 - share(lr, warmup, step, largest, weights, r, power)


def pull(
    lr: float,
    momentum: float,
    warmup: float,
    step: float,
    largest: float,
    weights: float,
    r: float,
    power: float,
) -> float:
    """Return lr_t·(β(1 − c) − 1), the factor of the direction in y."""
    return warm_rate(lr, warmup, step) * (momentum * rest(lr, warmup, step, largest, weights, r, power) - 1.0)


def _with_decay(g: Any, p: Any, weight_decay: Any) -> Any:
    return g + weight_decay * p


def _average_square(s: Any, g: Any, beta2: Any, keep2: Any) -> Any:
    return beta2 * s + keep2 * (g * g)


def _scaled(g: Any, s: Any, p: Any, scale: Any, eps: Any, weight_decay: Any) -> Any:
    return g / (np.sqrt(s) * scale + eps) + weight_decay * p


def _move(p: Any, z: Any, u: Any, rate: Any, share: Any, rest: Any, pull: Any) -> tuple[Any, ...]:
    return rest * p + share * z + pull * u, z - rate * u


def average_of(p: Any, base: Any, momentum: float) -> Any:
    """Return the average x = y + (1 − 1/β)(z − y) of the points; y itself at β = 0, which does not hold x."""
    return p + (1.0 - 1.0 / momentum) * (base - p) if momentum else p.copy()


MOVE = Part(_move, ("p", "base", "u"), ("p", "base"), ("rate", "share", "rest", "pull"))
MEMORY = {"largest": 0.0, "weights": 0.0}
DERIVED: dict[str, Callable[..., float]] = {
    "rate": warm_rate,
    "share": share,
    "rest": rest,
    "pull": pull,
    "largest": largest_rate,
    "weights": weight_sum,
}
RANGES = {"momentum": checks.BELOW_ONE, **dict.fromkeys(("warmup", "r", "power"), checks.AT_LEAST_ZERO)}
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
to schedulefree.SGDScheduleFree. β is momentum, λ weight_decay, and lr_t = lr·min(1, t/warmup)."""

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
