"""``fastmomentum tune``: learning rate and momentum for each rule, and how fast they converge.

The predicted error of runs, step by step, as a picture.
"""

import argparse
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from fastmomentum import rules, theory
from fastmomentum.cli.problem import Floats, Problem, least_squares
from fastmomentum.cli.terminal import Failure, Terminal, UsageError

FAMILIES = {
    "gradient descent": ("sgd",),
    "heavy ball": ("heavy_ball", "classical", "pytorch", "ema"),
    "Nesterov": ("nesterov_positions", "classical_nesterov", "pytorch_nesterov", "ema_nesterov"),
}
"""Rules that draw one trajectory at their tunings stand together; others follow, each for itself."""

MILLIONS = 10_000_000
"""From so many on, steps are told in four digits."""

ESTIMATED = 0.02
"""The margin where m and L are estimates; :func:`fastmomentum.theory.tune` has the same."""


class Row(NamedTuple):
    """A rule's settings, and what they do.

    Attributes
    ----------
    rule, tuning : str
        Its name; "optimal" or "standard".
    lr, momentum, rate : float
        The settings, momentum None where the rule has none, and the largest ρ on [m, L].
    steps : float or None
        Of this problem, started at x = 0, to the tolerance; None where its eigenvalues are not known.
    bound : float or None
        The same for every start from rest, on every spectrum in [m, L]; inf where ρ rounds to 1.
    """

    rule: str
    tuning: str
    lr: float
    momentum: float | None
    rate: float
    steps: float | None
    bound: float | None

    @property
    def method(self) -> str:
        """Whose trajectory the rule draws."""
        return next((method for method, family in FAMILIES.items() if self.rule in family), self.rule)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Find, print, draw; 0, or 1 where Lanczos found no spectrum."""
    names = chosen(options.rule)
    if options.plot:
        check_picture("--plot", options.plot)
    with terminal.progress() as progress:
        task = progress.add_task("the spectrum", total=len(names) + 1)
        try:
            problem = _problem(options)
        except RuntimeError as error:
            raise Failure(f"{options.data}: {error}") from error
        margin = options.margin
        if margin is None:
            margin = ESTIMATED if problem.estimated else 0.0
        ends = widened(problem.spectrum, margin)
        rows, without = [], []
        for name in names:
            progress.update(task, advance=1, description=name)
            try:
                rows += list(tunings(name, problem, ends, options.tol))
            except ValueError as error:
                if options.rule:
                    expected = str(error).partition("; got")[0].removeprefix("rule: ")
                    raise UsageError(f"--rule {name}: {expected}") from error
                without.append(name)
    if options.plot:
        draw(options.plot, problem, ends, rows, options.tol, terminal)
    _tell(terminal, options, problem, ends, margin, rows)
    if without:
        terminal.say(f"no rate is known for {', '.join(without)}")
    told = record(problem, ends, margin, options.tol, rows)
    terminal.record(told | {"ridge": options.ridge, "without_rate": without})
    return 0


def chosen(given: list[str] | None) -> list[str]:
    """The rules to tune, those of one trajectory one after the other."""
    known = rules.names()
    for name in given or ():
        if name not in known:
            raise UsageError(f"--rule: expected one of {', '.join(known)}; got {name!r}")
    ordered = [name for family in FAMILIES.values() for name in family]
    ordered += [name for name in known if name not in ordered]
    return [name for name in ordered if not given or name in given]


def widened(spectrum: theory.Spectrum, margin: float) -> tuple[float, float]:
    """The ends that are reckoned with: m less its error and the margin, L with them."""
    return (spectrum.m - spectrum.m_error) * (1.0 - margin), (spectrum.L + spectrum.L_error) * (1.0 + margin)


def tunings(rule: str, problem: Problem, ends: tuple[float, float], tol: float) -> Iterator[Row]:
    """The optimal tuning, and the standard one where that is another; ValueError where the rule has no rate."""
    best = theory.optimal(*ends, rule=rule)
    yield _row(rule, "optimal", best, problem, ends, tol)
    try:
        usual = theory.standard(*ends, rule=rule)
    except ValueError:  # it draws no known method's trajectory
        return
    if usual != best:
        yield _row(rule, "standard", usual, problem, ends, tol)


def _row(rule: str, tuning: str, found: theory.Tuning, problem: Problem, ends: tuple[float, float], tol: float) -> Row:
    momentum = found.momentum if "momentum" in getattr(rules, rule).parameters else None
    steps = None
    if problem.curvatures is not None:
        steps = _count(found, problem.curvatures, tol, rule, problem.error)
    return Row(rule, tuning, found.lr, momentum, found.rate, steps, _count(found, ends, tol, rule))


def _count(found: theory.Tuning, spectrum: Any, tol: float, rule: str, error: Any = None) -> float | None:
    """Iterations; None where to count them would take minutes."""
    try:
        return theory.iterations(found.lr, found.momentum, spectrum, tol, rule=rule, error=error)
    except ValueError:
        return None


def _problem(options: argparse.Namespace) -> Problem:
    """What the arguments ask for; they may ask for one thing only."""
    ends = options.m is not None, options.L is not None
    if (options.data is not None) + (options.kappa is not None) + any(ends) != 1 or any(ends) != all(ends):
        raise UsageError("expected one of --kappa K, --m M with --L L, or a file (see fastmomentum tune --help)")
    if options.data is not None:
        return least_squares(options.data, options.ridge)
    if options.ridge:
        raise UsageError("--ridge: expected with a file only; with --m and --L add it to both")
    if options.kappa is not None:
        return Problem("kappa", theory.Spectrum(1.0, options.kappa))
    if options.m > options.L:
        raise UsageError(f"--m, --L: expected m <= L; got m = {options.m:g}, L = {options.L:g}")
    return Problem("ends", theory.Spectrum(options.m, options.L))


def record(problem: Problem, ends: tuple[float, float], margin: float, tol: float, rows: list[Row]) -> dict[str, Any]:
    """The same for machines; null there for what is unknown, has no part, or is infinite."""
    return {
        "source": problem.source,
        "objective": OBJECTIVE if problem.columns else None,
        "rows": problem.rows or None,
        "columns": problem.columns or None,
        **problem.spectrum._asdict(),
        "kappa": problem.kappa,
        "estimated": problem.estimated,
        "margin": margin,
        "tuned_for": list(ends),
        "tol": tol,
        "tunings": [row._asdict() for row in rows],
    }


OBJECTIVE = "1/2 |Ax - b|^2 + ridge/2 |x|^2"


def _tell(
    terminal: Terminal,
    options: argparse.Namespace,
    problem: Problem,
    ends: tuple[float, float],
    margin: float,
    rows: list[Row],
) -> None:
    found, known = problem.spectrum, problem.curvatures is not None
    if problem.columns:
        ridge = f" + {options.ridge / 2:g}·‖x‖²" if options.ridge else ""
        terminal.say(f"{problem.source}: f(x) = ½‖Ax − b‖²{ridge}, A of {problem.rows:,} × {problem.columns:,}")
    sure = f" (estimated: ±{found.m_error:.1g}, ±{found.L_error:.1g})" if problem.estimated else ""
    terminal.say(f"m = {found.m:.6g}, L = {found.L:.6g}, κ = L/m = {problem.kappa:.6g}{sure}")
    if margin or problem.estimated:
        terminal.say(f"tuned for m = {ends[0]:.6g}, L = {ends[1]:.6g}: margin {margin:g}")
    table = Table("rule", "tuning", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("lr", "momentum", "rate", *(["steps"] if known else []), "bound"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    for row, following in zip(rows, [*rows[1:], None]):
        momentum = "" if row.momentum is None else near_one(row.momentum)
        counts = [_shown(row.steps)] if known else []
        figures = f"{row.lr:.5g}", momentum, near_one(row.rate), *counts, _shown(row.bound)
        table.add_row(row.rule, row.tuning, *figures, end_section=not following or row.method != following.method)
    terminal.show(table)
    terminal.say("")
    terminal.say(f"Steps from rest until ‖x − x*‖ is {options.tol:g} times what it was at the start:")
    if known:
        terminal.say(f"  steps  of this problem, from x = 0{', estimated' if problem.estimated else ''}")
    terminal.say("  bound  for every start, and every spectrum in [m, L]")
    if problem.source == "kappa":
        terminal.say("lr is for m = 1, L = κ: divide it by your m")
    if not problem.columns and not margin and {row.rule for row in rows} & set(FAMILIES["heavy ball"]):
        terminal.say("The optimal heavy ball is an edge: --margin 0.02 where m and L are estimates.")
    if options.plot:
        terminal.say(f"The predicted error curves are in {options.plot}.")


def near_one(value: float) -> str:
    """Six digits, of 1 − value where the value's own would all be nines.

    Examples
    --------
    >>> near_one(0.25), near_one(0.9999998)
    ('0.25', '1-2e-07')
    """
    return f"{value:.6g}" if value <= 0.9999 or value == 1.0 else f"1-{1.0 - value:.3g}"


def _shown(count: float | None) -> str:
    if count is None:
        return "?"
    if count == float("inf"):
        return "never"
    return f"{count:,}" if count < MILLIONS else f"{count:.4g}"


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
