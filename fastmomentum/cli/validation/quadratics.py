"""Quadratics to run on: random ones with a prescribed spectrum, a Laplacian, least squares on real data.

Iterations to a tolerance on quadratics: predicted to the step, and bounded.

Settings from an estimated spectrum, against those from the true one.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation.formulas import RULES, Row

Floats = npt.NDArray[np.float64]

RIDGE = 1e-3
DATA = {"diabetes": load_diabetes, "digits": load_digits, "breast cancer": load_breast_cancer}


class Quadratic(NamedTuple):
    """f(x) = ½xᵀHx − cᵀx, with what is known of it.

    Attributes
    ----------
    name : str
        What it is called.
    grad : callable
        Hx − c.
    start, solution : ndarray
        x₀ and x*.
    spectrum : ndarray
        H's eigenvalues, ascending.
    error : ndarray
        x₀ − x* in H's eigenbasis.
    """

    name: str
    grad: Callable[[Floats], Floats]
    start: Floats
    solution: Floats
    spectrum: Floats
    error: Floats

    @property
    def ends(self) -> tuple[float, float]:
        """m and L."""
        return float(self.spectrum[0]), float(self.spectrum[-1])


def prescribed(condition: float, size: int = 100, seed: int = 0) -> Quadratic:
    """A random rotation of eigenvalues from 1 to `condition`, evenly spread in their logarithm; x* = 0."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    hessian = (basis * np.geomspace(1.0, condition, size)) @ basis.T
    return _of(f"SPD, κ = {condition:g}", (hessian + hessian.T) / 2.0, rng.standard_normal(size), np.zeros(size))


def laplacian(side: int = 32) -> Quadratic:
    """The five-point Laplacian on a square of side², sparse; x* = 0."""
    line = sparse.diags_array([-np.ones(side - 1), np.full(side, 2.0), -np.ones(side - 1)], offsets=[-1, 0, 1])
    plane = sparse.csr_array(sparse.kron(line, sparse.eye_array(side)) + sparse.kron(sparse.eye_array(side), line))
    start = np.random.default_rng(0).standard_normal(side * side)
    return _of(f"Laplacian, {side} × {side}", plane, start, np.zeros(side * side))


def least_squares(name: str) -> Quadratic:
    """½‖Xw − y‖²/n + ½·1e-3·‖w‖² on one of scikit-learn's packaged sets; x₀ = 0."""
    x, y = standardised(name)
    hessian = x.T @ x / len(x) + RIDGE * np.eye(x.shape[1])
    return _of(name, hessian, np.zeros(x.shape[1]), np.linalg.solve(hessian, x.T @ y / len(x)))


def standardised(name: str) -> tuple[Floats, Floats]:
    """Features and target with mean 0 and variance 1, constant features left out."""
    x, y = DATA[name](return_X_y=True)
    x = x[:, x.std(axis=0) > 0.0]
    x, y = ((each - each.mean(axis=0)) / each.std(axis=0) for each in (x, y))
    return x, y


def every() -> Iterator[Quadratic]:
    """All of them."""
    yield from (prescribed(10.0**power) for power in range(1, 7))
    yield laplacian()
    yield from map(least_squares, DATA)


def _of(name: str, hessian: Any, start: Floats, solution: Any) -> Quadratic:
    dense = hessian.toarray() if sparse.issparse(hessian) else hessian
    spectrum, basis = np.linalg.eigh(dense)
    pull = hessian @ solution
    return Quadratic(name, lambda x: hessian @ x - pull, start, solution, spectrum, basis.T @ (start - solution))


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


def count_iterations(
    grad: Callable[[Floats], Floats], start: Floats, solution: Floats, tol: float, **settings: Any
) -> float:
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


def counting_rows(problem: Quadratic, tol: float = TOL, rules: tuple[str, ...] = RULES) -> Iterator[Row]:
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
            measured = count_iterations(problem.grad, problem.start, problem.solution, tol, **settings)
            what = f"{problem.name}, {name}, {rule}: iterations to {tol:g}"
            group = f"{problem.name}, {name}: iterations"
            yield Row(what, predicted, measured, abs(predicted - measured), 1.0, group, EXACT)
            # The bound is over by more than nothing; that it is never below is what must hold.
            group = f"{problem.name}, {name}: bound"
            yield Row(f"{what}, bound", bound, measured, measured / bound, 1.0, group, BOUND)
            last = settled_after(problem.spectrum, tol, bound, **settings)
            group = f"{problem.name}, {name}: the worst eigenvalue's last crossing"
            yield Row(f"{what}, last crossing", bound, last, abs(bound - last), 1.0, group, CROSSING)


LOW = 0.99
"""What part of itself L is estimated to be: the optimal tuning for it would diverge from κ = 10² on."""

NEAR, EDGE, FAR = 1e-2, 3_000, 1e6
"""How far from the edge, relatively, a run is tried, for how many steps, and how far it may get."""

COST = 1.25
"""How many times the steps of the tuning for the true spectrum the tuning for the estimated one may take."""


def tuning_rows() -> Iterator[Row]:
    """Steps to 1e-8 as tuned on gradients with L estimated 1 % low, over those of the optimal tuning."""
    for problem in (*map(least_squares, DATA), prescribed(1e4)):
        found = theory.spectrum(problem.grad, problem.start)
        for rule in RULES:
            tuned = theory.tune(found._replace(L=LOW * found.L), TOL, rule=rule)
            best = theory.optimal(*problem.ends, rule=rule)
            ours, theirs = (
                count_iterations(
                    problem.grad, problem.start, problem.solution, TOL, rule=rule, lr=lr, momentum=momentum
                )
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
