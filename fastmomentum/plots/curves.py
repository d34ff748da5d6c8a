"""Draw losses and errors over the steps of runs, with bounds and predictions."""

from collections.abc import Mapping

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
    check_curve,
    check_labelled,
    check_positive_curve,
    line_styles,
    line_widths,
)

MAX_MARKERS = 40
"""The greatest number of measured points that are marked on a curve; more markers would overlap."""

BOUND_COLOUR = "#666666"


def losses(
    curves: Mapping[str, npt.ArrayLike], ax: Axes | None = None, *, times: Mapping[str, npt.ArrayLike] | None = None
) -> Axes:
    """Draw losses over steps or seconds, on a logarithmic axis.

    Earlier curves are drawn with wider lines, so that curves that coincide can be told apart.

    Parameters
    ----------
    curves : mapping from str to array_like, each of shape (t,)
        The losses ≥ 0 of each run from step 0 on, under its label. Runs may have different lengths. Zeros, NaN and
        infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    times : mapping from str to array_like, optional
        The time of each loss of each run, in seconds since the run began. By default losses are drawn over steps.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a loss is negative, a run has no loss > 0, or `times` has other labels or lengths than `curves`.

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
    checked = _check_curves("curves", curves)
    x = {label: _steps(values) for label, values in checked.items()}
    if times is not None:
        given = check_labelled("times", times)
        _check_same_labels("times", given, "curves", checked)
        x = {label: check_curve(f"times[{label!r}]", given[label], values.size) for label, values in checked.items()}
    axis = axis_or_new(ax)
    _set_up(axis, "step t" if times is None else "time [s]", "loss")
    add_legend(axis, _plot_lines(axis, x, checked))
    return axis


def errors(
    curves: Mapping[str, npt.ArrayLike],
    ax: Axes | None = None,
    *,
    bound: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
) -> Axes:
    """Draw the relative errors ‖e_t‖/‖e_0‖ of runs over steps, on a logarithmic axis, with bounds if given.

    Parameters
    ----------
    curves : mapping from str to array_like, each of shape (t,)
        The errors ≥ 0 of each run from step 0 on, measured or predicted, under its label. Runs may have different
        lengths. Zeros, NaN and infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    bound : float, array_like or mapping from str to array_like, optional
        A rate ρ > 0, drawn as ρ^t; or one bound from step 0 on; or several bounds from step 0 on, under their labels.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an error or a bound is negative, or a curve has no number > 0.

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
    checked = _check_curves("curves", curves)
    longest = max(values.size for values in checked.values())
    bounds: dict[str, Floats] = {}
    if isinstance(bound, Mapping):
        bounds = _check_curves("bound", bound)
    elif bound is not None and np.ndim(bound) == 0:
        bounds = _powers_of_rate("bound", bound, longest)
    elif bound is not None:
        bounds = {"bound": check_positive_curve("bound", bound)}
    axis = axis_or_new(ax)
    _set_up(axis, "step t", "‖e_t‖ / ‖e_0‖")
    x = {label: _steps(values) for label, values in checked.items()}
    add_legend(axis, [*_plot_lines(axis, x, checked), *_plot_bounds(axis, bounds)])
    return axis


def against_theory(
    measured: Mapping[str, npt.ArrayLike],
    predicted: Mapping[str, npt.ArrayLike],
    ax: Axes | None = None,
    *,
    rate: float | None = None,
) -> Axes:
    """Draw measured relative errors ‖e_t‖/‖e_0‖ as markers and predicted ones as lines, on a logarithmic axis.

    A prediction by :func:`fastmomentum.theory.response` goes through the markers. The line ρ^t need not bound them,
    as it leaves out the growth of the error in the first steps (:func:`fastmomentum.theory.transient`).

    Parameters
    ----------
    measured, predicted : mapping from str to array_like, each of shape (t,)
        The errors ≥ 0 from step 0 on, under the same labels. A prediction may be longer or shorter than its
        measurement. Zeros, NaN and infinities leave gaps.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    rate : float, optional
        A rate ρ > 0, drawn as the line ρ^t.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the labels differ, an error is negative, or a curve has no number > 0.

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
    markers, lines = _check_curves("measured", measured), _check_curves("predicted", predicted)
    _check_same_labels("predicted", lines, "measured", markers)
    longest = max(values.size for values in markers.values())
    bounds = {} if rate is None else _powers_of_rate("rate", rate, longest)
    axis = axis_or_new(ax)
    _set_up(axis, "step t", "‖e_t‖ / ‖e_0‖")
    handles: list[Line2D] = []
    for (label, values), style in zip(markers.items(), line_styles(len(markers))):
        line = lines[label]
        handles += axis.plot(
            _steps(line), line, label=f"{label}, predicted", color=style.color, linestyle=style.linestyle
        )
        handles += axis.plot(
            _steps(values),
            values,
            label=f"{label}, measured",
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markersize=5,
            markerfacecolor="none",
            markevery=-(-values.size // MAX_MARKERS),
        )
    add_legend(axis, [*handles, *_plot_bounds(axis, bounds)])
    return axis


def _check_curves(name: str, value: object) -> dict[str, Floats]:
    labelled = check_labelled(name, value)
    return {label: check_positive_curve(f"{name}[{label!r}]", values) for label, values in labelled.items()}


def _check_same_labels(name: str, value: Mapping[str, object], other: str, expected: Mapping[str, object]) -> None:
    if value.keys() != expected.keys():
        raise ValueError(f"{name}: expected the labels of {other}, {list(expected)}; got {list(value)}")


def _steps(values: Floats) -> Floats:
    return np.arange(float(values.size))


def _powers_of_rate(name: str, rate: object, length: int) -> dict[str, Floats]:
    rho = checks.number(name, rate, ABOVE_ZERO)
    with np.errstate(over="ignore", under="ignore"):
        return {f"ρ^t, ρ = {rho:.4g}": rho ** np.arange(float(length))}


def _set_up(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.set_yscale("log", nonpositive="mask")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)


def _plot_lines(axis: Axes, x: Mapping[str, Floats], curves: Mapping[str, Floats]) -> list[Line2D]:
    handles: list[Line2D] = []
    for (label, values), style, width in zip(curves.items(), line_styles(len(curves)), line_widths(len(curves))):
        handles += axis.plot(
            x[label],
            values,
            label=label,
            color=style.color,
            linestyle=style.linestyle,
            linewidth=width,
            marker=style.marker if values.size == 1 else None,
        )
    return handles


def _plot_bounds(axis: Axes, bounds: Mapping[str, Floats]) -> list[Line2D]:
    handles: list[Line2D] = []
    for (label, values), style in zip(bounds.items(), line_styles(len(bounds))):
        handles += axis.plot(
            _steps(values), values, label=label, color=BOUND_COLOUR, linestyle=style.linestyle, linewidth=1.2
        )
    return handles
