"""Measure the contenders on this machine: ``fastmomentum bench [--smoke] [--out FOLDER]``, or ``./scripts/bench``."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from rich import box
from rich.table import Table

from benchmarks.cases import cases
from benchmarks.machine import caches, processor, versions
from benchmarks.pictures import draw
from benchmarks.report import PEERS
from benchmarks.summary import Line, Result, Summary, goal_results, summaries
from fastmomentum.backends.cpu.threads import available
from fastmomentum.cli import main
from fastmomentum.cli.errors import Failure
from fastmomentum.cli.terminal import Terminal

PROCESSES = 3
"""The number of processes that measure each case.

The times of one process differ by up to 10 % from those of the next, because the pages of its arrays lie elsewhere in
memory. The medians over three processes differ less.
"""


def measure_in_process(threads: int, smoke: bool) -> Iterator[Line]:
    """Run ``benchmarks.measure`` in a new process, and yield its lines.

    Raises
    ------
    Failure
        If the process ends with an error.
    """
    # The others use OpenMP, so fastmomentum does, too: with TBB a second set of threads would compete for the cores.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "NUMBA_THREADING_LAYER": "omp"}
    command = [sys.executable, "-m", "benchmarks.measure", str(threads), *(["--smoke"] if smoke else [])]
    root = Path(__file__).parents[1]  # `-m` finds the benchmarks only from this folder
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise Failure(f"the measurement with {threads} threads ended with status {process.returncode}: see stderr")


SEPARATE = ("torch_steps", "adaptive")
"""The benchmarks with a command and a record of their own that the smoke run runs, too."""


def smoke_separately(name: str, out: Path) -> str:
    """Run the smoke run of a benchmark with a command of its own in a new process, and return its table.

    Raises
    ------
    Failure
        If the process ends with an error.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--out", str(out.absolute())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise Failure(f"benchmarks.{name} ended with status {done.returncode}: see stderr")
    return done.stdout


WIDE = 140
"""The width of a terminal from which on the tables show all peers; narrower ones show those of the README."""


def make_tables(found: list[Summary], results: list[Result], width: int) -> Iterator[Table]:
    """Yield a table of the peers' seconds over ours for each number of threads, and then a table of the goals."""
    compared = [each for each in found if "torch fused" in each.runs or each.ceiling]
    all_peers = dict.fromkeys(name for each in compared for name in each.peers)
    peers = [name for name in all_peers if width >= WIDE or name in PEERS]
    for threads in sorted({each.threads for each in compared}):
        title = f"Seconds of each peer over those of fastmomentum, {threads} thread{'s' * (threads > 1)}"
        shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        shown.add_column("case", no_wrap=True)
        for heading in ("GB/s", "fraction of ceiling", *peers):
            shown.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
        for each in compared:
            if each.threads == threads:
                fraction = f"{each.ceiling:.2f}" if each.ceiling else ""
                ratios = (f"{each.ratio(name):.2f}" if name in each.runs else "" for name in peers)
                shown.add_row(each.case, f"{each.rate:.1f}", fraction, *ratios)
        yield shown
    goals = Table("quantity", "measured", "goal", "", title="Goals", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for result in results:
        goals.add_row(result.name, f"{result.value:.3g} {result.unit}", result.goal, "" if result.met else "MISSED")
    yield goals


def run(out: Path, smoke: bool, terminal: Terminal) -> int:
    """Measure all cases in new processes, print tables, write record and picture to the folder `out`, and return 0."""
    begin = perf_counter()
    runs = [(1, 1), (1, available())] if smoke else [(k, n) for k in range(PROCESSES) for n in (1, available())]
    runs = list(dict.fromkeys(runs))
    lines: list[Line] = []
    with terminal.progress() as progress:
        task = progress.add_task("", total=sum(len(list(cases(n, smoke))) + (n == 1) for _, n in runs))
        for _, threads in runs:
            for line in measure_in_process(threads, smoke):
                lines.append(line)
                progress.update(task, advance=1, description=f"{line['case']}, {threads} threads")
    found = summaries(lines)
    results = list(goal_results(found))
    for table in make_tables(found, results, terminal.width):
        terminal.show(table)
    machine = {"processor": processor(), "system": platform.platform(), "versions": versions()}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **machine,
        "processes": 1 if smoke else PROCESSES,
        "smoke": smoke,
        "seconds": round(perf_counter() - begin),
        "caches": caches(),
        "cases": [each._asdict() for each in found],
    }
    (out / "cpu.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw(record, out / "throughput.png")
    for name in SEPARATE if smoke else ():
        terminal.say(smoke_separately(name, out))
    terminal.say(f"Record and picture: {out / 'cpu.json'}, {out / 'throughput.png'}")
    terminal.record(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
