"""What is compared, and what we aim at."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from benchmarks.peers import LR, MOMENTUM, arrays, c_loop, numpy_in_place, torch_fused
from benchmarks.timing import alternate
from fastmomentum import backends

BYTES = 20  # an element in float32: read p, v, g; write p, v


class Result(NamedTuple):
    """One comparison: `value` in `unit`, what it should be, and seconds a call of each side."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool
    seconds: dict[str, float]


def compare(name: str, sides: dict[str, Any], ours: str, other: str, at_least: float, rounds: int) -> Result:
    """How many times as long as `ours` the `other` takes."""
    times = alternate(sides, rounds)
    ratio = times[other] / times[ours]
    return Result(name, ratio, "×", f"≥ {at_least:g}", ratio >= at_least, times)


def overhead(name: str, sides: dict[str, Any], ours: str, other: str, below: float, rounds: int) -> Result:
    """How many times as long as the `other` ours takes."""
    times = alternate(sides, rounds)
    ratio = times[ours] / times[other]
    return Result(name, ratio, "×", f"< {below:g}", ratio < below, times)


def one(size: int) -> dict[str, Any]:
    """The sides for one array, all on the same memory but for torch.

    With arrays of its own for each side, one was up to 25 % slower than another at 10⁶ elements, in some runs this one
    and in others that: what the pages' places in the cache did, not the code.
    """
    p, _, g = arrays(size)[0]
    opt = fm.Momentum(p, lr=LR, momentum=MOMENTUM)
    v, two = opt.velocity, [g.copy(), g.copy()]
    kernel = backends.kernel(fm.rules.pytorch, np.dtype(np.float32), "cpu")
    row = (np.float32(LR), np.float32(MOMENTUM), np.float32(1))

    def new() -> None:
        two.reverse()
        opt.step(two[0])

    sides = {
        "opt.step": lambda: opt.step(g),
        "opt.step, new gradient": new,
        "fm.step": lambda: fm.step(p, v, g, lr=LR, momentum=MOMENTUM),
        "bare kernel": lambda: kernel((p, v), g, row),
        "NumPy in place": numpy_in_place(p, v, g),
        "torch fused": torch_fused([p], [g]),
        "C loop": c_loop(p, v, g),
    }
    return {name: side for name, side in sides.items() if side is not None}


def many(count: int, size: int) -> dict[str, Any]:
    """The sides for many arrays."""
    params, _, grads = (list(part) for part in zip(*arrays(size, count), strict=True))
    opt = fm.Momentum(params, lr=LR, momentum=MOMENTUM)
    two = [grads, [g.copy() for g in grads]]

    def new() -> None:
        two.reverse()
        opt.step(two[0])

    fused = torch_fused(params, grads)
    sides = {"opt.step": lambda: opt.step(grads), "opt.step, new gradients": new, "torch fused": fused}
    return {name: side for name, side in sides.items() if side is not None}


def fresh_process(code: str, runs: int) -> float:
    """The median of what `code` prints, each time in a process of its own."""
    command = [sys.executable, "-c", code]
    return median(
        float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(runs)
    )


IMPORT = "import numpy; from time import perf_counter as t; b = t(); import fastmomentum; print(t() - b)"
FIRST_STEP = """
from time import perf_counter as t
b = t()
import numpy as np, fastmomentum as fm
p, g = np.ones(100, np.float32), np.ones(100, np.float32)
{}
print(t() - b)
"""


def below(name: str, seconds: float, limit: float) -> Result:
    """A time that has a limit of its own."""
    return Result(name, seconds, "s", f"< {limit:g} s", seconds < limit, {name: seconds})


