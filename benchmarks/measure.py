"""One process's measurements, a JSON line a case: ``python -m benchmarks.measure THREADS [--smoke]``."""

import json
import os
import signal
import sys

if sys.argv[1] == "1" and hasattr(os, "sched_setaffinity"):  # before XLA looks: it has no other limit
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from benchmarks.cases import LARGE, cases, fresh
from benchmarks.timing import alternate


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    threads, smoke = int(sys.argv[1]), "--smoke" in sys.argv
    for case in cases(threads, smoke):
        told = {"case": case.name, "threads": threads, "elements": case.elements, "moved": case.moved}
        seconds = alternate(case.sides(), 2 if smoke else 3 if case.elements >= LARGE else 10)
        print(json.dumps(told | {"seconds": seconds}), flush=True)
    if threads == 1:
        told = {"case": "fresh processes", "threads": 1, "elements": 0, "moved": 0}
        print(json.dumps(told | {"seconds": fresh()}), flush=True)


if __name__ == "__main__":
    main()
