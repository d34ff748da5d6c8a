"""Rules as users write them, for tests of what the package does with rules that are not its own."""

import math

import numpy as np

import fastmomentum as fm
from tests.helpers.quadratics import AGGREGATED, QUASI_HYPERBOLIC

QHM = fm.Rule(**QUASI_HYPERBOLIC)
AGGMO = fm.Rule(**AGGREGATED)


def _adaptive(p, v, s, g, lr, mu, beta, eps):
    v = mu * v + g
    s = np.maximum(beta * s, np.absolute(g))
    return p - lr * v / (np.sqrt(s * s) + np.minimum(s, eps)), v, s


ADAPTIVE = fm.Rule(
    _adaptive, state=(("velocity", "zero"), ("scale", "zero")), hyper=("lr", "momentum", "beta", "eps"), name="adaptive"
)
"""A rule of two state slots that uses every function that a rule may use."""


def boosted(p, v, g, lr, mu, boost):
    v = mu * v + g
    return p - lr * boost * v, v


def power(p, v, g):
    return v * g


def size(p, v, g):
    return g * g


def counted(scope="array", **record):
    """Return a rule whose step depends on two sums and on what it remembers of them."""
    own = {
        "hyper": ("lr", "momentum", "boost"),
        "sums": {"power": power, "size": size},
        "scope": scope,
        "memory": {"count": 0.0, "last": 1.0},
        "derived": {
            "count": lambda count: count + 1.0,
            "last": lambda size: math.sqrt(size),
            "boost": lambda power, count, last, gain: 1.0 + gain / (1.0 + count + last + abs(power)),
        },
        "defaults": {"gain": 0.5},
    }
    return fm.Rule(boosted, **own | record)
