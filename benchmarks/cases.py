"""What is measured: every case is its sides, and the bytes that one update moves."""

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from benchmarks import native, shapes
from benchmarks.contenders import LR, MOMENTUM, OURS, Maker, arrays, many, one
from fastmomentum import theory
from fastmomentum.backends.cpu import kernels

SIZES = {
    np.float32: (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 16_000_000, 64_000_000, 100_000_000),
    np.float64: (10_000, 1_000_000, 16_000_000),
}
SMOKE_SIZES = (100, 100_000)
CEILING = "ceiling: "
LARGE = 10**7
"""From so many elements on, a case gets fewer rounds."""

MOST_STREAMED = 64_000_000
"""Beyond, nothing new is learnt of memory from twice as much of it."""

UPDATE = 5
"""Elements moved for each updated: p, v and g are read, p and v written."""

NETWORKS: dict[str, Callable[[], list[shapes.Shape]]] = {
    "1,000 arrays of 100": lambda: [(100,)] * 1000,
    "1,000 arrays of 1,000": lambda: [(1000,)] * 1000,
    "ResNet-50, 161 arrays": shapes.resnet50,
    "GPT-2 small, 148 arrays": shapes.gpt2_small,
}

Run = Callable[[], Any]


class Case(NamedTuple):
    """A comparison.

    Attributes
    ----------
    name : str
        What it is called.
    elements : int
        How many are updated; 0 where that is not the point.
    moved : int
        Bytes that one update of ours moves.
    makers : callable
        What makes the sides, each of which may be made alone; nothing is allocated before.
    """

    name: str
    elements: int
    moved: int
    makers: Callable[[], Mapping[str, Callable[[], Run | None]]]

    def sides(self) -> dict[str, Run]:
        """All sides that can be had here."""
        made = {name: make() for name, make in self.makers().items()}
        return {name: run for name, run in made.items() if run is not None}


def cases(threads: int, smoke: bool) -> Iterator[Case]:
    """All comparisons at this number of threads."""
    for dtype, sizes in SIZES.items():
        for size in SMOKE_SIZES if smoke else sizes:
            name, bytes_each = f"{np.dtype(dtype).name}, n = {size:,}", UPDATE * np.dtype(dtype).itemsize
            yield Case(name, size, bytes_each * size, partial(_of_one, size, dtype, threads))
    for name, make in list(NETWORKS.items())[: 1 if smoke else None]:
        count = sum(int(np.prod(shape)) for shape in make())
        yield Case(name, count, UPDATE * 4 * count, partial(_of_many, make, threads))
    size = 100_000 if smoke else 16_000_000
    yield Case(f"options, n = {size:,}", size, UPDATE * 4 * size, partial(options, size, threads))
    yield Case(f"memory, n = {size:,}", size, UPDATE * 4 * size, partial(memory, size, threads))
    size = 100_000
    yield Case(f"every rule, n = {size:,}", size, UPDATE * 4 * size, partial(rules, size, threads))
    if threads == 1:
        yield Case("overhead, n = 100", 0, 0, partial(overhead, 100))
        yield Case("overhead, n = 16", 0, 0, partial(overhead, 16))
        points = 10**4 if smoke else 10**7
        yield Case(f"spectral radii, {points:,}", points, 0, partial(radius, points))


def _of_one(size: int, dtype: Any, threads: int) -> dict[str, Callable[[], Run | None]]:
    made, streams = _runs(one(size, dtype, threads)), native.streams(UPDATE * size, dtype, threads)
    measured = streams if size <= MOST_STREAMED else {}
    return made | {CEILING + name: make for name, make in measured.items()}


def _of_many(make: Callable[[], list[shapes.Shape]], threads: int) -> dict[str, Callable[[], Run | None]]:
    return _runs(many(make(), threads))


def _runs(makers: Mapping[str, Maker]) -> dict[str, Callable[[], Run | None]]:
    def run_of(make: Maker) -> Run | None:
        side = make()
        return side and side.run

    return {name: partial(run_of, make) for name, make in makers.items()}


