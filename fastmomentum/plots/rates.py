"""The rate over the plane of learning rate and momentum."""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO, Range
from fastmomentum.plots.axes import Floats, axis_of, legend
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import resolve_rule
from fastmomentum.theory.tuning import HEAVY_BALL, NESTEROV, Known, known

AT_LEAST_ONE = Range(1.0, float("inf"))

MOMENTA, RATES = 241, 401
"""Points of the grid."""

HIGHEST = 0.999
"""The greatest momentum: with 1 no rule forgets, and ρ is 1 all along."""

SHADES = (0.0, 1.2)
"""ρ from the darkest to the lightest shade."""


def rates(
    rule: str | Rule, ax: Axes | None = None, *, kappa: float | None = None, widest: float | None = None, **hyper: Any
) -> Axes:
    """ρ(αh, β), the spectral radius of a rule, with what bounds and what crosses it.

    Drawn on the shades: where ρ = 1, the limit of stability (:func:`fastmomentum.theory.max_stable_lr`); critical
    damping, β = (1 − √(αh))² for pytorch, classical and heavy_ball, β = (1 − √(αh))/(1 + √(αh)) for Nesterov's forms,
    for ema and dampened rules with its share of αh; and the optimal tuning for a spectrum with κ = L/m, a line from αm
    to αL at its β: the rate of a run is the largest ρ on it.

    Parameters
    ----------
    rule : str, Rule or chain
        A rule that is linear in p, state and g.
    ax : matplotlib.axes.Axes, optional
        Where to draw; an axis in a new figure otherwise.
    kappa : float, optional
        κ ≥ 1, for the tuned line.
    widest : float, optional
        The greatest αh > 0; by default a sixth beyond what is stable with β = 0 or 0.9 (up to three times what
        is with 0), and beyond what is tuned.
    **hyper
        What else the rule declares, and the options of :func:`fastmomentum.step`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is not of that kind, or the rule is not linear, or takes no lr.

    Notes
    -----
    What ρ means, and that ‖e_t‖ = O(ρ^t) is false on the line of critical damping, is said at
    :func:`fastmomentum.theory.spectral_radius`.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> axis = fm.plots.rates("pytorch", kappa=10.0)
    >>> for text in axis.get_legend().get_texts():
    ...     print(text.get_text())
    ρ = 1: limit of stability
    critical damping, β = (1 − √(αh))²
    optimal tuning for κ = 10, αm to αL
    """
    k = None if kappa is None else checks.number("kappa", kappa, AT_LEAST_ONE)
    tuned = None if k is None else theory.optimal(1.0, k, rule=rule, **hyper)
    if widest is None:
        edge = _edge(
            theory.max_stable_lr([0.0, 0.9], 1.0, rule=rule, **hyper),
            0.0 if tuned is None or k is None else tuned.lr * k,
        )
    else:
        edge = checks.number("widest", widest, ABOVE_ZERO)
    ah, beta = np.linspace(edge / RATES, edge, RATES), np.linspace(0.0, HIGHEST, MOMENTA)
    rho = theory.spectral_radius(ah, beta[:, None], 1.0, rule=rule, **hyper)
    axis = axis_of(ax)
    shade = axis.pcolormesh(
        ah, beta, rho, shading="gouraud", cmap="cividis", vmin=SHADES[0], vmax=SHADES[1], rasterized=True
    )
    axis.figure.colorbar(shade, ax=axis, label="spectral radius ρ", extend="max")
    handles: list[Artist] = []
    if rho.min() < 1.0 < rho.max():
        axis.contour(ah, beta, rho, [1.0], colors="black", linewidths=2.0)
        handles.append(Line2D([], [], color="black", linewidth=2.0, label="ρ = 1: limit of stability"))
    found = known(resolve_rule(rule, hyper), [1.0])
    if found is not None:
        handles += _critical(axis, found)
    if tuned is not None and k is not None:
        look: dict[str, Any] = {"color": "#D55E00", "marker": "o", "markeredgecolor": "white", "markersize": 7}
        label = f"optimal tuning for κ = {k:.4g}, αm to αL"
        handles += axis.plot([tuned.lr, tuned.lr * k], [tuned.momentum] * 2, label=label, linewidth=2.5, **look)
    axis.set(xlabel="learning rate times curvature, αh", ylabel="momentum β", xlim=(0.0, edge), ylim=(0.0, 1.0))
    if handles:
        legend(axis, handles, below=True)
    return axis


def _edge(stable: Floats, tuned: float) -> float:
    plain, heavy = (float(each) if np.isfinite(each) else 0.0 for each in stable)
    return 7.0 / 6.0 * max(plain, min(heavy, 3.0 * plain), tuned) or 4.5


def _critical(axis: Axes, found: Known) -> list[Line2D]:
    """Both branches of β(αh) as one line, in the rule's own learning rate."""
    root = np.linspace(0.0, np.sqrt(HIGHEST), 400)
    if found.method is HEAVY_BALL:
        ah = np.concatenate([(1.0 - root[::-1]) ** 2, (1.0 + root[1:]) ** 2])
        beta, formula = np.concatenate([root[::-1], root[1:]]) ** 2, ", β = (1 − √(αh))²"
    elif found.method is NESTEROV:
        beta, formula = root**2, ", β = (1 − √(αh)) / (1 + √(αh))"
        ah = ((1.0 - beta) / (1.0 + beta)) ** 2
    else:
        return []
    share: Floats = np.broadcast_to(found.share(beta), beta.shape)
    if not (share > 0.0).all():
        return []
    plain = np.allclose(share, 1.0, rtol=1e-12)
    outlined = [Stroke(linewidth=3.5, foreground="white"), Normal()]
    label = "critical damping" + (formula if plain else "")
    return axis.plot(ah / share, beta, color="black", linestyle="--", label=label, path_effects=outlined)
