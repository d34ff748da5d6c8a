"""Run the command ``fastmomentum``, also ``python -m fastmomentum``; needs the extra ``cli``.

The command line is parsed by argparse of the standard library: it starts within hundredths of a second, rarely changes
from one version of Python to the next, and leaves every line of help and every exit status to this package.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

DONE, FAILED, USAGE_ERROR = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 128 + signal.SIGINT, 128 + 13
"""The statuses that shells report for a program ended by SIGINT or by SIGPIPE (13; Windows has no SIGPIPE)."""

EXTRAS = {"rich": "cli", "matplotlib": "cli", "sklearn": "cli"}
"""The packages that commands import beyond the package's own requirements, and the extra that installs each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments; those of ``sys.argv`` by default.

    Returns
    -------
    int
        0: done. 1: failed; a prediction was missed, or an extra is not installed, for example. 2: wrong arguments or
        files. 130: interrupted. 141: the reader of stdout has closed the pipe.

    Examples
    --------
    >>> from fastmomentum.cli import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    fastmomentum ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals whose encoding lacks κ or ½
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Without this, Python would write the rest of the buffer when it closes stdout, and raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _run(arguments: Sequence[str] | None) -> int:
    command = "fastmomentum"
    try:
        from fastmomentum.cli.terminal import Failure, Terminal, UsageError
    except ModuleNotFoundError as missing:
        return _report_missing_package(command, missing)
    from fastmomentum.cli.parser import make_parser

    try:
        options = make_parser().parse_args(arguments)
        command = f"fastmomentum {options.command}"
        run = import_module(f"fastmomentum.cli.{options.module}").run
        return int(run(options, Terminal(options.json)))
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or DONE)
    except UsageError as error:
        sys.stderr.write(f"{command}: error: {error}\n")
        return USAGE_ERROR
    except Failure as failure:
        sys.stderr.write(f"{command}: {failure}\n")
        return FAILED
    except ModuleNotFoundError as missing:
        return _report_missing_package(command, missing)


def _report_missing_package(command: str, missing: ModuleNotFoundError) -> int:
    """Print how to install the missing package; raise the error again if no extra installs that package."""
    package = (missing.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise missing
    sys.stderr.write(f'{command}: {package} is not installed: pip install "fastmomentum[{EXTRAS[package]}]"\n')
    return FAILED
