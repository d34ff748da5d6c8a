"""Objectives and their gradients as a user of ``fm.minimize`` writes them: compiled, with their data as arguments."""

from typing import Any

import numpy as np
from numba import njit


@njit
def squares(w: Any, X: Any, y: Any, ridge: Any) -> Any:
    """‖Xw − y‖²/2n + ridge·‖w‖²/2."""
    misses = np.dot(X, w) - y
    return np.dot(misses, misses) / (2.0 * y.size) + 0.5 * ridge * np.dot(w, w)


@njit
def squares_slope(w: Any, X: Any, y: Any, ridge: Any) -> Any:
    """Xᵀ(Xw − y)/n + ridge·w."""
    return np.dot(X.T, np.dot(X, w) - y) / y.size + ridge * w


@njit
def logistic(w: Any, X: Any, y: Any, ridge: Any) -> Any:
    """Mean of log(1 + exp(−y·Xw)), with y = ±1, + ridge·‖w‖²/2; no exponential overflows."""
    margins = y * np.dot(X, w)
    total = 0.0
    for margin in margins:
        total += np.log1p(np.exp(-abs(margin))) + max(-margin, 0.0)
    return total / y.size + 0.5 * ridge * np.dot(w, w)


@njit
def logistic_slope(w: Any, X: Any, y: Any, ridge: Any) -> Any:
    """−Xᵀ(y·σ(−y·Xw))/n + ridge·w."""
    shares = -y / (1.0 + np.exp(y * np.dot(X, w)))
    return np.dot(X.T, shares) / y.size + ridge * w


@njit
def laplacian(u: Any) -> Any:
    """4·u minus its four neighbours, zero beyond the edges."""
    out = 4.0 * u
    out[1:] -= u[:-1]
    out[:-1] -= u[1:]
    out[:, 1:] -= u[:, :-1]
    out[:, :-1] -= u[:, 1:]
    return out


@njit
def poisson(x: Any, charges: Any) -> Any:
    """xᵀAx/2 − bᵀx."""
    u = x.reshape(charges.shape)
    return np.sum(u * (0.5 * laplacian(u) - charges))


@njit
def poisson_slope(x: Any, charges: Any) -> Any:
    """Ax − b."""
    return (laplacian(x.reshape(charges.shape)) - charges).ravel()


@njit
def deblurring(x: Any, seen: Any, blur: Any, smooth: Any) -> Any:
    """‖BXBᵀ − Y‖²/2 + smooth·(squared differences of neighbours)/2."""
    X = x.reshape(seen.shape)
    misses = np.dot(np.dot(blur, X), blur.T) - seen
    down, right = X[1:] - X[:-1], X[:, 1:] - X[:, :-1]
    return 0.5 * np.sum(misses**2) + 0.5 * smooth * (np.sum(down**2) + np.sum(right**2))


@njit
def deblurring_slope(x: Any, seen: Any, blur: Any, smooth: Any) -> Any:
    """Bᵀ(BXBᵀ − Y)B, and smooth times each pixel's differences from its neighbours."""
    X = x.reshape(seen.shape)
    slope = np.dot(np.dot(blur.T, np.dot(np.dot(blur, X), blur.T) - seen), blur)
    down, right = smooth * (X[1:] - X[:-1]), smooth * (X[:, 1:] - X[:, :-1])
    slope[1:] += down
    slope[:-1] -= down
    slope[:, 1:] += right
    slope[:, :-1] -= right
    return slope.ravel()
