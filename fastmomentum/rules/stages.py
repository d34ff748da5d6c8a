"""Define elementwise stages, each as one scalar function with its record; :func:`fastmomentum.chain` composes them.

>>> import numpy as np
>>> from fastmomentum import chain, stages, step
>>> p = np.array([2.0])
>>> before = stages.scale(0.5), stages.clip_value(1.0), stages.maximize, stages.weight_decay(0.5)
>>> step(p, None, np.array([8.0]), rule=chain(*before, "sgd"), lr=0.5)  # 8 → 4 → 1 → −1 → 0
>>> step(p, None, np.array([0.0]), rule=chain(stages.decoupled_weight_decay(0.5), "sgd"), lr=0.5)
>>> p
array([1.5])
>>> q = p.copy()
>>> step(p, q, np.array([-1.0]), rule=chain("heavy_ball", stages.soft_threshold(0.5), stages.box(0, 1.5)), lr=0.5)
>>> p  # 1.5 → 2 → 1.75 → 1.5
array([1.5])
"""

from itertools import takewhile
from math import sqrt
from typing import Any

import numpy as np

from fastmomentum.checks import ANY_BOUND, AT_LEAST_ZERO, BELOW_ONE, UNIT_INTERVAL
from fastmomentum.rules.base import Rule
from fastmomentum.rules.stage import Stage


def _scale(g: Any, p: Any, factor: Any) -> Any:
    return factor * g


def _clip_value(g: Any, p: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(g, low), high)


def _maximize(g: Any, p: Any) -> Any:
    return -g


def _weight_decay(g: Any, p: Any, decay: Any) -> Any:
    return g + decay * p


def _decoupled_weight_decay(p: Any, shrink: Any) -> Any:
    return p * shrink


def _box(x: Any, low: Any, high: Any, zero: Any) -> Any:
    return np.minimum(np.maximum(x, low), high) + zero


def _soft_threshold(x: Any, negative: Any, threshold: Any, zero: Any) -> Any:
    return x - np.minimum(np.maximum(x, negative), threshold) + zero


def negative_clip(clip_value: float) -> float:
    """Return −c."""
    return -clip_value


def shrink_by(lr: float, decoupled_weight_decay: float) -> float:
    """Return 1 − lr·λ."""
    return 1.0 - lr * decoupled_weight_decay


def threshold_of(lr: float, l1: float) -> float:
    """Return lr·λ₁."""
    return lr * l1


def negative_threshold(lr: float, l1: float) -> float:
    """Return −lr·λ₁."""
    return -(lr * l1)


def upper_bound(low: float, high: float) -> float:
    """Return `high`, after checking that it is not below `low`."""
    if high < low:
        raise ValueError(f"high must be >= low = {low}; got {high}")
    return high


def _square(g: Any, p: Any) -> Any:
    return g * g


def at_most_one(factor: float) -> float:
    """Return min(1, factor); unlike min(), this keeps a NaN."""
    return 1.0 if factor > 1.0 else factor


def array_factor(clip_norm: float, square: float) -> float:
    """Return min(1, c/‖g‖), from ‖g‖² of one array."""
    return at_most_one(clip_norm / sqrt(square)) if square else 1.0


def norm_factor(max_norm: float, square: float) -> float:
    """Return min(1, c/(‖g‖ + 1e-6)), from ‖g‖² of all arrays."""
    return at_most_one(max_norm / (sqrt(square) + 1e-6))


def positive_zero() -> float:
    """Return +0; added to a result, it turns −0 into +0 and leaves every other number as it is.

    IEEE 754 leaves open which of two equal arguments minimum and maximum return, and NumPy, Numba and processors differ
    (measured for ±0). After this sum the bits are the same everywhere.
    """
    return 0.0


scale = Stage(_scale, name="scale", hyper=("scale",))
"""g ← s·g. The factor s is the inverse of a loss scale or of a batch size, for example."""

clip_value = Stage(_clip_value, name="clip_value", hyper=("low", "clip_value"), derived={"low": negative_clip})
"""g ← min(max(g, −c), c), as torch's clip_grad_value_."""

maximize = Stage(_maximize, name="maximize")
"""g ← −g."""

weight_decay = Stage(_weight_decay, name="weight_decay", hyper=("weight_decay",))
"""g ← g + λp: coupled (L2) decay, as in torch.optim.SGD(weight_decay=λ)."""

decoupled_weight_decay = Stage(
    _decoupled_weight_decay,
    kind="param",
    name="decoupled_weight_decay",
    hyper=("shrink",),
    derived={"shrink": shrink_by},
)
"""p ← p·(1 − lr·λ): decoupled decay, as in AdamW (Loshchilov and Hutter 2019).

Before a position rule, whose velocity is q − p, the decay also changes the velocity."""

