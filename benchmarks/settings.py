"""Compare steps whose settings change every time: ``python -m benchmarks.settings [--smoke] [--out FOLDER]``.

The peers are the update in NumPy, in place and with a new lr, and torch's fused SGD with lr set in its groups.
"""

from collections.abc import Callable
from itertools import count, cycle
from typing import Any, NamedTuple

import numpy as np
import torch

import fastmomentum as fm
from benchmarks.records import arguments, write_record
from benchmarks.timing import alternate
from fastmomentum.schedules import Cosine, Linear

STEPS = 10**9
"""The length of schedules: no run comes to their end."""

Contender = Callable[[], object]

WIDTH, TOUCHED = 32, 64

ROW_SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {"lr": 0.1},
    "lr": {"lr": lambda step: 0.1 / (1 + 1e-3 * step)},
    "lr, momentum and weight_decay": {
        "lr": lambda step: 0.1 / (1 + 1e-3 * step),
        "momentum": lambda step: 0.9 - 0.1 / (2 + step),
        "weight_decay": lambda step: 1e-3 / (1 + step),
    },
}
"""The settings of each contender that updates a table, by the names of those that change in every step."""

ASSIGNED = "lr, assigned before each step"


class Goal(NamedTuple):
    """Hold the ratio of the times of two contenders, and the greatest value that it should have."""

    ours: str
    peer: str
    most: float


ONE_ARRAY = (
    Goal("constant", "NumPy, new lr", 1.0),
    Goal("lr a schedule", "NumPy, new lr", 1.6),
    Goal("lr a schedule", "torch fused, new lr", 0.25),
    Goal("lr and momentum schedules", "NumPy, new lr", 1.6),
    Goal("lr and weight_decay schedules", "NumPy, new lr", 1.6),
    Goal("lr assigned", "NumPy, new lr", 2.0),
    Goal("lr assigned", "torch fused, new lr", 0.25),
    Goal("fm.step, new lr", "fm.step, the same lr", 1.5),
)
GROUPS = (
    Goal("all lr assigned", "torch fused, all lr set", 0.4),
    Goal("all lr a schedule", "torch fused, all lr set", 0.4),
)
ROWS = tuple(Goal(name, "constant", 2.0) for name in (*list(ROW_SETTINGS)[1:], ASSIGNED))


def vectors(elements: int) -> tuple[Any, Any]:
    """Return a parameter and a gradient."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(elements).astype(np.float32), rng.standard_normal(elements).astype(np.float32)


def optimiser(elements: int, **settings: Any) -> Contender:
    """Return a function that does one step of an optimiser with these settings."""
    p, g = vectors(elements)
    opt = fm.Momentum(p, **settings)
    return lambda: opt.step(g)


def assigning(elements: int) -> Contender:
    """Return a function that assigns a new lr, and does one step."""
    p, g = vectors(elements)
    opt, numbers = fm.Momentum(p, lr=1e-3), count(1)

    def run() -> None:
        opt.lr = 1e-3 / next(numbers)
        opt.step(g)

    return run


def in_numpy(elements: int) -> Contender:
    """Return a function that does one step in NumPy, in place, with a new lr."""
    p, g = vectors(elements)
    v, scratch, numbers = np.zeros_like(p), np.empty_like(p), count(1)
    momentum = np.float32(0.9)

    def run() -> None:
        lr = np.float32(1e-3 / next(numbers))
        np.multiply(v, momentum, out=v)
        np.add(v, g, out=v)
        np.multiply(v, lr, out=scratch)
        np.subtract(p, scratch, out=p)

    return run


def in_torch(sizes: list[int]) -> Contender:
    """Return a function that sets lr in the groups of torch's fused SGD, one for each size, and does one step."""
    params = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape)
    opt, numbers = torch.optim.SGD([{"params": [p]} for p in params], lr=1e-3, momentum=0.9, fused=True), count(1)

    def run() -> None:
        lr = 1e-3 / next(numbers)
        for group in opt.param_groups:
            group["lr"] = lr
        opt.step()

    return run


def stepping(elements: int, *, new: bool) -> Contender:
    """Return a function that calls step(), with a new lr at each call or always with the same."""
    p, g = vectors(elements)
    v, numbers = np.zeros_like(p), count(1)

    def run() -> None:
        number = next(numbers)
        fm.step(p, v, g, lr=1e-3 / number if new else 1e-3)

    return run


