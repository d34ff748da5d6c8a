"""Settings from an estimated spectrum, against those from the true one."""

from collections.abc import Iterator

import numpy as np

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.validation.counting import TOL, iterations
from fastmomentum.validation.problems import DATA, least_squares, prescribed
from fastmomentum.validation.rows import Row
from fastmomentum.validation.textbook import RULES

LOW = 0.99
"""What part of itself L is estimated to be: the optimal tuning for it would diverge from κ = 10² on."""

NEAR, EDGE, FAR = 1e-2, 3_000, 1e6
"""How far from the edge, relatively, a run is tried, for how many steps, and how far it may get."""

COST = 1.25
"""How many times the steps of the tuning for the true spectrum the tuning for the estimated one may take."""


def rows() -> Iterator[Row]:
    """Steps to 1e-8 as tuned on gradients with L estimated 1 % low, over those of the optimal tuning."""
    for problem in (*map(least_squares, DATA), prescribed(1e4)):
        found = theory.spectrum(problem.grad, problem.start)
        for rule in RULES:
            tuned = theory.tune(found._replace(L=LOW * found.L), TOL, rule=rule)
            best = theory.optimal(*problem.ends, rule=rule)
            ours, theirs = (
                iterations(problem.grad, problem.start, problem.solution, TOL, rule=rule, lr=lr, momentum=momentum)
                for lr, momentum in ((tuned.lr, tuned.momentum), (best.lr, best.momentum))
            )
            group = f"{problem.name}, tuned with L estimated 1 % low: steps, and of the optimal tuning"
            topic = "tuned with L estimated 1 % low (steps over those of the optimal tuning)"
            yield Row(f"{group}, {rule}", theirs, ours, ours / theirs, COST, group, topic)
            group = f"{problem.name}, tuned so: steps predicted for every start, and taken"
            topic = "steps of what was tuned so (over those predicted for every start)"
            yield Row(f"{group}, {rule}", tuned.iterations, ours, ours / tuned.iterations, 1.0, group, topic)
            yield from _edge(tuned, LOW * found.L, rule, problem.name)


def _edge(tuned: theory.Tuned, L: float, rule: str, name: str) -> Iterator[Row]:
    """A curvature just inside the headroom converges on the kernels, one just outside does not."""
    for side, wanted in ((1.0 - NEAR, 0.0), (1.0 + NEAR, 1.0)):
        h = L * (1.0 + tuned.headroom) * side
        x = np.ones(1)
        opt = fm.Momentum(x, rule=rule, lr=tuned.lr, momentum=tuned.momentum)
        while opt.steps < EDGE and abs(x[0]) < FAR:
            opt.step(h * x)
        diverged = float(not abs(x[0]) < 1.0)
        group = f"{name}, tuned so: diverges from the headroom on"
        topic = "where what was tuned so diverges (wrong sides)"
        yield Row(f"{group}, {rule}, {side:g} of it", wanted, diverged, abs(wanted - diverged), 0.0, group, topic)
