"""GB/s over size, one line a contender, the ceiling drawn in."""

from pathlib import Path

import matplotlib

from benchmarks.contenders import OURS
from benchmarks.summary import Summary


def draw(found: list[Summary], path: Path) -> None:
    """A panel for each number of threads."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_size = [each for each in found if each.case.startswith("float32, n = ")]
    names = dict.fromkeys(name for each in by_size for name in (OURS, *each.peers))
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    counts = sorted({each.threads for each in by_size})
    figure, axes = pyplot.subplots(1, len(counts), figsize=(6.5 * len(counts), 5), layout="constrained", squeeze=False)
    for axis, threads in zip(axes[0], counts):
        mine = [each for each in by_size if each.threads == threads]
        for name, colour in colours.items():
            points = [(each.elements, each.rate / each.ratio(name)) for each in mine if name in each.runs]
            if points:
                width = 3 if name == OURS else 1
                axis.loglog(*zip(*points), "o-", label=name, color=colour, linewidth=width, markersize=3)
        ceiling = [(each.elements, each.rate / each.ceiling) for each in mine if each.ceiling]
        if ceiling:
            axis.loglog(*zip(*ceiling), "k--", label="ceiling: best stream of as many bytes")
        axis.set(
            xlabel="elements", ylabel="GB/s, at 20 bytes an element", title=f"{threads} thread{'s' * (threads > 1)}"
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