box = Stage(
    _box,
    kind="prox",
    name="box",
    hyper=("low", "upper", "zero"),
    derived={"upper": upper_bound, "zero": positive_zero},
    ranges={"low": ANY_BOUND, "high": ANY_BOUND},
)
"""x ← min(max(x, low), high): projection on a box, for the position rules.

Momentum is added after the projection, so the parameter itself, at which gradients are taken, may lie outside the box
until the run has converged. The state of nesterov_positions lies inside at every step."""

soft_threshold = Stage(
    _soft_threshold,
    kind="prox",
    name="soft_threshold",
    hyper=("negative", "threshold", "zero"),
    derived={"negative": negative_threshold, "threshold": threshold_of, "zero": positive_zero},
    ranges={"l1": AT_LEAST_ZERO},
)
"""x ← sign(x)·max(|x| − lr·λ₁, 0): the proximal map of λ₁‖x‖₁, for the position rules.

The state of nesterov_positions has exact zeros. To zeros of the parameter momentum adds a number that decays."""

clip_norm = Stage(
    _scale,
    name="clip_norm",
    hyper=("array_factor",),
    derived={"array_factor": array_factor},
    sums={"square": _square},
)
"""g ← f·g, with a factor f = min(1, clip_norm/‖g‖) for each array, as Keras's clipnorm has it."""

clip_global_norm = Stage(
    _scale,
    name="max_norm",
    hyper=("norm_factor",),
    derived={"norm_factor": norm_factor},
    sums={"square": _square},
    scope="all",
)
"""g ← f·g, with the factor f = min(1, max_norm/(‖g‖ + 1e-6)) from the norm over all arrays, as torch's clip_grad_norm_
has it."""


def _grokfast(g: Any, mean: Any, decay: Any, keep: Any, gain: Any) -> tuple[Any, Any]:
    mean = decay * mean + keep * g
    return g + gain * mean, mean


def keep_filtered(filter_decay: float) -> float:
    """Return 1 − α."""
    return 1.0 - filter_decay


grokfast = Stage(
    _grokfast,
    kind="filter",
    reads=("g", "filtered"),
    writes=("g", "filtered"),
    state=(("filtered", "zero"),),
    name="grokfast",
    hyper=("filter_decay", "filter_keep", "filter_gain"),
    derived={"filter_keep": keep_filtered},
    defaults={"filter_decay": 0.98, "filter_gain": 2.0},
    ranges={"filter_decay": UNIT_INTERVAL},
    first={"filter_decay": 0.0},
)
"""h ← αh + (1 − α)g, from the first g on; g ← g + λh: the gradient with its slow part amplified (Lee et al. 2024,
Grokfast-EMA). α is filter_decay, λ filter_gain."""


def mars_factor(momentum: float, mars_gamma: float) -> float:
    """Return γ·β₁/(1 − β₁)."""
    return mars_gamma * momentum / (1.0 - momentum)


def mars_scale(square: float) -> float:
    """Return 1/max(1, ‖c‖), from ‖c‖²."""
    return 1.0 / max(1.0, sqrt(square))


def _mars(g: Any, last: Any, factor: Any, scale: Any) -> tuple[Any, Any]:
    return scale * (g + factor * (g - last)), g


def _square_of_corrected(g: Any, last: Any, mars_factor: Any) -> Any:
    c = g + mars_factor * (g - last)
    return c * c


mars = Stage(
    _mars,
    kind="filter",
    reads=("g", "last_gradient"),
    writes=("g", "last_gradient"),
    state=(("last_gradient", "zero"),),
    name="mars",
    hyper=("mars_factor", "mars_scale"),
    derived={"mars_factor": mars_factor, "mars_scale": mars_scale},
    sums={"square": _square_of_corrected},
    defaults={"mars_gamma": 0.025},
    ranges={"momentum": BELOW_ONE},
)
"""c = g + γ·β₁/(1 − β₁)·(g − g₋₁), with g₋₁ the last gradient of the array, at first 0; g ← c/max(1, ‖c‖), the norm of
each array (Yuan et al. 2024, MARS-approx, Algorithms 1 and 2, before AdamW or Lion). γ is mars_gamma, β₁ momentum."""


def leading_scales(rule: Rule) -> list[Stage]:
    """Return the stages `scale` with which a chain begins: they undo the scale of a loss, and precede all clipping."""
    return [
        *takewhile(lambda stage: (stage.functions, stage.hyper) == (scale.functions, scale.hyper), rule.stages_before)
    ]


def maximises(rule: Rule) -> bool:
    """Return whether the stage `maximize`, or a copy of it, is part of the rule."""
    return any(link.functions == maximize.functions for link in rule.composed_of)
