"""Compare steps of SparseRows with constant settings and with settings that change in every step.

``python -m benchmarks.sparse [--smoke] [--out FILE]``
"""

import argparse
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import fastmomentum as fm
from benchmarks.machine import processor, versions
from benchmarks.timing import alternate

ROWS = (10_000, 1_000_000)
WIDTH, TOUCHED = 32, 64

SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {"lr": 0.1},
    "lr": {"lr": lambda step: 0.1 / (1 + 1e-3 * step)},
    "lr, momentum and weight_decay": {
        "lr": lambda step: 0.1 / (1 + 1e-3 * step),
        "momentum": lambda step: 0.9 - 0.1 / (2 + step),
        "weight_decay": lambda step: 1e-3 / (1 + step),
    },
}
"""The settings of each contender, by the names of those that change in every step."""

ASSIGNED = "lr, assigned before each step"


def make_step(rows: int, warm: int, name: str) -> Callable[[], None]:
    """Return a function that does one step of a table with this number of rows, after `warm` steps without timing."""
    rng = np.random.default_rng(0)
    opt = fm.SparseRows(np.ones((rows, WIDTH), np.float32), **SETTINGS.get(name, {"lr": 0.1}))
    grads = rng.standard_normal((TOUCHED, WIDTH)).astype(np.float32)
    touched = cycle([rng.integers(0, rows, TOUCHED) for _ in range(10_000)])

    def step() -> None:
        if name == ASSIGNED:
            opt.lr = 0.1 / (1 + 1e-3 * opt.steps)
        opt.step(next(touched), grads)

    for _ in range(warm):
        step()
    return step


def measure_case(rows: int, warm: int, rounds: int) -> dict[str, Any]:
    """Measure a step with each kind of settings, and return the entry for the record."""
    contenders = {name: make_step(rows, warm, name) for name in (*SETTINGS, ASSIGNED)}
    return {"rows": rows, "warm": warm, "seconds": alternate(contenders, rounds)}


def table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of all cases, after a line that names the machine and the date."""
    lines = [
        f"{record['processor']}; {record['date']}; medians of {record['rounds']} rounds; {TOUCHED} rows touched, "
        f"{WIDTH} float32 each.",
        "",
        "| rows | settings that change in every step | µs a step | over constant settings |",
        "|---|---|---|---|",
    ]
    for case in record["cases"]:
        for name, seconds in case["seconds"].items():
            ratio = seconds / case["seconds"]["constant"]
            lines.append(
                f"| {case['rows']:,} | {name.replace('constant', 'none')} | {seconds * 1e6:.0f} | {ratio:.2f} |"
            )
    return lines


def main() -> None:
    """Measure all cases, print the table, and write the record if a file is given."""
    parser = argparse.ArgumentParser(prog="sparse", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="run a small case, to check that it works")
    parser.add_argument("--out", type=Path, help="the file for the record; none is written unless it is given")
    chosen = parser.parse_args()
    # The larger table is measured before all its rows have been swept once, which takes 62,500 steps.
    rounds, warm, sizes = (2, 20, ROWS[:1]) if chosen.smoke else (40, 5000, ROWS)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "system": platform.platform(),
        "versions": versions(),
        "rounds": rounds,
        "smoke": chosen.smoke,
        "cases": [measure_case(rows, warm, rounds) for rows in sizes],
    }
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(*table(record), sep="\n")


if __name__ == "__main__":
    main()
