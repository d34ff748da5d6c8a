"""GB/s over size, one line a contender, the ceiling drawn in."""

from pathlib import Path

import matplotlib

from benchmarks.contenders import OURS
from benchmarks.summary import CEILING, Summary


def draw(found: list[Summary], path: Path) -> None:
    """A panel for each number of threads."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_size = [each for each in found if each.case.startswith("float32, n = ")]
    counts = sorted({each.threads for each in by_size})
    figure, axes = pyplot.subplots(1, len(counts), figsize=(6.5 * len(counts), 5), layout="constrained", squeeze=False)
    for axis, threads in zip(axes[0], counts):
        mine = [each for each in by_size if each.threads == threads]
        sizes = [int(each.case.removeprefix("float32, n = ").replace(",", "")) for each in mine]
        for name in [name for name in mine[0].ratio if not name.startswith(CEILING)]:
            rates = [each.rate / each.ratio[name] for each in mine]
            axis.loglog(sizes, rates, "o-", label=name, linewidth=3 if name == OURS else 1, markersize=3)
        if all(each.ceiling for each in mine):
            axis.loglog(
                sizes, [each.rate * (each.ceiling or 0.0) for each in mine], "k--", label="ceiling: best stream"
            )
        axis.set(
            xlabel="elements", ylabel="GB/s, at 20 bytes an element", title=f"{threads} thread{'s' * (threads > 1)}"
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
