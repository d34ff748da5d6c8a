"""Define rules whose step depends on sums over whole arrays, or on numbers that are kept from step to step."""

from functools import partial
from math import sqrt
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.rules.adaptive import (
    AVERAGED,
    DEFAULTS,
    DESCEND,
    MEAN,
    MOMENTS,
    RANGES,
    SQUARE,
    root_scale,
    weight_scale,
)
from fastmomentum.rules.assemble import Function, Part
from fastmomentum.rules.base import Rule
from fastmomentum.rules.variants import keep_averaged, keep_second

Out = tuple[Any, ...]


def nadam_momentum(momentum: float, momentum_decay: float, step: float) -> float:
    """Return μ_t = β₁·(1 − 0.96^(t·ψ)/2)."""
    value: float = momentum * (1.0 - 0.5 * 0.96 ** (step * momentum_decay))
    return value


def nadam_product(product: float, momentum: float, momentum_decay: float, step: float) -> float:
    """Return μ_1·μ_2·…·μ_t, from the product up to t − 1."""
    return product * nadam_momentum(momentum, momentum_decay, step)


def gradient_rate(lr: float, product: float, momentum: float, momentum_decay: float, step: float) -> float:
    """Return lr·(1 − μ_t)/(1 − μ_1·…·μ_t)."""
    mu = nadam_momentum(momentum, momentum_decay, step)
    return lr * (1.0 - mu) / (1.0 - product * mu)


def ahead_rate(lr: float, product: float, momentum: float, momentum_decay: float, step: float) -> float:
    """Return lr·μ_(t+1)/(1 − μ_1·…·μ_(t+1))."""
    mu_next = nadam_momentum(momentum, momentum_decay, step + 1.0)
    return lr * mu_next / (1.0 - nadam_product(product, momentum, momentum_decay, step) * mu_next)


def _descend_ahead(p: Any, m: Any, s: Any, g: Any, of_g: Any, of_m: Any, scale: Any, eps: Any) -> Any:
    return p - (of_g * g + of_m * m) / (np.sqrt(s) * scale + eps)


nadam = Rule(
    name="nadam",
    parts=[
        MEAN,
        SQUARE,
        Part(_descend_ahead, ("p", "velocity", "square", "g"), ("p",), ("gradient_rate", "ahead_rate", "scale", "eps")),
    ],
    state=MOMENTS,
    hyper=("gradient_rate", *AVERAGED[1:], "ahead_rate", "scale", "eps"),
    derived={
        "gradient_rate": gradient_rate,
        "keep": keep_averaged,
        "keep2": keep_second,
        "ahead_rate": ahead_rate,
        "scale": root_scale,
        "product": nadam_product,
    },
    memory={"product": 1.0},
    defaults={**DEFAULTS, "momentum_decay": 4e-3},
    ranges={**RANGES, "momentum_decay": checks.AT_LEAST_ZERO},
    formula="as adam, with (1−μ_t)g/(1−Πμ_1…μ_t) + μ_(t+1)m/(1−Πμ_1…μ_(t+1)) in place of m/(1−β₁^t)",
)
"""Dozat 2016, Algorithm 8, with m averaged by β₁ and μ_t = β₁·(1 − 0.96^(t·ψ)/2) in the step alone; equivalent to
torch.optim.NAdam, whose momentum_decay is ψ. optax.nadam has no such schedule."""


def trust_rate(lr: float, trust: float, weight_decay: float, eps: float, param: float, gradient: float) -> float:
    """Return lr·η‖p‖/(‖g‖ + λ‖p‖ + ε), from the squares of the norms; lr if one of the norms is 0."""
    size = sqrt(param)
    below = sqrt(gradient) + weight_decay * size + eps
    return lr * trust * size / below if param and gradient else lr


def _square_of_param(p: Any, v: Any, g: Any) -> Any:
    return p * p


def _square_of_gradient(p: Any, v: Any, g: Any) -> Any:
    return g * g


def _lars(p: Any, v: Any, g: Any, rate: Any, mu: Any, decay: Any) -> Out:
    v = mu * v + rate * (g + decay * p)
    return p - v, v


