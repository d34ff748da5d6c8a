"""A slow model of the optimiser in plain Python, which uses neither arrays nor the package.

The model does what the documentation says, in float64, with one scalar operation after the other in the order of the
formulas.
"""

import math

from tests.helpers.reference import POSITIONS, sum_of_squares, update_in_a_run


class Model:
    """Parameters and states as lists of floats."""

    def __init__(self, values, rule, lr, momentum, *, clip=None, decay=0.0, maximize=False, limit=None, skip=False):
        self.params = [list(p) for p in values]
        self.rule, self.lr, self.momentum = rule, lr, momentum
        self.clip, self.decay, self.maximize, self.limit, self.skip = clip, decay, maximize, limit, skip
        self.steps = self.skipped = 0
        self.reset()

    def reset(self):
        self.state = [list(p) if self.rule in POSITIONS else [0.0] * len(p) for p in self.params]

    def step(self, grads):
        given = [g for g in grads if g is not None]
        if self.skip and not all(math.isfinite(x) for g in given for x in g):
            self.skipped += 1
            return
        factor = 1.0
        if self.limit is not None:
            total = 0.0
            for grad in given:
                total += sum_of_squares(grad)
            factor = self.limit / (math.sqrt(total) + 1e-6)
            factor = 1.0 if factor > 1.0 else factor
        for p, s, grad in zip(self.params, self.state, grads, strict=True):
            for i, x in enumerate(grad or ()):
                g = x if self.limit is None else factor * x
                if self.clip is not None and not math.isnan(g):
                    g = min(max(g, -self.clip), self.clip)
                g = -g if self.maximize else g
                g = g + self.decay * p[i] if self.decay else g
                p[i], s[i] = update_in_a_run(self.rule, p[i], s[i], g, float, lr=self.lr, momentum=self.momentum)
        self.steps += 1
