"""Compare this machine's contenders: ``fastmomentum bench [--smoke] [--out FOLDER]``, or ``./scripts/bench``."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.cases import cases
from benchmarks.machine import caches, processor, versions
from benchmarks.pictures import draw
from benchmarks.report import PEERS
from benchmarks.summary import Result, Summary, headlines, summaries
from fastmomentum.backends.cpu.threads import available
from fastmomentum.cli import main
from fastmomentum.cli.terminal import Failure, Terminal

PROCESSES = 3
"""A single process strays by 10 % here: where its pages lie decides; the medians over three do not."""


def measured(threads: int, smoke: bool) -> Iterator[dict[str, Any]]:
    """What one process measures, line by line."""
    # Ours on the OpenMP layer, as the others are: with TBB the cores would have two sets of threads.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "NUMBA_THREADING_LAYER": "omp"}
    command = [sys.executable, "-m", "benchmarks.measure", str(threads), *(["--smoke"] if smoke else [])]
    root = Path(__file__).parents[1]  # in which `-m` finds the benchmarks, wherever this was started
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise Failure(f"the measurement with {threads} threads failed")


WIDE = 140
"""Columns from which on there is room for all peers; else there are those that README has."""


def tables(found: list[Summary], results: list[Result], width: int) -> Iterator[Table]:
    """Contenders over ours at each number of threads, and goals."""
    compared = [each for each in found if "torch fused" in each.runs or each.ceiling]
    everyone = dict.fromkeys(name for each in compared for name in each.peers)
    peers = [name for name in everyone if width >= WIDE or name in PEERS]
    for threads in sorted({each.threads for each in compared}):
        title = f"Seconds of others over ours, {threads} thread{'s' * (threads > 1)}"
        shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        shown.add_column("case", no_wrap=True)
        for heading in ("GB/s", "of ceiling", *peers):
            shown.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
        for each in compared:
            if each.threads == threads:
                share = f"{each.ceiling:.2f}" if each.ceiling else ""
                ratios = (f"{each.ratio(name):.2f}" if name in each.runs else "" for name in peers)
                shown.add_row(each.case, f"{each.rate:.1f}", share, *ratios)
        yield shown
    goals = Table("what", "measured", "aim", "", title="Goals", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for result in results:
        goals.add_row(result.name, f"{result.value:.3g} {result.unit}", result.goal, "" if result.met else "MISSED")
    yield goals


def run(out: Path, smoke: bool, terminal: Terminal) -> int:
    """Measure in processes of their own, print, draw and record into the folder `out`; 0."""
    begin = perf_counter()
    runs = [(1, 1), (1, available())] if smoke else [(k, n) for k in range(PROCESSES) for n in (1, available())]
    runs = list(dict.fromkeys(runs))
    lines: list[dict[str, Any]] = []
    with terminal.progress() as progress:
        task = progress.add_task("", total=sum(len(list(cases(n, smoke))) + (n == 1) for _, n in runs))
        for _, threads in runs:
            for line in measured(threads, smoke):
                lines.append(line)
                progress.update(task, advance=1, description=f"{line['case']}, {threads} threads")
    found = summaries(lines)
    results = list(headlines(found))
    for table in tables(found, results, terminal.width):
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
    terminal.say(f"Record and picture: {out / 'cpu.json'}, {out / 'throughput.png'}")
    terminal.record(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
