"""Run the whole validation, and write its table, its record and its pictures."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table
from rich.text import Text

from fastmomentum import theory
from fastmomentum.cli.errors import UsageError, system_errors
from fastmomentum.cli.terminal import Terminal
from fastmomentum.cli.validation import formulas, limits, noise, plane, quadratics
from fastmomentum.cli.validation.formulas import Row, worst
from fastmomentum.cli.validation.plane import MAX_AH, Plane

METHODS = {"gradient descent": "sgd", "heavy ball": "heavy_ball", "Nesterov": "nesterov_positions"}


def draw(planes: dict[str, Plane], folder: Path) -> list[Path]:
    """Draw all pictures as PNG files in `folder`, and return their paths."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, width, panels in (
        (
            "plane",
            12.0,
            [lambda axis, rule=rule: _plane(axis, planes[rule]) for rule in METHODS.values() if rule != "sgd"],
        ),
        ("critical", 12.0, [_trajectory, _excess]),
        ("tunings", 13.0, [lambda axis, name=name: _tunings(axis, name) for name in quadratics.DATA]),
    ):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(width, 4.6), layout="constrained")
        for axis, panel in zip(axes, panels):
            panel(axis)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=90, pil_kwargs={"optimize": True})
        pyplot.close(figure)
    return paths


def _plane(axis: Any, plane: Plane) -> None:
    mu, ah = np.linspace(0.0, 1.0, 201), np.linspace(1e-3, MAX_AH, 401)
    rho = theory.spectral_radius(1.0, mu[:, None], ah, rule=plane.rule)
    levels = {"vmin": 0.0, "vmax": 1.2, "cmap": "viridis"}
    shade = axis.pcolormesh(ah, mu, rho, shading="gouraud", **levels)
    axis.contour(ah, mu, rho, [1.0], colors="white")
    rng = np.random.default_rng(0)
    k = rng.choice(plane.measured.size, min(600, plane.measured.size), replace=False)
    row, column = np.unravel_index(k, plane.measured.shape)
    measured = np.exp(plane.measured[row, column])
    axis.scatter(plane.ah[column], plane.mu[row], c=measured, s=14, edgecolors="black", linewidths=0.3, **levels)
    axis.figure.colorbar(shade, ax=axis, label="ρ", extend="max")
    axis.set(
        xlabel="αh",
        ylabel="μ",
        title=f"{plane.rule}: ρ, and as measured (dots)",
        xlim=(0, MAX_AH),
    )


def _trajectory(axis: Any) -> None:
    t = np.arange(1, 201)
    mu = plane.MOMENTA["heavy_ball"]
    axis.semilogy(t, plane.RATE**t, "k--", label="ρ^t")
    axis.semilogy(t, theory.transient(plane.LR, mu, 1.0, t, rule="heavy_ball"), label="‖A^t‖, predicted")
    axis.semilogy(t, np.exp2(plane.powers(plane.LR, mu, t.size).logs), ":", label="‖A^t‖, measured")
    axis.semilogy(t, np.exp2(plane.run("heavy_ball", plane.LR, mu, t.size).logs), label="‖(e_t, e_{t−1})‖, measured")
    axis.set(xlabel="t", title="Critical damping: the rate is ρ, the error is not O(ρ^t)")
    axis.legend()


def _excess(axis: Any) -> None:
    steps = 10_000
    for factor, name in ((1.0, "critical"), (2.0, "lr twice as large"), (10.0, "lr ten times as large")):
        over = plane.run("heavy_ball", factor * plane.LR, plane.MOMENTA["heavy_ball"], steps).over(plane.RATE)
        axis.loglog(np.arange(1, steps + 1), over, label=name)
    axis.set(xlabel="t", title="‖(e_t, e_{t−1})‖/ρ^t for three settings with the same ρ")
    axis.legend()


def _tunings(axis: Any, name: str) -> None:
    spectrum = quadratics.least_squares(name).spectrum
    m, L = float(spectrum[0]), float(spectrum[-1])
    h = np.geomspace(m / 3.0, 1.5 * L, 400)
    for method, rule in METHODS.items():
        tuning = theory.optimal(m, L, rule=rule)
        rates = 1.0 - theory.spectral_radius(tuning.lr, tuning.momentum, h, rule=rule)
        (line,) = axis.loglog(h, np.where(rates > 0.0, rates, np.nan), label=method)
        at = 1.0 - theory.spectral_radius(tuning.lr, tuning.momentum, spectrum, rule=rule)
        axis.loglog(spectrum, at, "o", markersize=3, color=line.get_color())
    axis.set(xlabel="curvature h (dots: the spectrum)", ylabel="1 − ρ at the optimal tuning", title=name)
    axis.legend(fontsize="small")


