"""The whole (αh, μ) plane: the rate of every point measured on the compiled kernels.

Critical damping, where the sentence ‖e_t‖ = O(ρ^t) is false: what is true there, measured.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import fastmomentum as fm
from fastmomentum import theory
from fastmomentum.cli.validation import formulas
from fastmomentum.cli.validation.formulas import Row, relative

Floats = npt.NDArray[np.float64]

WIDEST = 4.5
"""The greatest αh: beyond where the last heavy ball diverges, at 4."""

TOGETHER = 16
"""Momenta run at a time: few enough for their arrays to stay in the cache."""

AWAY, MOVES = 1e-3, 1e-3
"""How far, relatively, a point lies from critical damping, and |log ρ| from 0, where its log-rate must be right."""

TOPIC = "log ρ over the (αh, μ) plane, by rule and regime"

TOLD = 1e-6
"""|log ρ| from which on convergence and divergence must be told apart."""


class Plane(NamedTuple):
    """Log-rates of one rule over the plane, of shape (momenta, learning rates times curvature).

    `flips` is how often, per step, the error changed its sign in the last quarter of the run.
    """

    rule: str
    ah: Floats
    mu: Floats
    predicted: Floats
    measured: Floats
    flips: Floats
    regime: npt.NDArray[np.str_]

    @property
    def away(self) -> npt.NDArray[np.bool_]:
        """Which points lie away from critical damping: at it, the rate is approached like 1/t only."""
        with np.errstate(divide="ignore"):
            return np.abs(self.mu[:, None] / formulas.critical(self.rule, self.ah) - 1.0) > AWAY

    @property
    def error(self) -> Floats:
        """Of the measured log-rates, relative."""
        return np.abs(self.measured / self.predicted - 1.0)


def grid(momenta: int, curvatures: int) -> tuple[Floats, Floats]:
    """μ in (0, 1) and αh in (0, 4.5), in the middle of so many cells."""
    return (np.arange(momenta) + 0.5) / momenta, (np.arange(curvatures) + 0.5) / curvatures * WIDEST


def measure(rule: str, mu: Floats, ah: Floats, steps: int) -> Plane:
    """Run `rule` over the plane, one array a momentum and one curvature a coordinate, and compare the rates."""
    mu = np.zeros(1) if rule == "sgd" else mu
    lr = 1.0 / formulas.effective(rule, mu)  # αh on the plane is the effective one
    measured, flips = np.empty((2, mu.size, ah.size))
    for start in range(0, mu.size, TOGETHER):
        part = slice(start, start + TOGETHER)
        measured[part], flips[part] = log_rates(rule, lr[part], mu[part], ah, steps)
    settings = lr[:, None], mu[:, None], ah
    radius = theory.spectral_radius(*settings, rule=rule)
    return Plane(rule, ah, mu, np.log(radius), measured, flips, theory.regime(*settings, rule=rule))


def log_rates(rule: str, lr: Floats, mu: Floats, h: Floats, steps: int) -> tuple[Floats, Floats]:
    """The rates, per step, at which log‖(e_t, e_{t−1})‖ moves, and how often the error changes its sign in the end.

    The rate is the increments' mean under smooth weights.

    The weights exp(−1/(x(1 − x))) over the run make the mean of an oscillation vanish faster than any power of `steps`.
    After each step error and state are brought back to about 1 by powers of two, which changes no digit.
    """
    error = np.ones((mu.size, h.size))
    grad, before, size, power = (np.empty_like(error) for _ in range(4))
    groups = [{"params": row, "lr": a, "momentum": b} for row, a, b in zip(error, lr, mu)]
    opt = fm.Momentum(groups, rule=rule, lr=1.0)
    rows = list(grad)
    states = [] if opt.state[0] is None else opt.state
    x = (np.arange(1, steps) / steps).astype(np.float64)
    weights = np.exp(-1.0 / (x * (1.0 - x)))
    change = -np.diff(weights / weights.sum(), prepend=0.0, append=0.0)
    doublings, total, flips = (np.zeros_like(error) for _ in range(3))
    for t, factor in enumerate(change):
        np.copyto(before, error)
        np.multiply(error, h, out=grad)
        opt.step(rows)
        np.multiply(error, error, out=size)
        size += np.multiply(before, before, out=power)
        _, exponent = np.frexp(size)
        exponent //= 2
        np.ldexp(error, -exponent, out=error)
        for state, shift in zip(states, exponent):
            np.ldexp(state, -shift, out=state)
        np.log(size, out=size)
        size *= 0.5
        size += np.multiply(doublings, np.log(2.0), out=power)
        doublings += exponent
        total += np.multiply(size, factor, out=size)
        if 4 * t >= 3 * steps:
            flips += (error < 0.0) != (before < 0.0)
    return total, flips / (steps - -(-3 * steps // 4))


FLIPS = {"monotone": (0.0, 0.0), "alternating": (1.0, 1.0), "oscillating": (1e-9, 1.0 - 1e-9)}
"""How often, per step, the error may change its sign in each regime."""


def rows(plane: Plane, worst: float = 1e-3, median: float = 1e-12) -> Iterator[Row]:
    """What the plane of one rule shows."""
    at = plane.away & (np.abs(plane.predicted) > MOVES)
    for regime in np.unique(plane.regime[at]):
        error = np.where(at & (plane.regime == regime), plane.error, np.nan)
        k = np.unravel_index(np.nanargmax(error), error.shape)
        count = int(np.isfinite(error).sum())
        what = f"log ρ, {plane.rule}, {regime}, {count:,} points"
        at_worst = float(plane.predicted[k]), float(plane.measured[k]), float(error[k])
        yield Row(f"{what}: worst", *at_worst, worst, f"{what}: worst", f"{TOPIC}, worst point (relative)")
        middle = float(np.nanmedian(error))
        yield Row(
            f"{what}: median", 0.0, middle, middle, median, f"{what}: median", f"{TOPIC}, median point (relative)"
        )
    wrong = 0
    for regime, (least, most) in FLIPS.items():
        here = at & (plane.regime == regime)
        wrong += int((here & ((plane.flips < least) | (plane.flips > most))).sum())
    what = f"regimes by the error's signs, {plane.rule}: told wrongly"
    yield Row(
        what, 0.0, float(wrong), float(wrong), 0.0, what, "monotone, alternating or oscillating (points told wrongly)"
    )
    wrong = int((plane.regime[plane.predicted > TOLD] != "divergent").sum())
    wrong += int((plane.regime[plane.predicted < -TOLD] == "divergent").sum())
    what = f"divergent by regime and by rate, {plane.rule}: at odds"
    yield Row(what, 0.0, float(wrong), float(wrong), 0.0, what, "divergent by regime and by rate (points at odds)")
    printed = formulas.radius(plane.rule, plane.ah, plane.mu[:, None])
    off = np.where(plane.away, np.abs(np.exp(plane.predicted) / printed - 1.0), 0.0)
    k = np.unravel_index(off.argmax(), off.shape)
    figures = float(printed[k]), float(np.exp(plane.predicted[k])), float(off[k])
    what = f"ρ over the plane, against the printed polynomial, {plane.rule}"
    yield Row(what, *figures, 1e-9, what, "ρ over that plane, against the printed polynomials (relative)")
    told = np.abs(plane.predicted) > TOLD
    wrong = int((told & (np.sign(plane.predicted) != np.sign(plane.measured))).sum())
    what = f"converges or not, {plane.rule}, {int(told.sum()):,} points: told wrongly"
    yield Row(
        what,
        0.0,
        float(wrong),
        float(wrong),
        0.0,
        what,
        "converging or diverging over that plane (points told wrongly)",
    )


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


def critical_rows(steps: int = 1 << 15) -> Iterator[Row]:
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
