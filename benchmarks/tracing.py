"""What a recorded step costs beside one that is not: ``python -m benchmarks.tracing [--smoke] [--out FOLDER]``."""

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
"""Arrays that a step reads and writes; a look reads the same ones and writes none."""


def compared(rule: str, elements: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Both sides on arrays of their own optimisers, in turn."""
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(elements).astype(dtype)
    made = partial(fm.Momentum, rule=rule, lr=1e-3)
    sides = {name: made(np.ones(elements, dtype)) for name in ("plain", "recorded", "stopped")}
    sides["recorded"].trace()
    sides["stopped"].trace().stop()
    seconds = alternate({name: partial(opt.step, grad) for name, opt in sides.items()}, rounds)
    reads, writes = RULES[rule]
    return {
        "case": f"{rule}, {elements:,} {dtype}",
        "measured": seconds["recorded"] / seconds["plain"],
        "off": seconds["stopped"] / seconds["plain"],
        "bytes": (2 * reads + writes) / (reads + writes),
    }


def traced(record: dict[str, Any]) -> list[str]:
    """Case by case, on what machine."""
    lines = [f"{record['processor']}; {record['date']}; one thread; median of {record['rounds']}.", ""]
    lines += ["| case | recorded over plain | the same in bytes | stopped over plain |", "|---|---|---|---|"]
    for each in record["cases"]:
        lines.append(f"| {each['case']} | {each['measured']:.2f} | {each['bytes']:.2f} | {each['off']:.2f} |")
    return lines


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="tracing", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one round, small: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("fastmomentum-bench"), help="folder for the record")
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
        "cases": [compared(rule, size, dtype, rounds) for rule in RULES for size in sizes for dtype in dtypes],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "tracing.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(*traced(record), sep="\n")


if __name__ == "__main__":
    main()
