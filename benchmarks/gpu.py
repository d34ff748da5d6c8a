"""Compare updates on a CUDA device: ``python -m benchmarks.gpu [--smoke] [--out FOLDER]``.

The contenders alternate. Times are the device's own, taken by events around many calls in one stream, after a warm-up.
Every contender goes round copies of its arrays that take three times the room of the device's cache, so that an update
reads memory that the cache no longer holds. The launch overhead is the time on the host of a call that does not wait
for the device.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from numba import config, cuda
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import OURS
from benchmarks.gpu_contenders import COPY, SIZES, cases, makers
from benchmarks.native import Run
from benchmarks.records import arguments, write_record
from fastmomentum.backends import cuda as backend


def on_device(run: Run, calls: int) -> float:
    """Return the seconds on the device per call."""
    stream, begin, end = cuda.default_stream(), cuda.event(), cuda.event()
    begin.record(stream)
    for _ in range(calls):
        run()
    end.record(stream)
    end.synchronize()
    return max(float(begin.elapsed_time(end)), 1e-6) / 1e3 / calls


def on_host(run: Run, calls: int) -> float:
    """Return the seconds on the host per call, without waiting for the device."""
    cuda.synchronize()
    begin = perf_counter()
    for _ in range(calls):
        run()
    spent = perf_counter() - begin
    cuda.synchronize()
    return spent / calls


def alternate(
    contenders: dict[str, Run], time: Callable[[Run, int], float], rounds: int, target: float
) -> dict[str, float]:
    """Return the seconds per call of every contender: the median over rounds in which each contender runs in turn.

    Every other round runs in reverse order.

    Parameters
    ----------
    contenders : dict from str to callable
        The functions to time, by name.
    time : callable
        ``time(run, calls)`` calls `run` many times and returns the seconds per call.
    rounds : int
        The number of rounds.
    target : float
        The seconds that one contender should take in a round.
    """
    calls = {}
    for name, run in contenders.items():
        for _ in range(3):
            run()
        calls[name] = max(1, min(1000, round(target / max(time(run, 3), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for turn in range(rounds):
        for name, run in reversed(order) if turn % 2 else order:
            times[name].append(time(run, calls[name]))
    return {name: median(values) for name, values in times.items()}


def measure(smoke: bool) -> Iterator[dict[str, Any]]:
    """Measure all cases, and yield an entry of the record for each."""
    rounds, target = (1, 1e-9) if smoke else (15, 5e-3)
    for case in cases(smoke):
        contenders = {name: run for name, make in makers(case).items() if (run := make()) is not None}
        yield {"case": case.name, "moved": case.moved, "seconds": alternate(contenders, on_device, rounds, target)}
        if case.elements <= SIZES[0]:
            yield {"case": "launch overhead", "moved": 0, "seconds": alternate(contenders, on_host, rounds, target)}


def make_table(found: list[dict[str, Any]]) -> Table:
    """Return a table of the rate of fastmomentum, and of the peers' seconds over those of fastmomentum."""
    peers = list(dict.fromkeys(name for each in found for name in each["seconds"] if name != OURS))
    shown = Table("case", "GB/s", *peers, title="Seconds of each peer over those of fastmomentum")
    for each in found:
        seconds = each["seconds"]
        rate = f"{each['moved'] / seconds[OURS] / 1e9:.0f}" if each["moved"] else ""
        shown.add_row(each["case"], rate, *(f"{seconds[n] / seconds[OURS]:.2f}" if n in seconds else "" for n in peers))
    return shown


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the rate over the size of the array, with one line for each contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sized = [(int(each["case"][4:].replace(",", "")), each) for each in found if each["case"].startswith("n = ")]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name in dict.fromkeys(name for _, each in sized for name in each["seconds"]):
        points = [(n, each["moved"] / each["seconds"][name] / 1e9) for n, each in sized if name in each["seconds"]]
        axis.loglog(*zip(*points), "k--" if name == COPY else "o-", label=name, linewidth=3 if name == OURS else 1)
    axis.set(xlabel="elements", ylabel="GB/s, at 20 bytes per element")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Measure all cases, print a table, and write record and picture."""
    chosen = arguments("gpu", __doc__)
    try:
        backend.require()
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    console, found = Console(width=None if sys.stdout.isatty() else 200), []
    for each in measure(chosen.smoke):
        found.append(each)
        console.print(each["case"])
    console.print(make_table(found))
    device = "simulated" if config.ENABLE_CUDASIM else cuda.get_current_device().name
    name = device.decode() if isinstance(device, bytes) else str(device)
    write_record(chosen.out / "gpu.json", chosen.smoke, device=name, cases=found)
    draw(found, chosen.out / "gpu.png")


if __name__ == "__main__":
    main()
