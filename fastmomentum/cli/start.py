"""What a start at x = 0 has of each curvature, where the eigenvectors of the Hessian are too many to be taken."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import lsmr

Floats = npt.NDArray[np.float64]

PRODUCTS = 2000
"""Iterations after which LSMR is given up: with A of 4,000 × 2,000 they take a minute."""

VECTORS = 300
"""Vectors that Lanczos keeps."""

SETTLED = 1e-3
"""How near, relatively, the least curvature that Lanczos finds must be to an eigenvalue."""


def seen_from_zero(a: Floats, b: Floats, ridge: float) -> tuple[Floats, Floats] | None:
    """Few curvatures, and an error in each, that stand for x₀ − x* in the eigenbasis of AᵀA + ridge.

    ‖p(H)e_0‖² = Σ_k w_k·p(θ_k)² with the nodes and weights of Gauss's quadrature, which Lanczos finds when it starts at
    e_0: exact for polynomials p up to its number of steps, and settled far beyond for those of a method that
    converges, once the end of the spectrum has been found.

    Returns
    -------
    (ndarray, ndarray) or None
        θ and √w; None where LSMR does not find x*, or Lanczos the end of the spectrum.

    Notes
    -----
    Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 6.
    """
    solution, stopped, *_ = lsmr(a, b, damp=np.sqrt(ridge), atol=1e-13, btol=1e-13, conlim=0, maxiter=PRODUCTS)
    size = float(np.linalg.norm(solution))
    if stopped == 7 or not size:  # 7: not yet converged
        return None
    basis = np.empty((min(VECTORS, len(solution)), len(solution)))
    diagonal, beside = np.zeros(len(basis)), np.zeros(len(basis))
    vector = -solution / size
    for k in range(len(basis)):
        basis[k] = vector
        product = a.T @ (a @ vector) + ridge * vector
        diagonal[k] = vector @ product
        for _ in range(2):  # once leaves the rounding of large parts that are taken away
            product -= basis[: k + 1].T @ (basis[: k + 1] @ product)
        beside[k] = np.linalg.norm(product)
        if beside[k] <= 1e-13 * diagonal[: k + 1].max():  # e_0 has no part in what is left
            break
        vector = product / beside[k]
    nodes, vectors = eigh_tridiagonal(diagonal[: k + 1], beside[:k])
    if k + 1 < len(solution) and beside[k] * abs(vectors[-1, 0]) > SETTLED * nodes[0]:
        return None
    return nodes, np.abs(vectors[0]) * size
