"""Run the benchmarks, print them, and keep a record: ``python -m benchmarks [--smoke] [--record FILE]``."""

import argparse
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.cases import cases


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]}, {len(named)} cores" if named else platform.machine()


def versions() -> dict[str, str]:
    """What was installed."""
    found = {"python": platform.python_version()}
    for package in ("fastmomentum", "numpy", "numba", "scipy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run, print, record."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="each case once: that it runs, not how fast")
    parser.add_argument("--record", type=Path, help="where to keep the figures, as JSON")
    chosen = parser.parse_args()
    results = []
    for case in cases(chosen.smoke):
        for result in case():
            mark = "" if result.met or chosen.smoke else "  MISSED"
            print(f"{result.name:58} {result.value:8.3g} {result.unit:4} {result.goal}{mark}", flush=True)
            results.append(result._asdict())
    if chosen.record:
        machine = {"processor": processor(), "system": platform.platform(), "versions": versions()}
        record = {"date": datetime.now(UTC).date().isoformat(), **machine, "results": results}
        chosen.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