Part = tuple[str, Callable[[], Iterator[Row]]]


class Sizes:
    """Hold the sizes of the full validation, or of the small one that the tests run."""

    def __init__(self, small: bool) -> None:
        self.grid = (24, 45) if small else (256, 400)
        self.steps = 2048 if small else 8192
        # The measured rate of a slow oscillation is less exact after fewer steps.
        self.worst, self.median = (1e-2, 1e-10) if small else (1e-3, 1e-12)
        self.powers = 1 << 11 if small else 1 << 15
        self.noise = (400, 512) if small else (1000, 2048)
        self.quadratics = (
            [quadratics.prescribed(100.0, 20), quadratics.laplacian(8), quadratics.least_squares("digits")]
            if small
            else list(quadratics.all_quadratics())
        )


def parts(sizes: Sizes, planes: dict[str, plane.Plane]) -> Iterator[Part]:
    """Yield the name and the function of every part of the validation; the parts fill `planes` for the pictures."""

    def plane_rows(rule: str) -> Iterator[Row]:
        mu, ah = plane.grid(*sizes.grid)
        planes[rule] = plane.measure(rule, mu, ah, sizes.steps)
        return plane.rows(planes[rule], sizes.worst, sizes.median)

    yield "published formulas", formulas.rows
    for rule in formulas.RULES:
        yield f"the (αh, μ) plane, {rule}", partial(plane_rows, rule)
    yield "critical damping", partial(plane.critical_rows, sizes.powers)
    for problem in sizes.quadratics:
        yield problem.name, partial(quadratics.counting_rows, problem)
    yield "tuned on an estimated spectrum", quadratics.tuning_rows
    yield "noise", partial(noise.rows, *sizes.noise)
    yield "a function with a cycle", limits.cycle_rows
    yield "logistic regression", limits.logistic_rows


WIDE = 120
"""The width of a terminal from which on the table has columns for the predicted and the measured value."""


def table(rows: list[Row], width: int) -> Table:
    """Return a table of the worst row of every group."""
    shown = Table(
        "prediction (the worst of its group)", title="Predicted by the theory, measured on the compiled kernels"
    )
    both = ("predicted", "measured") if width >= WIDE else ()
    for heading in (*both, "error", "limit", "of", "verdict"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row, count in worst(rows):
        figures = (f"{row.predicted:.9g}", f"{row.measured:.9g}")[: len(both)]
        verdict = Text("holds") if row.holds else Text("MISSED", "bold red")
        shown.add_row(row.what, *figures, f"{row.error:.2g}", f"{row.limit:.2g}", str(count), verdict)
    return shown


def record(rows: list[Row], small: bool, seconds: float) -> dict[str, Any]:
    """Return the content of the JSON file: all rows, the versions of the packages, the date and the duration."""
    packages = {name: version(name) for name in ("fastmomentum", "numpy", "scipy", "numba", "scikit-learn")}
    return {
        "date": date.today().isoformat(),
        "packages": {"python": sys.version.split()[0], **packages},
        "small": small,
        "seconds": round(seconds, 1),
        "rows": [row._asdict() | {"holds": row.holds} for row in rows],
    }


def format_record(record: dict[str, Any]) -> str:
    """Return the record as JSON with one line per row."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in record["rows"])
    rest = json.dumps(record | {"rows": []}, indent=1, ensure_ascii=False)
    return rest.replace('"rows": []', f'"rows": [\n{rows}\n]') + "\n"


def run(out: Path, small: bool, terminal: Terminal) -> int:
    """Run the validation, write its record and pictures to `out`, and return 0 if all predictions hold, else 1."""
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
        with system_errors(f"--out {out}", UsageError):
            pictures = draw(planes, out)
    seconds = perf_counter() - begin
    path, content = out / "validation.json", record(rows, small, seconds)
    with system_errors(f"--out {path}", UsageError):
        path.write_text(format_record(content))
    terminal.show(table(rows, terminal.width))
    missed = [row for row in rows if not row.holds]
    for row in missed:
        terminal.say(f"MISSED: {row.what}: predicted {row.predicted:.9g}, measured {row.measured:.9g}")
    terminal.say(f"{len(rows)} predictions, {len(missed)} missed, {seconds:.0f} s.")
    terminal.say(f"Record: {path}; pictures: {', '.join(map(str, pictures))}")
    terminal.record(content)
    return 1 if missed else 0