def cases(smoke: bool) -> Iterator[Callable[[], list[Result]]]:
    """All comparisons; a smoke run takes each once, with few rounds and small arrays."""
    rounds = 3 if smoke else 101

    def small() -> list[Result]:
        sides = one(16)
        step = alternate({"fm.step": sides["fm.step"]}, rounds)["fm.step"]
        return [Result("fm.step with all checks, n = 16", step * 1e6, "µs", "< 3 µs", step < 3e-6, {"fm.step": step})]

    def hundred() -> list[Result]:
        sides = one(100)
        found = [
            compare("opt.step, n = 100, against NumPy in place", sides, "opt.step", "NumPy in place", 1.3, rounds),
            overhead("opt.step against the bare kernel, n = 100", sides, "opt.step", "bare kernel", 1.6, rounds),
            overhead(
                "the same with a new gradient object", sides, "opt.step, new gradient", "bare kernel", 4.0, rounds
            ),
        ]
        if "torch fused" in sides:
            found.insert(1, compare("against torch's fused step", sides, "opt.step", "torch fused", 10.0, rounds))
        return found

    def large(size: int) -> list[Result]:
        sides = {name: side for name, side in one(size).items() if name in ("opt.step", "NumPy in place", "C loop")}
        goal = 2.0 if size <= 100_000 else 1.8
        found = compare(
            f"opt.step, n = {size:,}, against NumPy in place", sides, "opt.step", "NumPy in place", goal, rounds
        )
        results = [found]
        if "C loop" in sides and size >= 100_000:
            ratio = found.seconds["opt.step"] / found.seconds["C loop"]
            results.append(
                Result(f"against the loop in C, n = {size:,}", ratio, "×", "< 1.1", ratio < 1.1, found.seconds)
            )
        rate = BYTES * size / found.seconds["opt.step"] / 1e9
        results.append(Result(f"bytes moved, n = {size:,}", rate, "GB/s", "", True, found.seconds))
        return results

    def thousand() -> list[Result]:
        sides = many(1000, 100)
        if "torch fused" not in sides:
            return []
        return [
            compare("1,000 arrays of 100 against torch fused", sides, "opt.step", "torch fused", 25.0, rounds),
            compare("the same with new gradients", sides, "opt.step, new gradients", "torch fused", 1.0, rounds),
        ]

    def norm(size: int) -> list[Result]:
        p, _, g = arrays(size)[0]
        plain = fm.Momentum(p, lr=LR, momentum=MOMENTUM)
        clipped = fm.Momentum(p, lr=LR, momentum=MOMENTUM, max_norm=1e9)

        def read_too() -> None:
            np.dot(g, g)
            plain.step(g)

        times = alternate(
            {"opt.step": lambda: plain.step(g), "with max_norm": lambda: clipped.step(g), "with np.dot": read_too},
            rounds,
        )
        passes = {name: seconds - times["opt.step"] for name, seconds in times.items()}
        bare = passes["with max_norm"] / passes["with np.dot"]
        share = passes["with max_norm"] / times["opt.step"] / (4 / BYTES)
        return [
            Result(
                f"max_norm's pass over BLAS's dot of the gradient, n = {size:,}", bare, "×", "< 1.2", bare < 1.2, times
            ),
            Result("the same over a fifth of an update, as its bytes say", share, "×", "< 1.2", share < 1.2, times),
        ]

    def first() -> list[Result]:
        runs = 1 if smoke else 9
        step = FIRST_STEP.format("fm.step(p, np.zeros_like(p), g, lr=0.1)")
        opt = FIRST_STEP.format("fm.Momentum(p, lr=0.1).step(g)")
        return [
            below("import fastmomentum, beyond numpy", fresh_process(IMPORT, runs), 0.1),
            below("first fm.step in a fresh process", fresh_process(step, runs), 1.5),
            below("first opt.step in a fresh process", fresh_process(opt, runs), 1.5),
        ]

    yield small
    yield hundred
    for size in (10_000, 100_000) if smoke else (10_000, 100_000, 1_000_000, 16_000_000):
        yield partial(large, size)
    for size in (100_000,) if smoke else (16_000_000, 64_000_000):
        yield partial(norm, size)
    yield thousand
    yield first
