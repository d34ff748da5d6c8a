"""The paths of runs across the contours of a function of two parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.plots.axes import Floats, axis_of, labelled, legend, numbers, styles, widths

POINTS = 201
"""Of the grid on which the function is taken, along each axis."""

CONTOURS = 12

FARTHEST = 1e100
"""Coordinates beyond it do not widen the picture: squares of them are no numbers any more."""


def trajectories(
    function: Callable[[Floats, Floats], Any] | Sequence[float],
    paths: Mapping[str, Any],
    ax: Axes | None = None,
    *,
    minimum: tuple[float, float] | None = None,
) -> Axes:
    """Paths (x_t, y_t) across the contours of f(x, y).

    The contours lie at values min f + (max f − min f)·(k/12)², so that those of a quadratic are evenly spaced. Paths
    are drawn the wider the earlier they come, so that several on the same points can be told apart.

    Parameters
    ----------
    function : callable or (float, float)
        f(x, y) for arrays x and y of one shape, with values of that shape; or the curvatures (h₁, h₂) > 0 of
        ½(h₁x² + h₂y²).
    paths : mapping from str to array_like, each of shape (t, 2), or (k, t, 2) for k runs under one label
        The points of each run, its start first. NaN and infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    minimum : (float, float), optional
        Where a star marks the minimum; (0, 0) for a quadratic.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind.

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
    f, lowest = _function(function)
    runs = {label: _runs(f"paths[{label!r}]", each) for label, each in labelled("paths", paths).items()}
    if minimum is not None:
        lowest = _pair("minimum", minimum)
    every = np.concatenate([each.reshape(-1, 2) for each in runs.values()] + ([] if lowest is None else [[lowest]]))
    seen = every[(np.abs(every) < FARTHEST).all(axis=1)]
    if not len(seen):
        raise ValueError("paths: expected a finite point somewhere; got none")
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = 0.08 * np.where(high > low, high - low, 1.0)
    low, high = low - room, high + room
    x, y = np.meshgrid(*(np.linspace(a, b, POINTS) for a, b in zip(low, high)))
    z = _values(f, x, y)
    axis = axis_of(ax)
    _contours(axis, x, y, z)
    handles = []
    for (label, each), style, width in zip(runs.items(), styles(len(runs)), widths(len(runs))):
        for run in each:
            look = {"color": style.color, "linestyle": style.linestyle, "linewidth": width}
            (line,) = axis.plot(
                *run.T, label=label, marker=style.marker, markersize=width + 2.0, markevery=slice(1, None), **look
            )
        handles.append(line)
    starts = np.concatenate([each[:, 0] for each in runs.values()])
    handles += _marks(axis, starts, "start", marker="o", markersize=9, markerfacecolor="white")
    if lowest is not None:
        handles += _marks(axis, np.array([lowest]), "minimum", marker="*", markersize=13, markerfacecolor="white")
    axis.set(xlabel="first parameter", ylabel="second parameter", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    legend(axis, handles)
    return axis


def _function(function: Any) -> tuple[Callable[[Floats, Floats], Any], tuple[float, float] | None]:
    if callable(function):
        return function, None
    if not isinstance(function, Sequence | np.ndarray) or isinstance(function, str) or np.shape(function) != (2,):
        raise TypeError(f"function: expected a callable f(x, y), or two curvatures; got {checks.describe(function)}")
    first, second = (checks.number(f"function[{i}]", h, ABOVE_ZERO) for i, h in enumerate(function))
    return lambda x, y: 0.5 * (first * x * x + second * y * y), (0.0, 0.0)


def _runs(name: str, value: Any) -> Floats:
    found = numbers(name, value)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[2] != 2 or not found.size:
        raise ValueError(f"{name}: expected shape (t, 2), or (k, t, 2) for k runs; got {np.shape(value)}")
    return found


def _pair(name: str, value: Any) -> tuple[float, float]:
    found = numbers(name, value)
    if found.shape != (2,) or not np.isfinite(found).all():
        raise ValueError(f"{name}: expected two finite numbers; got {checks.describe(value)}")
    return float(found[0]), float(found[1])


def _values(f: Callable[[Floats, Floats], Any], x: Floats, y: Floats) -> Floats:
    with np.errstate(all="ignore"):
        z = numbers("function", f(x, y))
    if z.shape != x.shape:
        raise ValueError(f"function: expected values of the shape of its arguments, {x.shape}; got {z.shape}")
    return z


def _contours(axis: Axes, x: Floats, y: Floats, z: Floats) -> None:
    finite = z[np.isfinite(z)]
    with np.errstate(over="ignore"):
        span = np.ptp(finite) if finite.size else 0.0
    if 0.0 < span < np.inf:
        levels = finite.min() + span * (np.arange(1, CONTOURS) / CONTOURS) ** 2
        axis.contour(x, y, np.ma.masked_invalid(z), levels, colors="#aaaaaa", linewidths=0.7)


def _marks(axis: Axes, points: Floats, label: str, **look: Any) -> list[Line2D]:
    return axis.plot(*points.T, label=label, linestyle="none", markeredgecolor="black", zorder=4, **look)