def _step(p: Any, g: Any, threads: int, **chosen: Any) -> Run:
    """Momentum.step with these settings."""
    return partial(fm.Momentum(p, lr=LR, momentum=MOMENTUM, threads=threads, **chosen).step, g)


def options(size: int, threads: int) -> Mapping[str, Callable[[], Run]]:
    """What options cost, on the same memory, and what one read of the gradients does."""
    made = cache(partial(arrays, size))
    chosen: dict[str, dict[str, Any]] = {
        OURS: {},
        "with weight_decay": {"weight_decay": 0.1},
        "with clip_value": {"clip_value": 1.0},
        "with max_norm": {"max_norm": 1e9},
    }

    def make(how: dict[str, Any]) -> Run:
        return _step(made()[0], made()[2], threads, **how)

    return {name: partial(make, how) for name, how in chosen.items()} | {
        "a dot of the gradient": lambda: partial(np.dot, made()[2], made()[2])
    }


def memory(size: int, threads: int) -> Mapping[str, Callable[[], Run]]:
    """What the place of the arrays changes: as NumPy gives it, one element behind that, and in small pages."""

    def behind() -> Run:
        return _step(np.full(size + 1, 1.5, np.float32)[1:], np.full(size + 1, 1e-3, np.float32)[1:], threads)

    def in_small_pages() -> Run:
        p, v, g = map(_small_pages, (size,) * 3, (1.5, 0.0, 1e-3))
        return lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM, threads=threads)

    def usual() -> Run:
        p, _, g = arrays(size)
        return _step(p, g, threads)

    return {OURS: usual, "one element behind": behind, "in small pages": in_small_pages}


def _small_pages(size: int, value: float) -> Any:
    """NumPy asks Linux for huge pages (from 4 MiB on); here, for none."""
    room = mmap.mmap(-1, 4 * size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        room.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(room, np.float32)
    array[:] = value
    return array


def overhead(size: int) -> Mapping[str, Callable[[], Run]]:
    """What calling costs."""
    p, _, g = arrays(size)
    opt = fm.Momentum(p, lr=LR, momentum=MOMENTUM)
    v, two = opt.velocity, [g.copy(), g.copy()]
    kernel = kernels.kernel(fm.rules.pytorch, np.dtype(np.float32))
    row = (np.float32(LR), np.float32(MOMENTUM), np.float32(1))

    def new() -> None:
        two.reverse()
        opt.step(two[0])

    return {
        OURS: lambda: lambda: opt.step(g),
        "with a new gradient": lambda: new,
        "fm.step": lambda: lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM),
        "the bare kernel": lambda: lambda: kernel((p, v), g, row),
    }


def rules(size: int, threads: int) -> Mapping[str, Callable[[], Run]]:
    """Every rule, each on a parameter of its own: two that keep positions would take each other's steps for theirs."""

    def make(rule: str) -> Run:
        p, _, g = arrays(size)
        return _step(p, g, threads, rule=rule)

    return {OURS: partial(make, "pytorch")} | {name: partial(make, name) for name in fm.rules.names()}


def radius(points: int) -> Mapping[str, Callable[[], Run]]:
    """Spectral radii of so many points, and of a hundredth of them by numpy.linalg.eigvals."""

    @cache
    def settings() -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(0)
        return rng.uniform(0, 2, points), rng.uniform(0, 1, points), rng.uniform(0.1, 2, points)

    def ours() -> Run:
        return partial(theory.spectral_radius, *settings(), rule="ema_nesterov")

    def eigvals() -> Run:
        few = theory.iteration_matrix(*(values[: points // 100] for values in settings()), rule="ema_nesterov")
        return lambda: np.abs(np.linalg.eigvals(few)).max(axis=-1)

    return {OURS: ours, "eigvals of a hundredth": eigvals}


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


def fresh() -> dict[str, float]:
    """Seconds in a process of its own, the import of NumPy and of the package included but where the name says not."""

    def once(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
        return float(done.stdout)

    return {name: once(code) for name, code in FRESH.items()}
