"""Define the adaptive rules, which divide the gradient by an average of its size, element by element.

Names in the formulas: m the averaged gradient (slot "velocity"), s the averaged g² (slot "square"), β₁ the
hyper-parameter momentum, β₂ beta2, ε eps, t the number of the update that the array gets, from 1. Corrections of the
averages' bias to zero are derived numbers, so they need no array of their own.
"""

from collections.abc import Callable
from math import exp, log, sqrt
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.rules.assemble import Part
from fastmomentum.rules.base import Rule
from fastmomentum.rules.stages import decoupled_weight_decay, shrink_by
from fastmomentum.rules.variants import keep_averaged, keep_second

Out = tuple[Any, ...]


def corrected_rate(lr: float, momentum: float, step: float) -> float:
    """Return lr/(1 − β₁^t)."""
    corrected: float = lr / (1.0 - momentum**step)
    return corrected


def weight_scale(momentum: float, step: float) -> float:
    """Return 1/(1 − β₁^t)."""
    scale: float = 1.0 / (1.0 - momentum**step)
    return scale


def root_scale(beta2: float, step: float) -> float:
    """Return 1/√(1 − β₂^t), by which the root of an average of squares is multiplied."""
    return 1.0 / sqrt(1.0 - beta2**step)


def zero() -> float:
    """Return 0."""
    return 0.0


def rectification(beta2: float, step: float) -> float:
    """Return r_t·√(1 − β₂^t) of RAdam; 0 while the variance of the adaptive rate cannot be estimated, ρ_t ≤ 5."""
    power = beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * power / (1.0 - power)
    if length <= 5.0:
        return 0.0
    squared = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return sqrt(squared) * sqrt(1.0 - power)


def decayed_rate(lr: float, lr_decay: float, step: float) -> float:
    """Return lr/(1 + (t − 1)·lr_decay)."""
    return lr / (1.0 + (step - 1.0) * lr_decay)


def at_first_step(initial: float, step: float) -> float:
    """Return the initial value in the first update, and 0 in all others."""
    return initial if step == 1.0 else 0.0


def warm_alpha(alpha: float, warmup: float, step: float) -> float:
    """Return min(t/T, 1)·α."""
    return alpha * min(step / warmup, 1.0) if warmup else alpha


def warm_beta3(momentum: float, beta3: float, warmup: float, step: float) -> float:
    """Return min(exp(ln β₁·ln β₃/((1 − t/T)·ln β₃ + (t/T)·ln β₁)), β₃): half-lives grow about linearly."""
    share = step / warmup if warmup else 1.0
    if share >= 1.0 or not 0.0 < momentum < 1.0 or not 0.0 < beta3 < 1.0:
        return beta3
    first, last = log(momentum), log(beta3)
    return min(exp(first * last / ((1.0 - share) * last + share * first)), beta3)


def keep_third(momentum: float, beta3: float, warmup: float, step: float) -> float:
    """Return 1 − β₃ of this step."""
    return 1.0 - warm_beta3(momentum, beta3, warmup, step)


def _average(m: Any, g: Any, beta: Any, keep: Any) -> Any:
    return beta * m + keep * g


def _average_square(s: Any, g: Any, beta2: Any, keep2: Any) -> Any:
    return beta2 * s + keep2 * (g * g)


def _yogi_square(s: Any, g: Any, keep2: Any, start: Any) -> Any:
    s = s + start
    square = g * g
    return s - keep2 * (np.sign(s - square) * square)


def _largest(u: Any, s: Any) -> Any:
    return np.maximum(u, s)


def _largest_gradient(u: Any, g: Any, beta2: Any, eps: Any) -> Any:
    return np.maximum(beta2 * u, np.absolute(g) + eps)


def _descend_scaled(p: Any, m: Any, s: Any, rate: Any, scale: Any, eps: Any) -> Any:
    return p - rate * (m / (np.sqrt(s) * scale + eps))


def _descend_rectified(p: Any, m: Any, s: Any, rate: Any, rectified: Any, none: Any, eps: Any) -> Any:
    return p - rate * np.where(rectified > none, m * (rectified / (np.sqrt(s) + eps)), m)


def _descend_by_largest(p: Any, m: Any, u: Any, rate: Any) -> Any:
    return p - rate * (m / u)


