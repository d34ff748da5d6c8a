"""Run the command ``fastmomentum``, also ``python -m fastmomentum``; needs the extra ``cli``.

The command line is parsed by argparse of the standard library: it starts within hundredths of a second, rarely changes
from one version of Python to the next, and leaves every line of help and every exit status to this package.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module

from fastmomentum.cli.errors import Failure, UsageError, system_errors

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
        0: done. 1: failed; a prediction was missed, an extra is not installed, or stdout cannot be written, for
        example. 2: wrong arguments or files. 130: interrupted. 141: the reader of stdout has closed the pipe.

    Examples
    --------
    >>> from fastmomentum.cli import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    fastmomentum ...
    0
    """
    if sys.stdout is None:
        return _report("fastmomentum: stdout: expected a terminal, a file or a pipe; it is closed", FAILED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals whose encoding lacks κ or ½
    try:
        return _flush(_run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    command = "fastmomentum"
    try:
        from fastmomentum.cli.terminal import Terminal

        options = _parse(arguments)
        command = f"fastmomentum {options.command}"
        run = import_module(f"fastmomentum.cli.{options.module}").run
        return int(run(options, Terminal(options.json)))
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or DONE)
    except UsageError as error:
        return _report(f"{command}: error: {error}", USAGE_ERROR)
    except BrokenPipeError:
        return PIPE_CLOSED
    except ModuleNotFoundError as missing:
        return _report_missing_package(command, missing)
    except MemoryError as error:
        return _report(f"{command}: not enough memory: {error}", FAILED)
    except (Failure, OSError) as failure:
        return _report(f"{command}: {failure}", FAILED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments, or print help or the version and raise SystemExit."""
    from fastmomentum.cli.parser import make_parser

    printed = io.StringIO()  # argparse would ignore that stdout cannot be written
    try:
        with redirect_stdout(printed):
            return make_parser().parse_args(arguments)
    finally:
        if printed.getvalue():
            with system_errors("stdout", Failure):
                sys.stdout.write(printed.getvalue())


def _flush(status: int) -> int:
    """Write the rest of the output, and return the exit status: `status`, unless it was 0 and the write failed."""
    try:
        with system_errors("stdout", Failure):
            sys.stdout.flush()
    except (BrokenPipeError, Failure) as error:
        # Python writes the rest of the buffer when it closes stdout, and would raise once more.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if status == DONE:
            is_pipe = isinstance(error, BrokenPipeError)
            return PIPE_CLOSED if is_pipe else _report(f"fastmomentum: {error}", FAILED)
    return status


def _report(message: str, status: int) -> int:
    """Print a message in one line on stderr, if that can be written, and return `status`."""
    if sys.stderr is not None:
        with suppress(OSError):  # names of files and arrays may hold line breaks and codes for terminals
            line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message)
            sys.stderr.write(f"{line}\n")
    return status


def _report_missing_package(command: str, missing: ModuleNotFoundError) -> int:
    """Print how to install the missing package; raise the error again if no extra installs that package."""
    package = (missing.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise missing
    install = f'pip install "fastmomentum[{EXTRAS[package]}]"'
    return _report(f"{command}: {package} is not installed: {install}", FAILED)
