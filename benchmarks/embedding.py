"""Measure updates inside code that a user compiles with Numba; each goal is a ratio of two times."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

import fastmomentum as fm
from benchmarks.timing import alternate

Array32 = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

LR, MOMENTUM = 0.1, 0.9
SMALL, LARGE = 10_000, 16_000_000

FUSED_STEPS = 64
"""The number of steps in one call of a fused kernel's `run`."""

STEPS = 20_000
"""The number of steps of the minimiser, so great that the time of its start does not matter."""

Contenders = dict[str, Callable[[], object]]


class Goal(NamedTuple):
    """Hold a ratio of the contenders' seconds, and its greatest or least value that meets the goal.

    Attributes
    ----------
    name : str
        The name of the ratio.
    make : callable
        ``make(smoke)`` returns the contenders.
    ratio : callable
        ``ratio(seconds)`` returns the ratio from the seconds of the contenders by name.
    aim : float
        The least value that meets the goal, or the greatest if `is_upper_limit`.
    is_upper_limit : bool
        Whether smaller ratios are better.
    """

    name: str
    make: Callable[[bool], Contenders]
    ratio: Callable[[dict[str, float]], float]
    aim: float
    is_upper_limit: bool = False

    def met(self, value: float) -> bool:
        """Return whether the value meets the goal."""
        return value <= self.aim if self.is_upper_limit else value >= self.aim


pytorch = fm.jit.pytorch


@njit(error_model="numpy")
def update_by_hand(p: Array32, v: Array32, g: Array32, lr: np.float32, mu: np.float32) -> None:
    """Do one update of the rule "pytorch", with the formula written in the loop."""
    for i in range(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] = p[i] - lr * v[i]


@njit(error_model="numpy")
def update_by_rule(p: Array32, v: Array32, g: Array32, lr: np.float32, mu: np.float32, keep: np.float32) -> None:
    """Do one update of the rule "pytorch", by a call of its scalar function."""
    for i in range(p.size):
        p[i], v[i] = pytorch(p[i], v[i], g[i], lr, mu, keep)


def gradient(p: np.float32, h: np.float32, b: np.float32) -> np.float32:
    """Return hp − b, the gradient of ½hp² − bp, for one element."""
    return h * p - b


@njit(error_model="numpy")
def write_gradient(g: Array32, p: Array32, h: Array32, b: Array32) -> None:
    """Write hp − b to g, for all elements."""
    for i in range(p.size):
        g[i] = h[i] * p[i] - b[i]


@njit
def quadratic(x: Array64, A: Array64, b: Array64) -> float:
    """Return ½xᵀAx − bᵀx."""
    value: float = 0.5 * np.dot(x, np.dot(A, x)) - np.dot(b, x)
    return value


@njit
def quadratic_gradient(x: Array64, A: Array64, b: Array64) -> Array64:
    """Return Ax − b."""
    grad: Array64 = np.dot(A, x) - b
    return grad


@njit(error_model="numpy")
def repeat_gradient(x: Array64, A: Array64, b: Array64, times: int) -> Array64:
    """Compute the gradient as many times as a minimiser of `times` steps does, and nothing else."""
    for _ in range(times):
        x = quadratic_gradient(x, A, b) * 0.0
    return x


def make_arrays(count: int, size: int) -> list[Array32]:
    """Return `count` arrays of random float32 in [0, 1)."""
    rng = np.random.default_rng(0)
    return [rng.random(size, dtype=np.float32) for _ in range(count)]


def compiled_loops(smoke: bool) -> Contenders:
    """Return a user's compiled loop with the formula written by hand, and one that calls the rule's function."""
    p, v, g = make_arrays(3, SMALL)
    hyper = fm.jit.hyper("pytorch", np.float32, lr=LR, momentum=MOMENTUM)
    return {
        "by hand": partial(update_by_hand, p, v, g, *hyper[:2]),
        "by rule": partial(update_by_rule, p, v, g, *hyper),
    }


