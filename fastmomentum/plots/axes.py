"""Make axes, line styles and legends for all pictures, and check their arguments."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from matplotlib.typing import LineStyleType

from fastmomentum import checks

Floats = npt.NDArray[np.float64]

FIGURE_SIZE = (8.0, 4.8)
"""The width and height of a new figure, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito (2008), "Color Universal Design", without their yellow, which is faint on white."""

DASHES: tuple[LineStyleType, ...] = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
"""Five line styles: 5 and 7 colours have no common divisor, so 35 lines differ before two look alike."""

MARKERS = "osD^vP*X"

WIDEST_LINE, NARROWEST_LINE = 4.5, 1.3
"""The width of the first of many lines, and that of the last, in points."""

LEGEND_DISTANCE = 4.2
"""The distance from the axis down to a legend, in letter heights: tick labels and axis label stand between them."""


class LineStyle(NamedTuple):
    """The colour, dashes and marker of one of several lines."""

    color: str
    linestyle: LineStyleType
    marker: str


def line_styles(count: int) -> Iterator[LineStyle]:
    """Yield `count` line styles, in an order that never changes."""
    return islice(map(LineStyle, cycle(COLOURS), cycle(DASHES), cycle(MARKERS)), count)


def line_widths(count: int) -> Floats:
    """Return `count` decreasing line widths, so that a line stays visible on both sides of a later line on top."""
    widest = min(1.8 + 0.3 * (count - 1), WIDEST_LINE)
    return np.linspace(widest, 1.8 if count == 1 else NARROWEST_LINE, count)


def axis_or_new(ax: object) -> Axes:
    """Return `ax`, or the only axis of a new figure if `ax` is None; pyplot does not know the new figure.

    Raises
    ------
    TypeError
        If `ax` is neither None nor a matplotlib axis.
    """
    if ax is None:
        return Figure(figsize=FIGURE_SIZE, layout="constrained").add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected a matplotlib axis, or None for a new one; got {checks.describe(ax)}")
    return ax


def add_legend(axis: Axes, handles: Iterable[Artist], *, below: bool = False, columns: int = 1) -> None:
    """Add a legend to the right of the axis or below it, or inside the axis if the figure has no layout engine."""
    add = partial(axis.legend, handles=list(handles), fontsize="small", handlelength=3.2)
    if axis.figure.get_layout_engine() is None:
        add(loc="upper right")
    elif not below:
        add(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)
    else:
        letter_height = float(axis.xaxis.label.get_fontsize()) / 72.0  # in inches
        down = ScaledTranslation(0.0, -LEGEND_DISTANCE * letter_height, axis.figure.dpi_scale_trans)
        add(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axis.transAxes + down,
            borderaxespad=0.0,
            ncols=columns,
        )


def check_labelled(name: str, value: object) -> dict[str, npt.ArrayLike]:
    """Return a mapping from labels to arrays as a dict, if it has an entry and all labels can stand in a legend.

    Raises
    ------
    TypeError
        If `value` is no mapping, or a label is no string.
    ValueError
        If the mapping is empty, or a label is empty or begins with _, as matplotlib leaves such labels out.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping from labels to arrays; got {checks.describe(value)}")
    if not value:
        raise ValueError(f"{name}: expected one entry at least; got an empty mapping")
    for label in value:
        if not isinstance(label, str):
            raise TypeError(f"{name}: expected labels that are strings; got {checks.describe(label)}")
        if not label or label.startswith("_"):
            raise ValueError(f"{name}: expected labels that are not empty and do not begin with _; got {label!r}")
    return dict(value)


def check_numbers(name: str, value: npt.ArrayLike) -> Floats:
    """Return an array of numbers in double precision; NaN and infinity are allowed, and leave gaps in a picture.

    Raises
    ------
    TypeError
        If `value` is not an array of real numbers.
    """
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of numbers; got {checks.describe(value)}")
    return found.astype(np.float64)


def check_curve(name: str, value: npt.ArrayLike, length: int | None = None) -> Floats:
    """Return a one-dimensional array of numbers, if it has `length` entries, or at least one if `length` is None.

    Raises
    ------
    TypeError
        If `value` is not an array of real numbers.
    ValueError
        If the array has another shape.
    """
    found = check_numbers(name, value)
    wanted = "one number or more" if length is None else f"{length} numbers"
    if found.ndim != 1 or not found.size or length not in (None, found.size):
        raise ValueError(f"{name}: expected {wanted} in one dimension; got shape {found.shape}")
    return found


def check_positive_curve(name: str, value: npt.ArrayLike) -> Floats:
    """Return a curve for a logarithmic axis, if no number is negative and one is > 0; zeros leave gaps.

    Raises
    ------
    TypeError
        If `value` is not an array of real numbers.
    ValueError
        If the array is not one-dimensional, has a negative number, or has no finite number > 0.
    """
    found = check_curve(name, value)
    if (found < 0.0).any():
        raise ValueError(f"{name}: expected numbers >= 0, for a logarithmic axis; got {float(np.nanmin(found))!r}")
    if not (np.isfinite(found) & (found > 0.0)).any():
        raise ValueError(f"{name}: expected a finite number > 0 somewhere, for a logarithmic axis; got none")
    return found


def check_strings(name: str, value: object) -> Sequence[str]:
    """Return `value`, if it is a sequence of at least one string.

    Raises
    ------
    TypeError
        If `value` is a single string, or no sequence of strings.
    ValueError
        If the sequence is empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name}: expected a sequence of strings; got {checks.describe(value)}")
    if not value:
        raise ValueError(f"{name}: expected one string at least; got none")
    return value