def _descend_mixed(p: Any, m: Any, slow: Any, s: Any, lr: Any, alpha: Any, weight: Any, scale: Any, eps: Any) -> Any:
    return p - lr * ((weight * m + alpha * slow) / (np.sqrt(s) * scale + eps))


def _scale_by_rms(g: Any, s: Any, eps: Any) -> Any:
    return g / (np.sqrt(s) + eps)


def _scale_by_deviation(g: Any, s: Any, mean: Any, eps: Any) -> Any:
    return g / (np.sqrt(s - mean * mean) + eps)


def _scale_by_sum(g: Any, total: Any, eps: Any, initial: Any) -> Out:
    total = total + g * g
    return g / (np.sqrt(total + initial) + eps), total


def _scale_by_delta(g: Any, s: Any, steps: Any, beta2: Any, keep2: Any, eps: Any) -> Out:
    delta = np.sqrt(steps + eps) / np.sqrt(s + eps) * g
    return delta, beta2 * steps + keep2 * (delta * delta)


def _descend(p: Any, g: Any, lr: Any) -> Any:
    return p - lr * g


def _descend_by_velocity(p: Any, v: Any, g: Any, lr: Any, mu: Any) -> Out:
    v = mu * v + g
    return p - lr * v, v


AVERAGED = ("rate", "momentum", "keep", "beta2", "keep2")
DERIVED: dict[str, Callable[..., float]] = {"rate": corrected_rate, "keep": keep_averaged, "keep2": keep_second}
RANGES = {"momentum": checks.BELOW_ONE, "beta2": checks.BELOW_ONE, "eps": checks.AT_LEAST_ZERO}
DEFAULTS = {"momentum": 0.9, "beta2": 0.999, "eps": 1e-8}
MOMENTS = (("velocity", "zero"), ("square", "zero"))

MEAN = Part(_average, ("velocity", "g"), ("velocity",), ("momentum", "keep"))
SQUARE = Part(_average_square, ("square", "g"), ("square",), ("beta2", "keep2"))
SCALED = Part(_descend_scaled, ("p", "velocity", "square"), ("p",), ("rate", "scale", "eps"))

adam = Rule(
    name="adam",
    parts=[MEAN, SQUARE, SCALED],
    state=MOMENTS,
    hyper=(*AVERAGED, "scale", "eps"),
    derived={**DERIVED, "scale": root_scale},
    defaults=DEFAULTS,
    ranges=RANGES,
    formula="m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)g²; p ← p − lr/(1−β₁^t) · m/(√(s/(1−β₂^t)) + ε)",
)
"""Kingma and Ba 2015, Algorithm 1; equivalent to torch.optim.Adam and optax.adam. Keras adds ε before it corrects the
average, as the end of the paper's Section 2 has it. Weight decay as an option is coupled, as torch's; the decay of
AdamW is the option ``decoupled_weight_decay``."""

adamw = Rule(
    name="adamw",
    state=MOMENTS,
    hyper=("shrink", *adam.hyper),
    parts=[*decoupled_weight_decay.parts, *adam.parts],
    derived={**adam.derived, "shrink": shrink_by},
    defaults={**DEFAULTS, "decoupled_weight_decay": 0.01},
    ranges=RANGES,
    formula="p ← p·(1 − lr·λ), then adam",
)
"""Loshchilov and Hutter 2019, Algorithm 2, with the schedule's factor inside lr; equivalent to torch.optim.AdamW, whose
weight_decay is decoupled_weight_decay here. For λ = 0 take adam."""

amsgrad = Rule(
    name="amsgrad",
    parts=[
        MEAN,
        SQUARE,
        Part(_largest, ("largest", "square"), ("largest",), ()),
        SCALED._replace(reads=("p", "velocity", "largest")),
    ],
    state=(*MOMENTS, ("largest", "zero")),
    hyper=(*AVERAGED, "scale", "eps"),
    derived={**DERIVED, "scale": root_scale},
    defaults=DEFAULTS,
    ranges=RANGES,
    formula="as adam, with the largest s so far in place of s",
)
"""Reddi, Kale and Kumar 2018, Algorithm 2, with Adam's corrections, which the algorithm does not have; equivalent to
torch.optim.Adam(amsgrad=True). optax.amsgrad takes the largest of the corrected averages instead."""

