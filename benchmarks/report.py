"""Write README's tables from the records that they are of: ``python -m benchmarks.report``, or ``--check`` them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.summary import Summary
from fastmomentum.validation.rows import Row, worst

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"


PEERS = ("NumPy in place", "numexpr", "torch fused", "optax, jitted", "the loop in C")


def measured(record: dict[str, Any]) -> list[str]:
    """What the benchmarks measured: contenders by size, then goals."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "fastmomentum")
    lines = [f"{record['processor']}; {versions}; {record['date']}; {record['processes']} processes.", ""]
    lines += [f"| case | threads | GB/s | of the ceiling | {' | '.join(PEERS)} |", f"|{'---|' * (4 + len(PEERS))}"]
    for case in record["cases"]:
        each = Summary(**case)
        if each.moved and "torch fused" in each.ratio:
            share = f"{1.0 / each.ceiling:.2f}" if each.ceiling else ""
            ratios = " | ".join(f"{each.ratio[name]:.2f}" if name in each.ratio else "" for name in PEERS)
            lines.append(f"| {each.case} | {each.threads} | {each.rate:.1f} | {share} | {ratios} |")
    lines += ["", "| aimed at | measured | aim |", "|---|---|---|"]
    for result in record["results"]:
        figure = f"{result['value']:.3g} {result['unit']}"
        lines.append(f"| {result['name']} | {figure} | {result['goal']}{'' if result['met'] else ' (missed)'} |")
    return lines


def validated(record: dict[str, Any]) -> list[str]:
    """The worst that the validation saw of every kind of prediction."""
    lines = ["| predicted (and in what the error is) | predictions | largest error | limit |", "|---|---|---|---|"]
    rows = [Row(**{name: row[name] for name in Row._fields}) for row in record["rows"]]
    for row, count in worst(rows, "topic"):
        limit = f"{row.limit:.3g}{'' if row.holds else ' (missed)'}"
        lines.append(f"| {row.topic} | {count} | {row.error:.2g} | {limit} |")
    return lines


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "measured": ("cpu.json", measured),
    "validated": ("validation.json", validated),
}
"""What stands between README's marks of this name: from which record, and how it is written."""


def write(text: str) -> str:
    """`text` with every table made anew between its two marks."""
    for mark, (name, table) in TABLES.items():
        begin, end = (f"<!-- {mark}: {which} -->\n" for which in ("begin", "end"))
        before, rest = text.split(begin)
        lines = table(json.loads((RESULTS / name).read_text()))
        text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    text = README.read_text()
    if "--check" in sys.argv:
        sys.exit(
            "README's tables are not those of the records: python -m benchmarks.report" if write(text) != text else 0
        )
    README.write_text(write(text))
