"""Draw the convergence rate of a rule over the plane of learning rate and momentum."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from fastmomentum import checks, theory
from fastmomentum.checks import ABOVE_ZERO, AT_LEAST_ONE
from fastmomentum.plots.axes import Floats, add_legend, axis_or_new
from fastmomentum.rules.base import Rule
from fastmomentum.theory.linear import Setting, resolve_rule
from fastmomentum.theory.tuning import HEAVY_BALL, NESTEROV, MatchedMethod, find_method

MOMENTA, LEARNING_RATES = 241, 401
"""The numbers of grid points along the two axes."""

HIGHEST_MOMENTUM = 0.999
"""The greatest momentum drawn: at 1 no rule ever forgets a gradient, and ρ is 1 for every learning rate."""

SHADES = (0.0, 1.2)
"""The values of ρ at the darkest and at the lightest shade."""


def rates(
    rule: str | Rule,
    ax: Axes | None = None,
    *,
    kappa: float | None = None,
    widest: float | None = None,
    **hyper: Setting,
) -> Axes:
    """Draw the spectral radius ρ(αh, β) of a rule, the limit of stability, critical damping and the optimal tuning.

    Up to three lines are drawn on the shades:

    - the limit of stability, ρ = 1 (:func:`fastmomentum.theory.max_stable_lr`);
    - critical damping: β = (1 − √(αh))² for pytorch, classical and heavy_ball, β = (1 − √(αh))/(1 + √(αh)) for
      Nesterov's forms, and the same curves for ema and dampened rules, with αh multiplied by 1 − β or by 1 − τ;
    - the optimal tuning for a spectrum with κ = L/m, as a line from αm to αL at its β. The rate of a run is the largest
      ρ on this line.

    Parameters
    ----------
    rule : str or Rule
        A rule that is linear in p, state and g.
    ax : matplotlib.axes.Axes, optional
        The axis to draw on; a new figure's by default.
    kappa : float, optional
        The condition number κ ≥ 1 of the optimal tuning. By default no tuning is drawn.
    widest : float, optional
        The greatest αh > 0 drawn. By default 7/6 of the largest of three numbers: the last stable αh at β = 0, the last
        stable αh at β = 0.9 (but at most three times the one at β = 0), and αL of the optimal tuning.
    **hyper
        The other hyper-parameters that the rule declares, and the options of :func:`fastmomentum.step`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a number is out of its range, the rule is unknown or not linear, or the rule has no lr.

    Notes
    -----
    :func:`fastmomentum.theory.spectral_radius` explains the meaning of ρ, and why ‖e_t‖ = O(ρ^t) is false on the line
    of critical damping.

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
    tuning = None if k is None else theory.optimal(1.0, k, rule=rule, **hyper)
    if widest is None:
        stable = theory.max_stable_lr([0.0, 0.9], 1.0, rule=rule, **hyper)
        edge = _default_edge(stable, 0.0 if tuning is None or k is None else tuning.lr * k)
    else:
        edge = checks.number("widest", widest, ABOVE_ZERO)
    ah = np.linspace(edge / LEARNING_RATES, edge, LEARNING_RATES)
    beta = np.linspace(0.0, HIGHEST_MOMENTUM, MOMENTA)
    rho = theory.spectral_radius(ah, beta[:, None], 1.0, rule=rule, **hyper)
    axis = axis_or_new(ax)
    shades = axis.pcolormesh(
        ah, beta, rho, shading="gouraud", cmap="cividis", vmin=SHADES[0], vmax=SHADES[1], rasterized=True
    )
    axis.figure.colorbar(shades, ax=axis, label="spectral radius ρ", extend="max")
    handles: list[Artist] = []
    if rho.min() < 1.0 < rho.max():
        axis.contour(ah, beta, rho, [1.0], colors="black", linewidths=2.0)
        handles.append(Line2D([], [], color="black", linewidth=2.0, label="ρ = 1: limit of stability"))
    matched = find_method(resolve_rule(rule, hyper), [1.0])
    if matched is not None:
        handles += _draw_critical_damping(axis, matched)
    if tuning is not None and k is not None:
        handles += axis.plot(
            [tuning.lr, tuning.lr * k],
            [tuning.momentum] * 2,
            label=f"optimal tuning for κ = {k:.4g}, αm to αL",
            color="#D55E00",
            linewidth=2.5,
            marker="o",
            markersize=7,
            markeredgecolor="white",
        )
    axis.set(xlabel="learning rate times curvature, αh", ylabel="momentum β", xlim=(0.0, edge), ylim=(0.0, 1.0))
    if handles:
        add_legend(axis, handles, below=True)
    return axis


def _default_edge(stable: Floats, tuned: float) -> float:
    """Return the greatest αh to draw, from the last stable αh at β = 0 and 0.9, and αL of the optimal tuning."""
    without_momentum, with_momentum = (float(each) if np.isfinite(each) else 0.0 for each in stable)
    return 7.0 / 6.0 * max(without_momentum, min(with_momentum, 3.0 * without_momentum), tuned) or 4.5


def _draw_critical_damping(axis: Axes, matched: MatchedMethod) -> list[Line2D]:
    """Draw both branches of the curve β(αh) as one line, with α the rule's own learning rate."""
    root = np.linspace(0.0, np.sqrt(HIGHEST_MOMENTUM), 400)
    if matched.method is HEAVY_BALL:
        ah = np.concatenate([(1.0 - root[::-1]) ** 2, (1.0 + root[1:]) ** 2])
        beta, formula = np.concatenate([root[::-1], root[1:]]) ** 2, ", β = (1 − √(αh))²"
    elif matched.method is NESTEROV:
        beta, formula = root**2, ", β = (1 − √(αh)) / (1 + √(αh))"
        ah = ((1.0 - beta) / (1.0 + beta)) ** 2
    else:
        return []
    factor: Floats = np.broadcast_to(matched.lr_factor(beta), beta.shape)
    if not (factor > 0.0).all():
        return []
    formula_holds = np.allclose(factor, 1.0, rtol=1e-12)
    outlined = [Stroke(linewidth=3.5, foreground="white"), Normal()]
    label = "critical damping" + (formula if formula_holds else "")
    return axis.plot(ah / factor, beta, color="black", linestyle="--", label=label, path_effects=outlined)
