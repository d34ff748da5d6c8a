"""What a trace recorded, over its steps."""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from fastmomentum import checks
from fastmomentum.optim.trace import Series, Trace
from fastmomentum.plots.axes import axis_of, legend, styles

NORMS = {"velocity": "velocity ‖v‖", "gradient": "gradient ‖g‖"}


def motion(trace: Trace | Series, ax: Axes | None = None) -> Axes:
    """‖v‖ and ‖g‖ over steps, on a logarithmic axis, and cos∠(v, g) on one to the right; resets are marked.

    Parameters
    ----------
    trace : Trace or Track
        A record with one step at least, or the track of one of its groups, which knows of no resets. Zeros and NaN
        leave gaps: a velocity at rest has no logarithm, and no angle.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.

    Returns
    -------
    matplotlib.axes.Axes
        That of the norms; the figure has another for the cosine, upon it.

    Raises
    ------
    TypeError, ValueError
        If it is no trace, or has no step.

    Notes
    -----
    The units of ‖g‖ are those of the loss over those of the parameters; what those of ‖v‖ are the rule says.

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
        raise TypeError(f"trace: expected a Trace, or a Track of one; got {checks.describe(trace)}")
    if not len(trace):
        raise ValueError("trace: expected one with a step at least; got one without")
    track = trace.overall if isinstance(trace, Trace) else trace
    axis = axis_of(ax)
    values = {name: getattr(track, name) for name in NORMS}
    if any((np.isfinite(each) & (each > 0.0)).any() for each in values.values()):
        axis.set_yscale("log", nonpositive="mask")
    first, second, third = (
        style._asdict() | {"markersize": 3, "markevery": -(-len(track) // 40)} for style in styles(3)
    )
    handles: list[Artist] = []
    for (name, label), look in zip(NORMS.items(), (first, second)):
        handles += axis.plot(track.steps, values[name], label=label, **look)
    beside = axis.twinx()
    handles += beside.plot(track.steps, track.cosine, label="cos∠(v, g), right", **third)
    beside.axhline(0.0, color=third["color"], linewidth=0.6)
    beside.set(ylim=(-1.05, 1.05), ylabel="cos∠(v, g), from −1 to 1")
    resets: list[Any] = trace.resets if isinstance(trace, Trace) else []
    for i, reset in enumerate(resets):
        line = axis.axvline(reset.step, color="black", linestyle=(0, (1, 2)), linewidth=1.5, label="reset")
        handles += [line][i:]
    axis.set(xlabel="step t", ylabel="norm, in the run's own units")
    axis.grid(alpha=0.3)
    legend(axis, handles, below=True, columns=2)
    return axis
