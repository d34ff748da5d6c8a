"""What the commands say, and where: results on stdout, progress on stderr, JSON where a machine reads."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

UNBOUNDED = 1000
"""Columns that are enough for any table."""


class UsageError(Exception):
    """What the user asked for cannot be done: one line that says what was expected and what came."""


class Failure(Exception):
    """What was asked for could not be done, which is nobody's mistake: one line."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, which ends with the status that other programs then have; rich says 1."""
        raise BrokenPipeError


class Terminal:
    """Where a command's results and progress go.

    Parameters
    ----------
    as_json : bool
        Whether stdout gets one JSON document and nothing else.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        # Neither brackets nor colons in a path, nor numbers, are taken for anything else than what they are.
        self._out = _Console(markup=False, highlight=False, emoji=False)

    @property
    def width(self) -> int:
        """Columns to write in; 80 where no terminal and no COLUMNS say more."""
        return self._out.width

    def say(self, text: str) -> None:
        """A line, which is never broken: a path in it stays one word."""
        self.show(text, soft_wrap=True)

    def show(self, what: RenderableType = "", soft_wrap: bool = False) -> None:
        """A table, or text that is broken at the terminal's width; a table whose words have no room there is not."""
        if isinstance(what, Table):
            # rich would cut words and the digits of numbers, and leave whole columns out.
            needed = Measurement.get(self._out, self._out.options.update(max_width=UNBOUNDED), what)
            what.width = needed.maximum if needed.minimum > self.width else what.width
        if not self.as_json:
            self._out.print(what, soft_wrap=soft_wrap, crop=False)

    def record(self, record: Mapping[str, Any]) -> None:
        """The results for machines: in ASCII, whatever the locale, and null for NaN and infinity, which JSON lacks."""
        if self.as_json:
            sys.stdout.write(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")

    def progress(self) -> Progress:
        """A bar on stderr, gone when done; none where stderr is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:g}/{task.total:g}"),
            TimeElapsedColumn(),
        )
        console = _Console(stderr=True, markup=False, highlight=False)
        return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
