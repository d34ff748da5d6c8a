"""Write the tables of both READMEs from the records in results/: ``python -m benchmarks.report [--check]``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import adaptive, settings, solvers, torch_steps, tracing
from benchmarks.summary import Summary, goal_results, regimes
from fastmomentum.cli.validation.formulas import Row, worst

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("NumPy in place", "numexpr", "torch fused", "optax, jitted", "the loop in C")

EXCERPT_CASES = ("float32, n = 100", "float32, n = 10,000", "float32, n = 1,000,000", "float32, n = 16,000,000")
"""The cases of one array that README.md shows."""

EXCERPT_TOPICS = (
    "log ρ over the (αh, μ) plane, by rule and regime, worst",
    "iterations to 1e-8, the initial",
    "iterations near",
)
"""The first words of the topics of predictions that README.md shows."""

PLACEMENTS = {
    "one element behind": "one element after the start of NumPy's memory",
    "in small pages": "in pages of the usual size, not in huge pages",
}
"""The places in memory that the record names, as a table describes them."""


def read_summaries(record: dict[str, Any]) -> list[Summary]:
    """Return the summaries of all cases in a record of the CPU benchmark."""
    return [Summary(**case) for case in record["cases"]]


def conditions(record: dict[str, Any]) -> str:
    """Return a line that names the machine, the versions, the date and the number of processes."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "fastmomentum")
    return f"{record['processor']}; {versions}; {record['date']}; {record['processes']} processes."


def cpu_excerpt_table(record: dict[str, Any]) -> list[str]:
    """Return the lines of the table in README.md: the peers' seconds over ours with one thread, for some cases."""
    lines = [conditions(record), "", f"| case, one thread | {' | '.join(PEERS)} |", f"|{'---|' * (1 + len(PEERS))}"]
    for each in read_summaries(record):
        is_one_array = each.case.startswith("float")
        if each.threads == 1 and "torch fused" in each.runs and (each.case in EXCERPT_CASES or not is_one_array):
            lines.append(f"| {each.case} | {_ratios(each)} |")
    return lines


def _ratios(each: Summary) -> str:
    return " | ".join(f"{each.ratio(name):.2f}" if name in each.runs else "" for name in PEERS)


def cpu_tables(record: dict[str, Any]) -> list[str]:
    """Return the lines of two tables: the peers' seconds over ours for all cases, and the goals."""
    lines = [conditions(record), ""]
    headings = f"case | threads | GB/s | fraction of ceiling | {' | '.join(PEERS)}"
    lines += [f"| {headings} |", f"|{'---|' * (4 + len(PEERS))}"]
    for each in read_summaries(record):
        if "torch fused" in each.runs:
            fraction = f"{each.ceiling:.2f}" if each.ceiling else ""
            lines.append(f"| {each.case} | {each.threads} | {each.rate:.1f} | {fraction} | {_ratios(each)} |")
    lines += ["", "| quantity | measured | goal |", "|---|---|---|"]
    for result in goal_results(read_summaries(record)):
        figure = f"{result.value:.3g} {result.unit}"
        lines.append(f"| {result.name} | {figure} | {result.goal}{'' if result.met else ' (missed)'} |")
    return lines


def regime_table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of the rate that memory allows and the rate of an update, by size."""
    lines = [
        "| arrays fit in | elements | threads | predicted, GB/s | measured, GB/s | gap |",
        "|---|---|---|---|---|---|",
    ]
    for each in regimes(read_summaries(record), record["caches"]):
        gap = f"{each.predicted / each.measured - 1:+.0%}"
        figures = f"{each.predicted:.1f} | {each.measured:.1f} | {gap}"
        lines.append(f"| {each.name} | {each.elements:,} | {each.threads} | {figures} |")
    return lines


def placement_table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of the seconds with arrays elsewhere in memory, over those where NumPy puts them."""
    lines = ["| place of the arrays | threads | seconds over those where NumPy puts them |", "|---|---|---|"]
    for each in read_summaries(record):
        if each.case.startswith("memory"):
            lines += [f"| {PLACEMENTS[name]} | {each.threads} | {each.ratio(name):.2f} |" for name in each.peers]
    return lines


def validation_table(record: dict[str, Any], topics: tuple[str, ...] = ("",)) -> list[str]:
    """Return the lines of a table of the worst prediction of each topic that begins with one of `topics`."""
    lines = ["| prediction (unit of the error) | predictions | largest error | limit |", "|---|---|---|---|"]
    rows = [Row(**{name: row[name] for name in Row._fields}) for row in record["rows"]]
    for row, count in worst([row for row in rows if row.topic.startswith(topics)], "topic"):
        limit = f"{row.limit:.3g}{'' if row.holds else ' (missed)'}"
        lines.append(f"| {row.topic} | {count} | {row.error:.2g} | {limit} |")
    return lines


TABLES: dict[str, tuple[str, str, Callable[[dict[str, Any]], list[str]]]] = {
    "excerpt": ("README.md", "cpu.json", cpu_excerpt_table),
    "foretold": ("README.md", "validation.json", lambda record: validation_table(record, EXCERPT_TOPICS)),
    "measured": ("benchmarks/README.md", "cpu.json", cpu_tables),
    "validated": ("benchmarks/README.md", "validation.json", validation_table),
    "predicted": ("benchmarks/README.md", "cpu.json", regime_table),
    "tried": ("benchmarks/README.md", "cpu.json", placement_table),
    "settings": ("benchmarks/README.md", "settings.json", settings.table),
    "torch": ("benchmarks/README.md", "torch_steps.json", torch_steps.show),
    "adaptive": ("benchmarks/README.md", "adaptive.json", adaptive.show),
    "traced": ("benchmarks/README.md", "tracing.json", tracing.table),
    "solvers": ("benchmarks/README.md", "solvers.json", solvers.table),
}
"""The page, the record and the function of the table between the marks of each name."""


def write(page: str, text: str) -> str:
    """Return `text`, the content of a page, with every table between its marks written anew from its record."""
    for mark, (page_of_table, name, table) in TABLES.items():
        if page_of_table == page:
            begin, end = (f"<!-- {mark}: {edge} -->\n" for edge in ("begin", "end"))
            before, rest = text.split(begin)
            lines = table(json.loads((RESULTS / name).read_text()))
            text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    return text


def main() -> None:
    """Write the tables of both pages; with ``--check``, write nothing, and exit with an error if a table is stale."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if a table differs from its record"
    )
    check = parser.parse_args().check
    for page in dict.fromkeys(page for page, _, _ in TABLES.values()):
        text = (ROOT / page).read_text()
        if check and write(page, text) != text:
            raise SystemExit(f"{page}: a table differs from its record in {RESULTS}; run python -m benchmarks.report")
        if not check:
            (ROOT / page).write_text(write(page, text))


if __name__ == "__main__":
    main()
