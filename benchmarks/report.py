"""Write the tables of both READMEs from the records that they are of: ``python -m benchmarks.report [--check]``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import solvers, tracing
from benchmarks.summary import Summary, headlines, regimes
from fastmomentum.cli.validation.formulas import Row, worst

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("NumPy in place", "numexpr", "torch fused", "optax, jitted", "the loop in C")


def cases_of(record: dict[str, Any]) -> list[Summary]:
    """The measurements in a record."""
    return [Summary(**case) for case in record["cases"]]


SHOWN = ("float32, n = 100", "float32, n = 10,000", "float32, n = 1,000,000", "float32, n = 16,000,000")
"""Of single arrays those that README shows."""
TOPICS = (
    "log ρ over the (αh, μ) plane, by rule and regime, worst",
    "iterations to 1e-8, the initial",
    "iterations near",
)
"""Of predictions those that README shows."""


def conditions(record: dict[str, Any]) -> str:
    """Where and when it was measured."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "fastmomentum")
    return f"{record['processor']}; {versions}; {record['date']}; {record['processes']} processes."


def excerpt(record: dict[str, Any]) -> list[str]:
    """Some sizes, on one core."""
    lines = [conditions(record), "", f"| one core | {' | '.join(PEERS)} |", f"|{'---|' * (1 + len(PEERS))}"]
    for each in cases_of(record):
        single = each.case.startswith("float")
        if each.threads == 1 and "torch fused" in each.runs and (each.case in SHOWN or not single):
            lines.append(f"| {each.case} | {_ratios(each)} |")
    return lines


def _ratios(each: Summary) -> str:
    return " | ".join(f"{each.ratio(name):.2f}" if name in each.runs else "" for name in PEERS)


def measured(record: dict[str, Any]) -> list[str]:
    """What the benchmarks measured: contenders by size, then goals."""
    lines = [conditions(record), ""]
    lines += [f"| case | threads | GB/s | of the ceiling | {' | '.join(PEERS)} |", f"|{'---|' * (4 + len(PEERS))}"]
    for each in cases_of(record):
        if "torch fused" in each.runs:
            share = f"{each.ceiling:.2f}" if each.ceiling else ""
            lines.append(f"| {each.case} | {each.threads} | {each.rate:.1f} | {share} | {_ratios(each)} |")
    lines += ["", "| aimed at | measured | aim |", "|---|---|---|"]
    for result in headlines(cases_of(record)):
        figure = f"{result.value:.3g} {result.unit}"
        lines.append(f"| {result.name} | {figure} | {result.goal}{'' if result.met else ' (missed)'} |")
    return lines


def predicted(record: dict[str, Any]) -> list[str]:
    """By size what memory allows, what an update moves, and the gap."""
    lines = ["| in | elements | threads | predicted, GB/s | measured, GB/s | gap |", "|---|---|---|---|---|---|"]
    for each in regimes(cases_of(record), record["caches"]):
        gap = f"{each.predicted / each.measured - 1:+.0%}"
        figures = f"{each.predicted:.1f} | {each.measured:.1f} | {gap}"
        lines.append(f"| {each.name} | {each.elements:,} | {each.threads} | {figures} |")
    return lines


def tried(record: dict[str, Any]) -> list[str]:
    """What other memory than NumPy's changes: seconds over those of an update in that."""
    lines = ["| tried | threads | seconds over |", "|---|---|---|"]
    for each in cases_of(record):
        if each.case.startswith("memory"):
            lines += [f"| {name} | {each.threads} | {each.ratio(name):.2f} |" for name in each.peers]
    return lines


def validated(record: dict[str, Any], topics: tuple[str, ...] = ("",)) -> list[str]:
    """The worst that the validation saw of every kind of prediction that begins so."""
    lines = ["| predicted (and in what the error is) | predictions | largest error | limit |", "|---|---|---|---|"]
    rows = [Row(**{name: row[name] for name in Row._fields}) for row in record["rows"]]
    for row, count in worst([row for row in rows if row.topic.startswith(topics)], "topic"):
        limit = f"{row.limit:.3g}{'' if row.holds else ' (missed)'}"
        lines.append(f"| {row.topic} | {count} | {row.error:.2g} | {limit} |")
    return lines


TABLES: dict[str, tuple[str, str, Callable[[dict[str, Any]], list[str]]]] = {
    "excerpt": ("README.md", "cpu.json", excerpt),
    "foretold": ("README.md", "validation.json", lambda record: validated(record, TOPICS)),
    "measured": ("benchmarks/README.md", "cpu.json", measured),
    "validated": ("benchmarks/README.md", "validation.json", validated),
    "predicted": ("benchmarks/README.md", "cpu.json", predicted),
    "tried": ("benchmarks/README.md", "cpu.json", tried),
    "traced": ("benchmarks/README.md", "tracing.json", tracing.traced),
    "solvers": ("benchmarks/README.md", "solvers.json", solvers.table),
}
"""What stands between marks of this name: in which file, from which record, and how it is written."""


def write(page: str, text: str) -> str:
    """`text`, of this page, with every table made anew between its two marks."""
    for mark, (where, name, table) in TABLES.items():
        if where == page:
            begin, end = (f"<!-- {mark}: {which} -->\n" for which in ("begin", "end"))
            before, rest = text.split(begin)
            lines = table(json.loads((RESULTS / name).read_text()))
            text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    return text


def main() -> None:
    """Write the tables, or refuse what they are not."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is not its record's")
    check = parser.parse_args().check
    for page in dict.fromkeys(where for where, _, _ in TABLES.values()):
        text = (ROOT / page).read_text()
        if check and write(page, text) != text:
            raise SystemExit(f"{page}: its tables are not those of the records: python -m benchmarks.report")
        if not check:
            (ROOT / page).write_text(write(page, text))


if __name__ == "__main__":
    main()
