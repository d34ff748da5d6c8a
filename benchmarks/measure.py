"""One process's measurements, a JSON line a case: ``python -m benchmarks.measure THREADS [--smoke]``."""

import json
import sys

from benchmarks.cases import cases, fresh
from benchmarks.timing import alternate


def main() -> None:
    """Measure and print."""
    threads, smoke = int(sys.argv[1]), "--smoke" in sys.argv
    for case in cases(threads, smoke):
        seconds = alternate(case.sides(), 2 if smoke else 5 if case.large else 15)
        print(json.dumps({"case": case.name, "threads": threads, "bytes": case.moved, "seconds": seconds}), flush=True)
    if threads == 1:
        seconds = fresh(1)
        print(json.dumps({"case": "fresh processes", "threads": 1, "bytes": 0, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
