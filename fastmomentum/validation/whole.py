"""All of the validation, as one table, pictures and a record."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmomentum.terminal import Terminal
from fastmomentum.validation import counting, critical, limits, noise, pictures, plane, problems, textbook, tuning
from fastmomentum.validation.rows import Row, worst

Part = tuple[str, Callable[[], Iterator[Row]]]


class Sizes:
    """How large the validation is: the whole, or the small version that the tests run."""

    def __init__(self, small: bool) -> None:
        self.grid = (24, 45) if small else (256, 400)
        self.steps = 2048 if small else 8192
        # Fewer steps see less of a slow oscillation: the error of what is left of it goes down with their number.
        self.worst, self.median = (1e-2, 1e-10) if small else (1e-3, 1e-12)
        self.powers = 1 << 11 if small else 1 << 15
        self.noise = (400, 512) if small else (1000, 2048)
        self.quadratics = (
            [problems.prescribed(100.0, 20), problems.laplacian(8), problems.least_squares("digits")]
            if small
            else list(problems.every())
        )


def parts(sizes: Sizes, planes: dict[str, plane.Plane]) -> Iterator[Part]:
    """Everything that is validated, by name; the planes measured on the way are kept for the pictures."""

    def over_the_plane(rule: str) -> Iterator[Row]:
        mu, ah = plane.grid(*sizes.grid)
        planes[rule] = plane.measure(rule, mu, ah, sizes.steps)
        return plane.rows(planes[rule], sizes.worst, sizes.median)

    yield "printed formulas", textbook.rows
    for rule in textbook.RULES:
        yield f"the (αh, μ) plane, {rule}", partial(over_the_plane, rule)
    yield "critical damping", partial(critical.rows, sizes.powers)
    for problem in sizes.quadratics:
        yield problem.name, partial(counting.rows, problem)
    yield "tuned on estimates", tuning.rows
    yield "noise", partial(noise.rows, *sizes.noise)
    yield "a function with a cycle", limits.cycle
    yield "logistic regression", limits.local


WIDE = 120
"""Columns from which on there is room for what was predicted and what was measured."""


def table(rows: list[Row], width: int) -> Table:
    """Of every group of rows the worst."""
    shown = Table("what (of several the worst)", title="Predicted by the theory, measured on the compiled kernels")
    both = ("predicted", "measured") if width >= WIDE else ()
    for heading in (*both, "error", "limit", "of", "verdict"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row, count in worst(rows):
        figures = (f"{row.predicted:.9g}", f"{row.measured:.9g}")[: len(both)]
        verdict = Text("holds") if row.holds else Text("MISSED", "bold red")
        shown.add_row(row.what, *figures, f"{row.error:.2g}", f"{row.limit:.2g}", str(count), verdict)
    return shown


def record(rows: list[Row], small: bool, seconds: float) -> dict[str, Any]:
    """What goes to the JSON file: every row, and with which versions it was measured."""
    packages = {name: version(name) for name in ("fastmomentum", "numpy", "scipy", "numba", "scikit-learn")}
    return {
        "date": date.today().isoformat(),
        "packages": {"python": sys.version.split()[0], **packages},
        "small": small,
        "seconds": round(seconds, 1),
        "rows": [row._asdict() | {"holds": row.holds} for row in rows],
    }


def written(record: dict[str, Any]) -> str:
    """The record as JSON, every row on a line of its own."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in record["rows"])
    rest = json.dumps(record | {"rows": []}, indent=1, ensure_ascii=False)
    return rest.replace('"rows": []', f'"rows": [\n{rows}\n]') + "\n"


def run(out: Path, small: bool, terminal: Terminal) -> int:
    """Run the validation, pictures and record into the folder `out`; 0 if every prediction holds."""
    begin = perf_counter()
    rows: list[Row] = []
    planes: dict[str, plane.Plane] = {}
    todo = list(parts(Sizes(small), planes))
    with terminal.progress() as progress:
        task = progress.add_task("", total=len(todo))
        for name, part in todo:
            progress.update(task, description=name)
            rows += part()
            progress.advance(task)
        progress.update(task, description="pictures")
        drawn = pictures.draw(planes, out)
    seconds = perf_counter() - begin
    kept, told = out / "validation.json", record(rows, small, seconds)
    kept.write_text(written(told))
    terminal.show(table(rows, terminal.width))
    missed = [row for row in rows if not row.holds]
    for row in missed:
        terminal.say(f"MISSED: {row.what}: predicted {row.predicted:.9g}, measured {row.measured:.9g}")
    terminal.say(f"{len(rows)} predictions, {len(missed)} missed, {seconds:.0f} s.")
    terminal.say(f"Record: {kept}; pictures: {', '.join(map(str, drawn))}")
    terminal.record(told)
    return 1 if missed else 0
