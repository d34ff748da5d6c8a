"""``fastmomentum demo``, ``bench`` and ``validate``: what exists, started with what was asked for."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import fastmomentum
from fastmomentum.cli.terminal import Failure, Terminal, UsageError
from fastmomentum.cli.tune import check_picture


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Start it; its own status."""
    if options.command == "demo":
        from fastmomentum.cli import demo

        check_picture("--picture", options.picture)
        return demo.run(options.picture, terminal)
    out = _folder(options.out)
    if options.command == "validate":
        from fastmomentum.cli.validation import report

        return report.run(out, options.small, terminal)
    root = Path(fastmomentum.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise Failure(
            "the benchmarks are in the source tree, not in the installed package: in a clone of fastmomentum's "
            "repository, or in its unpacked source distribution, run ./scripts/bench"
        )
    if sys.path[0] != str(root):  # another package of that name must not come first
        sys.path.insert(0, str(root))
    status = import_module("benchmarks.__main__").run(out, options.smoke, terminal)
    return int(status)


def _folder(path: Path) -> Path:
    """`path`, made if need be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}") from error
    return path
