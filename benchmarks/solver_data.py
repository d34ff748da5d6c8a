"""The data of the solvers' cases: what scikit-learn brings along, nothing fetched."""

from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import expm
from sklearn import datasets

Array = np.ndarray[Any, np.dtype[np.float64]]
Pair = tuple[Array, Array]

SIDE, BLUR, NOISE = 96, 1.5, 0.01
"""A picture's pixels a side, the standard deviation of its blur in pixels, and that of its noise."""


def standardised(X: Array) -> Array:
    """Columns of mean 0 and variance 1; without those that are constant (three pixels of the digits are)."""
    X = X[:, X.std(axis=0) > 0.0]
    return np.ascontiguousarray((X - X.mean(axis=0)) / X.std(axis=0))


@cache
def diabetes() -> Pair:
    """442 patients: ten measurements, and how their illness went on; all standardised."""
    X, y = datasets.load_diabetes(return_X_y=True)
    return standardised(X), (y - y.mean()) / y.std()


@cache
def zeros() -> Pair:
    """1797 handwritten digits: the 61 pixels that vary, standardised, and whether it is a zero, centred."""
    X, digit = datasets.load_digits(return_X_y=True)
    zero = (digit == 0).astype(np.float64)
    return standardised(X), zero - zero.mean()


@cache
def mixture() -> Pair:
    """Forty handwritten digits as columns of 64 pixels, and one more, to be mixed from them; in [0, 1]."""
    pictures = datasets.load_digits().data / 16.0
    return np.ascontiguousarray(pictures[1:41].T), pictures[0]


@cache
def tumours() -> Pair:
    """569 tumours: thirty measurements, standardised, and whether it is benign, as ±1."""
    X, benign = datasets.load_breast_cancer(return_X_y=True)
    return standardised(X), 2.0 * benign - 1.0


def neighbours() -> Array:
    """SᵀS of the differences S of a line of pixels."""
    steps = np.diff(np.eye(SIDE), axis=0)
    return steps.T @ steps


@cache
def picture() -> Pair:
    """A roof before the sky, grey, in [0, 1], blurred along both axes, with noise; and the blur of a line.

    The blur is the discrete Gaussian, exp(−σ²/2·SᵀS), with nothing lost at the edges; it shares its eigenvectors with
    the differences, so that the curvatures of the whole problem are known.
    """
    sharp = datasets.load_sample_image("china.jpg")[112 : 112 + SIDE, 240 : 240 + SIDE].mean(axis=2) / 255.0
    blur = expm(-(BLUR**2) / 2.0 * neighbours())
    noise = NOISE * np.random.default_rng(0).standard_normal(sharp.shape)
    return blur @ sharp @ blur.T + noise, blur
