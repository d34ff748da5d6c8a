"""Run ``fastmomentum tune``: find learning rate and momentum for each rule, and predict and draw the convergence."""

import argparse
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from fastmomentum import rules, theory
from fastmomentum.cli.errors import Failure, UsageError, system_errors
from fastmomentum.cli.problem import GREATEST, Floats, Problem, least_squares
from fastmomentum.cli.terminal import Terminal

METHODS = {
    "gradient descent": ("sgd",),
    "heavy ball": ("heavy_ball", "classical", "pytorch", "ema"),
    "Nesterov": ("nesterov_positions", "classical_nesterov", "pytorch_nesterov", "ema_nesterov"),
}
"""The rules of each method: with the tunings found here, all rules of one method follow the same trajectory."""

EXPONENT_FROM = 10_000_000
"""The number of steps from which on the table shows four digits and an exponent."""

ESTIMATE_MARGIN = 0.02
"""The default margin if m and L are estimates; it is also the default of :func:`fastmomentum.theory.tune`."""

OBJECTIVE = "1/2 |Ax - b|^2 + ridge/2 |x|^2"
"""The objective for data, as the JSON output names it."""


class Row(NamedTuple):
    """Hold the settings of one rule, and their predicted convergence.

    Attributes
    ----------
    rule, tuning : str
        The name of the rule, and "optimal" or "standard".
    lr, momentum, rate : float
        The settings, and the largest spectral radius ρ on [m, L]; momentum is None for a rule without momentum.
    steps : float or None
        The number of steps to the tolerance on this problem, from x = 0; None if the problem has no
        curvatures, or if the count would take minutes.
    bound : float or None
        The number of steps for every start with velocity 0 and every spectrum in [m, L]; inf if ρ rounds to 1. None
        if the count would take minutes.
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
        """The method of this rule; the name of the rule if METHODS does not have it."""
        return next((method for method, members in METHODS.items() if self.rule in members), self.rule)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Find the tunings, print them, draw their curves if asked, and return the exit status 0.

    Raises
    ------
    UsageError
        If the options or the file cannot be used.
    Failure
        If Lanczos does not converge.
    """
    names = select_rules(options.rule)
    if options.plot:
        check_picture("--plot", options.plot)
    with terminal.progress() as progress:
        task = progress.add_task("the spectrum", total=len(names) + 1)
        try:
            problem = _make_problem(options)
        except RuntimeError as error:
            raise Failure(f"{options.data}: {error}") from error
        margin = options.margin
        if margin is None:
            margin = ESTIMATE_MARGIN if problem.estimated else 0.0
        ends = widen(problem.spectrum, margin)
        check_ends(problem, ends)
        rows, without_rate = [], []
        for name in names:
            progress.update(task, advance=1, description=name)
            try:
                rows += list(tunings(name, problem, ends, options.tol))
            except ValueError as error:
                if options.rule:
                    expected = str(error).partition("; got")[0].removeprefix("rule: ")
                    raise UsageError(f"--rule {name}: {expected}") from error
                without_rate.append(name)
    if options.plot:
        draw(options.plot, problem, ends, rows, options.tol, terminal)
    _print_results(terminal, options, problem, ends, margin, rows)
    if without_rate:
        terminal.say(fill(f"no rate is known for {', '.join(without_rate)}", 80))
    results = record(problem, ends, margin, options.tol, rows)
    terminal.record(results | {"ridge": options.ridge, "without_rate": without_rate})
    return 0


def select_rules(given: list[str] | None) -> list[str]:
    """Return the rules to tune, in the order of the table: the rules of one method are neighbours."""
    all_names = rules.names()
    for name in given or ():
        if name not in all_names:
            raise UsageError(f"--rule: expected one of {', '.join(all_names)}; got {name!r}")
    ordered = [name for members in METHODS.values() for name in members]
    ordered += [name for name in all_names if name not in ordered]
    return [name for name in ordered if not given or name in given]


GREATEST_KAPPA = 1e30
"""The limit of L/m; beyond it the momentum rounds to 1."""


def check_ends(problem: Problem, ends: tuple[float, float]) -> None:
    """Refuse ends of a spectrum, after the margin, for which double precision has no tuning.

    Raises
    ------
    UsageError
        If m, L or L/m is too small or too large.
    """
    m, L = ends
    if not (1.0 / GREATEST <= m <= L <= GREATEST and L / m <= GREATEST_KAPPA):
        name = {"kappa": "--kappa", "ends": "--m, --L"}.get(problem.source, problem.source)
        raise UsageError(
            f"{name}: expected m and L from {1.0 / GREATEST:g} to {GREATEST:g}, and L/m of at most {GREATEST_KAPPA:g}; "
            f"got m = {m:g}, L = {L:g}"
        )