def one_array(elements: int) -> dict[str, Contender]:
    """Return the contenders that update one array."""
    lr = Cosine(1e-3, 1e-5, steps=STEPS)
    return {
        "constant": optimiser(elements, lr=1e-3),
        "lr a schedule": optimiser(elements, lr=lr),
        "lr and momentum schedules": optimiser(elements, lr=lr, momentum=Linear(0.5, 0.9, steps=STEPS)),
        "lr and weight_decay schedules": optimiser(elements, lr=lr, weight_decay=Linear(0.1, 0.01, steps=STEPS)),
        "lr assigned": assigning(elements),
        "NumPy, new lr": in_numpy(elements),
        "torch fused, new lr": in_torch([elements]),
        "fm.step, the same lr": stepping(elements, new=False),
        "fm.step, new lr": stepping(elements, new=True),
    }


def many_groups(groups: int, elements: int) -> dict[str, Contender]:
    """Return the contenders that update many groups of one array each."""

    def make(lr: Callable[[int], Any]) -> tuple[fm.Momentum, list[Any]]:
        given = [vectors(elements) for _ in range(groups)]
        parts = [{"params": p, "lr": lr(number)} for number, (p, _) in enumerate(given)]
        return fm.Momentum(parts, lr=1e-3), [g for _, g in given]

    constant, grads = make(lambda number: 1e-3)
    assigned, grads_of_assigned = make(lambda number: 1e-3)
    scheduled, grads_of_scheduled = make(lambda number: Cosine(1e-3 / (1 + number), 1e-5, steps=STEPS))
    numbers = count(1)

    def assign() -> None:
        lr = 1e-3 / next(numbers)
        for group in assigned.groups:
            group["lr"] = lr
        assigned.step(grads_of_assigned)

    return {
        "constant": lambda: constant.step(grads),
        "all lr assigned": assign,
        "all lr a schedule": lambda: scheduled.step(grads_of_scheduled),
        "torch fused, all lr set": in_torch([elements] * groups),
    }


def updating_rows(rows: int, warm: int, name: str) -> Callable[[], None]:
    """Return a function that does one step of a table with this number of rows, after `warm` steps without timing."""
    rng = np.random.default_rng(0)
    opt = fm.SparseRows(np.ones((rows, WIDTH), np.float32), **ROW_SETTINGS.get(name, {"lr": 0.1}))
    grads = rng.standard_normal((TOUCHED, WIDTH)).astype(np.float32)
    touched = cycle([rng.integers(0, rows, TOUCHED) for _ in range(10_000)])

    def step() -> None:
        if name == ASSIGNED:
            opt.lr = 0.1 / (1 + 1e-3 * opt.steps)
        opt.step(next(touched), grads)

    for _ in range(warm):
        step()
    return step


def sparse_rows(rows: int, warm: int) -> dict[str, Contender]:
    """Return the contenders that update 64 rows of a table."""
    return {name: updating_rows(rows, warm, name) for name in (*ROW_SETTINGS, ASSIGNED)}


def measure_case(name: str, contenders: dict[str, Contender], goals: tuple[Goal, ...], rounds: int) -> dict[str, Any]:
    """Measure the contenders of one case, and return the entry for the record."""
    seconds = alternate(contenders, rounds)
    ratios = [{**goal._asdict(), "ratio": seconds[goal.ours] / seconds[goal.peer]} for goal in goals]
    return {"case": name, "seconds": seconds, "ratios": ratios}


def table(record: dict[str, Any], conditions: str = "one thread, float32") -> list[str]:
    """Return the lines of a table of all ratios, after a line that names the machine, the date and the conditions."""
    lines = [
        f"{record['processor']}; {record['date']}; {conditions}; medians of {record['rounds']} rounds.",
        "",
        "| case | ours | peer | ours over peer | at most |",
        "|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        for each in case["ratios"]:
            missed = "" if each["ratio"] <= each["most"] else " (missed)"
            row = (
                f"| {case['case']} | {each['ours']} | {each['peer']} | {each['ratio']:.2f} | {each['most']:g}{missed} |"
            )
            lines.append(row)
    return lines


def main() -> None:
    """Measure all cases, write the record, and print the table."""
    chosen = arguments("settings", __doc__)
    torch.set_num_threads(1)
    rounds, warm = (2, 20) if chosen.smoke else (40, 5000)
    cases = [
        measure_case(f"n = {elements:,}", one_array(elements), ONE_ARRAY, rounds)
        for elements in ((100,) if chosen.smoke else (100, 10_000))
    ]
    groups = 8 if chosen.smoke else 161
    cases.append(measure_case(f"{groups} groups of 1,000", many_groups(groups, 1000), GROUPS, rounds))
    # The larger table is measured before all its rows have been swept once, which takes 62,500 steps.
    for rows in (10_000,) if chosen.smoke else (10_000, 1_000_000):
        cases.append(measure_case(f"SparseRows, {rows:,} × {WIDTH}", sparse_rows(rows, warm), ROWS, rounds))
    record = write_record(chosen.out / "settings.json", chosen.smoke, rounds=rounds, cases=cases)
    print(*table(record), sep="\n")


if __name__ == "__main__":
    main()
