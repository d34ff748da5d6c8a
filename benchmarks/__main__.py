"""Compare this machine's contenders: ``python -m benchmarks [--smoke] [--out FOLDER]``, or ``./scripts/bench``."""

import argparse
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

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cases import cases
from benchmarks.machine import caches, processor, versions
from benchmarks.pictures import draw
from benchmarks.summary import Result, Summary, headlines, summaries
from fastmomentum.backends.threads import available

PROCESSES = 3
"""A single process strays by 10 % here: where its pages lie decides; the medians over three do not."""


def measured(threads: int, smoke: bool) -> Iterator[dict[str, Any]]:
    """What one process measures, line by line."""
    # Ours on the OpenMP layer, as the others are: with TBB the cores would have two sets of threads.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "NUMBA_THREADING_LAYER": "omp"}
    command = [sys.executable, "-m", "benchmarks.measure", str(threads), *(["--smoke"] if smoke else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as run:
        assert run.stdout is not None
        yield from map(json.loads, run.stdout)
    if run.returncode:
        raise SystemExit(f"the measurement with {threads} threads failed")


def tables(found: list[Summary], results: list[Result]) -> Iterator[Table]:
    """Contenders over ours, and goals."""
    compared = [each for each in found if "torch fused" in each.runs or each.ceiling]
    peers = list(dict.fromkeys(name for each in compared for name in each.peers))
    shown = Table("case", "threads", "GB/s", "of ceiling", *peers, title="Seconds of others over ours")
    for each in compared:
        share = f"{each.ceiling:.2f}" if each.ceiling else ""
        ratios = (f"{each.ratio(name):.2f}" if name in each.runs else "" for name in peers)
        shown.add_row(each.case, str(each.threads), f"{each.rate:.1f}", share, *ratios)
    yield shown
    goals = Table("what", "measured", "aim", "", title="Goals")
    for result in results:
        goals.add_row(result.name, f"{result.value:.3g} {result.unit}", result.goal, "" if result.met else "MISSED")
    yield goals


def main() -> None:
    """Measure in processes of their own, print, record, draw."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="each case once: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("fastmomentum-bench"), help="folder for record and picture")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    begin = perf_counter()
    console = Console(width=None if sys.stdout.isatty() else 200)
    runs = [(1, 1), (1, available())] if chosen.smoke else [(k, n) for k in range(PROCESSES) for n in (1, available())]
    runs = list(dict.fromkeys(runs))
    lines: list[dict[str, Any]] = []
    with Progress(console=console) as progress:
        task = progress.add_task("", total=sum(len(list(cases(n, chosen.smoke))) + (n == 1) for _, n in runs))
        for _, threads in runs:
            for line in measured(threads, chosen.smoke):
                lines.append(line)
                progress.update(task, advance=1, description=f"{line['case']}, {threads} threads")
    found = summaries(lines)
    results = list(headlines(found))
    for table in tables(found, results):
        console.print(table)
    machine = {"processor": processor(), "system": platform.platform(), "versions": versions()}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        **machine,
        "processes": 1 if chosen.smoke else PROCESSES,
        "smoke": chosen.smoke,
        "seconds": round(perf_counter() - begin),
        "caches": caches(),
        "cases": [each._asdict() for each in found],
    }
    (chosen.out / "cpu.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw(found, chosen.out / "throughput.png")
    console.print(f"Record and picture: {chosen.out / 'cpu.json'}, {chosen.out / 'throughput.png'}")


if __name__ == "__main__":
    main()
