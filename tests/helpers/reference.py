"""Oracles: updates written by hand, in NumPy or in exact fractions. Nothing here imports the package.

Each function takes scalars or arrays. Hyper-parameters are formed in double precision, then cast.
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
ADAPTIVE_RULES = (
    *("adam", "adamw", "amsgrad", "radam", "adamax", "yogi", "ademamix"),
    *("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum", "adagrad", "adadelta"),
)
SUMMING_RULES = ("nadam", "schedule_free_sgd", "schedule_free_adamw", "lars", "lamb", "clipup", "fire")
POSITIONS = ("heavy_ball", "nesterov_positions")
LOOKAHEADS = ("classical", "pytorch", "ema")
DTYPES = (np.float32, np.float64)
BACKENDS = ("cpu", "numpy")


def update(rule, p, s, g, cast, *, lr, momentum, momentum_next=None, dampening=0.0):
    """Return (p, s) after one update by the formula of the rule. `cast` converts a double to the arrays' type."""
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


def update_in_a_run(rule, p, s, g, cast, *, lr, momentum):
    """Return (p, s) after one update of an optimiser: at momentum 0 the rules of torch leave the velocity alone."""
    rule = "sgd" if momentum == 0 and rule in ("pytorch", "pytorch_nesterov") else rule
    return update(rule, p, s, g, cast, lr=lr, momentum=momentum)


def with_options(p, g, cast, *, lr, clip_value=None, maximize=False, weight_decay=0.0, decoupled_weight_decay=0.0):
    """Return (p, g) as the rule gets them, in torch's order: clip, negate, coupled decay; then decoupled decay."""
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
    """Return the initial state: a copy of p for the rules that keep positions, and zeros for the others."""
    return p.copy() if rule in POSITIONS else np.zeros_like(p)


def as_state(slots):
    """Return state slots as fm.step takes them: None without a slot, the array itself if there is one, or a tuple."""
    return None if not slots else slots[0] if len(slots) == 1 else tuple(slots)


def slots_of(state):
    """Return the state of one array as a tuple of slots; the opposite of `as_state`."""
    return () if state is None else state if isinstance(state, tuple) else (state,)


def soft_threshold(x, threshold):
    """Return the proximal map of threshold·‖x‖₁."""
    return np.sign(x) * np.maximum(abs(x) - threshold, 0)


def ordered_sum(values, lanes=32, chunk=65_536):
    """Return the sum of an array as the package promises to form it, in plain Python and double precision.

    Each chunk has 32 lanes, element i goes to lane i mod 32, and halves of the lanes are added until one is left. The
    sums of the chunks are added in order.
    """
    total, values = 0.0, np.asarray(values).reshape(-1).tolist()
    for start in range(0, len(values), chunk):
        sums = [0.0] * lanes
        for i, x in enumerate(values[start : start + chunk]):
            sums[i % lanes] += x
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [sums[i] + sums[half + i] for i in range(half)]
        total += sums[0]
    return total


def sum_of_squares(values):
    """Return the sum of squares, as :func:`ordered_sum` forms it."""
    return ordered_sum(np.asarray(values, np.float64) ** 2)


def bits(array):
    """Return the bits of an array, with every NaN made the same one (IEEE 754 leaves its payload open)."""
    array = np.asarray(array)
    unsigned = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return unsigned.view(f"u{array.dtype.itemsize}")


def assert_same_bits(found, expected):
    """Check that two arrays have the same dtype and bits; a NaN equals every other NaN."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(bits(found), bits(expected))


def assert_all_same_bits(found, expected):
    """Check that two sequences have the same number of arrays, and the same bits in each pair of arrays."""
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
