"""Predict how fast momentum methods converge.

Iteration matrices are computed by the functions of the rules that the kernels run, so the theory describes that code.

A rate is exact on quadratics, where a run is the sum of its responses at every eigenvalue of the Hessian; on other
smooth functions it holds near the minimum. A rate says how fast the error falls after many steps, not how large the
error is: at critical damping, where the optimal tunings lie, the error goes like t·ρ^t. :func:`iterations` and
:func:`certificate` account for this growth.
"""

from fastmomentum.schedules.sequences import Chebyshev
from fastmomentum.theory.iterations import certificate, iterations
from fastmomentum.theory.noise import (
    bias_corrected,
    effective_window,
    ema_weights,
    stationary_variance,
    terminal_velocity,
)
from fastmomentum.theory.ode import Motion, TwoStep, ball, motion, two_step
from fastmomentum.theory.rates import (
    Peak,
    iteration_matrix,
    regime,
    response,
    spectral_radius,
    transient,
    transient_peak,
)
from fastmomentum.theory.spectrum import Spectrum, Tuned, spectrum, tune
from fastmomentum.theory.tuning import Tuning, max_stable_lr, optimal, standard

__all__ = [
    "Chebyshev",
    "Motion",
    "Peak",
    "Spectrum",
    "Tuned",
    "Tuning",
    "TwoStep",
    "ball",
    "bias_corrected",
    "certificate",
    "effective_window",
    "ema_weights",
    "iteration_matrix",
    "iterations",
    "max_stable_lr",
    "motion",
    "optimal",
    "regime",
    "response",
    "spectral_radius",
    "spectrum",
    "standard",
    "stationary_variance",
    "terminal_velocity",
    "transient",
    "transient_peak",
    "tune",
    "two_step",
]