def widen(spectrum: theory.Spectrum, margin: float) -> tuple[float, float]:
    """Return m and L, both moved outwards by their error and then by the fraction `margin`."""
    return (spectrum.m - spectrum.m_error) * (1.0 - margin), (spectrum.L + spectrum.L_error) * (1.0 + margin)


def tunings(rule: str, problem: Problem, ends: tuple[float, float], tol: float) -> Iterator[Row]:
    """Yield the row of the optimal tuning, and the row of the standard tuning if the two differ.

    Raises
    ------
    ValueError
        If the theory has no rate for this rule.
    """
    best = theory.optimal(*ends, rule=rule)
    yield _make_row(rule, "optimal", best, problem, ends, tol)
    try:
        usual = theory.standard(*ends, rule=rule)
    except ValueError:  # only rules that follow one of the METHODS have a standard tuning
        return
    if usual != best:
        yield _make_row(rule, "standard", usual, problem, ends, tol)


def _make_row(
    rule: str, tuning: str, found: theory.Tuning, problem: Problem, ends: tuple[float, float], tol: float
) -> Row:
    momentum = found.momentum if "momentum" in getattr(rules, rule).parameters else None
    steps = None
    if problem.curvatures is not None:
        steps = _count_steps(found, problem.curvatures, tol, rule, problem.error)
    return Row(rule, tuning, found.lr, momentum, found.rate, steps, _count_steps(found, ends, tol, rule))


def _count_steps(
    found: theory.Tuning, spectrum: npt.ArrayLike, tol: float, rule: str, error: Floats | None = None
) -> float | None:
    """Return the number of iterations to the tolerance, or None if the count would take minutes."""
    try:
        return theory.iterations(found.lr, found.momentum, spectrum, tol, rule=rule, error=error)
    except ValueError:
        return None


def _make_problem(options: argparse.Namespace) -> Problem:
    """Return the problem that the options describe, and refuse options that describe two problems or none."""
    ends = options.m is not None, options.L is not None
    if (options.data is not None) + (options.kappa is not None) + any(ends) != 1 or any(ends) != all(ends):
        raise UsageError("expected one of --kappa K, --m M with --L L, or a file (see fastmomentum tune --help)")
    if options.ridge > GREATEST:
        raise UsageError(f"--ridge: expected at most {GREATEST:g}; got {options.ridge:g}")
    if options.data is not None:
        return least_squares(options.data, options.ridge)
    if options.ridge:
        raise UsageError("--ridge: expected with a file only; without a file, add the ridge to --m and to --L")
    if options.kappa is not None:
        return Problem("kappa", theory.Spectrum(1.0, options.kappa))
    if options.m > options.L:
        raise UsageError(f"--m, --L: expected m <= L; got m = {options.m:g}, L = {options.L:g}")
    return Problem("ends", theory.Spectrum(options.m, options.L))


def record(
    problem: Problem, ends: tuple[float, float], margin: float, tol: float, rows: list[Row]
) -> dict[str, object]:
    """Return the results for the JSON output, with None for values that are unknown or do not apply."""
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


