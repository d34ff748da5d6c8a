"""Validate the rate over the (αh, μ) plane, and the growth at critical damping.

Every point of the plane is a run of the compiled kernels on ½hx². At critical damping the error is not O(ρ^t): it
decreases as t·ρ^t.
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

MAX_AH = 4.5
"""The greatest αh; every rule diverges from αh = 4 on."""

BATCH = 16
"""The number of momenta that are run at a time, so that their arrays stay in the cache."""

MIN_DISTANCE, MIN_LOG_RATE = 1e-3, 1e-3
"""The relative distance from critical damping, and the |log ρ|, beyond which the log-rate of a point is compared."""

TOPIC = "log ρ over the (αh, μ) plane, by rule and regime"

MIN_SIGN = 1e-6
"""The |log ρ| beyond which the sign of a log-rate, which is convergence or divergence, is compared."""


class Plane(NamedTuple):
    """Hold the predicted and measured log-rates of one rule over the plane.

    Attributes
    ----------
    rule : str
        The name of the rule.
    ah : ndarray of shape (n,)
        The effective learning rate times the curvature, αh.
    mu : ndarray of shape (m,)
        The momentum μ.
    predicted, measured : ndarray of shape (m, n)
        log ρ, per step.
    flips : ndarray of shape (m, n)
        The number of sign changes of the error per step, in the last quarter of the run.
    regime : ndarray of shape (m, n)
        The regime by the theory.
    """

    rule: str
    ah: Floats
    mu: Floats
    predicted: Floats
    measured: Floats
    flips: Floats
    regime: npt.NDArray[np.str_]

    @property
    def off_critical(self) -> npt.NDArray[np.bool_]:
        """True for the points that are not near critical damping, where the measured rate converges only as 1/t."""
        with np.errstate(divide="ignore"):
            distance = np.abs(self.mu[:, None] / formulas.critical_momentum(self.rule, self.ah) - 1.0)
        return np.greater(distance, MIN_DISTANCE)

    @property
    def error(self) -> Floats:
        """The relative errors of the measured log-rates."""
        return np.abs(self.measured / self.predicted - 1.0)


def grid(momenta: int, curvatures: int) -> tuple[Floats, Floats]:
    """Return μ in (0, 1) and αh in (0, 4.5), at the middles of this many cells."""
    return (np.arange(momenta) + 0.5) / momenta, (np.arange(curvatures) + 0.5) / curvatures * MAX_AH


def measure(rule: str, mu: Floats, ah: Floats, steps: int) -> Plane:
    """Run `rule` on every point of the plane: each momentum has an array, with one curvature per coordinate."""
    mu = np.zeros(1) if rule == "sgd" else mu
    lr = 1.0 / formulas.lr_factor(rule, mu)  # so that lr·factor = α = 1, and αh = h
    measured, flips = np.empty((2, mu.size, ah.size))
    for start in range(0, mu.size, BATCH):
        part = slice(start, start + BATCH)
        measured[part], flips[part] = log_rates(rule, lr[part], mu[part], ah, steps)
    settings = lr[:, None], mu[:, None], ah
    radius = theory.spectral_radius(*settings, rule=rule)
    return Plane(rule, ah, mu, np.log(radius), measured, flips, theory.regime(*settings, rule=rule))


def log_rates(rule: str, lr: Floats, mu: Floats, h: Floats, steps: int) -> tuple[Floats, Floats]:
    """Return the slope of log‖(e_t, e_{t−1})‖ per step, and the sign changes of the error per step at the end.

    The slope is a weighted mean of the increments. With the smooth weights exp(−1/(x(1 − x))) over the run, the mean
    of an oscillation vanishes faster than any power of `steps`. Error and state are scaled to about 1 after each step
    by powers of two, which is exact.
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
"""The least and the greatest number of sign changes per step in each regime."""


