"""Draw the throughput over the size of the array, with one panel for each number of threads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastmomentum import plots


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw a record's cases of one float32 array by :func:`fastmomentum.plots.throughput`, and save the picture."""
    counts = sorted({case["threads"] for case in record["cases"] if case["case"].startswith("float32, n = ")})
    figure = Figure(figsize=(8.0 * len(counts), 5.0), layout="constrained")
    for axis, threads in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts):
        plots.throughput(record, axis, threads=threads)
    figure.savefig(path, dpi=90)
