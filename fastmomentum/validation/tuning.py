"""Settings from an estimated spectrum, against those from the true one."""

from collections.abc import Iterator

from fastmomentum import theory
from fastmomentum.validation.counting import TOL, iterations
from fastmomentum.validation.plane import RULES
from fastmomentum.validation.problems import DATA, least_squares, prescribed
from fastmomentum.validation.rows import Row

LOW = 0.99
"""What part of itself L is estimated to be: the optimal tuning for it would diverge from κ = 10² on."""

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
