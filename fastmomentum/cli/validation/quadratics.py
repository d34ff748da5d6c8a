"""Validate on quadratics: predicted and bounded iterations, and tunings for an estimated spectrum.

The quadratics are random ones with a prescribed spectrum, a Laplacian, and least squares on real data.
"""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import NamedTuple, Unpack

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation.formulas import RULES, Row, Settings

Floats = npt.NDArray[np.float64]

RIDGE = 1e-3
"""The weight of ½‖w‖² in the objectives on real data."""

DATA = {"diabetes": load_diabetes, "digits": load_digits, "breast cancer": load_breast_cancer}


class Quadratic(NamedTuple):
    """Hold a quadratic with its start, its solution and its spectrum.

    f(x) = ½xᵀHx − cᵀx

    Attributes
    ----------
    name : str
        The name in the table.
    grad : callable
        The gradient Hx − c.
    start, solution : ndarray
        x₀ and x*.
    spectrum : ndarray
        The eigenvalues of H, ascending.
    error : ndarray
        x₀ − x* in the basis of the eigenvectors of H.
    """

    name: str
    grad: Callable[[Floats], Floats]
    start: Floats
    solution: Floats
    spectrum: Floats
    error: Floats

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest eigenvalue, m and L."""
        return float(self.spectrum[0]), float(self.spectrum[-1])


def prescribed(condition: float, size: int = 100, seed: int = 0) -> Quadratic:
    """Return a quadratic with log-spaced eigenvalues from 1 to `condition`, randomly rotated, and x* = 0."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    hessian = (basis * np.geomspace(1.0, condition, size)) @ basis.T
    hessian = (hessian + hessian.T) / 2.0
    return _make_quadratic(f"SPD, κ = {condition:g}", hessian, rng.standard_normal(size), np.zeros(size))


def laplacian(side: int = 32) -> Quadratic:
    """Return the five-point Laplacian on a square grid of side × side points, as a sparse matrix, with x* = 0."""
    line = sparse.diags_array([-np.ones(side - 1), np.full(side, 2.0), -np.ones(side - 1)], offsets=[-1, 0, 1])
    plane = sparse.csr_array(sparse.kron(line, sparse.eye_array(side)) + sparse.kron(sparse.eye_array(side), line))
    start = np.random.default_rng(0).standard_normal(side * side)
    return _make_quadratic(f"Laplacian, {side} × {side}", plane, start, np.zeros(side * side))


def least_squares(name: str) -> Quadratic:
    """Return least squares on one of the data sets packaged with scikit-learn, with x₀ = 0.

    ½‖Xw − y‖²/n + ½·1e-3·‖w‖²
    """
    x, y = standardised(name)
    hessian = x.T @ x / len(x) + RIDGE * np.eye(x.shape[1])
    solution = np.linalg.solve(hessian, x.T @ y / len(x)).astype(np.float64, copy=False)
    return _make_quadratic(name, hessian, np.zeros(x.shape[1]), solution)


def standardised(name: str) -> tuple[Floats, Floats]:
    """Return features and target of a data set with mean 0 and variance 1, without the constant features."""
    x, y = DATA[name](return_X_y=True)
    x = x[:, x.std(axis=0) > 0.0]
    x, y = ((each - each.mean(axis=0)) / each.std(axis=0) for each in (x, y))
    return x, y


def all_quadratics() -> Iterator[Quadratic]:
    """Yield all quadratics of the full validation."""
    yield from (prescribed(10.0**power) for power in range(1, 7))
    yield laplacian()
    yield from map(least_squares, DATA)


def _make_quadratic(name: str, hessian: Floats | sparse.csr_array, start: Floats, solution: Floats) -> Quadratic:
    dense = hessian if isinstance(hessian, np.ndarray) else hessian.toarray()
    spectrum, basis = np.linalg.eigh(dense)
    pull = hessian @ solution
    return Quadratic(name, lambda x: hessian @ x - pull, start, solution, spectrum, basis.T @ (start - solution))


EXACT = "iterations to 1e-8, the initial error known (steps)"
CROSSING = "iterations to 1e-8, for every start (steps, against the slowest eigenvalue's run)"
BOUND = "iterations to 1e-8, for every start (measured over the bound)"

TOL = 1e-8

MAX_SGD_CONDITION = 2e4
"""The greatest condition number on which gradient descent is run; beyond that, a run takes millions of steps."""

TUNINGS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "optimal": lambda lr, mu: (lr, mu),
    "half the lr": lambda lr, mu: (lr / 2.0, mu),
    "half of 1 − μ": lambda lr, mu: (lr / 2.0, (1.0 + mu) / 2.0),
}
"""Functions that turn the optimal lr and momentum into those of each tuning; the greater momentum has half the lr."""


def count_iterations(
    grad: Callable[[Floats], Floats], start: Floats, solution: Floats, tol: float, **settings: Unpack[Settings]
) -> float:
    """Return the number of steps of Momentum until the error is `tol` times its value at the start.

    ‖x − x*‖ ≤ tol·‖x₀ − x*‖

    The number is inf if the error grows to a million times its value at the start.
    """
    x = start.copy()
    opt = fm.Momentum(x, **settings)
    first = size = float(np.linalg.norm(x - solution))
    while size > tol * first:
        if not size < 1e6 * first:
            return inf
        opt.step(grad(x))
        size = float(np.linalg.norm(x - solution))
    return opt.steps