radam = Rule(
    name="radam",
    parts=[
        MEAN,
        SQUARE,
        Part(_descend_rectified, ("p", "velocity", "square"), ("p",), ("rate", "rectified", "none", "eps")),
    ],
    state=MOMENTS,
    hyper=(*AVERAGED, "rectified", "none", "eps"),
    derived={**DERIVED, "rectified": rectification, "none": zero},
    defaults=DEFAULTS,
    ranges=RANGES,
    formula="as adam, times r_t where ρ_t > 5, else p ← p − lr/(1−β₁^t) · m",
)
"""Liu et al. 2020, Algorithm 2, with ρ_t > 5 in place of the paper's 4; equivalent to torch.optim.RAdam. optax.radam
adds ε to the root after its correction."""

adamax = Rule(
    name="adamax",
    parts=[
        MEAN,
        Part(_largest_gradient, ("largest", "g"), ("largest",), ("beta2", "eps")),
        Part(_descend_by_largest, ("p", "velocity", "largest"), ("p",), ("rate",)),
    ],
    state=(("velocity", "zero"), ("largest", "zero")),
    hyper=("rate", "momentum", "keep", "beta2", "eps"),
    derived={"rate": corrected_rate, "keep": keep_averaged},
    defaults=DEFAULTS,
    ranges=RANGES,
    formula="m ← β₁m + (1−β₁)g; u ← max(β₂u, |g| + ε); p ← p − lr/(1−β₁^t) · m/u",
)
"""Kingma and Ba 2015, Algorithm 2, whose ε is 0; equivalent to torch.optim.Adamax."""

yogi = Rule(
    name="yogi",
    parts=[MEAN, Part(_yogi_square, ("square", "g"), ("square",), ("keep2", "start")), SCALED],
    state=MOMENTS,
    hyper=("rate", "momentum", "keep", "keep2", "scale", "eps", "start"),
    derived={**DERIVED, "scale": root_scale, "start": at_first_step},
    defaults={**DEFAULTS, "eps": 1e-3, "initial": 1e-6},
    ranges={**RANGES, "initial": checks.AT_LEAST_ZERO},
    formula="as adam, with s ← s − (1−β₂)·sign(s − g²)·g², which begins with `initial`",
)
"""Zaheer et al. 2018, Algorithm 2, with Adam's corrections; equivalent to optax.yogi, whose averages both begin with
`initial`, where this m begins with 0 as in the paper."""

ademamix = Rule(
    name="ademamix",
    parts=[
        MEAN,
        Part(_average, ("slow", "g"), ("slow",), ("beta3_now", "keep3")),
        SQUARE,
        Part(
            _descend_mixed, ("p", "velocity", "slow", "square"), ("p",), ("lr", "alpha_now", "weight", "scale", "eps")
        ),
    ],
    state=(("velocity", "zero"), ("slow", "zero"), ("square", "zero")),
    hyper=("lr", "momentum", "keep", "beta2", "keep2", "beta3_now", "keep3", "alpha_now", "weight", "scale", "eps"),
    derived={
        "keep": keep_averaged,
        "keep2": keep_second,
        "beta3_now": warm_beta3,
        "keep3": keep_third,
        "alpha_now": warm_alpha,
        "weight": weight_scale,
        "scale": root_scale,
    },
    defaults={**DEFAULTS, "beta3": 0.9999, "alpha": 5.0, "warmup": 0.0},
    ranges={**RANGES, "beta3": checks.BELOW_ONE, "alpha": checks.AT_LEAST_ZERO, "warmup": checks.AT_LEAST_ZERO},
    formula="as adam, with m/(1−β₁^t) + α·(a slow average by β₃) in place of m/(1−β₁^t)",
)
"""Pagliardini, Ablin and Grangier 2025, Algorithm 1; `warmup` is their T_{α,β₃}, 0 for constant α and β₃. Their weight
decay is the option ``decoupled_weight_decay``."""

