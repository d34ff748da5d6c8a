"""Quadratics to run on: random ones with a prescribed spectrum, a Laplacian, least squares on real data."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

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
