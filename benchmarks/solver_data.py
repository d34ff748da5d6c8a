"""Load the data of the solvers' cases: the data sets that are packaged with scikit-learn, without a download."""

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import expm
from sklearn import datasets

Array = npt.NDArray[np.float64]

Pair = tuple[Array, Array]

SIDE, BLUR, NOISE = 96, 1.5, 0.01
"""The pixels along one side of the picture, the standard deviation of its blur in pixels, and that of its noise."""


def standardised(X: Array) -> Array:
    """Return the columns with mean 0 and variance 1, without constant ones, as three pixels of the digits are."""
    X = X[:, X.std(axis=0) > 0.0]
    return np.ascontiguousarray((X - X.mean(axis=0)) / X.std(axis=0))


@cache
def diabetes() -> Pair:
    """Return ten measurements of 442 patients, and the progression of their illness after a year, all standardised."""
    X, y = datasets.load_diabetes(return_X_y=True)
    return standardised(X), (y - y.mean()) / y.std()


@cache
def zeros() -> Pair:
    """Return the 61 varying pixels of 1797 handwritten digits, standardised, and whether each is a zero, centred."""
    X, digit = datasets.load_digits(return_X_y=True)
    zero = (digit == 0).astype(np.float64)
    return standardised(X), zero - zero.mean()


@cache
def mixture() -> Pair:
    """Return 40 handwritten digits as columns of 64 pixels in [0, 1], and one more digit to be composed from them."""
    pictures = datasets.load_digits().data / 16.0
    return np.ascontiguousarray(pictures[1:41].T), pictures[0]


@cache
def tumours() -> Pair:
    """Return 30 measurements of 569 tumours, standardised, and 1 for each benign tumour and −1 for each other one."""
    X, benign = datasets.load_breast_cancer(return_X_y=True)
    return standardised(X), 2.0 * benign - 1.0


def squared_differences() -> Array:
    """Return SᵀS, in which S takes the differences between neighbouring pixels of a line."""
    differences = np.diff(np.eye(SIDE), axis=0)
    return differences.T @ differences


@cache
def picture() -> Pair:
    """Return a blurred grey picture in [0, 1] with noise, which shows a roof before the sky, and the blur of one line.

    The picture is blurred along both axes by the discrete Gaussian exp(−σ²/2·SᵀS), which loses nothing at the edges.
    The blur and SᵀS have the same eigenvectors, so that the curvatures of the whole problem are known.
    """
    sharp = datasets.load_sample_image("china.jpg")[112 : 112 + SIDE, 240 : 240 + SIDE].mean(axis=2) / 255.0
    blur = expm(-(BLUR**2) / 2.0 * squared_differences())
    noise = NOISE * np.random.default_rng(0).standard_normal(sharp.shape)
    return blur @ sharp @ blur.T + noise, blur
