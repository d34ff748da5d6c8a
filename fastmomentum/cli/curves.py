"""The predicted error of runs, step by step, as a picture."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmomentum import theory
from fastmomentum.cli.problem import Floats, Problem
from fastmomentum.terminal import Terminal, UsageError

if TYPE_CHECKING:
    from fastmomentum.cli.tune import Row

LONGER = 5
"""How many times as many steps as the fastest rule needs are drawn; a slower one runs out of the picture."""

MOST_STEPS = 100_000
WORK = 4_000_000
"""Steps times curvatures of one curve, a second or so, where the curvatures are chosen here."""

MOST_WORK = 20_000_000
"""The same where they are given, and only the steps can be fewer."""


def check_picture(option: str, path: Path) -> None:
    """Refuse a file that no picture can be written to: better said before the work than after it.

    Raises
    ------
    UsageError
        If its folder does not exist, or matplotlib knows no such format; it would add one where there is none.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: expected a file in a folder that exists")
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(f"{option} {path}: expected a name that ends in .png, .pdf, .svg or the like")


def draw(
    path: Path, problem: Problem, ends: tuple[float, float], rows: "list[Row]", tol: float, terminal: Terminal
) -> None:
    """‖e_t‖/‖e_0‖ over t for each trajectory, to the file.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    plots = import_module("fastmomentum.plots")
    drawn = trajectories(rows)
    steps = min(length(rows), MOST_WORK // (1 if problem.curvatures is None else problem.curvatures.size))
    found = {}
    with terminal.progress() as progress:
        task = progress.add_task("curves", total=len(drawn))
        for label, row in drawn.items():
            progress.update(task, advance=1, description=label)
            found[label] = curve(row, problem, ends, steps, tol)
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axis = figure.subplots()
    plots.errors(found, ax=axis).set_ylim(bottom=tol / 10)
    known = problem.curvatures is not None
    axis.set_title(f"κ = {problem.kappa:.4g}: {'the error from x = 0' if known else 'the worst error of any start'}")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error


def trajectories(rows: "Iterable[Row]") -> "dict[str, Row]":
    """One row of each trajectory, under the method's name and the tuning's."""
    return {f"{row.method}, {row.tuning}": row for row in rows}


def length(rows: "Iterable[Row]") -> int:
    """How many steps the picture has."""
    counts = [row.bound if row.steps is None else row.steps for row in rows]
    finite = [int(count) for count in counts if count is not None and count < np.inf]
    return min([max(finite), LONGER * min(finite), MOST_STEPS]) if finite else MOST_STEPS


def curve(row: "Row", problem: Problem, ends: tuple[float, float], steps: int, tol: float) -> Floats:
    """‖e_t‖/‖e_0‖ at t = 0, 1, …: of the problem's own start, or the largest of any; up to where it is below tol."""
    if problem.curvatures is not None and problem.error is not None and problem.error.any():
        used = problem.error != 0.0
        h, weight = problem.curvatures[used], problem.error[used] / np.linalg.norm(problem.error)
    else:
        h, weight = np.geomspace(*ends, int(np.clip(WORK // (steps + 1), 16, 256))), None
    found: list[Floats] = []
    block = max(1, WORK // 8 // h.size)
    for start in range(0, steps + 1, block):
        t = np.arange(start, min(start + block, steps + 1))
        response = theory.response(row.lr, row.momentum or 0.0, h[:, None], t, rule=row.rule)
        sizes = np.abs(response).max(axis=0) if weight is None else np.linalg.norm(weight[:, None] * response, axis=0)
        found.append(sizes)
        small = np.flatnonzero(sizes <= tol)
        if weight is not None and small.size:
            found[-1] = sizes[: small[0] + 1]
            break
    return np.concatenate(found)
