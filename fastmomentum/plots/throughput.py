"""Draw the throughput of updates over the size of the array, from the record of a benchmark."""

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fastmomentum import checks
from fastmomentum.plots.axes import add_legend, axis_or_new, check_strings, line_styles

OURS = "fastmomentum"

CEILING = "ceiling: "
"""The prefix of the memory streams in a record: they move the bytes of an update, and so bound its speed."""

CASE_NAME = re.compile(r"(?:(\w+), )?n = ([\d,]+)")
"""The name of a case of one array: its dtype (CUDA records leave it out) and its number of elements."""

YLABELS = {"GB/s": "throughput [GB/s]", "elements/s": "throughput [elements/s]"}

Record = Mapping[str, Any]
"""Parsed JSON."""


class Case(NamedTuple):
    """Hold the elements of one array, the bytes that an update moves, and the median seconds of each side."""

    elements: int
    moved: int
    seconds: dict[str, float]

    def rate(self, seconds: float, unit: str) -> float:
        """Return the throughput of an update that takes `seconds`."""
        return self.moved / seconds / 1e9 if unit == "GB/s" else self.elements / seconds


def throughput(
    record: Record,
    ax: Axes | None = None,
    *,
    unit: str = "GB/s",
    threads: int | None = None,
    dtype: str = "float32",
    sides: Sequence[str] | None = None,
) -> Axes:
    """Draw the throughput of fastmomentum and its peers over the size of the array, on logarithmic axes.

    The bytes are those that the fused update has to move (20 an element in float32), for every side alike, so the
    curves compare times. Each point is the median over the processes that measured it.

    Parameters
    ----------
    record : mapping
        The parsed record of ``./scripts/bench``: ``json.load`` of ``cpu.json`` or ``gpu.json``.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    unit : {"GB/s", "elements/s"}
        The unit of throughput; 1 GB is 10⁹ bytes.
    threads : int, optional
        The number of threads, one of the record's; the smallest by default.
    dtype : str
        The dtype of the arrays, one of the record's.
    sides : sequence of str, optional
        The sides to draw. By default all sides in the record, and the ceiling if it was measured: the fastest stream
        that moves the bytes of the update.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the unit is unknown, or the record has no such threads, dtype or side.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> runs = {"fastmomentum": [2e-5], "NumPy in place": [4e-5]}
    >>> case = {"case": "float32, n = 100,000", "threads": 1, "elements": 100_000, "moved": 2_000_000, "runs": runs}
    >>> axis = fm.plots.throughput({"cases": [case]})
    >>> axis.lines[0].get_label(), axis.lines[0].get_ydata().round(6)
    ('fastmomentum', array([100.]))
    """
    if unit not in YLABELS:
        raise ValueError(f"unit: expected one of {', '.join(YLABELS)}; got {checks.describe(unit)}")
    cases, thread_count = _select_cases(record, threads, dtype)
    names = list(dict.fromkeys(name for case in cases for name in case.seconds if not name.startswith(CEILING)))
    if sides is not None:
        chosen = check_strings("sides", sides)
        for name in chosen:
            if name not in names:
                raise ValueError(f"sides: expected some of {', '.join(names)}; got {name!r}")
        names = list(dict.fromkeys(chosen))
    axis = axis_or_new(ax)
    axis.set(xscale="log", yscale="log")
    handles: list[Line2D] = []
    for name, style in zip(names, line_styles(len(names))):
        measured = [case for case in cases if name in case.seconds]
        handles += axis.plot(
            [case.elements for case in measured],
            [case.rate(case.seconds[name], unit) for case in measured],
            label=name,
            color=style.color,
            linestyle=style.linestyle,
            linewidth=3.0 if name == OURS else 1.3,
            marker=style.marker,
            markersize=4,
        )
    if sides is None:
        handles += _draw_ceiling(axis, cases, unit)
    suffix = "" if thread_count is None else f", {thread_count} thread{'s' * (thread_count > 1)}"
    axis.set(xlabel=f"size [{dtype} elements]{suffix}", ylabel=YLABELS[unit])
    axis.grid(alpha=0.3)
    add_legend(axis, handles)
    return axis


def _draw_ceiling(axis: Axes, cases: Sequence[Case], unit: str) -> list[Line2D]:
    """Draw the throughput of the fastest stream of each size, if a stream was measured."""
    streams = [
        (case, [seconds for name, seconds in case.seconds.items() if name.startswith(CEILING)]) for case in cases
    ]
    fastest = [(case, min(times)) for case, times in streams if times]
    if not fastest:
        return []
    return axis.plot(
        [case.elements for case, _ in fastest],
        [case.rate(seconds, unit) for case, seconds in fastest],
        label="ceiling: fastest stream",
        color="#666666",
        linestyle=(0, (1, 1)),
        linewidth=2.0,
        zorder=1,
    )


def _select_cases(record: object, threads: int | None, dtype: str) -> tuple[list[Case], int | None]:
    """Return the cases of one array of this dtype, by size, and the number of threads, None if the record has none."""
    cases = record.get("cases") if isinstance(record, Mapping) else None
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) for case in cases):
        raise TypeError(
            f"record: expected a benchmark's, a mapping with a list of cases; got {checks.describe(record)}"
        )
    named = [(CASE_NAME.fullmatch(str(case.get("case"))), case) for case in cases]
    of_dtype = [(match, case) for match, case in named if match is not None and match[1] in (None, dtype)]
    if not of_dtype:
        raise ValueError(f"record: expected cases of one array of {dtype}; got {len(cases)} cases, none of them such")
    counts = sorted({case["threads"] for _, case in of_dtype if "threads" in case})
    wanted = counts[0] if counts and threads is None else threads
    if threads is not None and checks.integer("threads", threads, 1) not in counts:
        raise ValueError(f"threads: expected one of the record's, {counts}; got {threads}")
    try:
        selected = [
            Case(int(match[2].replace(",", "")), int(case["moved"]), _median_seconds(case))
            for match, case in of_dtype
            if case.get("threads") == wanted
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"record: expected cases with moved, and runs or seconds; got one without: {error}") from None
    return sorted(selected, key=lambda case: case.elements), wanted


def _median_seconds(case: Record) -> dict[str, float]:
    """Return the seconds of each side: the median of its runs, or the one number that CUDA records have."""
    if "runs" in case:
        return {name: float(median(times)) for name, times in case["runs"].items()}
    return {name: float(seconds) for name, seconds in case["seconds"].items()}
