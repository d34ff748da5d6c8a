"""Parse the command line, and hold the help texts."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import fastmomentum
from fastmomentum.checks import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, BELOW_ONE, INSIDE_UNIT, Range

DESCRIPTION = """\
Momentum updates in compiled code: every convention of momentum, one pass over
memory, the same bits on every backend.

commands:
  demo        train a network on handwritten digits by five rules
  bench       compare the speed of updates with NumPy, torch, optax and C
  validate    compare measured convergence rates with the theory
  tune        find learning rate and momentum for a spectrum or your data
  info        show versions, processor, threads, CUDA, and missing packages
"""

EPILOG = """\
examples:
  fastmomentum tune --kappa 100
  fastmomentum tune problem.npz --plot curves.png
  fastmomentum info --json | jq .cuda

"fastmomentum COMMAND --help" explains a command and its output. Every command
takes --json.
exit status: 0 done, 1 failed, 2 wrong arguments or files, 130 interrupted,
141 the reader of stdout has closed the pipe.
"""

TUNE = """\
Find learning rate and momentum for each rule, and predict its convergence: for
a condition number, for the ends of a spectrum, or for least squares on your
data.
"""

TUNE_EPILOG = """\
the problem, one of:
  --kappa K     the condition number K = L/m of the Hessian. The tunings are for
                m = 1 and L = K: divide each lr by the m of your problem.
  --m M --L L   the least and the greatest eigenvalue of the Hessian.
  DATA          least squares, f(x) = 1/2 |Ax - b|^2, with the Hessian A'A. For
                f/n (the mean over n rows) multiply each lr by n; for |Ax - b|^2
                halve each lr. No column of ones is added, no column is scaled.
                  .npz   arrays A (n rows, one column a parameter) and b (n)
                  .csv   numbers between commas, b in the last column; a first
                         line of names is skipped

the columns:
  rule          a name for fm.Momentum(params, rule=..., lr=..., momentum=...);
                pytorch and pytorch_nesterov are the forms of torch.optim.SGD.
  tuning        optimal: the smallest rate for all spectra in [m, L].
                standard: lr = 1/L (divided by 1 - momentum for ema_nesterov);
                slower on quadratics, but proven to converge on all convex
                functions with curvature in [m, L].
  rate          the factor by which the error shrinks in each step, after many
                steps.
  steps         the number of steps until the error |x - x*| is --tol times the
                error at the start; for DATA only, from x = 0 and velocity 0.
                Exact up to 2000 parameters, estimated beyond.
  bound         this number for every start with velocity 0 and every spectrum
                in [m, L].

The rate is exact on quadratics. On other smooth functions it holds only near a
minimum. The optimal heavy ball is at the edge of stability: it diverges if L is
too low by more than the fraction m/L of L. Use --margin 0.02 if L is known to
1 per cent.

examples:
  fastmomentum tune --kappa 100 --tol 1e-6
  fastmomentum tune --m 0.5 --L 200 --rule pytorch --rule pytorch_nesterov
  fastmomentum tune problem.npz --ridge 0.1 --plot curves.png
  fastmomentum tune problem.csv --json
