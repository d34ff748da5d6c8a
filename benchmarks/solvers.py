"""``fm.minimize`` beside other solvers, and what updates cost in compiled code.

``python -m benchmarks.solvers [--smoke] [--out FOLDER]``.
"""

import argparse
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks.contenders import OURS
from benchmarks.embedding import goals, ratios
from benchmarks.machine import processor, versions
from benchmarks.solver_cases import CASES, Case
from benchmarks.timing import alternate

ROUNDS = 15

USED = ("python", "numpy", "numba", "scipy", "scikit-learn")
"""What the sides are made of, of all that is installed."""


def compared(name: str, case: Case, rounds: int) -> dict[str, Any]:
    """Both answers and the ratio of the times; before these are taken either side has run."""
    (ours, taken), (theirs, taken_there) = case.ours(), case.peer()
    seconds = alternate({OURS: case.ours, case.peer_name: case.peer}, rounds)
    least = case.objective(theirs)
    return {
        "case": name,
        "peer": case.peer_name,
        "difference": (case.objective(ours) - least) / abs(least),
        "ratio": seconds[case.peer_name] / seconds[OURS],
        "iterations": [taken, taken_there],
    }


def table(record: dict[str, Any]) -> list[str]:
    """Case by case, on what machine."""
    named = ", ".join(f"{name} {record['versions'][name]}" for name in USED)
    rounds = f"median of {record['rounds']}"
    lines = [f"{record['processor']}, of which one is used; {named}; {record['date']}; {rounds}.", ""]
    lines += ["| case | peer | its time over ours | relative difference | our iterations | its |", f"|{'---|' * 6}"]
    for each in record["cases"]:
        counts = " | ".join("" if taken is None else f"{taken:,}" for taken in each["iterations"])
        figures = f"{each['ratio']:.2g} | {each['difference']:+.0e} | {counts}"
        lines.append(f"| {each['case']} | {each['peer']} | {figures} |")
    return [*lines, "", *goals(record["embedded"])]


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="solvers", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one round: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("fastmomentum-bench"), help="folder for the record")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rounds = 1 if chosen.smoke else ROUNDS
    # The sides would share out the cores of a machine by themselves, each library in its own way.
    with threadpool_limits(limits=1):
        found = [compared(name, make(), rounds) for name, make in CASES.items()]
        embedded = ratios(rounds, chosen.smoke)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "system": platform.platform(),
        "versions": versions() | {"scikit-learn": version("scikit-learn")},
        "rounds": rounds,
        "smoke": chosen.smoke,
        "cases": found,
        "embedded": embedded,
    }
    (chosen.out / "solvers.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(*table(record), sep="\n")


if __name__ == "__main__":
    main()
