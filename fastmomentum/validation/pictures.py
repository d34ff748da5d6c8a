"""What the validation looks like."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from fastmomentum import theory
from fastmomentum.validation import critical, problems
from fastmomentum.validation.plane import WIDEST, Plane

METHODS = {"gradient descent": "sgd", "heavy ball": "heavy_ball", "Nesterov": "nesterov_positions"}


def draw(planes: dict[str, Plane], folder: Path) -> list[Path]:
    """All pictures, as PNG files in `folder`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, width, panels in (
        (
            "plane",
            12.0,
            [lambda axis, rule=rule: _plane(axis, planes[rule]) for rule in METHODS.values() if rule != "sgd"],
        ),
        ("critical", 12.0, [_trajectory, _excess]),
        ("tunings", 13.0, [lambda axis, name=name: _tunings(axis, name) for name in problems.DATA]),
    ):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(width, 4.6), layout="constrained")
        for axis, panel in zip(axes, panels):
            panel(axis)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=90, pil_kwargs={"optimize": True})
        pyplot.close(figure)
    return paths


def _plane(axis: Any, plane: Plane) -> None:
    mu, ah = np.linspace(0.0, 1.0, 201), np.linspace(1e-3, WIDEST, 401)
    rho = theory.spectral_radius(1.0, mu[:, None], ah, rule=plane.rule)
    levels = {"vmin": 0.0, "vmax": 1.2, "cmap": "viridis"}
    shade = axis.pcolormesh(ah, mu, rho, shading="gouraud", **levels)
    axis.contour(ah, mu, rho, [1.0], colors="white")
    rng = np.random.default_rng(0)
    k = rng.choice(plane.measured.size, min(600, plane.measured.size), replace=False)
    row, column = np.unravel_index(k, plane.measured.shape)
    measured = np.exp(plane.measured[row, column])
    axis.scatter(plane.ah[column], plane.mu[row], c=measured, s=14, edgecolors="black", linewidths=0.3, **levels)
    axis.figure.colorbar(shade, ax=axis, label="ρ", extend="max")
    axis.set(
        xlabel="αh",
        ylabel="μ",
        title=f"{plane.rule}: ρ, and as measured (dots)",
        xlim=(0, WIDEST),
    )


def _trajectory(axis: Any) -> None:
    t = np.arange(1, 201)
    mu = critical.MOMENTA["heavy_ball"]
    axis.semilogy(t, critical.RATE**t, "k--", label="ρ^t")
    axis.semilogy(t, theory.transient(critical.LR, mu, 1.0, t, rule="heavy_ball"), label="‖A^t‖, predicted")
    axis.semilogy(t, np.exp2(critical.powers(critical.LR, mu, t.size).logs), ":", label="‖A^t‖, measured")
    axis.semilogy(
        t, np.exp2(critical.run("heavy_ball", critical.LR, mu, t.size).logs), label="‖(e_t, e_{t−1})‖, measured"
    )
    axis.set(xlabel="t", title="Critical damping: the rate is ρ, the error is not O(ρ^t)")
    axis.legend()


def _excess(axis: Any) -> None:
    steps = 10_000
    for factor, name in ((1.0, "critical"), (2.0, "lr twice as large"), (10.0, "lr ten times as large")):
        over = critical.run("heavy_ball", factor * critical.LR, critical.MOMENTA["heavy_ball"], steps).over(
            critical.RATE
        )
        axis.loglog(np.arange(1, steps + 1), over, label=name)
    axis.set(xlabel="t", title="‖(e_t, e_{t−1})‖/ρ^t for three settings with the same ρ")
    axis.legend()


def _tunings(axis: Any, name: str) -> None:
    spectrum = problems.least_squares(name).spectrum
    m, L = float(spectrum[0]), float(spectrum[-1])
    h = np.geomspace(m / 3.0, 1.5 * L, 400)
    for method, rule in METHODS.items():
        tuning = theory.optimal(m, L, rule=rule)
        rates = 1.0 - theory.spectral_radius(tuning.lr, tuning.momentum, h, rule=rule)
        (line,) = axis.loglog(h, np.where(rates > 0.0, rates, np.nan), label=method)
        at = 1.0 - theory.spectral_radius(tuning.lr, tuning.momentum, spectrum, rule=rule)
        axis.loglog(spectrum, at, "o", markersize=3, color=line.get_color())
    axis.set(xlabel="curvature h (dots: the spectrum)", ylabel="1 − ρ at the optimal tuning", title=name)
    axis.legend(fontsize="small")
