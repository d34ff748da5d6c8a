"""Compare ``fm.minimize`` with other solvers, and measure updates inside code that a user compiles.

``python -m benchmarks.solvers [--smoke] [--out FOLDER]``.
"""

from importlib.metadata import version
from typing import Any

from threadpoolctl import threadpool_limits

from benchmarks.contenders import OURS
from benchmarks.embedding import goal_table, measure_goals
from benchmarks.machine import versions
from benchmarks.records import arguments, write_record
from benchmarks.solver_cases import CASES, Case
from benchmarks.timing import alternate

ROUNDS = 15

USED = ("python", "numpy", "numba", "scipy", "scikit-learn")
"""The packages that the solvers use; the table names their versions."""


def measure_case(name: str, case: Case, rounds: int) -> dict[str, Any]:
    """Solve a case by both solvers, measure the ratio of their times, and return the entry for the record.

    Each solver has run once before its time is measured, so that its functions are compiled.
    """
    (ours, our_iterations), (theirs, their_iterations) = case.ours(), case.peer()
    seconds = alternate({OURS: case.ours, case.peer_name: case.peer}, rounds)
    minimum = case.objective(theirs)
    return {
        "case": name,
        "peer": case.peer_name,
        "difference": (case.objective(ours) - minimum) / abs(minimum),
        "ratio": seconds[case.peer_name] / seconds[OURS],
        "iterations": [our_iterations, their_iterations],
    }


def table(record: dict[str, Any]) -> list[str]:
    """Return the lines of both tables, after a line that names the machine, the versions and the date."""
    named = ", ".join(f"{name} {record['versions'][name]}" for name in USED)
    rounds = f"medians of {record['rounds']} rounds"
    lines = [f"{record['processor']}, of which one is used; {named}; {record['date']}; {rounds}.", ""]
    headings = "case | peer | peer's time over ours | relative difference | our iterations | peer's iterations"
    lines += [f"| {headings} |", f"|{'---|' * 6}"]
    for each in record["cases"]:
        counts = " | ".join("" if iterations is None else f"{iterations:,}" for iterations in each["iterations"])
        figures = f"{each['ratio']:.2g} | {each['difference']:+.0e} | {counts}"
        lines.append(f"| {each['case']} | {each['peer']} | {figures} |")
    return [*lines, "", *goal_table(record["embedded"])]


def main() -> None:
    """Measure all cases, write the record, and print the tables."""
    chosen = arguments("solvers", __doc__)
    rounds = 1 if chosen.smoke else ROUNDS
    # Without a limit each library would use as many cores as it chooses, and the times would compare those choices.
    with threadpool_limits(limits=1):
        found = [measure_case(name, make(), rounds) for name, make in CASES.items()]
        embedded = measure_goals(rounds, chosen.smoke)
    own = versions() | {"scikit-learn": version("scikit-learn")}
    measured = {"versions": own, "rounds": rounds, "cases": found, "embedded": embedded}
    print(*table(write_record(chosen.out / "solvers.json", chosen.smoke, **measured)), sep="\n")


if __name__ == "__main__":
    main()
