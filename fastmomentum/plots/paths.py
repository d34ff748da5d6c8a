"""Draw the paths of runs on the contours of a function of two parameters."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.plots.axes import (
    Floats,
    add_legend,
    axis_or_new,
    check_labelled,
    check_numbers,
    line_styles,
    line_widths,
)

Function = Callable[[Floats, Floats], npt.ArrayLike]

GRID_POINTS = 201
"""The number of grid points along each axis at which the function is computed."""

CONTOURS = 12

FARTHEST = 1e100
"""The greatest coordinate that widens the picture: the squares of much larger ones overflow."""


def trajectories(
    function: Function | Sequence[float],
    paths: Mapping[str, npt.ArrayLike],
    ax: Axes | None = None,
    *,
    minimum: tuple[float, float] | None = None,
) -> Axes:
    """Draw the paths (x_t, y_t) of runs on the contours of f(x, y).

    The contours lie at the values min f + (max f − min f)·(k/12)², which are evenly spaced in x and y for a quadratic.
    Earlier paths are drawn with wider lines, so that paths that coincide can be told apart.

    Parameters
    ----------
    function : callable or (float, float)
        f(x, y), which takes two arrays of the same shape and returns an array of that shape; or the curvatures
        (h₁, h₂) > 0 of the quadratic ½(h₁x² + h₂y²).
    paths : mapping from str to array_like, each of shape (t, 2), or (k, t, 2) for k runs under one label
        The points of each run, its start first. NaN and infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    minimum : (float, float), optional
        The minimum, marked with a star; (0, 0) by default if `function` is a quadratic.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a curvature is not > 0, an array has the wrong shape, or no point is finite.

    Examples
    --------
    The ravine x² + 10y²:

    >>> import numpy as np, fastmomentum as fm
    >>> h, p = np.array([2.0, 20.0]), np.array([10.0, 1.0])
    >>> opt, path = fm.Momentum(p, lr=0.01, momentum=0.8, backend="numpy"), [p.copy()]
    >>> for _ in range(15):
    ...     opt.step(h * p)
    ...     path.append(p.copy())
    >>> axis = fm.plots.trajectories((2.0, 20.0), {"pytorch": path})
    >>> [text.get_text() for text in axis.get_legend().get_texts()]
    ['pytorch', 'start', 'minimum']
    """
    f, marked = _check_function(function)
    runs = {label: _check_paths(f"paths[{label!r}]", each) for label, each in check_labelled("paths", paths).items()}
    if minimum is not None:
        marked = _check_point("minimum", minimum)
    points = np.concatenate([each.reshape(-1, 2) for each in runs.values()] + ([] if marked is None else [[marked]]))
    shown = points[(np.abs(points) < FARTHEST).all(axis=1)]
    if not len(shown):
        raise ValueError("paths: expected a finite point somewhere; got none")
    low, high = shown.min(axis=0), shown.max(axis=0)
    edge = 0.08 * np.where(high > low, high - low, 1.0)
    low, high = low - edge, high + edge
    x, y = np.meshgrid(*(np.linspace(a, b, GRID_POINTS) for a, b in zip(low, high)))
    z = _evaluate(f, x, y)
    axis = axis_or_new(ax)
    _draw_contours(axis, x, y, z)
    handles = []
    for (label, each), style, width in zip(runs.items(), line_styles(len(runs)), line_widths(len(runs))):
        for run in each:
            (line,) = axis.plot(
                *run.T,
                label=label,
                color=style.color,
                linestyle=style.linestyle,
                linewidth=width,
                marker=style.marker,
                markersize=width + 2.0,
                markevery=slice(1, None),
            )
        handles.append(line)
    starts = np.concatenate([each[:, 0] for each in runs.values()])
    handles += _draw_marks(axis, starts, "start", marker="o", size=9.0)
    if marked is not None:
        handles += _draw_marks(axis, np.array([marked]), "minimum", marker="*", size=13.0)
    axis.set(xlabel="first parameter", ylabel="second parameter", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    add_legend(axis, handles)
    return axis


def _check_function(function: Function | Sequence[float] | str) -> tuple[Function, tuple[float, float] | None]:
    """Return the function and its minimum, or None for the minimum if the function is the user's."""
    if callable(function):
        return function, None
    if not isinstance(function, Sequence | np.ndarray) or isinstance(function, str) or np.shape(function) != (2,):
        raise TypeError(f"function: expected a callable f(x, y), or two curvatures; got {checks.describe(function)}")
    first, second = (checks.number(f"function[{i}]", h, ABOVE_ZERO) for i, h in enumerate(function))
    return lambda x, y: 0.5 * (first * x * x + second * y * y), (0.0, 0.0)


def _check_paths(name: str, value: npt.ArrayLike) -> Floats:
    """Return the points of one or more runs, of shape (runs, steps, 2)."""
    found = check_numbers(name, value)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[2] != 2 or not found.size:
        raise ValueError(f"{name}: expected shape (t, 2), or (k, t, 2) for k runs; got {np.shape(value)}")
    return found


def _check_point(name: str, value: npt.ArrayLike) -> tuple[float, float]:
    found = check_numbers(name, value)
    if found.shape != (2,) or not np.isfinite(found).all():
        raise ValueError(f"{name}: expected two finite numbers; got {checks.describe(value)}")
    return float(found[0]), float(found[1])


def _evaluate(f: Function, x: Floats, y: Floats) -> Floats:
    with np.errstate(all="ignore"):
        z = check_numbers("function", f(x, y))
    if z.shape != x.shape:
        raise ValueError(f"function: expected values of the shape of its arguments, {x.shape}; got {z.shape}")
    return z


def _draw_contours(axis: Axes, x: Floats, y: Floats, z: Floats) -> None:
    finite = z[np.isfinite(z)]
    with np.errstate(over="ignore"):
        span = np.ptp(finite) if finite.size else 0.0
    if 0.0 < span < np.inf:
        levels = finite.min() + span * (np.arange(1, CONTOURS) / CONTOURS) ** 2
        axis.contour(x, y, np.ma.masked_invalid(z), levels, colors="#aaaaaa", linewidths=0.7)


def _draw_marks(axis: Axes, points: Floats, label: str, marker: str, size: float) -> list[Line2D]:
    return axis.plot(
        *points.T,
        label=label,
        linestyle="none",
        marker=marker,
        markersize=size,
        markerfacecolor="white",
        markeredgecolor="black",
        zorder=4,
    )
