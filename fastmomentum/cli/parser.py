"""What the commands are asked with, and what their help teaches."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import fastmomentum
from fastmomentum.checks import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, BELOW_ONE, INSIDE_UNIT, Range

ABOUT = """\
Momentum as a compiled primitive: every convention of it, one pass over memory,
the same bits on every backend.

commands:
  demo        train a network on handwritten digits by five rules, beside NumPy
  bench       compare the update with NumPy, torch, optax and C on this machine
  validate    measure the compiled kernels' rates against the theory
  tune        learning rate and momentum for a condition number or your data
  info        versions, processor, threads, CUDA, and what is missing
"""

CLOSING = """\
examples:
  fastmomentum tune --kappa 100
  fastmomentum tune problem.npz --plot curves.png
  fastmomentum info --json | jq .cuda

"fastmomentum COMMAND --help" says what a command prints. All take --json.
exit status: 0 done, 1 failed, 2 asked for what cannot be done, 130 interrupted.
"""

TUNE = """\
Learning rate and momentum for each rule, and how fast they converge: for a
condition number, for the ends of a spectrum, or for least squares on your data.
"""

TUNE_CLOSING = """\
the problem, one of:
  --kappa K     K = L/m of the Hessian. Curvatures run from m = 1 to L = K:
                on your problem divide each lr by your own m.
  --m M --L L   the least and the greatest eigenvalue of the Hessian.
  DATA          least squares, f(x) = 1/2 |Ax - b|^2: its Hessian is A'A. For
                f/n (the mean over n rows) multiply each lr by n; for |Ax - b|^2
                halve it. No column of ones is added, nothing is scaled.
                  .npz   arrays A (n rows, one column a parameter) and b (n)
                  .csv   commas between numbers, b in the last column; a first
                         line of names is skipped

the columns:
  rule          as fm.Momentum(params, rule=..., lr=..., momentum=...) takes it;
                pytorch, pytorch_nesterov are torch.optim.SGD's.
  tuning        optimal: the least rate on every spectrum in [m, L].
                standard: lr = 1/L (over 1 - momentum for ema_nesterov); slower
                here, but proven on all convex functions with such curvatures.
  rate          the factor by which the error falls in each step, in the end.
  steps         until the error |x - x*| is --tol times what it was at first:
                of DATA, started at x = 0 at rest; exact up to 2000 parameters.
  bound         the same for every start at rest and every spectrum in [m, L].

The rate is exact on quadratics, and local elsewhere: near a smooth minimum. The
optimal heavy ball sits on an edge: with L too low by more than a part m/L it
diverges. --margin 0.02 keeps clear of it where L is known to 1 per cent.

examples:
  fastmomentum tune --kappa 100 --tol 1e-6
  fastmomentum tune --m 0.5 --L 200 --rule pytorch --rule pytorch_nesterov
  fastmomentum tune problem.npz --ridge 0.1 --plot curves.png
  fastmomentum tune problem.csv --json
"""

DEMO = """\
Train a small network on handwritten digits (packaged with scikit-learn) by one
rule after the other, each update also by the NumPy backend: bits and times.
Needs seconds. Fails if a form of momentum does not beat gradient descent, or if
a bit differs from NumPy's.
"""

VALIDATE = """\
Measure what the theory predicts (rates, stability limits, iteration counts,
noise) on the compiled kernels, in two minutes; --small in seconds. Fails if a
single prediction misses. The table has the worst of each group: its error, the
limit up to which the prediction holds, and of how many predictions. Pictures
and the record of every prediction go to the folder --out.
"""

BENCH = """\
Seconds of NumPy, numexpr, torch, optax and C over ours for the same update, in
processes of their own; takes a quarter of an hour. Needs the source tree (the
benchmarks are not in the installed package), and compares with what is
installed: pip install "fastmomentum[bench]". Record and picture go to --out.
"""

INFO = """\
Versions, processor and vector width, threads and threading layer, CUDA, and
what is missing with how to get it. What could hang or crash is asked in a
process of its own, with a limit of time.
"""


class Parser(argparse.ArgumentParser):
    """Errors in one line, those of a command its own: argparse leaves an unknown option to the parser above."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing is left over."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say it, and where help is; exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def within(allowed: Range) -> Callable[[str], float]:
    """What reads a number in this range."""

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
    """The parser of the whole command; what is chosen has `command`, and the `module` that does it."""
    parser = Parser("fastmomentum", description=ABOUT, epilog=CLOSING, formatter_class=_form, usage=_USAGE)
    parser.add_argument("--version", action="version", version=f"%(prog)s {fastmomentum.__version__}")
    commands = parser.add_subparsers(
        dest="command", prog="fastmomentum", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )

    def add(name: str, module: str, about: str, closing: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, description=about, epilog=closing, formatter_class=_form)
        added.set_defaults(module=module)
        added.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
        return added

    demo = add("demo", "work", DEMO)
    demo.add_argument("--picture", type=Path, default=Path("fastmomentum-demo.png"), **_to("FILE", "the loss curves"))
    for name, about, less in (
        ("bench", BENCH, ("--smoke", "each case once: that it runs, not how fast")),
        ("validate", VALIDATE, ("--small", "the version that the tests run, in seconds")),
    ):
        added = add(name, "work", about)
        added.add_argument(less[0], action="store_true", help=less[1])
        added.add_argument("--out", type=Path, default=Path(f"fastmomentum-{name}"), **_to("FOLDER", "all results"))
    _add_problem(add("tune", "tune", TUNE, TUNE_CLOSING))
    add("info", "info", INFO)
    return parser


def _add_problem(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("data", nargs="?", type=Path, metavar="DATA", help="a .npz or .csv file, as below")
    tune.add_argument("--kappa", type=within(AT_LEAST_ONE), metavar="K", help="condition number, at least 1")
    tune.add_argument("--m", type=within(ABOVE_ZERO), help="least curvature, above 0")
    tune.add_argument("--L", type=within(ABOVE_ZERO), help="greatest curvature")
    tune.add_argument(
        "--ridge", type=within(AT_LEAST_ZERO), default=0.0, metavar="R", help="adds R/2 |x|^2 to DATA's f"
    )
    tune.add_argument(
        "--tol", type=within(INSIDE_UNIT), default=1e-8, help="error to reach, over that at the start (default 1e-8)"
    )
    tune.add_argument(
        "--rule", action="append", metavar="RULE", help="only this rule; may be repeated (default: all with a rate)"
    )
    tune.add_argument(
        "--margin",
        type=within(BELOW_ONE),
        help="tune for m and L widened by this part (default 0; 0.02 where they are estimates)",
    )
    tune.add_argument("--plot", type=Path, metavar="FILE", help="draw the predicted error curves (.png, .pdf, .svg)")


def _to(what: str, results: str) -> Any:
    """The help of an option that says where results go."""
    return {"metavar": what, "help": f"where {results} go (default %(default)s)"}


def _form(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=80)


_USAGE = "fastmomentum [--help] [--version] COMMAND ..."