BY_RMS = (SQUARE, Part(_scale_by_rms, ("g", "square"), ("g",), ("eps",)))
BY_DEVIATION = (
    SQUARE,
    Part(_average, ("mean", "g"), ("mean",), ("beta2", "keep2")),
    Part(_scale_by_deviation, ("g", "square", "mean"), ("g",), ("eps",)),
)
BY_SUM = (Part(_scale_by_sum, ("g", "total"), ("g", "total"), ("eps", "initial")),)
BY_DELTA = (SQUARE, Part(_scale_by_delta, ("g", "square", "steps"), ("g", "steps"), ("beta2", "keep2", "eps")))
DESCEND = Part(_descend, ("p", "g"), ("p",), ("lr",))
DESCEND_BY_VELOCITY = Part(_descend_by_velocity, ("p", "velocity", "g"), ("p", "velocity"), ("lr", "momentum"))


def _preconditioned(name: str, scale: tuple[Part, ...], last: Part, formula: str, **record: Any) -> Rule:
    """Return the rule that scales the gradient by these parts, and then descends by another one."""
    parts = (*scale, last)
    slots = dict.fromkeys(value for part in parts for value in part.writes if value not in ("p", "g"))
    hyper = tuple(dict.fromkeys(name for part in (last, *scale) for name in part.hyper))
    return Rule(
        name=name,
        state=tuple((slot, "zero") for slot in slots),
        hyper=hyper,
        parts=parts,
        formula=formula,
        **{"derived": {"keep2": keep_second} if "keep2" in hyper else {}, **record},
    )


RMS: dict[str, Any] = {
    "defaults": {"beta2": 0.99, "eps": 1e-8},
    "ranges": {"beta2": checks.BELOW_ONE, "eps": checks.AT_LEAST_ZERO},
}

rmsprop = _preconditioned("rmsprop", BY_RMS, DESCEND, "s ← β₂s + (1−β₂)g²; p ← p − lr·g/(√s + ε)", **RMS)
"""Tieleman and Hinton 2012 (lecture 6.5); equivalent to torch.optim.RMSprop, whose alpha is beta2. optax and Keras add
ε under the root."""

rmsprop_momentum = _preconditioned(
    "rmsprop_momentum", BY_RMS, DESCEND_BY_VELOCITY, "v ← μv + g/(√s + ε); p ← p − lr·v", **RMS
)
"""`rmsprop` with momentum, as torch.optim.RMSprop(momentum=μ) has it."""

rmsprop_centered = _preconditioned(
    "rmsprop_centered", BY_DEVIATION, DESCEND, "as rmsprop, with s − (average of g)² in place of s", **RMS
)
"""Graves 2013, Equations 38 to 41 without momentum; equivalent to torch.optim.RMSprop(centered=True)."""

rmsprop_centered_momentum = _preconditioned(
    "rmsprop_centered_momentum",
    BY_DEVIATION,
    DESCEND_BY_VELOCITY,
    "as rmsprop_momentum, with s − (average of g)² in place of s",
    **RMS,
)
"""`rmsprop_centered` with momentum, as torch.optim.RMSprop(centered=True, momentum=μ) has it."""

adagrad = _preconditioned(
    "adagrad",
    BY_SUM,
    DESCEND._replace(hyper=("rate",)),
    "S ← S + g²; p ← p − lr/(1+(t−1)·lr_decay) · g/(√S + ε), S from `initial` on",
    derived={"rate": decayed_rate},
    defaults={"lr_decay": 0.0, "eps": 1e-10, "initial": 0.0},
    ranges=dict.fromkeys(("lr_decay", "eps", "initial"), checks.AT_LEAST_ZERO),
)
"""Duchi, Hazan and Singer 2011, Figure 1 (diagonal); equivalent to torch.optim.Adagrad, whose state holds S itself."""

adadelta = _preconditioned(
    "adadelta",
    BY_DELTA,
    DESCEND,
    "s ← β₂s + (1−β₂)g²; d = √(D + ε)/√(s + ε)·g; D ← β₂D + (1−β₂)d²; p ← p − lr·d",
    defaults={"lr": 1.0, "beta2": 0.9, "eps": 1e-6},
    ranges={"beta2": checks.BELOW_ONE, "eps": checks.AT_LEAST_ZERO},
)
"""Zeiler 2012, Algorithm 1, where lr is 1; equivalent to torch.optim.Adadelta, whose rho is beta2."""
