"""Measure all cases in this process, and print a line of JSON for each: ``python -m benchmarks.measure THREADS``.

``--smoke`` measures small cases only.
"""

import json
import os
import signal
import sys

# XLA has no setting for its threads: it starts one for each core that the process may run on when it is imported.
if sys.argv[1] == "1" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from benchmarks.cases import LARGE, cases, time_fresh_processes
from benchmarks.summary import Line
from benchmarks.timing import alternate


def main() -> None:
    """Measure all cases, and print their lines."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process without a traceback
    threads, smoke = int(sys.argv[1]), "--smoke" in sys.argv
    for case in cases(threads, smoke):
        seconds = alternate(case.contenders(), 2 if smoke else 3 if case.elements >= LARGE else 10)
        print_line(Line(case=case.name, threads=threads, elements=case.elements, moved=case.moved, seconds=seconds))
    if threads == 1:
        seconds = time_fresh_processes()
        print_line(Line(case="fresh processes", threads=1, elements=0, moved=0, seconds=seconds))


def print_line(line: Line) -> None:
    """Print a line at once, so that the progress bar of the parent process advances."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
