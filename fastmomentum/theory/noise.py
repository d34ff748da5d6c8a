"""Where noise in the gradient keeps a run from settling."""

from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.ranges import AT_LEAST_ZERO
from fastmomentum.records import Update
from fastmomentum.theory.linear import read
from fastmomentum.theory.lyapunov import lyapunov
from fastmomentum.theory.rates import ROUNDING, eigenvalues


def stationary_variance(
    lr: Any, momentum: Any, curvature: Any, noise_variance: Any, *, rule: str | Update, **hyper: Any
) -> Any:
    """The variance of p about p* that independent noise of variance σ² in every gradient keeps up; it broadcasts.

    The (0, 0) entry of X = AXAᵀ + σ²bbᵀ, where b is the rule applied to p = 0, state 0 and g = 1. For heavy ball
    ασ²(1 + μ) / (h(1 − μ)(2(1 + μ) − αh)).

    Parameters
    ----------
    lr, momentum, curvature, rule, **hyper
        As :func:`iteration_matrix` takes them.
    noise_variance : array_like
        σ² ≥ 0, in the gradient's units squared.

    Returns
    -------
    float64 or ndarray of float64
        inf where ρ ≥ 1, and no state is stationary, unless there is no noise.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the rule is not linear.

    Notes
    -----
    Momentum averages the gradient's noise, but not for nothing: at the same effective learning rate α/(1 − μ) a small
    step's variance is that of gradient descent, ασ²/(2h(1 − μ)), whatever μ is.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> round(fm.theory.stationary_variance(0.1, 0.9, 2.0, 1.0, rule="pytorch"), 6)
    np.float64(0.263889)
    """
    map = read(rule, lr, momentum, curvature, hyper)
    variance = checks.numbers("noise_variance", noise_variance, AT_LEAST_ZERO)
    settles = np.abs(eigenvalues(map)[..., 0]) < 1.0 - ROUNDING
    found = np.full(map.shape, np.inf)
    b = map.noise[settles]
    found[settles] = lyapunov(map.matrix[settles].swapaxes(-2, -1), b[:, :, None] * b[:, None, :])[:, 0, 0]
    with np.errstate(invalid="ignore"):
        return np.where(variance == 0.0, 0.0, found * variance)[()]
