"""Validate beyond quadratics: a function on which the optimal tuning never converges, and a logistic regression."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import expit

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation.formulas import RULES, Row, Settings, relative
from fastmomentum.cli.validation.quadratics import RIDGE, count_iterations, standardised

Floats = npt.NDArray[np.float64]

CYCLE = (-1.8024490, 2.1159184, 0.6465306)
"""The points between which heavy ball cycles for ever (Lessard, Recht and Packard 2016, section 4.6)."""


def lessard_gradient(x: Floats) -> Floats:
    """Return the gradient of the function of Lessard, Recht and Packard, of slope 25, 1 and 25: m = 1, L = 25."""
    return np.where(x < 1.0, 25.0 * x, np.where(x < 2.0, x + 24.0, 25.0 * x - 24.0))


def cycle_rows(steps: int = 9_999) -> Iterator[Row]:
    """Compare the last three points of a run with the published cycle.

    The run has Polyak's tuning for m = 1 and L = 25 (α = 1/9, μ = 4/9, ρ = 2/3), and starts at x₀ = 3.3.
    """
    tuning = theory.optimal(1.0, 25.0, rule="heavy_ball")
    x = np.array([3.3])
    opt = fm.Momentum(x, rule="heavy_ball", lr=tuning.lr, momentum=tuning.momentum)
    visited = []
    for _ in range(steps):
        opt.step(lessard_gradient(x))
        visited.append(float(x[0]))
    # The published values have seven decimals.
    for predicted, measured in zip(sorted(CYCLE), sorted(visited[-3:])):
        what = f"3-cycle under Polyak's tuning after {steps:,} steps"
        yield Row(
            f"{what}, {predicted}",
            predicted,
            measured,
            abs(measured - predicted),
            5.1e-8,
            what,
            "the 3-cycle in place of convergence (absolute)",
        )


class Logistic:
    """Compute a logistic regression with an ℓ2 penalty on the breast-cancer data.

    mean of log(1 + exp(−y·xw)) + ½·1e-3·‖w‖²

    The labels y = ±1 are the signs of the centred targets.
    """

    def __init__(self) -> None:
        x, y = standardised("breast cancer")
        self.x, self.y = x, np.sign(y)
        self.solution = np.zeros(x.shape[1])
        for _ in range(50):  # Newton's method, with many more steps than it needs
            self.solution -= np.linalg.solve(self.hessian(self.solution), self.grad(self.solution))

    def grad(self, w: Floats) -> Floats:
        """Return the gradient of the objective."""
        pull = expit(-self.y * (self.x @ w)) * self.y
        return np.asarray(RIDGE * w - self.x.T @ pull / len(self.y))

    def hessian(self, w: Floats) -> Floats:
        """Return the Hessian of the objective."""
        p = expit(self.x @ w)
        return np.asarray((self.x.T * (p * (1.0 - p))) @ self.x / len(self.y) + RIDGE * np.eye(w.size))


def logistic_rows(near: float = 1e-4, tol: float = 1e-6) -> Iterator[Row]:
    """Compare runs near the optimum of a logistic regression with predictions from its Hessian at the optimum.

    The runs start with velocity 0 at the distance `near` from the optimum. The first kind of row counts the iterations
    with the optimal tuning until the distance is `tol` times that. The second kind has the rate along the slowest
    eigenvector, with a momentum so small that a real eigenvalue dominates.
    """
    problem = Logistic()
    spectrum, basis = np.linalg.eigh(problem.hessian(problem.solution))
    error = np.random.default_rng(0).standard_normal(spectrum.size)
    error *= near / float(np.linalg.norm(error))
    for rule in RULES:
        best = theory.optimal(spectrum[0], spectrum[-1], rule=rule)
        settings: Settings = {"rule": rule, "lr": best.lr, "momentum": best.momentum}
        expected = theory.iterations(best.lr, best.momentum, spectrum, tol, rule=rule, error=error)
        found = count_iterations(problem.grad, problem.solution + basis @ error, problem.solution, tol, **settings)
        group = f"logistic regression near its optimum: iterations to {tol:g}"
        yield Row(
            f"{group}, {rule}",
            expected,
            found,
            abs(expected - found),
            1.0,
            group,
            "iterations near the optimum of a logistic regression (steps)",
        )
        half_of_limit = 0.5 * float(theory.max_stable_lr(0.5, spectrum[-1], rule=rule))
        slow: Settings = {"rule": rule, "lr": half_of_limit, "momentum": 0.5}
        rate = theory.spectral_radius(slow["lr"], 0.5, spectrum, rule=rule).max()
        start = problem.solution + near * basis[:, 0]
        steps = [count_iterations(problem.grad, start, problem.solution, part, **slow) for part in (tol**0.5, tol)]
        log, count = 0.5 * float(np.log(tol)), steps[1] - steps[0]
        group = "log ρ, logistic regression near its optimum, slowest direction"
        topic = "log ρ near the optimum of a logistic regression (relative)"
        yield relative(f"{group}, {rule}", float(np.log(rate)), log / count, 1.0 / count, group, topic)
