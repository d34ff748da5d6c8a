"""Iterations to a tolerance on quadratics: predicted to the step, and bounded."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.validation.problems import Quadratic
from fastmomentum.validation.rows import Row
from fastmomentum.validation.textbook import RULES

Floats = npt.NDArray[np.float64]

EXACT = "iterations to 1e-8, the initial error known (steps)"
CROSSING = "that bound, against the worst eigenvalue's own run (steps)"
BOUND = "iterations to 1e-8, for every start (measured over the bound)"

TOL = 1e-8

STEEPEST = 2e4
"""The greatest condition number that plain gradient descent is run to: beyond, it takes millions of steps."""

TUNINGS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "optimal": lambda lr, mu: (lr, mu),
    "half the lr": lambda lr, mu: (lr / 2.0, mu),
    "half of 1 − μ": lambda lr, mu: (lr / 2.0, (1.0 + mu) / 2.0),
}
"""From the optimal learning rate and momentum to the tuning; a smaller lr goes with the greater momentum, as the
average of the ema rules leaves less to each gradient."""


def iterations(grad: Callable[[Floats], Floats], start: Floats, solution: Floats, tol: float, **settings: Any) -> float:
    """Steps of :class:`fastmomentum.Momentum` until ‖x − x*‖ ≤ tol·‖x₀ − x*‖; inf where it grows a million times."""
    x = start.copy()
    opt = fm.Momentum(x, **settings)
    first = size = float(np.linalg.norm(x - solution))
    while size > tol * first:
        if not size < 1e6 * first:
            return inf
        opt.step(grad(x))
        size = float(np.linalg.norm(x - solution))
    return opt.steps


def settled_after(spectrum: Floats, tol: float, longest: float, **settings: Any) -> int:
    """After how many steps no coordinate of the diagonal quadratic, each from 1, exceeds `tol`, in 1.2 × `longest`."""
    x = np.ones_like(spectrum)
    opt = fm.Momentum(x, **settings)
    last = 0
    for t in range(1, int(1.2 * longest) + 2):
        opt.step(spectrum * x)
        if max(x.max(), -x.min()) > tol:
            last = t
    return last + 1


def rows(problem: Quadratic, tol: float = TOL, rules: tuple[str, ...] = RULES) -> Iterator[Row]:
    """For every rule and tuning the iterations predicted with the initial error and measured, and the bound."""
    m, L = problem.ends
    for rule in rules:
        if rule == "sgd" and m * STEEPEST < L:
            continue
        best = theory.optimal(m, L, rule=rule)
        for name, tuned in TUNINGS.items():
            if rule == "sgd" and name == "half of 1 − μ":
                continue
            lr, mu = tuned(best.lr, best.momentum)
            predicted = theory.iterations(lr, mu, problem.spectrum, tol, rule=rule, error=problem.error)
            bound = theory.iterations(lr, mu, problem.spectrum, tol, rule=rule)
            settings: dict[str, Any] = {"rule": rule, "lr": lr, "momentum": mu}
            measured = iterations(problem.grad, problem.start, problem.solution, tol, **settings)
            what = f"{problem.name}, {name}, {rule}: iterations to {tol:g}"
            group = f"{problem.name}, {name}: iterations"
            yield Row(what, predicted, measured, abs(predicted - measured), 1.0, group, EXACT)
            # The bound is over by more than nothing; that it is never below is what must hold.
            group = f"{problem.name}, {name}: bound"
            yield Row(f"{what}, bound", bound, measured, measured / bound, 1.0, group, BOUND)
            last = settled_after(problem.spectrum, tol, bound, **settings)
            group = f"{problem.name}, {name}: the worst eigenvalue's last crossing"
            yield Row(f"{what}, last crossing", bound, last, abs(bound - last), 1.0, group, CROSSING)
