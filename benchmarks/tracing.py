"""Compare a step that a trace records with a plain one: ``python -m benchmarks.tracing [--smoke] [--out FOLDER]``."""

from functools import partial
from typing import Any

import numpy as np

import fastmomentum as fm
from benchmarks.records import arguments, write_record
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
    chosen = arguments("tracing", __doc__)
    rounds, sizes = (2, SIZES[:1]) if chosen.smoke else (15, SIZES)
    dtypes = ("float32", "float64")
    cases = [measure_case(rule, size, dtype, rounds) for rule in RULES for size in sizes for dtype in dtypes]
    record = write_record(chosen.out / "tracing.json", chosen.smoke, rounds=rounds, cases=cases)
    print(*table(record), sep="\n")


if __name__ == "__main__":
    main()
