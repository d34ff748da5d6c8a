"""Write README's table of measurements from a record: ``python -m benchmarks.report benchmarks/results/FILE.json``."""

import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "fastmomentum")
    lines = [f"{record['processor']}; {versions}; {record['date']}.", "", "| what | measured | aim |", "|---|---|---|"]
    for result in record["results"]:
        measured = f"{result['value']:.3g} {result['unit']}"
        lines.append(f"| {result['name']} | {measured} | {result['goal']}{'' if result['met'] else ' (missed)'} |")
    return "\n".join(lines) + "\n"


def write(record: dict[str, Any], text: str) -> str:
    """`text` with the table between its two marks made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table(record) + END + after


if __name__ == "__main__":
    README.write_text(write(json.loads(Path(sys.argv[1]).read_text()), README.read_text()))