"""

DEMO = """\
Train a small network on handwritten digits (packaged with scikit-learn) by five
rules, one after the other. Each update is repeated by the NumPy backend, to
compare times and bits. Takes seconds. Fails if a form of momentum does not beat
gradient descent, or if one bit differs from NumPy's. With --rule it trains by
gradient descent and by the given rules, and compares their bits alone.
"""

VALIDATE = """\
Measure on the compiled kernels what the theory predicts: rates, stability
limits, iteration counts, noise. Takes two minutes, or seconds with --small.
Fails if one prediction misses its limit. The table shows the worst prediction
of each group, with its error, its limit and the size of the group. Pictures and
the record of every prediction go to the folder --out.
"""

BENCH = """\
Compare the speed of updates with NumPy, numexpr, torch, optax and C, as seconds
of each over seconds of fastmomentum, in separate processes. Takes a quarter of
an hour. Needs the source tree, as the installed package has no benchmarks, and
compares with the packages that are installed:
pip install "fastmomentum[bench]". Record and picture go to the folder --out.
"""

INFO = """\
Show versions, processor and vector width, threads and threading layer, CUDA,
and missing packages with how to install them. Queries that could hang or crash
run in processes of their own, with a time limit.
"""


class Parser(argparse.ArgumentParser):
    """Print errors in one line, and report an unknown option of a command with the help of that command.

    Without this class, argparse would report an unknown option of a command by the main parser.
    """

    # Any, as in the overloads of the method that this one extends.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, and refuse those that are unknown."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the message and how to get help, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def number_within(allowed: Range) -> Callable[[str], float]:
    """Return a function that reads a number in this range, as the `type` of an option."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"expected {allowed}; got {text!r}")
        return value

    return read


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command.

    The parsed options hold the name of the `command`, and the `module` in fastmomentum.cli whose run() does the work.
    """
    parser = Parser(
        "fastmomentum",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=_make_formatter,
        usage="fastmomentum [--help] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {fastmomentum.__version__}")
    commands = parser.add_subparsers(
        dest="command", prog="fastmomentum", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )

    def add(name: str, module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, description=description, epilog=epilog, formatter_class=_make_formatter)
        added.set_defaults(module=module)
        added.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
        return added

    demo = add("demo", "commands", DEMO)
    demo.add_argument(
        "--picture",
        type=Path,
        default=Path("fastmomentum-demo.png"),
        metavar="FILE",
        help="the file for the loss curves (default %(default)s)",
    )
    demo.add_argument(
        "--rule",
        action="append",
        metavar="NAME[=LR]",
        help="train by this rule, with this learning rate (default: that of the usual run, or 0.001); may be repeated",
    )
    for name, description, flag, flag_help in (
        ("bench", BENCH, "--smoke", "run each case once, to check that it works"),
        ("validate", VALIDATE, "--small", "run the small version that the tests run"),
    ):
        added = add(name, "commands", description)
        added.add_argument(flag, action="store_true", help=flag_help)
        added.add_argument(
            "--out",
            type=Path,
            default=Path(f"fastmomentum-{name}"),
            metavar="FOLDER",
            help="the folder for all results (default %(default)s)",
        )
    _add_tune_options(add("tune", "tune", TUNE, TUNE_EPILOG))
    add("info", "info", INFO)
    return parser


def _add_tune_options(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a .npz or .csv file, explained below")
    tune.add_argument("--kappa", type=number_within(AT_LEAST_ONE), metavar="K", help="condition number, at least 1")
    tune.add_argument("--m", type=number_within(ABOVE_ZERO), help="least curvature, above 0")
    tune.add_argument("--L", type=number_within(ABOVE_ZERO), help="greatest curvature")
    tune.add_argument(
        "--ridge",
        type=number_within(AT_LEAST_ZERO),
        default=0.0,
        metavar="R",
        help="add R/2 |x|^2 to the f of DATA (default 0)",
    )
    tune.add_argument(
        "--tol",
        type=number_within(INSIDE_UNIT),
        default=1e-8,
        help="the error to reach, relative to the error at the start (default 1e-8)",
    )
    tune.add_argument(
        "--rule",
        action="append",
        metavar="RULE",
        help="tune only this rule; may be repeated (default: all rules with a known rate)",
    )
    tune.add_argument(
        "--margin",
        type=number_within(BELOW_ONE),
        help="tune for m (1 - MARGIN) and L (1 + MARGIN) (default 0, or 0.02 if m and L are estimates)",
    )
    tune.add_argument("--plot", type=Path, metavar="FILE", help="draw the predicted errors (.png, .pdf, .svg)")


def _make_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=80)
