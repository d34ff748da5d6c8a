"""Updates written by hand, in NumPy or in exact fractions. Nothing here imports the package.

Each function takes scalars or arrays, and hyper-parameters that are formed in double precision, then cast.
"""

import numpy as np

RULES = (
    "sgd",
    "pytorch",
    "pytorch_nesterov",
    "classical",
    "classical_nesterov",
    "ema",
    "ema_nesterov",
    "heavy_ball",
    "nesterov_positions",
)
VARIANTS = ("ema_corrected", "quasi_hyperbolic", "aggmo", "signum", "lion")
POSITIONS = ("heavy_ball", "nesterov_positions")


def update(rule, p, s, g, cast, *, lr, momentum, momentum_next=None, dampening=0.0):
    """(p, s) after one update, by the design's table; `cast` takes a double to the arrays' type."""
    a, mu = cast(lr), cast(momentum)
    mu_next = mu if momentum_next is None else cast(momentum_next)
    one = type(lr)(1)
    undamped, averaged = cast(one - dampening), cast(one - momentum)
    if rule == "sgd":
        return p - a * g, s
    if rule == "pytorch":
        v = mu * s + undamped * g
        return p - a * v, v
    if rule == "pytorch_nesterov":
        v = mu * s + g
        return p - a * (g + mu_next * v), v
    if rule == "classical":
        v = mu * s + a * g
        return p - v, v
    if rule == "classical_nesterov":
        v = mu * s + a * g
        return p - (mu_next * v + a * g), v
    if rule == "ema":
        v = mu * s + averaged * g
        return p - a * v, v
    if rule == "ema_nesterov":
        v = mu * s + averaged * g
        return p - a * (mu_next * v + averaged * g), v
    if rule == "heavy_ball":
        return p - a * g + mu * (p - s), p
    if rule == "nesterov_positions":
        x = p - a * g
        return x + mu * (x - s), x
    raise KeyError(rule)


def with_options(p, g, cast, *, lr, clip_value=None, maximize=False, weight_decay=0.0, decoupled_weight_decay=0.0):
    """(p, g) as the rule meets them, in torch's order: clip, negate, coupled decay; then decoupled decay."""
    if clip_value is not None:
        g = np.minimum(np.maximum(g, cast(-clip_value)), cast(clip_value))
    if maximize:
        g = -g
    if weight_decay:
        g = g + cast(weight_decay) * p
    if decoupled_weight_decay:
        p = p * cast(1.0 - lr * decoupled_weight_decay)
    return p, g


def rest(rule, p):
    """The state at rest."""
    return p.copy() if rule in POSITIONS else np.zeros_like(p)


def bits(array):
    """The bits of an array, with every NaN made the same one (its payload is left open by IEEE 754)."""
    array = np.asarray(array)
    unsigned = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return unsigned.view(f"u{array.dtype.itemsize}")


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(bits(found), bits(expected))
