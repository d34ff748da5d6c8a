"""The command ``fastmomentum``, also ``python -m fastmomentum``; needs the extra ``cli``.

It is read by argparse: the standard library's parser starts in hundredths of a second, stays as it is from year to
year, and lets every line of help and every exit status be what is written here.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

OK, FAILED, MISUSED = 0, 1, 2
INTERRUPTED, CLOSED = 128 + signal.SIGINT, 128 + 13
"""What shells report of a program that SIGINT, or SIGPIPE (13, which Windows lacks), ended."""

EXTRAS = {"rich": "cli", "matplotlib": "cli", "sklearn": "cli"}
"""What a command imports beyond the package's own requirements, and which extra brings it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, sys.argv's where none are given.

    Returns
    -------
    int
        The exit status: 0 done, 1 failed (a prediction missed, an extra lacking), 2 asked for what cannot be done, 130
        interrupted, 141 nobody reads on.

    Examples
    --------
    >>> from fastmomentum.cli import main
    >>> main(["--version"])  # doctest: +ELLIPSIS
    fastmomentum ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # κ and ½ on a terminal that has none of them
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise once more when Python closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _run(arguments: Sequence[str] | None) -> int:
    command = "fastmomentum"
    try:
        from fastmomentum.cli.terminal import Failure, Terminal, UsageError
    except ModuleNotFoundError as missing:
        return _lacking(command, missing)
    from fastmomentum.cli.parser import make_parser

    try:
        options = make_parser().parse_args(arguments)
        command = f"fastmomentum {options.command}"
        run = import_module(f"fastmomentum.cli.{options.module}").run
        return int(run(options, Terminal(options.json)))
    except SystemExit as stop:  # argparse's, which has said why
        return int(stop.code or OK)
    except UsageError as refused:
        sys.stderr.write(f"{command}: error: {refused}\n")
        return MISUSED
    except Failure as failed:
        sys.stderr.write(f"{command}: {failed}\n")
        return FAILED
    except ModuleNotFoundError as missing:
        return _lacking(command, missing)


def _lacking(command: str, missing: ModuleNotFoundError) -> int:
    package = (missing.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise missing
    sys.stderr.write(f'{command}: {package} is not installed: pip install "fastmomentum[{EXTRAS[package]}]"\n')
    return FAILED
