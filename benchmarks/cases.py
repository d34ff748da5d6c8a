"""What is measured: every case is its sides, and the bytes that one update moves."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from benchmarks import shapes
from benchmarks.contenders import LR, MOMENTUM, OURS, Side, arrays, many, one
from fastmomentum import backends, theory

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 16_000_000, 64_000_000, 100_000_000)
SMOKE_SIZES = (100, 100_000)
UPDATE = 5
"""Elements moved for each updated: p, v and g are read, p and v written."""

NETWORKS: dict[str, Callable[[], list[shapes.Shape]]] = {
    "1,000 arrays of 100": lambda: [(100,)] * 1000,
    "1,000 arrays of 1,000": lambda: [(1000,)] * 1000,
    "ResNet-50, 161 arrays": shapes.resnet50,
    "GPT-2 small, 148 arrays": shapes.gpt2_small,
}


class Case(NamedTuple):
    """A comparison: bytes moved by one update of ours (0 where that is not the point), and how to make its sides."""

    name: str
    moved: int
    sides: Callable[[], dict[str, Side]]
    large: bool = False


def cases(threads: int, smoke: bool) -> Iterator[Case]:
    """All comparisons at this number of threads."""
    for dtype in (np.float32, np.float64):
        for size in SMOKE_SIZES if smoke else SIZES if dtype is np.float32 else SIZES[2:7:2]:
            moved = UPDATE * size * np.dtype(dtype).itemsize
            name = f"{np.dtype(dtype).name}, n = {size:,}"
            yield Case(name, moved, partial(one, size, dtype, threads), size > 10**7)
    for name, make in list(NETWORKS.items())[: 1 if smoke else None]:
        count = sum(int(np.prod(shape)) for shape in make())
        yield Case(name, UPDATE * 4 * count, partial(_network, make, threads), count > 10**7)
    size = 100_000 if smoke else 16_000_000
    yield Case(f"options, n = {size:,}", UPDATE * 4 * size, partial(options, size, threads), size > 10**7)
    if threads == 1:
        yield Case("overhead, n = 100", 0, partial(overhead, 100))
        yield Case("overhead, n = 16", 0, partial(overhead, 16))
        yield Case("every rule, n = 100,000", UPDATE * 4 * 100_000, rules)
        yield Case("theory", 0, partial(radius, 10**4 if smoke else 10**7), True)


def _network(shapes_of: Callable[[], list[shapes.Shape]], threads: int) -> dict[str, Side]:
    return many(shapes_of(), threads)


def options(size: int, threads: int) -> dict[str, Side]:
    """What options cost, on the same memory, and what one read of the gradients does."""
    p, _, g = arrays(size)
    chosen: dict[str, dict[str, Any]] = {
        OURS: {},
        "with weight_decay": {"weight_decay": 0.1},
        "with clip_value": {"clip_value": 1.0},
        "with max_norm": {"max_norm": 1e9},
    }
    made = {name: fm.Momentum(p, lr=LR, momentum=MOMENTUM, threads=threads, **how) for name, how in chosen.items()}
    sides: dict[str, Side] = {name: partial(opt.step, g) for name, opt in made.items()}
    return sides | {"a dot of the gradient": lambda: np.dot(g, g)}


def overhead(size: int) -> dict[str, Side]:
    """What calling costs."""
    p, _, g = arrays(size)
    opt = fm.Momentum(p, lr=LR, momentum=MOMENTUM)
    v, two = opt.velocity, [g.copy(), g.copy()]
    kernel = backends.kernel(fm.rules.pytorch, np.dtype(np.float32), "cpu")
    row = (np.float32(LR), np.float32(MOMENTUM), np.float32(1))

    def new() -> None:
        two.reverse()
        opt.step(two[0])

    return {
        OURS: lambda: opt.step(g),
        "with a new gradient": new,
        "fm.step": lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM),
        "the bare kernel": lambda: kernel((p, v), g, row),
    }


def rules() -> dict[str, Side]:
    """Every rule, on the same memory."""
    p, _, g = arrays(100_000)
    made = {name: fm.Momentum(p, rule=name, lr=LR, momentum=MOMENTUM) for name in fm.rules.names()}
    sides: dict[str, Side] = {name: partial(opt.step, g) for name, opt in made.items()}
    return {OURS: sides["pytorch"], **sides}


def radius(points: int) -> dict[str, Side]:
    """Spectral radii of so many points, beside as many single ones by numpy.linalg.eigvals in one call."""
    rng = np.random.default_rng(0)
    lr, mu, h = rng.uniform(0, 2, points), rng.uniform(0, 1, points), rng.uniform(0.1, 2, points)
    few = theory.iteration_matrix(lr[: points // 100], mu[: points // 100], h[: points // 100], rule="ema_nesterov")
    return {
        OURS: lambda: theory.spectral_radius(lr, mu, h, rule="ema_nesterov"),
        "eigvals of a hundredth": lambda: np.abs(np.linalg.eigvals(few)).max(axis=-1),
    }


IMPORT = "import numpy; from time import perf_counter as t; b = t(); import fastmomentum; print(t() - b)"
FIRST = """
from time import perf_counter as t
b = t()
import numpy as np, fastmomentum as fm
p, g = np.ones({size}, np.float32), np.ones({size}, np.float32)
{call}
print(t() - b)
"""
FRESH = {
    "import, beyond NumPy": IMPORT,
    "first fm.step": FIRST.format(size=100, call="fm.step(p, np.zeros_like(p), g, lr=0.1)"),
    "first opt.step": FIRST.format(size=100, call="fm.Momentum(p, lr=0.1).step(g)"),
    "first opt.step, two threads": FIRST.format(size=10**5, call="fm.Momentum(p, lr=0.1, threads=2).step(g)"),
}


def fresh(runs: int) -> dict[str, float]:
    """Seconds in a process of its own, the median of several."""

    def once(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
        return float(done.stdout)

    return {name: median(once(code) for _ in range(runs)) for name, code in FRESH.items()}