def rows(plane: Plane, worst: float = 1e-3, median: float = 1e-12) -> Iterator[Row]:
    """Compare the measured log-rates, signs and regimes of one rule with the theory and the published polynomials."""
    at = plane.off_critical & (np.abs(plane.predicted) > MIN_LOG_RATE)
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
    what = f"regimes by the error's signs, {plane.rule}: wrong points"
    yield _count_row(what, wrong, "monotone, alternating or oscillating (wrong points)")
    wrong = int((plane.regime[plane.predicted > MIN_SIGN] != "divergent").sum())
    wrong += int((plane.regime[plane.predicted < -MIN_SIGN] == "divergent").sum())
    what = f"divergent by regime and by rate, {plane.rule}: points that disagree"
    yield Row(
        what, 0.0, float(wrong), float(wrong), 0.0, what, "divergent by regime and by rate (points that disagree)"
    )
    published = formulas.radius(plane.rule, plane.ah, plane.mu[:, None])
    off = np.where(plane.off_critical, np.abs(np.exp(plane.predicted) / published - 1.0), 0.0)
    k = np.unravel_index(off.argmax(), off.shape)
    figures = float(published[k]), float(np.exp(plane.predicted[k])), float(off[k])
    what = f"ρ over the plane, against the published polynomial, {plane.rule}"
    yield Row(what, *figures, 1e-9, what, "ρ over the (αh, μ) plane, against the published polynomials (relative)")
    certain = np.abs(plane.predicted) > MIN_SIGN
    wrong = int((certain & (np.sign(plane.predicted) != np.sign(plane.measured))).sum())
    what = f"converges or not, {plane.rule}, {int(certain.sum()):,} points: wrong ones"
    yield _count_row(what, wrong, "converging or diverging over the (αh, μ) plane (wrong points)")


def _count_row(what: str, wrong: int, topic: str) -> Row:
    """Return a row that holds if no point is wrong."""
    return Row(what, 0.0, float(wrong), float(wrong), 0.0, what, topic)


RATE = 0.9
"""The spectral radius ρ of all runs at critical damping; the momentum of heavy ball is its square, 0.81."""

GROWTH = "growth exponent of ‖e_t‖/ρ^t: 1 at critical damping, 0 elsewhere (absolute)"

LR = (1.0 - RATE) ** 2
MOMENTA = {"heavy_ball": RATE**2, "pytorch": RATE**2, "ema": RATE**2, "nesterov_positions": RATE / (2.0 - RATE)}
"""The momenta of critical damping at the effective learning rate LR and h = 1.

(1 − √(αh))² for heavy ball, (1 − √(αh))/(1 + √(αh)) for Nesterov's method
"""


class Trajectory(NamedTuple):
    """Hold log₂ of a norm after every step, from t = 1 on; the norm itself may be out of the range of float64."""

    logs: Floats

    def over(self, rate: float) -> Floats:
        """Return the norm divided by rate^t, for every t."""
        ratio: Floats = np.exp2(self.logs - np.log2(rate) * np.arange(1, self.logs.size + 1))
        return ratio


def run(rule: str, lr: float, momentum: float, steps: int) -> Trajectory:
    """Return ‖(e_t, e_{t−1})‖ of a run on ½x² with velocity 0 at the start."""
    error = np.ones(1)
    opt = fm.Momentum(error, rule=rule, lr=lr, momentum=momentum)
    return _follow(opt, error, steps, lambda before: float(np.hypot(error[0], before[0])))


def powers(lr: float, momentum: float, steps: int) -> Trajectory:
    """Return ‖A^t‖₂ of heavy ball on ½x², whose columns are runs from (e_t, e_{t−1}) = (1, 0) and (0, 1)."""
    error = np.array([1.0, 0.0])
    opt = fm.Momentum(error, rule="heavy_ball", lr=lr, momentum=momentum)
    opt.state[...] = error[::-1]
    return _follow(opt, error, steps, lambda before: float(np.linalg.norm([error, opt.state], 2)))


def _follow(opt: fm.Momentum, error: Floats, steps: int, size: Callable[[Floats], float]) -> Trajectory:
    """Run the optimiser on ½x², and scale error and state to about 1 after each step by a power of two."""
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
    """Compare the growth of ‖e_t‖/ρ^t, ‖A^t‖ and Gelfand's limit with the theory, at critical damping and elsewhere."""
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
    yield from _power_rows(powers(LR, momentum, steps), momentum, steps)


def _power_rows(measured: Trajectory, momentum: float, steps: int) -> Iterator[Row]:
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
    # ‖A^t‖ is about 2tρ^t here, so that its t-th root exceeds ρ by the factor (2t)^(1/t).
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
    what = f"greatest ‖A^t‖/r^t at r = {certified:g}, and the certificate's constant, its bound"
    topic = "greatest ‖A^t‖/r^t there (over the certificate's constant)"
    yield Row(what, constant, most, most / constant, 1.0, what, topic)
    what = f"the certificate's constant at r = {certified:g}, and the greatest ‖A^t‖/r^t"
    topic = "the certificate's constant there (over the greatest ‖A^t‖/r^t)"
    yield Row(what, most, constant, constant / most, 10.0, what, topic)
