"""Define the cases of the CPU benchmark: the contenders of each case, and the bytes that one update moves."""

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

import fastmomentum as fm
from benchmarks import native, shapes
from benchmarks.contenders import LR, MOMENTUM, OURS, Maker, make_arrays, many_array_makers, one_array_makers
from benchmarks.native import Array, Dtype, Run
from fastmomentum import theory
from fastmomentum.backends.cpu import kernels

SIZES: dict[Dtype, tuple[int, ...]] = {
    np.float32: (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 16_000_000, 64_000_000, 100_000_000),
    np.float64: (10_000, 1_000_000, 16_000_000),
}
SMOKE_SIZES = (100, 100_000)

CEILING = "ceiling: "
"""The prefix of the memory streams' names; the rate of the fastest stream is the ceiling for the rate of an update."""

LARGE = 10**7
"""The number of elements from which on a case is measured in fewer rounds."""

MAX_STREAMED = 64_000_000
"""The greatest number of elements with memory streams; a larger stream would measure the same memory once more."""

ELEMENTS_MOVED = 5
"""The elements that an update moves per element updated: it reads p, v and g, and writes p and v."""

MANY_ARRAYS: dict[str, Callable[[], list[shapes.Shape]]] = {
    "1,000 arrays of 100": lambda: [(100,)] * 1000,
    "1,000 arrays of 1,000": lambda: [(1000,)] * 1000,
    "ResNet-50, 161 arrays": shapes.resnet50,
    "GPT-2 small, 148 arrays": shapes.gpt2_small,
}
"""The shapes of all arrays in each case of many arrays."""

RunMakers = Mapping[str, Callable[[], Run | None]]
"""Functions that allocate arrays and return a contender's run, or None if its library is not installed; by name."""


class Case(NamedTuple):
    """Hold one comparison.

    Attributes
    ----------
    name : str
        The name of the case in tables and records.
    elements : int
        The number of elements that are updated; 0 if the case measures something else.
    moved : int
        The bytes that one update of fastmomentum moves.
    makers : callable
        ``makers()`` returns the functions that make the contenders, by name. Each may be called alone, and arrays are
        allocated only in these functions.
    """

    name: str
    elements: int
    moved: int
    makers: Callable[[], RunMakers]

    def contenders(self) -> dict[str, Run]:
        """Return the runs of all contenders whose libraries are installed."""
        made = {name: make() for name, make in self.makers().items()}
        return {name: run for name, run in made.items() if run is not None}


def cases(threads: int, smoke: bool) -> Iterator[Case]:
    """Yield all cases at this number of threads; if `smoke`, small ones only."""
    for dtype, sizes in SIZES.items():
        for size in SMOKE_SIZES if smoke else sizes:
            name, bytes_each = f"{np.dtype(dtype).name}, n = {size:,}", ELEMENTS_MOVED * np.dtype(dtype).itemsize
            yield Case(name, size, bytes_each * size, partial(_with_streams, size, dtype, threads))
    for name, make in list(MANY_ARRAYS.items())[: 1 if smoke else None]:
        count = sum(int(np.prod(shape)) for shape in make())
        yield Case(name, count, ELEMENTS_MOVED * 4 * count, partial(_many_arrays, make, threads))
    size = 100_000 if smoke else 16_000_000
    moved = ELEMENTS_MOVED * 4 * size
    yield Case(f"options, n = {size:,}", size, moved, partial(update_options, size, threads))
    yield Case(f"memory, n = {size:,}", size, moved, partial(array_placements, size, threads))
    size = 100_000
    yield Case(f"every rule, n = {size:,}", size, ELEMENTS_MOVED * 4 * size, partial(every_rule, size, threads))
    if threads == 1:
        yield Case("overhead, n = 100", 0, 0, partial(call_overhead, 100))
        yield Case("overhead, n = 16", 0, 0, partial(call_overhead, 16))
        points = 10**4 if smoke else 10**7
        yield Case(f"spectral radii, {points:,}", points, 0, partial(spectral_radii, points))


def _with_streams(size: int, dtype: Dtype, threads: int) -> RunMakers:
    """Return the makers of all contenders for one array, and of the memory streams that move as many bytes."""
    made = _run_makers(one_array_makers(size, dtype, threads))
    streams = native.streams(ELEMENTS_MOVED * size, dtype, threads) if size <= MAX_STREAMED else {}
    return made | {CEILING + name: make for name, make in streams.items()}


def _many_arrays(make: Callable[[], list[shapes.Shape]], threads: int) -> RunMakers:
    return _run_makers(many_array_makers(make(), threads))


def _run_makers(makers: Mapping[str, Maker]) -> dict[str, Callable[[], Run | None]]:
    """Return makers of the runs alone, without the functions that return the parameters."""

    def make_run(make: Maker) -> Run | None:
        contender = make()
        return contender and contender.run

    return {name: partial(make_run, make) for name, make in makers.items()}


class Settings(TypedDict, total=False):
    """Hold the settings of Momentum that differ between contenders."""

    rule: str
    weight_decay: float
    clip_value: float
    max_norm: float


def _step(p: Array, g: Array, threads: int, **settings: Unpack[Settings]) -> Run:
    """Return a function that calls Momentum.step, with these settings."""
    return partial(fm.Momentum(p, lr=LR, momentum=MOMENTUM, threads=threads, **settings).step, g)


