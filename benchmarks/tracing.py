"""Compare a step that a trace records with a plain one: ``python -m benchmarks.tracing [--smoke] [--out FOLDER]``."""

import argparse
import json
import platform
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastmomentum as fm
from benchmarks.machine import processor, versions
from benchmarks.timing import alternate

SIZES = (10_000, 1_000_000, 10_000_000)
RULES = {"pytorch": (3, 2), "sgd": (2, 1)}
"""The numbers of arrays that a step of each rule reads and writes; recording reads the same arrays and writes none."""


def measure_case(rule: str, elements: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Measure plain steps, recorded steps and steps after a trace was stopped, and return the entry for the record."""
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(elements).astype(dtype)
    make = partial(fm.Momentum, rule=rule, lr=1e-3)
    optimisers = {name: make(np.ones(elements, dtype)) for name in ("plain", "recorded", "stopped")}
    optimisers["recorded"].trace()
    optimisers["stopped"].trace().stop()
    seconds = alternate({name: partial(opt.step, grad) for name, opt in optimisers.items()}, rounds)
    reads, writes = RULES[rule]
    return {
        "case": f"{rule}, {elements:,} {dtype}",
        "measured": seconds["recorded"] / seconds["plain"],
        "off": seconds["stopped"] / seconds["plain"],
        "bytes": (2 * reads + writes) / (reads + writes),
    }


def table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of all cases, after a line that names the machine and the date."""
    lines = [f"{record['processor']}; {record['date']}; one thread; medians of {record['rounds']} rounds.", ""]
    lines += [
        "| case | recorded step over plain step | the same ratio in bytes | step after stop() over plain step |",
        "|---|---|---|---|",
    ]
    for each in record["cases"]:
        lines.append(f"| {each['case']} | {each['measured']:.2f} | {each['bytes']:.2f} | {each['off']:.2f} |")
    return lines


def main() -> None:
    """Measure all cases, write the record, and print the table."""
    parser = argparse.ArgumentParser(prog="tracing", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="run small cases, to check that it works")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastmomentum-bench"),
        help="the folder for the record (default %(default)s)",
    )
    chosen = parser.parse_args()
    rounds, sizes = (2, SIZES[:1]) if chosen.smoke else (15, SIZES)
    dtypes = ("float32", "float64")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "system": platform.platform(),
        "versions": versions(),
        "rounds": rounds,
        "smoke": chosen.smoke,
        "cases": [measure_case(rule, size, dtype, rounds) for rule in RULES for size in sizes for dtype in dtypes],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "tracing.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(*table(record), sep="\n")


if __name__ == "__main__":
    main()
