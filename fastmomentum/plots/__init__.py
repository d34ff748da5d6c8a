"""Pictures of runs, of what theory says of them, and of benchmarks; needs the extra ``cli``.

Every function draws on one matplotlib axis, which it takes as `ax` or makes in a figure of its own, and returns it:
``fm.plots.losses(curves).figure.savefig("losses.png")``. Nothing is registered with pyplot, so nothing has to be
closed, and no window opens. Colours are those that Okabe and Ito (2008) chose for all kinds of sight, and line styles
differ beside them.

In a figure with a layout engine (``layout="constrained"``) the legend stands outside of the axis; without one nobody
would make room for it there, and it stands in the upper right corner.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ModuleNotFoundError(
        'fastmomentum.plots: expected matplotlib, which is not installed: pip install "fastmomentum[cli]"',
        name="matplotlib",
    ) from error

from fastmomentum.plots.curves import against_theory, errors, losses
from fastmomentum.plots.paths import trajectories
from fastmomentum.plots.rates import rates
from fastmomentum.plots.throughput import throughput
from fastmomentum.plots.traces import motion

__all__ = ["against_theory", "errors", "losses", "motion", "rates", "throughput", "trajectories"]
