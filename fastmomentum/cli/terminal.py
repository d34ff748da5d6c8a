"""Print results on stdout, as text or as JSON, and progress on stderr."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastmomentum.cli.errors import Failure, system_errors

UNBOUNDED_WIDTH = 1000
"""A number of columns that is enough for any table."""

Record = Mapping[str, Any]
"""The results of a command as JSON has them."""


USUAL_WIDTH = 80
"""The number of columns to print in if the terminal does not tell any."""


class _Console(Console):
    """Print texts as they are, with the brackets, colons and numbers in them."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)
        if not self.width:  # COLUMNS=0, with which rich would print nothing
            self.width = USUAL_WIDTH

    def on_broken_pipe(self) -> None:
        """Raise the error, so that main() returns the usual status 141; rich would exit with 1."""
        raise BrokenPipeError


class Terminal:
    """Print the results and the progress of a command.

    Parameters
    ----------
    as_json : bool
        Whether stdout gets one JSON document and nothing else.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._console = _Console()

    @property
    def width(self) -> int:
        """The number of columns to print in: the terminal's, or that in COLUMNS, or 80."""
        return self._console.width

    def say(self, text: str) -> None:
        """Print a line without breaking it, so that a path in it stays one word."""
        self.show(text, soft_wrap=True)

    def show(self, content: RenderableType = "", soft_wrap: bool = False) -> None:
        """Print a table or a text; break text at the terminal's width, but never cut a table that is too wide."""
        if isinstance(content, Table):
            # In a narrow terminal rich would cut words and digits of numbers, and leave whole columns out.
            needed = Measurement.get(self._console, self._console.options.update(max_width=UNBOUNDED_WIDTH), content)
            content.width = needed.maximum if needed.minimum > self.width else content.width
        if not self.as_json:
            with system_errors("stdout", Failure):
                self._console.print(content, soft_wrap=soft_wrap, crop=False)

    def record(self, record: Record) -> None:
        """Print the results as JSON, if JSON was asked for.

        The text is ASCII in every locale. NaN and infinity are printed as null, since JSON has neither.
        """
        if self.as_json:
            with system_errors("stdout", Failure):
                sys.stdout.write(json.dumps(_without_nan(record), indent=1, allow_nan=False) + "\n")

    def progress(self) -> Progress:
        """Return a progress bar on stderr that vanishes when done; it shows nothing if stderr is no terminal."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        console = _Console(stderr=True)
        # Not console.is_terminal, which FORCE_COLOR makes true for files and pipes.
        is_shown = console.file.isatty() and not console.is_dumb_terminal
        return Progress(*columns, console=console, transient=True, disable=not is_shown)


def _without_nan(value: object) -> object:
    """Return a copy of the value in which every NaN and infinity is None."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
