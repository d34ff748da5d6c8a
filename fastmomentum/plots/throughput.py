"""How fast updates are, by size, from the record of a benchmark."""

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fastmomentum import checks
from fastmomentum.plots.axes import axis_of, legend, strings, styles

OURS = "fastmomentum"
CEILING = "ceiling: "
"""What the names of the streams begin with that bound every update of as many bytes."""

SIZED = re.compile(r"(?:(\w+), )?n = ([\d,]+)")
"""The name of a case that is one array: its dtype, where that is said, and how many elements it has."""

UNITS = {"GB/s": "throughput [GB/s]", "elements/s": "throughput [elements/s]"}


class Case(NamedTuple):
    """One size: its elements, the bytes moved, and of each side the median of its seconds."""

    elements: int
    moved: int
    seconds: dict[str, float]


def throughput(
    record: Mapping[str, Any],
    ax: Axes | None = None,
    *,
    unit: str = "GB/s",
    threads: int | None = None,
    dtype: str = "float32",
    sides: Sequence[str] | None = None,
) -> Axes:
    """GB/s, or elements a second, over the size of the array: fastmomentum and its peers, both axes logarithmic.

    Every side is credited with the bytes that the fused update has to move (20 an element in float32), so that the
    curves compare times; each point is the median over the processes that measured it.

    Parameters
    ----------
    record : mapping
        What ``./scripts/bench`` wrote, parsed: ``json.load`` of ``cpu.json`` or ``gpu.json``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    unit : {"GB/s", "elements/s"}
        GB are 10⁹ bytes.
    threads : int, optional
        Which of the record's numbers of threads; the least by default.
    dtype : str
        Which of the record's dtypes.
    sides : sequence of str, optional
        Which sides to draw; all that the record has by default, and the ceiling, where one was measured: the fastest
        stream of as many bytes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind, or the record does not have what is asked for.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> runs = {"fastmomentum": [2e-5], "NumPy in place": [4e-5]}
    >>> case = {"case": "float32, n = 100,000", "threads": 1, "elements": 100_000, "moved": 2_000_000, "runs": runs}
    >>> axis = fm.plots.throughput({"cases": [case]})
    >>> axis.lines[0].get_label(), axis.lines[0].get_ydata().round(6)
    ('fastmomentum', array([100.]))
    """
    if unit not in UNITS:
        raise ValueError(f"unit: expected one of {', '.join(UNITS)}; got {checks.describe(unit)}")
    found, counted = _cases(record, threads, dtype)
    names = list(dict.fromkeys(name for case in found for name in case.seconds if not name.startswith(CEILING)))
    if sides is not None:
        chosen = strings("sides", sides)
        for name in chosen:
            if name not in names:
                raise ValueError(f"sides: expected some of {', '.join(names)}; got {name!r}")
        names = list(dict.fromkeys(chosen))
    axis = axis_of(ax)
    axis.set(xscale="log", yscale="log")
    handles: list[Line2D] = []
    for name, style in zip(names, styles(len(names))):
        at = [case for case in found if name in case.seconds]
        look: dict[str, Any] = style._asdict() | {"linewidth": 3.0 if name == OURS else 1.3, "markersize": 4}
        values = [_rate(case, case.seconds[name], unit) for case in at]
        handles += axis.plot([case.elements for case in at], values, label=name, **look)
    streams = [(case, [case.seconds[name] for name in case.seconds if name.startswith(CEILING)]) for case in found]
    bounded = [(case, min(times)) for case, times in streams if times]
    if bounded and sides is None:
        values = [_rate(case, seconds, unit) for case, seconds in bounded]
        look = {"color": "#666666", "linestyle": (0, (1, 1)), "linewidth": 2.0, "zorder": 1}
        handles += axis.plot([case.elements for case, _ in bounded], values, label="ceiling: fastest stream", **look)
    on = "" if counted is None else f", {counted} thread{'s' * (counted > 1)}"
    axis.set(xlabel=f"size [{dtype} elements]{on}", ylabel=UNITS[unit])
    axis.grid(alpha=0.3)
    legend(axis, handles)
    return axis


def _rate(case: Case, seconds: float, unit: str) -> float:
    return case.moved / seconds / 1e9 if unit == "GB/s" else case.elements / seconds


def _cases(record: object, threads: int | None, dtype: str) -> tuple[list[Case], int | None]:
    """The sizes of one array, in order, of one dtype and at one number of threads; None where threads are not told."""
    cases = record.get("cases") if isinstance(record, Mapping) else None
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) for case in cases):
        raise TypeError(
            f"record: expected a benchmark's, a mapping with a list of cases; got {checks.describe(record)}"
        )
    sized = [(SIZED.fullmatch(str(case.get("case"))), case) for case in cases]
    of_dtype = [(match, case) for match, case in sized if match is not None and match[1] in (None, dtype)]
    if not of_dtype:
        raise ValueError(f"record: expected cases of one array of {dtype}; got {len(cases)} cases, none of them such")
    counts = sorted({case["threads"] for _, case in of_dtype if "threads" in case})
    wanted = counts[0] if counts and threads is None else threads
    if threads is not None and checks.integer("threads", threads, 1) not in counts:
        raise ValueError(f"threads: expected one of the record's, {counts}; got {threads}")
    try:
        found = [
            Case(int(match[2].replace(",", "")), int(case["moved"]), _seconds(case))
            for match, case in of_dtype
            if case.get("threads") == wanted
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"record: expected cases with moved, and runs or seconds; got one without: {error}") from None
    return sorted(found, key=lambda case: case.elements), wanted


def _seconds(case: Mapping[str, Any]) -> dict[str, float]:
    if "runs" in case:
        return {name: float(median(times)) for name, times in case["runs"].items()}
    return {name: float(seconds) for name, seconds in case["seconds"].items()}
