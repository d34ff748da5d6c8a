"""Read the arguments of a benchmark, and write its record."""

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import processor, versions


def arguments(prog: str, description: str | None) -> argparse.Namespace:
    """Return the arguments of a benchmark, `smoke` and `out`; the folder `out` exists then."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--smoke", action="store_true", help="run a few small cases, to check that it works")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastmomentum-bench"),
        help="the folder for the record (default %(default)s)",
    )
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    return chosen


def write_record(path: Path, smoke: bool, **measured: Any) -> dict[str, Any]:
    """Write what was measured to a file, with the date, the machine and the versions, and return all of it."""
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "system": platform.platform(),
        "versions": versions(),
        "smoke": smoke,
        **measured,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record