def last_crossing(spectrum: Floats, tol: float, bound: float, **settings: Unpack[Settings]) -> int:
    """Return the step from which on every eigenvalue's own run, from 1, stays within `tol`.

    The runs are the coordinates of a diagonal quadratic, and have 1.2·bound steps.
    """
    x = np.ones_like(spectrum)
    opt = fm.Momentum(x, **settings)
    last = 0
    for t in range(1, int(1.2 * bound) + 2):
        opt.step(spectrum * x)
        if max(x.max(), -x.min()) > tol:
            last = t
    return last + 1


def counting_rows(problem: Quadratic, tol: float = TOL, rules: tuple[str, ...] = RULES) -> Iterator[Row]:
    """Compare the measured iterations of every rule and tuning with their prediction and their bound."""
    m, L = problem.ends
    for rule in rules:
        if rule == "sgd" and m * MAX_SGD_CONDITION < L:
            continue
        best = theory.optimal(m, L, rule=rule)
        for name, tuned in TUNINGS.items():
            if rule == "sgd" and name == "half of 1 − μ":
                continue
            lr, mu = tuned(best.lr, best.momentum)
            predicted = theory.iterations(lr, mu, problem.spectrum, tol, rule=rule, error=problem.error)
            bound = theory.iterations(lr, mu, problem.spectrum, tol, rule=rule)
            settings: Settings = {"rule": rule, "lr": lr, "momentum": mu}
            measured = count_iterations(problem.grad, problem.start, problem.solution, tol, **settings)
            what = f"{problem.name}, {name}, {rule}: iterations to {tol:g}"
            group = f"{problem.name}, {name}: iterations"
            yield Row(what, predicted, measured, abs(predicted - measured), 1.0, group, EXACT)
            # A bound may be greater than the number of iterations, but never less.
            group = f"{problem.name}, {name}: bound"
            yield Row(f"{what}, bound", bound, measured, measured / bound, 1.0, group, BOUND)
            last = last_crossing(problem.spectrum, tol, bound, **settings)
            group = f"{problem.name}, {name}: the worst eigenvalue's last crossing"
            yield Row(f"{what}, last crossing", bound, last, abs(bound - last), 1.0, group, CROSSING)


ESTIMATED_L = 0.99
"""The estimate of L over L; without a margin, the optimal tuning for this estimate diverges for κ of 10² or more."""

EDGE_DISTANCE, EDGE_STEPS, EDGE_SIZE = 1e-2, 3_000, 1e6
"""The relative distance of two runs from the edge of stability, and the steps and the |x| at which they end."""

MAX_COST = 1.25
"""The greatest number of steps with the tuning for the estimate, over that with the tuning for the true spectrum."""


def tuning_rows(names: Iterable[str] = tuple(DATA), rules: Iterable[str] = RULES) -> Iterator[Row]:
    """Compare tunings for an estimated spectrum, with L estimated 1 % low, with the tuning for the true spectrum.

    The quadratics are least squares on the data sets of these names, and one with a prescribed spectrum.
    """
    for problem in (*map(least_squares, names), prescribed(1e4)):
        found = theory.spectrum(problem.grad, problem.start)
        for rule in rules:
            tuned = theory.tune(found._replace(L=ESTIMATED_L * found.L), TOL, rule=rule)
            best = theory.optimal(*problem.ends, rule=rule)
            steps, steps_of_best = (
                count_iterations(
                    problem.grad, problem.start, problem.solution, TOL, rule=rule, lr=lr, momentum=momentum
                )
                for lr, momentum in ((tuned.lr, tuned.momentum), (best.lr, best.momentum))
            )
            tuning = f"{problem.name}, tuned with L estimated 1 % low"
            group = f"{tuning}: steps, and of the optimal tuning"
            topic = "tuned with L estimated 1 % low (steps over those of the optimal tuning)"
            yield Row(f"{group}, {rule}", steps_of_best, steps, steps / steps_of_best, MAX_COST, group, topic)
            group = f"{tuning}: steps, and their bound"
            topic = "tuned with L estimated 1 % low (steps over their bound for every start)"
            yield Row(f"{group}, {rule}", tuned.iterations, steps, steps / tuned.iterations, 1.0, group, topic)
            yield from _edge_rows(tuned, ESTIMATED_L * found.L, rule, tuning)


def _edge_rows(tuned: theory.Tuned, L: float, rule: str, tuning: str) -> Iterator[Row]:
    """Compare runs on curvatures just within and just beyond the headroom: only the first must converge."""
    for side, expected in ((1.0 - EDGE_DISTANCE, 0.0), (1.0 + EDGE_DISTANCE, 1.0)):
        h = L * (1.0 + tuned.headroom) * side
        x = np.ones(1)
        opt = fm.Momentum(x, rule=rule, lr=tuned.lr, momentum=tuned.momentum)
        while opt.steps < EDGE_STEPS and abs(x[0]) < EDGE_SIZE:
            opt.step(h * x)
        diverged = float(not abs(x[0]) < 1.0)
        group = f"{tuning}: diverges beyond the headroom"
        topic = "divergence beyond the headroom only (wrong cases)"
        what = f"{group}, {rule}, curvature {side:g} times that at the headroom"
        yield Row(what, expected, diverged, abs(expected - diverged), 0.0, group, topic)