lars = Rule(
    _lars,
    name="lars",
    hyper=("rate", "momentum", "weight_decay"),
    derived={"rate": trust_rate},
    sums={"param": _square_of_param, "gradient": _square_of_gradient},
    defaults={"weight_decay": 0.0, "trust": 1e-3, "eps": 0.0},
    ranges={"trust": checks.AT_LEAST_ZERO, "eps": checks.AT_LEAST_ZERO},
    formula="r = η‖p‖/(‖g‖ + λ‖p‖); v ← μv + lr·r·(g + λp); p ← p − v; norms of each array, r = 1 if one is 0",
)
"""You, Gitman and Ginsburg 2017, Algorithm 1; η is `trust`, λ weight_decay, and ε stands beside the norms below. lr is
inside the velocity; libraries with lr outside agree while lr is constant. optax takes ‖g + λp‖ for ‖g‖ + λ‖p‖."""


def _lamb_direction(p: Any, m: Any, s: Any, weight: Any, scale: Any, eps: Any, weight_decay: Any) -> Any:
    return (weight * m) / (np.sqrt(s) * scale + eps) + weight_decay * p


def _square_of_weights(p: Any, m: Any, s: Any, g: Any) -> Any:
    return p * p


def _square_of_direction(
    p: Any,
    m: Any,
    s: Any,
    g: Any,
    momentum: Any,
    keep: Any,
    beta2: Any,
    keep2: Any,
    weight: Any,
    scale: Any,
    eps: Any,
    weight_decay: Any,
) -> Any:
    m, s = momentum * m + keep * g, beta2 * s + keep2 * (g * g)
    u = _lamb_direction(p, m, s, weight, scale, eps, weight_decay)
    return u * u


def lamb_rate(lr: float, param: float, direction: float) -> float:
    """Return lr·‖p‖/‖u‖, from the squares of the norms; lr if one of them is 0."""
    return lr * sqrt(param) / sqrt(direction) if param and direction else lr


lamb = Rule(
    name="lamb",
    parts=[
        MEAN,
        SQUARE,
        Part(_lamb_direction, ("p", "velocity", "square"), ("u",), ("weight", "scale", "eps", "weight_decay")),
        DESCEND._replace(reads=("p", "u"), hyper=("rate",)),
    ],
    state=MOMENTS,
    hyper=("rate", "momentum", "keep", "beta2", "keep2", "weight", "scale", "eps", "weight_decay"),
    derived={
        "rate": lamb_rate,
        "keep": keep_averaged,
        "keep2": keep_second,
        "weight": weight_scale,
        "scale": root_scale,
    },
    sums={"param": _square_of_weights, "direction": _square_of_direction},
    defaults={**DEFAULTS, "eps": 1e-6, "weight_decay": 0.0},
    ranges=RANGES,
    formula="u = adam's direction + λp; p ← p − lr·‖p‖/‖u‖·u; norms of each array, ratio 1 if one is 0",
)
"""You et al. 2020, Algorithm 2, with φ(z) = z; equivalent to optax.lamb. timm's Lamb divides gradients by their norm
over all arrays first, pytorch_optimizer and torch_optimizer leave the corrections out."""


def _clipup_numbers(
    lr: float, momentum: float, speed_ratio: float, velocity: float, along: float, gradient: float
) -> tuple[float, float]:
    """Return the factors of v and of g in the next velocity."""
    size = sqrt(gradient)
    push, turn, moved = (lr / size, along / size, lr) if gradient else (0.0, 0.0, 0.0)
    speed = sqrt(max(momentum * momentum * velocity + 2.0 * momentum * moved * turn + moved * moved, 0.0))
    limit = speed_ratio * lr
    factor = limit / speed if speed > limit else 1.0
    return factor * momentum, factor * push


def clipup_keep(
    lr: float, momentum: float, speed_ratio: float, velocity: float, along: float, gradient: float
) -> float:
    """Return the factor of v in the next velocity."""
    return _clipup_numbers(lr, momentum, speed_ratio, velocity, along, gradient)[0]


def clipup_push(
    lr: float, momentum: float, speed_ratio: float, velocity: float, along: float, gradient: float
) -> float:
    """Return the factor of g in the next velocity."""
    return _clipup_numbers(lr, momentum, speed_ratio, velocity, along, gradient)[1]


def _clipup(p: Any, v: Any, g: Any, keep: Any, push: Any) -> Out:
    v = keep * v + push * g
    return p - v, v