def fused_gradient(smoke: bool) -> Contenders:
    """Return a pass for the gradient with an update after it, one step that fuses both, and a run of fused steps."""
    p, v, h, b, g = make_arrays(5, SMALL if smoke else LARGE)
    hyper = fm.jit.hyper("pytorch", np.float32, lr=LR, momentum=MOMENTUM)
    fused = fm.jit.fuse(gradient, "pytorch")

    def two_passes() -> None:
        write_gradient(g, p, h, b)
        fm.step(p, v, g, lr=LR, momentum=MOMENTUM)

    return {
        "two passes": two_passes,
        "fused step": partial(fused.step, p, v, h, b, *hyper),
        "fused run": partial(fused.run, FUSED_STEPS, p, v, h, b, *hyper),
    }


def minimiser(smoke: bool) -> Contenders:
    """Return fm.minimize and its gradients alone, compiled; and fm.minimize and a loop of NumPy in Python.

    All take the same steps of heavy ball on a quadratic of 100 dimensions.
    """
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    A, b, x = (vectors * np.geomspace(1e-3, 1.0, 100)) @ vectors.T, rng.standard_normal(100), np.zeros(100)
    A = np.ascontiguousarray((A + A.T) / 2.0)
    settings: dict[str, Any] = {"rule": "heavy_ball", "lr": 1.0, "momentum": MOMENTUM, "gtol": 0.0, "maxiter": STEPS}

    def loop_in_python() -> Array64:
        p = q = x
        for _ in range(STEPS):
            g = quadratic_gradient(p, A, b)
            if np.abs(g).max() <= 0.0:
                break
            p, q = p - 1.0 * g + MOMENTUM * (p - q), p
        return p

    return {
        "minimiser": lambda: fm.minimize(quadratic, x, (A, b), jac=quadratic_gradient, **settings),
        "gradients": partial(repeat_gradient, x, A, b, STEPS),
        "loop in Python": loop_in_python,
        "minimiser in Python": lambda: fm.minimize(
            quadratic.py_func, x, (A, b), jac=quadratic_gradient.py_func, **settings
        ),
    }


def added_time(name: str) -> Callable[[dict[str, float]], float]:
    """Return the function for a contender's time over the minimiser's, each minus the time of the gradients."""
    return lambda s: (s[name] - s["gradients"]) / (s["minimiser"] - s["gradients"])


GOALS = [
    Goal(
        "a compiled loop written by hand, over one that calls fm.jit.pytorch",
        compiled_loops,
        lambda s: s["by hand"] / s["by rule"],
        0.95,
    ),
    Goal(
        "a pass for the gradient and fm.step, over a step of fm.jit.fuse, n = 16,000,000",
        fused_gradient,
        lambda s: s["two passes"] / s["fused step"],
        1.15,
    ),
    Goal(
        "a pass for the gradient and fm.step, over a step in a run of fm.jit.fuse, n = 16,000,000",
        fused_gradient,
        lambda s: s["two passes"] / s["fused run"] * FUSED_STEPS,
        10.0,
    ),
    Goal(
        "a step of fm.minimize, over its gradient alone, n = 100",
        minimiser,
        lambda s: s["minimiser"] / s["gradients"],
        1.5,
        True,
    ),
    Goal(
        "fm.minimize with fun and jac in Python, over compiled ones, each minus the compiled gradients, n = 100",
        minimiser,
        added_time("minimiser in Python"),
        20.0,
    ),
    Goal(
        "a loop of NumPy in Python, over compiled fm.minimize, each minus the compiled gradients, n = 100",
        minimiser,
        added_time("loop in Python"),
        20.0,
    ),
]


def measure_goals(rounds: int, smoke: bool) -> list[dict[str, Any]]:
    """Measure every goal, and return the entries for the record; goals with the same contenders share their times."""
    seconds: dict[Callable[[bool], Contenders], dict[str, float]] = {}
    found = []
    for goal in GOALS:
        if goal.make not in seconds:
            seconds[goal.make] = alternate(goal.make(smoke), rounds)
        value = goal.ratio(seconds[goal.make])
        entry = {"name": goal.name, "value": value, "aim": goal.aim, "most": goal.is_upper_limit}
        found.append(entry | {"met": goal.met(value)})
    return found


def goal_table(found: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of the entries that :func:`measure_goals` returned."""
    lines = ["| ratio of seconds | measured | goal |", "|---|---|---|"]
    for each in found:
        goal = f"{'≤' if each['most'] else '≥'} {each['aim']:g}{'' if each['met'] else ' (missed)'}"
        lines.append(f"| {each['name']} | {each['value']:.3g} × | {goal} |")
    return lines
