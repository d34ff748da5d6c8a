"""Draw the norms, the angle and the resets that a trace recorded."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fastmomentum import checks
from fastmomentum.optim.series import Series
from fastmomentum.optim.trace import Trace
from fastmomentum.plots.axes import add_legend, axis_or_new, line_styles

MAX_MARKERS = 40
"""The greatest number of markers on a line."""


def motion(trace: Trace | Series, ax: Axes | None = None) -> Axes:
    """Draw ‖v‖ and ‖g‖ over the steps of a trace, cos∠(v, g) on a second axis to the right, and the resets.

    Parameters
    ----------
    trace : Trace or one of its groups
        The record of at least one step; ``trace.groups[i]`` has no resets. Zeros and NaN leave gaps: a zero velocity
        has neither logarithm nor angle.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axis of the norms. The axis of the cosine is another axis of the figure, on the same place.

    Raises
    ------
    TypeError
        If `trace` is no trace.
    ValueError
        If `trace` has no step.

    Notes
    -----
    ‖g‖ has the unit of the loss over that of the parameters. The unit of ‖v‖ depends on the rule.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([10.0, 1.0])
    >>> opt = fm.Momentum(p, lr=0.01, backend="numpy")
    >>> trace = opt.trace()
    >>> for _ in range(5):
    ...     opt.step(np.array([2.0, 20.0]) * p)
    >>> axis = fm.plots.motion(trace)
    >>> [text.get_text() for text in axis.get_legend().get_texts()]
    ['velocity ‖v‖', 'gradient ‖g‖', 'cos∠(v, g), right']
    """
    if not isinstance(trace, Trace | Series):
        raise TypeError(f"trace: expected a Trace, or one of its groups; got {checks.describe(trace)}")
    if not len(trace):
        raise ValueError("trace: expected a trace with one step at least; got a trace without steps")
    series = trace.overall if isinstance(trace, Trace) else trace
    axis = axis_or_new(ax)
    norms = {"velocity ‖v‖": series.velocity, "gradient ‖g‖": series.gradient}
    if any((np.isfinite(norm) & (norm > 0.0)).any() for norm in norms.values()):
        axis.set_yscale("log", nonpositive="mask")
    cosine_axis = axis.twinx()
    lines = [(axis, label, norm) for label, norm in norms.items()]
    lines.append((cosine_axis, "cos∠(v, g), right", series.cosine))
    handles: list[Artist] = []
    for (drawn_on, label, values), style in zip(lines, line_styles(len(lines))):
        handles += drawn_on.plot(
            series.steps,
            values,
            label=label,
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            markersize=3,
            markevery=-(-len(series) // MAX_MARKERS),
        )
    cosine_axis.axhline(0.0, color=style.color, linewidth=0.6)
    cosine_axis.set(ylim=(-1.05, 1.05), ylabel="cos∠(v, g), from −1 to 1")
    resets = trace.resets if isinstance(trace, Trace) else []
    marks = [
        axis.axvline(reset.step, color="black", linestyle=(0, (1, 2)), linewidth=1.5, label="reset") for reset in resets
    ]
    handles += marks[:1]  # one legend entry for all resets
    axis.set(xlabel="step t", ylabel="norm, in the run's own units")
    axis.grid(alpha=0.3)
    add_legend(axis, handles, below=True, columns=2)
    return axis