def _square_of_velocity(p: Any, v: Any, g: Any) -> Any:
    return v * v


def _velocity_along_gradient(p: Any, v: Any, g: Any) -> Any:
    return v * g


OF_VELOCITY: dict[str, Function] = {
    "velocity": _square_of_velocity,
    "along": _velocity_along_gradient,
    "gradient": _square_of_gradient,
}
"""The sums ‖v‖², v·g and ‖g‖²."""

clipup = Rule(
    _clipup,
    name="clipup",
    hyper=("keep", "push"),
    derived={"keep": clipup_keep, "push": clipup_push},
    sums=OF_VELOCITY,
    scope="all",
    defaults={"momentum": 0.9, "speed_ratio": 2.0},
    ranges={"speed_ratio": checks.AT_LEAST_ZERO},
    formula="v ← μv + lr·g/‖g‖; v ← v·min(1, c/‖v‖); p ← p − v; norms over all arrays, c = speed_ratio·lr",
)
"""Toklu, Liskowski and Srivastava 2020, Algorithm 1, for descent; c is their maximum speed, which should be 2·lr. The
norm of the next velocity follows from ‖v‖², v·g and ‖g‖². A gradient of zeros pushes nothing; evotorch and pgpelib
give NaN."""


def fire_number(
    name: str, lr: float, dt: float, alpha: float, count: float, velocity: float, along: float, gradient: float,
    max_step: float, max_dt: float, patience: float, dt_growth: float, dt_shrink: float, alpha_start: float,
    alpha_shrink: float,
) -> float:  # fmt: skip
    """Return one of the numbers of a FIRE step, by its name; dt is 0 before the first step.

    "dt", "alpha" and "count" are the time step, the mixing parameter and the number of steps downhill in a row; "keep"
    and "push" are the factors of v and of −g in the next velocity, "rate" is that of this velocity in the step of p.
    """
    keep = mix = 0.0
    if not dt:
        dt, alpha = lr, alpha_start
    elif along < 0.0:
        keep, mix = 1.0 - alpha, alpha * sqrt(velocity) / sqrt(gradient) if gradient else 0.0
        if count > patience:
            dt, alpha = min(dt * dt_growth, max_dt), alpha * alpha_shrink
        count += 1.0
    else:
        dt, alpha, count = dt * dt_shrink, alpha_start, 0.0
    push = mix + dt
    pushed = push * sqrt(gradient)
    speed = sqrt(max(keep * keep * velocity - 2.0 * keep * push * along + pushed * pushed, 0.0))
    scale = max_step / (dt * speed) if dt * speed > max_step else 1.0
    return {"dt": dt, "alpha": alpha, "count": count, "keep": keep, "push": push, "rate": dt * scale}[name]


def _fire(p: Any, v: Any, g: Any, keep: Any, push: Any, rate: Any) -> Out:
    v = keep * v - push * g
    return p + rate * v, v


fire = Rule(
    _fire,
    name="fire",
    hyper=("keep", "push", "rate"),
    derived={name: partial(fire_number, name) for name in ("keep", "push", "rate", "dt", "alpha", "count")},
    sums=OF_VELOCITY,
    scope="all",
    memory={"dt": 0.0, "alpha": 0.0, "count": 0.0},
    defaults={
        "lr": 0.1,
        "max_step": 0.2,
        "max_dt": 1.0,
        "patience": 5.0,
        "dt_growth": 1.1,
        "dt_shrink": 0.5,
        "alpha_start": 0.1,
        "alpha_shrink": 0.99,
    },
    ranges=dict.fromkeys(
        ("max_step", "max_dt", "patience", "dt_growth", "dt_shrink", "alpha_start", "alpha_shrink"),
        checks.AT_LEAST_ZERO,
    ),
    formula="F = −g; v ← (1−α)v + α‖v‖F/‖F‖ if F·v > 0, else 0; v ← v + dt·F; p ← p + dt·v, at most max_step long",
)
"""Bitzek et al. 2006, integrated as in ASE's FIRE: dt (from lr on, up to max_dt) grows and α falls while F·v > 0, and
after `patience` such steps; else v, α and dt begin anew, dt halved. Norms and dot products are over all arrays. It is a
method for full gradients, such as forces."""
