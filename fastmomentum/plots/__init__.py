"""Draw runs, their predictions by the theory, and benchmarks with matplotlib; needs the extra ``cli``.

Every function draws on one matplotlib axis and returns it: the axis given as `ax`, or the only axis of a new figure.
``fm.plots.losses(curves).figure.savefig("losses.png")`` saves a picture. New figures are not registered with pyplot, so
you need not close them, and no window opens. The colours are those of Okabe and Ito (2008), which colour-blind readers
can tell apart; the line styles differ, too.

If the figure has a layout engine (``layout="constrained"``), the legend stands outside of the axis. Without a layout
engine there is no room outside, and the legend stands in the upper right corner of the axis.
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