def update_options(size: int, threads: int) -> RunMakers:
    """Return the makers of updates with and without options, on the same arrays, and of one read of the gradient."""
    shared_arrays = cache(partial(make_arrays, size))
    settings: dict[str, Settings] = {
        OURS: {},
        "with weight_decay": {"weight_decay": 0.1},
        "with clip_value": {"clip_value": 1.0},
        "with max_norm": {"max_norm": 1e9},
    }

    def make(chosen: Settings) -> Run:
        p, _, g = shared_arrays()
        return _step(p, g, threads, **chosen)

    def make_dot() -> Run:
        _, _, g = shared_arrays()
        return partial(np.dot, g, g)

    return {name: partial(make, chosen) for name, chosen in settings.items()} | {"a dot of the gradient": make_dot}


def array_placements(size: int, threads: int) -> RunMakers:
    """Return the makers of updates of arrays in different places in memory.

    The arrays begin where NumPy allocates them, or one element later, or they lie in small pages.
    """

    def one_element_later() -> Run:
        return _step(np.full(size + 1, 1.5, np.float32)[1:], np.full(size + 1, 1e-3, np.float32)[1:], threads)

    def in_small_pages() -> Run:
        p, v, g = map(_make_in_small_pages, (size,) * 3, (1.5, 0.0, 1e-3))
        return lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM, threads=threads)

    def as_allocated() -> Run:
        p, _, g = make_arrays(size)
        return _step(p, g, threads)

    return {OURS: as_allocated, "one element behind": one_element_later, "in small pages": in_small_pages}


def _make_in_small_pages(size: int, value: float) -> npt.NDArray[np.float32]:
    """Return an array of float32 in pages of the usual size; NumPy asks Linux for huge pages from 4 MiB on."""
    memory = mmap.mmap(-1, 4 * size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.float32)
    array[:] = value
    return array


def call_overhead(size: int) -> RunMakers:
    """Return the makers of updates of a small array, in which the call takes most of the time."""
    p, _, g = make_arrays(size)
    opt = fm.Momentum(p, lr=LR, momentum=MOMENTUM)
    v, two_gradients = opt.velocity, [g.copy(), g.copy()]
    kernel = kernels.kernel(fm.rules.pytorch, np.dtype(np.float32))
    hyper = (np.float32(LR), np.float32(MOMENTUM), np.float32(1))

    def step_with_new_gradient() -> None:
        two_gradients.reverse()
        opt.step(two_gradients[0])

    return {
        OURS: lambda: lambda: opt.step(g),
        "with a new gradient": lambda: step_with_new_gradient,
        "fm.step": lambda: lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM),
        "the bare kernel": lambda: lambda: kernel((p, v), g, hyper),
    }


def every_rule(size: int, threads: int) -> RunMakers:
    """Return the makers of updates by every rule.

    Each rule has a parameter of its own. A rule whose state is a previous position would take the steps of another rule
    on the same parameter for velocity.
    """

    def make(rule: str) -> Run:
        p, _, g = make_arrays(size)
        return _step(p, g, threads, rule=rule)

    return {OURS: partial(make, "pytorch")} | {name: partial(make, name) for name in fm.rules.names()}


def spectral_radii(points: int) -> RunMakers:
    """Return the makers of `points` spectral radii, and of a hundredth of them by numpy.linalg.eigvals."""

    @cache
    def settings() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        rng = np.random.default_rng(0)
        return rng.uniform(0, 2, points), rng.uniform(0, 1, points), rng.uniform(0.1, 2, points)

    def ours() -> Run:
        return partial(theory.spectral_radius, *settings(), rule="ema_nesterov")

    def eigvals() -> Run:
        first = theory.iteration_matrix(*(values[: points // 100] for values in settings()), rule="ema_nesterov")
        return lambda: np.abs(np.linalg.eigvals(first)).max(axis=-1)

    return {OURS: ours, "eigvals of a hundredth": eigvals}


IMPORT_CODE = "import numpy; from time import perf_counter as t; b = t(); import fastmomentum; print(t() - b)"
FIRST_CALL_CODE = """
from time import perf_counter as t
b = t()
import numpy as np, fastmomentum as fm
p, g = np.ones({size}, np.float32), np.ones({size}, np.float32)
{call}
print(t() - b)
"""
FRESH_PROCESS_CODES = {
    "import, beyond NumPy": IMPORT_CODE,
    "first fm.step": FIRST_CALL_CODE.format(size=100, call="fm.step(p, np.zeros_like(p), g, lr=0.1)"),
    "first opt.step": FIRST_CALL_CODE.format(size=100, call="fm.Momentum(p, lr=0.1).step(g)"),
    "first opt.step, two threads": FIRST_CALL_CODE.format(size=10**5, call="fm.Momentum(p, lr=0.1, threads=2).step(g)"),
}
"""Programs that print the seconds of the import, or of the imports and the first call, which compiles."""


def time_fresh_processes() -> dict[str, float]:
    """Return the seconds that each program of FRESH_PROCESS_CODES prints in a new process."""

    def run(code: str) -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
        return float(done.stdout)

    return {name: run(code) for name, code in FRESH_PROCESS_CODES.items()}
