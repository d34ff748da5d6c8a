"""``fastmomentum tune``: learning rate and momentum for each rule, and how fast they converge."""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from fastmomentum import rules, theory
from fastmomentum.cli.curves import check_picture, draw
from fastmomentum.cli.problem import Problem, least_squares
from fastmomentum.terminal import Failure, Terminal, UsageError

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
