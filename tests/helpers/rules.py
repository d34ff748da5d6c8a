"""Rules as users write them, for tests of what the package does with rules that are not its own."""

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