def _print_results(
    terminal: Terminal,
    options: argparse.Namespace,
    problem: Problem,
    ends: tuple[float, float],
    margin: float,
    rows: list[Row],
) -> None:
    found, has_steps = problem.spectrum, problem.curvatures is not None
    if problem.columns:
        ridge = f" + {options.ridge / 2:g}·‖x‖²" if options.ridge else ""
        terminal.say(f"{problem.source}: f(x) = ½‖Ax − b‖²{ridge}, A of {problem.rows:,} × {problem.columns:,}")
    errors = f" (estimated: ±{found.m_error:.1g}, ±{found.L_error:.1g})" if problem.estimated else ""
    terminal.say(f"m = {found.m:.6g}, L = {found.L:.6g}, κ = L/m = {problem.kappa:.6g}{errors}")
    if margin or problem.estimated:
        terminal.say(f"tuned for m = {ends[0]:.6g}, L = {ends[1]:.6g}: margin {margin:g}")
    table = Table("rule", "tuning", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("lr", "momentum", "rate", *(["steps"] if has_steps else []), "bound"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    for row, following in zip(rows, [*rows[1:], None]):
        momentum = "" if row.momentum is None else format_near_one(row.momentum)
        steps = [_format_count(row.steps)] if has_steps else []
        figures = f"{row.lr:.5g}", momentum, format_near_one(row.rate), *steps, _format_count(row.bound)
        table.add_row(row.rule, row.tuning, *figures, end_section=not following or row.method != following.method)
    terminal.show(table)
    terminal.say("")
    terminal.say(f"Steps from velocity 0 until ‖x − x*‖ is {options.tol:g} times its value at the start:")
    if has_steps:
        terminal.say(f"  steps  for this problem, from x = 0{', estimated' if problem.estimated else ''}")
    terminal.say("  bound  for every start and every spectrum in [m, L]")
    if problem.source == "kappa":
        terminal.say("lr is for m = 1 and L = κ: divide it by the m of your problem.")
    if not problem.columns and not margin and {row.rule for row in rows} & set(METHODS["heavy ball"]):
        terminal.say("The optimal heavy ball is at the edge of stability:")
        terminal.say("use --margin 0.02 if m and L are estimates.")
    if options.plot:
        terminal.say(f"The predicted error curves are in {options.plot}.")


def format_near_one(value: float) -> str:
    """Return the value in six digits, or as 1 minus its distance to 1 if the digits would begin with four nines.

    Examples
    --------
    >>> format_near_one(0.25), format_near_one(0.9999998)
    ('0.25', '1-2e-07')
    """
    return f"{value:.6g}" if value <= 0.9999 or value == 1.0 else f"1-{1.0 - value:.3g}"


def _format_count(count: float | None) -> str:
    if count is None:
        return "?"
    if count == float("inf"):
        return "never"
    return f"{count:,}" if count < EXPONENT_FROM else f"{count:.4g}"


MAX_STEPS_RATIO = 5
"""The number of steps drawn, over the number that the fastest rule needs; curves of slower rules may be cut off."""

MAX_STEPS = 100_000
"""The greatest number of steps that are drawn."""

WORK = 4_000_000
"""The product of steps and curvatures for one curve (about one second), if the curvatures are chosen here."""

MAX_WORK = 20_000_000
"""The greatest product of steps and curvatures for one curve if the curvatures are given; it limits the steps."""


def check_picture(option: str, path: Path) -> None:
    """Refuse a path that no picture can be written to, before the long computation begins.

    Raises
    ------
    UsageError
        If the folder does not exist, if `path` is a folder, a pipe or a device, or if the name does not end in a format
        that matplotlib itself writes: for .pgf it needs LaTeX. (To a name without an ending, matplotlib would append
        .png, so that the picture would not be at `path`.)
    """
    from matplotlib.backend_bases import FigureCanvasBase

    with system_errors(f"{option} {path}", UsageError):
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise UsageError(f"{option} {path}: expected a file in a folder that exists")
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes().keys() - {"pgf"}:
        raise UsageError(f"{option} {path}: expected a name that ends in .png, .pdf, .svg or another matplotlib format")


def draw(
    path: Path, problem: Problem, ends: tuple[float, float], rows: list[Row], tol: float, terminal: Terminal
) -> None:
    """Draw the relative error of each trajectory over the steps, and save the picture to `path`.

    ‖e_t‖/‖e_0‖, with e_t = x_t − x*

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    plots = import_module("fastmomentum.plots")
    drawn = trajectories(rows)
    steps = min(curve_length(rows), MAX_WORK // (1 if problem.curvatures is None else problem.curvatures.size))
    curves = {}
    with terminal.progress() as progress:
        task = progress.add_task("curves", total=len(drawn))
        for label, row in drawn.items():
            progress.update(task, advance=1, description=label)
            curves[label] = curve(row, problem, ends, steps, tol)
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axis = figure.subplots()
    plots.errors(curves, ax=axis).set_ylim(bottom=tol / 10)
    shown = "the largest error of all starts" if problem.curvatures is None else "the error from x = 0"
    axis.set_title(f"κ = {problem.kappa:.4g}: {shown}")
    with system_errors(f"--plot {path}", UsageError):
        figure.savefig(path, dpi=120)


def trajectories(rows: Iterable[Row]) -> dict[str, Row]:
    """Return one row for each trajectory, under the names of its method and its tuning."""
    return {f"{row.method}, {row.tuning}": row for row in rows}


def curve_length(rows: Iterable[Row]) -> int:
    """Return the number of steps to draw."""
    counts = [row.bound if row.steps is None else row.steps for row in rows]
    finite = [int(count) for count in counts if count is not None and count < np.inf]
    return min([max(finite), MAX_STEPS_RATIO * min(finite), MAX_STEPS]) if finite else MAX_STEPS


def curve(row: Row, problem: Problem, ends: tuple[float, float], steps: int, tol: float) -> Floats:
    """Return the relative errors ‖e_t‖/‖e_0‖ at t = 0, 1, …, steps.

    If the problem has a start, the errors are those of that start, and the curve ends at the first error of at most
    `tol`. Otherwise each error is the largest of all starts, over a grid of curvatures in `ends`.
    """
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
