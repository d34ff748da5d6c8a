"""What updates cost inside other people's compiled code: sides in turn, each goal a ratio of two of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit

import fastmomentum as fm
from benchmarks.timing import alternate

LR, MOMENTUM = 0.1, 0.9
SMALL, LARGE = 10_000, 16_000_000
FUSED_STEPS = 64
STEPS = 20_000
"""Of a minimiser, so that what it does once is not seen."""

Sides = dict[str, Callable[[], object]]


class Goal(NamedTuple):
    """`over` of the seconds that sides take, by name, and what it should be."""

    name: str
    make: Callable[[bool], Sides]
    over: Callable[[dict[str, float]], float]
    aim: float
    most: bool = False

    def met(self, value: float) -> bool:
        """Whether the aim is reached."""
        return value <= self.aim if self.most else value >= self.aim


pytorch = fm.jit.pytorch


@njit(error_model="numpy")
def by_hand(p: Any, v: Any, g: Any, lr: Any, mu: Any) -> None:
    """pytorch's update as one writes it."""
    for i in range(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] = p[i] - lr * v[i]


@njit(error_model="numpy")
def by_rule(p: Any, v: Any, g: Any, lr: Any, mu: Any, keep: Any) -> None:
    """The same by the rule."""
    for i in range(p.size):
        p[i], v[i] = pytorch(p[i], v[i], g[i], lr, mu, keep)


def slope(p: Any, h: Any, b: Any) -> Any:
    """The gradient of ½hp² − bp, a coordinate."""
    return h * p - b


@njit(error_model="numpy")
def slopes(g: Any, p: Any, h: Any, b: Any) -> None:
    """The same to memory."""
    for i in range(p.size):
        g[i] = h[i] * p[i] - b[i]


@njit
def quadratic(x: Any, A: Any, b: Any) -> Any:
    """½xᵀAx − bᵀx."""
    return 0.5 * np.dot(x, np.dot(A, x)) - np.dot(b, x)


@njit
def quadratic_slope(x: Any, A: Any, b: Any) -> Any:
    """Ax − b."""
    return np.dot(A, x) - b


@njit(error_model="numpy")
def gradients(x: Any, A: Any, b: Any, times: int) -> Any:
    """The gradient alone, as often as a minimiser takes it."""
    for _ in range(times):
        x = quadratic_slope(x, A, b) * 0.0
    return x


def arrays_of(count: int, size: int) -> list[Any]:
    """Arrays of float32 in [0, 1)."""
    rng = np.random.default_rng(0)
    return [rng.random(size, dtype=np.float32) for _ in range(count)]


def inlined(smoke: bool) -> Sides:
    """A user's loop, by hand and by the rule."""
    p, v, g = arrays_of(3, SMALL)
    hyper = fm.jit.hyper("pytorch", np.float32, lr=LR, momentum=MOMENTUM)
    return {"by hand": partial(by_hand, p, v, g, *hyper[:2]), "by rule": partial(by_rule, p, v, g, *hyper)}


def fused(smoke: bool) -> Sides:
    """A gradient to memory and an update, both in one, and many of these."""
    p, v, h, b, g = arrays_of(5, SMALL if smoke else LARGE)
    hyper = fm.jit.hyper("pytorch", np.float32, lr=LR, momentum=MOMENTUM)
    made = fm.jit.fuse(slope, "pytorch")

    def apart() -> None:
        slopes(g, p, h, b)
        fm.step(p, v, g, lr=LR, momentum=MOMENTUM)

    return {
        "apart": apart,
        "fused": partial(made.step, p, v, h, b, *hyper),
        "many": partial(made.run, FUSED_STEPS, p, v, h, b, *hyper),
    }


def minimised(smoke: bool) -> Sides:
    """On 100 dimensions: the minimiser, its gradients alone, the minimiser in Python, a bare loop there by hand."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    A, b, x = (vectors * np.geomspace(1e-3, 1.0, 100)) @ vectors.T, rng.standard_normal(100), np.zeros(100)
    A = np.ascontiguousarray((A + A.T) / 2.0)
    settings: dict[str, Any] = {"rule": "heavy_ball", "lr": 1.0, "momentum": MOMENTUM, "gtol": 0.0, "maxiter": STEPS}

    def in_python() -> Any:
        p = q = x
        for _ in range(STEPS):
            g = quadratic_slope(p, A, b)
            if np.abs(g).max() <= 0.0:
                break
            p, q = p - 1.0 * g + MOMENTUM * (p - q), p
        return p

    return {
        "minimiser": lambda: fm.minimize(quadratic, x, (A, b), jac=quadratic_slope, **settings),
        "gradients": partial(gradients, x, A, b, STEPS),
        "by hand in Python": in_python,
        "in Python": lambda: fm.minimize(quadratic.py_func, x, (A, b), jac=quadratic_slope.py_func, **settings),
    }


def added(side: str) -> Callable[[dict[str, float]], float]:
    """What a step of this side adds to its gradient, over what one of the minimiser adds."""
    return lambda s: (s[side] - s["gradients"]) / (s["minimiser"] - s["gradients"])


GOALS = [
    Goal("a user's njit loop by hand over the same with fm.jit", inlined, lambda s: s["by hand"] / s["by rule"], 0.95),
    Goal("gradient, then step, over fuse, n = 16,000,000", fused, lambda s: s["apart"] / s["fused"], 1.15),
    Goal("the same over a step of fuse's run", fused, lambda s: s["apart"] / s["many"] * FUSED_STEPS, 10.0),
    Goal(
        "a step of the minimiser over its gradient, n = 100",
        minimised,
        lambda s: s["minimiser"] / s["gradients"],
        1.5,
        True,
    ),
    Goal(
        "what a step adds to its gradient where fun and jac are Python's, over compiled",
        minimised,
        added("in Python"),
        20.0,
    ),
    Goal("the same, in a bare loop of NumPy by hand", minimised, added("by hand in Python"), 20.0),
]


def ratios(rounds: int, smoke: bool) -> list[dict[str, Any]]:
    """Every goal, measured; goals of the same sides by one measurement."""
    seconds: dict[Any, dict[str, float]] = {}
    found = []
    for goal in GOALS:
        if goal.make not in seconds:
            seconds[goal.make] = alternate(goal.make(smoke), rounds)
        value = goal.over(seconds[goal.make])
        found.append({"name": goal.name, "value": value, "aim": goal.aim, "most": goal.most, "met": goal.met(value)})
    return found


def goals(found: list[dict[str, Any]]) -> list[str]:
    """A table of them."""
    lines = ["| aimed at | measured | aim |", "|---|---|---|"]
    for each in found:
        aim = f"{'≤' if each['most'] else '≥'} {each['aim']:g}{'' if each['met'] else ' (missed)'}"
        lines.append(f"| {each['name']} | {each['value']:.3g} × | {aim} |")
    return lines
