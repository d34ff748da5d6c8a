"""Critical damping, where the sentence ‖e_t‖ = O(ρ^t) is false: what is true there, measured."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.validation.rows import Row, relative

Floats = npt.NDArray[np.float64]

RATE = 0.9
"""ρ of all runs here: the momentum of heavy ball is its square, 0.81."""

GROWTH = "growth exponent of ‖e_t‖/ρ^t: 1 at critical damping, 0 beside it (absolute)"

LR = (1.0 - RATE) ** 2
MOMENTA = {"heavy_ball": RATE**2, "pytorch": RATE**2, "ema": RATE**2, "nesterov_positions": RATE / (2.0 - RATE)}
"""Critical damping at the effective learning rate LR and h = 1: (1 − √(αh))², and (1 − √(αh))/(1 + √(αh))."""


class Trajectory(NamedTuple):
    """log₂ of the size of (e_t, e_{t−1}) after every step, from t = 1 on, beyond what double precision holds."""

    logs: Floats

    def over(self, rate: float) -> Floats:
        """What is left over rate^t."""
        left: Floats = np.exp2(self.logs - np.log2(rate) * np.arange(1, self.logs.size + 1))
        return left


def run(rule: str, lr: float, momentum: float, steps: int) -> Trajectory:
    """‖(e_t, e_{t−1})‖ from rest on ½x²."""
    error = np.ones(1)
    opt = fm.Momentum(error, rule=rule, lr=lr, momentum=momentum)
    return _follow(opt, error, steps, lambda before: float(np.hypot(error[0], before[0])))


def powers(lr: float, momentum: float, steps: int) -> Trajectory:
    """‖A^t‖₂ on ½x², A^t by running heavy ball from (e_t, e_{t−1}) = (1, 0) and (0, 1)."""
    error = np.array([1.0, 0.0])
    opt = fm.Momentum(error, rule="heavy_ball", lr=lr, momentum=momentum)
    opt.state[...] = error[::-1]
    return _follow(opt, error, steps, lambda before: float(np.linalg.norm([error, opt.state], 2)))


def _follow(opt: fm.Momentum, error: Floats, steps: int, size: Callable[[Floats], float]) -> Trajectory:
    """After each step error and state are brought back to about 1 by a power of two, which changes no digit."""
    logs, doublings = np.empty(steps), 0
    for t in range(steps):
        before = error.copy()
        opt.step(before)
        now = size(before)
        shift = int(np.frexp(now)[1])
        logs[t] = np.log2(now) + doublings
        doublings += shift
        for array in (error, opt.state):
            np.ldexp(array, -shift, out=array)
    return Trajectory(logs)


def rows(steps: int = 1 << 15) -> Iterator[Row]:
    """The growth exponent of ‖e_t‖/ρ^t at critical damping and beside it; ‖A^t‖, and Gelfand's limit of it."""
    for rule, momentum in MOMENTA.items():
        lr = LR / (1.0 - momentum) if rule == "ema" else LR
        over = run(rule, lr, momentum, steps).over(RATE)
        exponent = float(np.log2(over[-1] / over[steps // 2 - 1]))
        what = f"‖e_t‖/ρ^t grows like t^…, critical damping, {rule}"
        yield Row(what, 1.0, exponent, abs(exponent - 1.0), 20.0 / steps, what, GROWTH)
    momentum = MOMENTA["heavy_ball"]
    over = run("heavy_ball", 2.0 * LR, momentum, steps).over(RATE)
    exponent = float(np.log2(over[steps // 2 :].max() / over[: steps // 2].max()))
    what = "‖e_t‖/ρ^t grows like t^…, lr twice as large, heavy_ball"
    yield Row(what, 0.0, exponent, abs(exponent), 1e-3, what, GROWTH)
    yield from _of_powers(powers(LR, momentum, steps), momentum, steps)


def _of_powers(measured: Trajectory, momentum: float, steps: int) -> Iterator[Row]:
    for t in (1, 10, 100, 1000):
        norm = float(np.exp2(measured.logs[t - 1]))
        predicted = float(theory.transient(LR, momentum, 1.0, t, rule="heavy_ball"))
        yield relative(
            f"‖A^t‖, critical damping, t = {t}",
            predicted,
            norm,
            1e-9,
            "‖A^t‖, critical damping",
            "‖A^t‖ at critical damping (relative)",
        )
    root = float(np.exp2(measured.logs[-1] / steps))
    # ‖A^t‖ is about 2tρ^t here, and the t-th root of 2t is what separates it from the limit.
    what = f"‖A^t‖^(1/t) → ρ (Gelfand), t = {steps:,}"
    yield Row(
        what,
        RATE,
        root,
        abs(root - RATE),
        float((2.1 * steps) ** (1.0 / steps)) - 1.0,
        what,
        "Gelfand's limit ‖A^t‖^(1/t) → ρ there (absolute)",
    )
    certified = RATE + 0.1 * (1.0 - RATE)
    constant = theory.certificate(LR, momentum, [1.0], certified, rule="heavy_ball")
    most = float(measured.over(certified).max())
    what = f"largest ‖A^t‖/r^t at r = {certified:g}, at most the certificate's constant"
    topic = "largest ‖A^t‖/r^t there (over the certificate's constant)"
    yield Row(what, constant, most, most / constant, 1.0, what, topic)
    what = f"the certificate's constant at r = {certified:g}, at most ten times what it bounds"
    yield Row(
        what, most, constant, constant / most, 10.0, what, "the certificate's constant there (over what it bounds)"
    )
