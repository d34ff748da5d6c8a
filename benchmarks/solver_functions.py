"""Define objectives and their gradients as a user of ``fm.minimize`` writes them: compiled, with data as arguments."""

import numpy as np
from numba import njit

from benchmarks.solver_data import Array


@njit
def least_squares(w: Array, X: Array, y: Array, ridge: float) -> float:
    """Return ‖Xw − y‖²/2n + ridge·‖w‖²/2."""
    residual = np.dot(X, w) - y
    loss: float = np.dot(residual, residual) / (2.0 * y.size) + 0.5 * ridge * np.dot(w, w)
    return loss


@njit
def least_squares_gradient(w: Array, X: Array, y: Array, ridge: float) -> Array:
    """Return Xᵀ(Xw − y)/n + ridge·w."""
    grad: Array = np.dot(X.T, np.dot(X, w) - y) / y.size + ridge * w
    return grad


@njit
def logistic(w: Array, X: Array, y: Array, ridge: float) -> float:
    """Return the mean of log(1 + exp(−y·Xw)) plus ridge·‖w‖²/2, for y = ±1; no exponential overflows."""
    margins = y * np.dot(X, w)
    total = 0.0
    for margin in margins:
        total += np.log1p(np.exp(-abs(margin))) + max(-margin, 0.0)
    loss: float = total / y.size + 0.5 * ridge * np.dot(w, w)
    return loss


@njit
def logistic_gradient(w: Array, X: Array, y: Array, ridge: float) -> Array:
    """Return −Xᵀ(y·σ(−y·Xw))/n + ridge·w."""
    weights = -y / (1.0 + np.exp(y * np.dot(X, w)))
    grad: Array = np.dot(X.T, weights) / y.size + ridge * w
    return grad


@njit
def laplacian(u: Array) -> Array:
    """Return four times each value of u minus its four neighbours; neighbours beyond the edges are zero."""
    out = 4.0 * u
    out[1:] -= u[:-1]
    out[:-1] -= u[1:]
    out[:, 1:] -= u[:, :-1]
    out[:, :-1] -= u[:, 1:]
    return out


@njit
def poisson(x: Array, charges: Array) -> float:
    """Return xᵀAx/2 − bᵀx, with the Laplacian A and the charges b."""
    u = x.reshape(charges.shape)
    energy: float = np.sum(u * (0.5 * laplacian(u) - charges))
    return energy


@njit
def poisson_gradient(x: Array, charges: Array) -> Array:
    """Return Ax − b."""
    grad: Array = (laplacian(x.reshape(charges.shape)) - charges).ravel()
    return grad


@njit
def deblurring(x: Array, observed: Array, blur: Array, smoothness: float) -> float:
    """Return ‖BXBᵀ − Y‖²/2 + smoothness·D/2, with the sum D of the squared differences between neighbouring pixels."""
    X = x.reshape(observed.shape)
    residual = np.dot(np.dot(blur, X), blur.T) - observed
    down, right = X[1:] - X[:-1], X[:, 1:] - X[:, :-1]
    loss: float = 0.5 * np.sum(residual**2) + 0.5 * smoothness * (np.sum(down**2) + np.sum(right**2))
    return loss


@njit
def deblurring_gradient(x: Array, observed: Array, blur: Array, smoothness: float) -> Array:
    """Return Bᵀ(BXBᵀ − Y)B plus, for each pixel, smoothness times the sum of its differences from its neighbours."""
    X = x.reshape(observed.shape)
    grad: Array = np.dot(np.dot(blur.T, np.dot(np.dot(blur, X), blur.T) - observed), blur)
    down, right = smoothness * (X[1:] - X[:-1]), smoothness * (X[:, 1:] - X[:, :-1])
    grad[1:] += down
    grad[:-1] -= down
    grad[:, 1:] += right
    grad[:, :-1] -= right
    return grad.ravel()
