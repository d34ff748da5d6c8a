"""Curves over the steps of runs: losses, errors, and errors against what theory says."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.plots.axes import Floats, axis_of, curve, labelled, legend, positive, styles, widths

DOTS = 40
"""Measured points marked on a curve, at most; more run into one another."""


def losses(curves: Mapping[str, Any], ax: Axes | None = None, *, times: Mapping[str, Any] | None = None) -> Axes:
    """Loss over steps, or over seconds, on a logarithmic axis.

    Curves are drawn the wider the earlier they come, so that several upon one another can be told apart.

    Parameters
    ----------
    curves : mapping from str to array_like, each of shape (t,)
        The losses ≥ 0 of each run, which may be of different length; the first is that of step 0. Zeros, NaN and
        infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    times : mapping from str to array_like, optional
        For each label the seconds since the run began, one a loss.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind, a loss is negative, none is above 0, or the labels or lengths of `times`
        are others than those of `curves`.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> axis = fm.plots.losses({"sgd": [1.0, 0.8, 0.64], "pytorch": [1.0, 0.7, 0.31]})
    >>> axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()
    ('step t', 'loss', 'log')
    >>> axis = fm.plots.losses({"sgd": [1.0, 0.5]}, times={"sgd": [0.0, 0.02]})
    >>> axis.get_xlabel()
    'time [s]'
    """
    found = _positive("curves", curves)
    at = {label: np.arange(float(values.size)) for label, values in found.items()}
    if times is not None:
        given = labelled("times", times)
        _same_labels("times", given, "curves", found)
        at = {label: curve(f"times[{label!r}]", given[label], values.size) for label, values in found.items()}
    axis = axis_of(ax)
    _prepare(axis, "step t" if times is None else "time [s]", "loss")
    legend(axis, _lines(axis, at, found))
    return axis


def errors(curves: Mapping[str, Any], ax: Axes | None = None, *, bound: Any = None) -> Axes:
    """‖e_t‖/‖e_0‖ over steps, on a logarithmic axis, of several runs or tunings, and a bound beside them.

    Parameters
    ----------
    curves : mapping from str to array_like, each of shape (t,)
        Errors ≥ 0, measured or predicted, from t = 0 on; they may be of different length. Zeros, NaN and infinities
        leave gaps.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    bound : float, array_like or mapping from str to array_like, optional
        A rate ρ > 0, for ρ^t; or bounds from t = 0 on, one curve of them or one each under a label of its own.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind, an error is negative, or none is above 0.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> t = np.arange(50)
    >>> tuning = fm.theory.optimal(1.0, 10.0, rule="pytorch")
    >>> error = np.abs(fm.theory.response(tuning.lr, tuning.momentum, 1.0, t, rule="pytorch"))
    >>> axis = fm.plots.errors({"pytorch": error}, bound=tuning.rate)
    >>> [line.get_label() for line in axis.lines]
    ['pytorch', 'ρ^t, ρ = 0.5195']
    """
    found = _positive("curves", curves)
    longest = max(values.size for values in found.values())
    bounds: dict[str, Floats] = {}
    if isinstance(bound, Mapping):
        bounds = _positive("bound", bound)
    elif bound is not None and np.ndim(bound) == 0:
        bounds = _powers("bound", bound, longest)
    elif bound is not None:
        bounds = {"bound": positive("bound", bound)}
    axis = axis_of(ax)
    _prepare(axis, "step t", "‖e_t‖ / ‖e_0‖")
    at = {label: np.arange(float(values.size)) for label, values in found.items()}
    legend(axis, [*_lines(axis, at, found), *_bounds(axis, bounds)])
    return axis


def against_theory(
    measured: Mapping[str, Any], predicted: Mapping[str, Any], ax: Axes | None = None, *, rate: float | None = None
) -> Axes:
    """‖e_t‖/‖e_0‖ as measured, in dots, upon what theory predicted, in lines, on a logarithmic axis.

    A prediction by :func:`fastmomentum.theory.response` goes through the dots; ρ^t, which leaves out how large the
    error first grows, need not bound them (:func:`fastmomentum.theory.transient`).

    Parameters
    ----------
    measured, predicted : mapping from str to array_like, each of shape (t,)
        Errors ≥ 0 from t = 0 on, under the same labels; a prediction may be longer or shorter. Zeros, NaN and
        infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    rate : float, optional
        ρ > 0, for a line ρ^t.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind, the labels differ, an error is negative, or none is above 0.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> error, sizes = np.ones(1), [1.0]
    >>> opt = fm.Momentum(error, rule="heavy_ball", lr=0.01, momentum=0.81, backend="numpy")
    >>> for _ in range(30):
    ...     opt.step(error.copy())
    ...     sizes.append(abs(error[0]))
    >>> theory = np.abs(fm.theory.response(0.01, 0.81, 1.0, np.arange(31), rule="heavy_ball"))
    >>> axis = fm.plots.against_theory({"critical damping": sizes}, {"critical damping": theory}, rate=0.9)
    >>> [line.get_label() for line in axis.lines]
    ['critical damping, predicted', 'critical damping, measured', 'ρ^t, ρ = 0.9']
    """
    seen, said = _positive("measured", measured), _positive("predicted", predicted)
    _same_labels("predicted", said, "measured", seen)
    longest = max(values.size for values in seen.values())
    bounds = {} if rate is None else _powers("rate", rate, longest)
    axis = axis_of(ax)
    _prepare(axis, "step t", "‖e_t‖ / ‖e_0‖")
    drawn: list[Line2D] = []
    for (label, values), style in zip(seen.items(), styles(len(seen))):
        look = {"color": style.color, "linestyle": style.linestyle}
        drawn += axis.plot(np.arange(float(said[label].size)), said[label], label=f"{label}, predicted", **look)
        drawn += axis.plot(
            np.arange(float(values.size)),
            values,
            label=f"{label}, measured",
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markersize=5,
            markerfacecolor="none",
            markevery=-(-values.size // DOTS),
        )
    legend(axis, [*drawn, *_bounds(axis, bounds)])
    return axis


def _positive(name: str, value: object) -> dict[str, Floats]:
    return {label: positive(f"{name}[{label!r}]", values) for label, values in labelled(name, value).items()}


def _same_labels(name: str, value: Mapping[str, Any], other: str, expected: Mapping[str, Any]) -> None:
    if value.keys() != expected.keys():
        raise ValueError(f"{name}: expected the labels of {other}, {list(expected)}; got {list(value)}")


def _powers(name: str, rate: object, length: int) -> dict[str, Floats]:
    rho = checks.number(name, rate, ABOVE_ZERO)
    with np.errstate(over="ignore", under="ignore"):
        return {f"ρ^t, ρ = {rho:.4g}": rho ** np.arange(float(length))}


def _prepare(axis: Axes, across: str, up: str) -> None:
    axis.set_yscale("log", nonpositive="mask")
    axis.set(xlabel=across, ylabel=up)
    axis.grid(alpha=0.3)


def _lines(axis: Axes, at: Mapping[str, Floats], curves: Mapping[str, Floats]) -> list[Line2D]:
    found: list[Line2D] = []
    for (label, values), style, width in zip(curves.items(), styles(len(curves)), widths(len(curves))):
        alone = style.marker if values.size == 1 else None
        look = {"color": style.color, "linestyle": style.linestyle, "marker": alone, "linewidth": width}
        found += axis.plot(at[label], values, label=label, **look)
    return found


def _bounds(axis: Axes, bounds: Mapping[str, Floats]) -> list[Line2D]:
    found: list[Line2D] = []
    for (label, values), style in zip(bounds.items(), styles(len(bounds))):
        look = {"color": "#666666", "linestyle": style.linestyle, "linewidth": 1.2}
        found += axis.plot(np.arange(float(values.size)), values, label=label, **look)
    return found
