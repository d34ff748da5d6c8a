"""Compare AdamW with torch's fused AdamW, and rules with sums with those without: ``python -m benchmarks.adaptive``.

A kernel moves each array once. So the bytes of an element predict the time of a step on large arrays: 20 for momentum
(p, v and g read, p and v written, in float32), 28 for Adam. A sum over g reads 4 bytes more, a trace 12.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

import fastmomentum as fm
import fastmomentum.torch
from benchmarks.records import arguments, write_record
from benchmarks.settings import Contender, Goal, measure_case, table
from benchmarks.shapes import Shape, gpt2_small, resnet50

OURS, TORCH_FRONT_END, FUSED = "fm.Optimizer", "fastmomentum.torch", "torch fused"
LARGE = 20_000_000
"""The number of elements at which bytes decide: arrays of 80 MB, in no cache."""


class Case(NamedTuple):
    """Hold the contenders of a case, which are made when it is measured, and its goals."""

    make: Callable[[], dict[str, Contender]]
    goals: tuple[Goal, ...]


def adamw(shapes: list[Shape], threads: int) -> dict[str, Contender]:
    """Return steps of AdamW on the same parameters: of NumPy arrays, of tensors, and by torch's fused kernel."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    arrays, grads = [p.detach().numpy() for p in params], [p.grad.numpy() for p in params if p.grad is not None]
    ours = fm.Optimizer(arrays, "adamw", lr=1e-6, threads=threads)
    return {
        OURS: partial(ours.step, grads),
        TORCH_FRONT_END: fastmomentum.torch.AdamW(params, lr=1e-6).step,
        FUSED: torch.optim.AdamW(params, lr=1e-6, fused=True).step,
    }


def by_bytes() -> dict[str, Contender]:
    """Return steps of large arrays that move different numbers of bytes."""
    p, g = np.zeros(LARGE, np.float32), np.full(LARGE, 1e-3, np.float32)

    def stepping(trace: bool = False, **settings: Any) -> Contender:
        opt = fm.Optimizer(p, lr=1e-6, **{"momentum": 0.9} | settings)
        if trace:
            traces.append(opt.trace())
        return partial(opt.step, g)

    traces: list[fm.Trace] = []
    return {
        "momentum": stepping(),
        "adam": stepping(rule="adam"),
        "momentum, max_norm": stepping(max_norm=1e9),
        "adam, max_norm": stepping(rule="adam", max_norm=1e9),
        "momentum, traced": stepping(trace=True),
        "lamb": stepping(rule="lamb"),
    }


def bytes_goal(ours: str, peer: str, own: float, others: float, slack: float) -> Goal:
    """Return the goal that the bytes of an element predict, with the slack that the goals allow."""
    return Goal(ours, peer, round(own / others * slack, 2))


def share_goal(ours: str, peer: str, more: float, others: float) -> Goal:
    """Return the goal that `more` bytes an element take at most 1.3 times their share of the time."""
    return Goal(ours, peer, round(1.0 + 1.3 * more / others, 2))


BYTES = (
    bytes_goal("adam", "momentum", 28, 20, 1 / 0.95),
    share_goal("momentum, max_norm", "momentum", 4, 20),
    share_goal("adam, max_norm", "adam", 4, 28),
    share_goal("momentum, traced", "momentum", 12, 20),
    share_goal("lamb", "adam", 16, 28),
)


def cases(threads: int) -> dict[str, Case]:
    """Return the cases."""
    goals = (Goal(OURS, FUSED, 1.0), Goal(TORCH_FRONT_END, FUSED, 1.0))
    found = {f"AdamW, {10**n:,}": Case(partial(adamw, [(10**n,)], threads), goals) for n in range(2, 8)}
    found["AdamW, ResNet-50"] = Case(partial(adamw, resnet50(), threads), goals)
    found["AdamW, GPT-2 small"] = Case(partial(adamw, gpt2_small(), threads), goals)
    if threads == 1:
        found[f"bytes, {LARGE:,}"] = Case(by_bytes, BYTES)
    return found


SMOKE = 2
"""The number of cases that the smoke run measures, the first ones."""


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Measure a case with a number of threads, and return the entry for the record."""
    torch.set_num_threads(threads)
    case = cases(threads)[name]
    return measure_case(f"{name}, {threads} thread{'s' * (threads > 1)}", case.make(), case.goals, rounds)


show = partial(table, conditions="float32, constant settings")


def main() -> None:
    """Measure all cases, write the record, and print the table."""
    chosen = arguments("adaptive", __doc__)
    rounds = 2 if chosen.smoke else 30
    names = [(name, threads) for threads in (1, 2) for name in list(cases(threads))[: SMOKE if chosen.smoke else None]]
    measured = [measure(name, threads, rounds) for name, threads in names]
    record = write_record(chosen.out / "adaptive.json", chosen.smoke, rounds=rounds, cases=measured)
    print(*show(record), sep="\n")


if __name__ == "__main__":
    main()
