"""What all pictures share: the axis, styles that differ in more than colour, the legend, and checks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from fastmomentum import checks

Floats = npt.NDArray[np.float64]

SIZE = (8.0, 4.8)
"""Inches of a figure that nobody gave."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), "Color Universal Design", without their yellow, which white paper swallows."""

DASHES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
"""As many styles as have no divisor in common with the colours: 35 lines before two look the same."""

MARKERS = "osD^vP*X"

WIDEST, NARROWEST = 4.5, 1.3
"""Widths of the first of many lines, and of the last."""

BELOW = 4.2
"""How far below the axis, in heights of its letters, there is room beneath tick labels and axis label."""


class Style(NamedTuple):
    """How one of several lines looks."""

    color: str
    linestyle: Any
    marker: str


def styles(count: int) -> Iterator[Style]:
    """So many of them, always the same."""
    return islice(map(Style, cycle(COLOURS), cycle(DASHES), cycle(MARKERS)), count)


def widths(count: int) -> Floats:
    """So many line widths: the first lies below, and shows on both sides of a later one upon it."""
    return np.linspace(min(1.8 + 0.3 * (count - 1), WIDEST), 1.8 if count == 1 else NARROWEST, count)


def axis_of(ax: object) -> Axes:
    """`ax`, or the only axis of a new figure, which pyplot does not know.

    Raises
    ------
    TypeError
        If it is no axis.
    """
    if ax is None:
        return Figure(figsize=SIZE, layout="constrained").add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected a matplotlib axis, or None for a new one; got {checks.describe(ax)}")
    return ax


def legend(axis: Axes, handles: Iterable[Artist], *, below: bool = False, columns: int = 1) -> None:
    """A legend beside the axis, or below it where something else stands there; inside if nobody would make room."""
    handles = list(handles)
    place: dict[str, Any] = {"loc": "upper right"}
    if axis.figure.get_layout_engine() is not None and not below:
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    elif axis.figure.get_layout_engine() is not None:
        letters = axis.xaxis.label.get_fontsize()
        down = ScaledTranslation(0.0, -BELOW * float(letters) / 72.0, axis.figure.dpi_scale_trans)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 0.0, "ncols": columns}
        place["bbox_transform"] = axis.transAxes + down
    axis.legend(handles=handles, fontsize="small", handlelength=3.2, **place)


def labelled(name: str, value: object) -> dict[str, Any]:
    """A mapping from labels to what they are of, with one entry at least.

    Raises
    ------
    TypeError, ValueError
        If it is none, or has a label that a legend would leave out.
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


def numbers(name: str, value: Any) -> Floats:
    """Numbers in double precision; NaN and infinity are data, and leave a gap.

    Raises
    ------
    TypeError
        If they are no real numbers.
    """
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        found = np.asarray(None)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of numbers; got {checks.describe(value)}")
    return found.astype(np.float64)


def curve(name: str, value: Any, length: int | None = None) -> Floats:
    """One number a step: at least one, and `length` where that is given.

    Raises
    ------
    TypeError, ValueError
        If they are no numbers, or not as many, or not in one dimension.
    """
    found = numbers(name, value)
    wanted = "one number or more" if length is None else f"{length} numbers"
    if found.ndim != 1 or not found.size or length not in (None, found.size):
        raise ValueError(f"{name}: expected {wanted} in one dimension; got shape {found.shape}")
    return found


def positive(name: str, value: Any) -> Floats:
    """A curve for a logarithmic axis: nothing below 0, something above; 0 leaves a gap.

    Raises
    ------
    TypeError, ValueError
        If it has no place there.
    """
    found = curve(name, value)
    if (found < 0.0).any():
        raise ValueError(f"{name}: expected numbers >= 0, for a logarithmic axis; got {float(np.nanmin(found))!r}")
    if not (np.isfinite(found) & (found > 0.0)).any():
        raise ValueError(f"{name}: expected a finite number > 0 somewhere, for a logarithmic axis; got none")
    return found


def strings(name: str, value: object) -> Sequence[str]:
    """A sequence of strings, one at least.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name}: expected a sequence of strings; got {checks.describe(value)}")
    if not value:
        raise ValueError(f"{name}: expected one string at least; got none")
    return value
