"""Compare SGD of fastmomentum.torch with torch's own: ``python -m benchmarks.torch_steps [--smoke] [--out FOLDER]``.

In every step lr is set in the groups, as a scheduler does it. The optimisers update the same parameters, each with a
velocity of its own.
"""

from collections.abc import Callable
from functools import partial
from itertools import count, cycle
from typing import Any, NamedTuple

import torch

import fastmomentum.torch
from benchmarks.records import arguments, write_record
from benchmarks.settings import Contender, Goal, measure_case, table
from benchmarks.shapes import Shape, gpt2_small, resnet50, small_cnn

OURS, FUSED, DEFAULT = "fastmomentum.torch", "torch fused", "torch default"

MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    OURS: fastmomentum.torch.SGD,
    FUSED: partial(torch.optim.SGD, fused=True),
    DEFAULT: torch.optim.SGD,
}
"""The optimisers; by default torch updates tensors on the host one after the other."""

AS_FUSED = Goal(OURS, FUSED, 1.05)


class Case(NamedTuple):
    """Hold the shapes of the parameters, the goals, and whether the gradients are new tensors in each step."""

    shapes: list[Shape]
    goals: tuple[Goal, ...] = (AS_FUSED,)
    new: bool = False


CASES = {
    "1 × 100": Case([(100,)]),
    "small CNN, 80 tensors": Case(small_cnn()),
    "small CNN, 80 tensors, new gradients": Case(small_cnn(), new=True),
    "1,000 × 100": Case([(100,)] * 1000, (Goal(OURS, FUSED, 0.33),)),
    "1,000 × 1,000": Case([(1000,)] * 1000),
    "ResNet-50, 161 tensors": Case(resnet50(), (AS_FUSED, Goal(OURS, DEFAULT, 0.4))),
    "GPT-2 small, 148 tensors": Case(gpt2_small()),
}
SMOKE = 3
"""The number of cases that the smoke run measures, the first ones."""


def stepping(opt: torch.optim.Optimizer) -> Contender:
    """Return a function that sets lr in the groups of an optimiser, and does one step."""
    numbers = count(1)

    def run() -> None:
        lr = 1e-3 / next(numbers)
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()

    return run


def stepping_with_new_gradients(opt: torch.optim.Optimizer) -> Contender:
    """Return a function that calls zero_grad, gives each parameter another gradient than before, and does one step."""
    params = [param for group in opt.param_groups for param in group["params"]]
    gradients = cycle([[torch.randn_like(param) for param in params] for _ in range(3)])
    step = stepping(opt)

    def run() -> None:
        opt.zero_grad(set_to_none=True)
        for param, grad in zip(params, next(gradients)):
            param.grad = grad
        step()

    return run


def contenders(case: Case) -> dict[str, Contender]:
    """Return the contenders of a case.

    They share parameters and gradients, because the times differ with the place of the pages in memory.
    """
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in case.shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    make = stepping_with_new_gradients if case.new else stepping
    return {name: make(optimiser(params, lr=1e-3, momentum=0.9)) for name, optimiser in MAKERS.items()}


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Measure a case with a number of threads, and return the entry for the record."""
    torch.set_num_threads(threads)
    case = CASES[name]
    return measure_case(f"{name}, {threads} thread{'s' * (threads > 1)}", contenders(case), case.goals, rounds)


show = partial(table, conditions="float32, lr set in every step")


def main() -> None:
    """Measure all cases, write the record, and print the table."""
    chosen = arguments("torch_steps", __doc__)
    rounds, names = (2, list(CASES)[:SMOKE]) if chosen.smoke else (40, list(CASES))
    cases = [measure(name, threads, rounds) for threads in (1, 2) for name in names]
    record = write_record(chosen.out / "torch_steps.json", chosen.smoke, rounds=rounds, cases=cases)
    print(*show(record), sep="\n")


if __name__ == "__main__":
    main()
