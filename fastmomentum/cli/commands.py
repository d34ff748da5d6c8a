"""Run ``fastmomentum demo``, ``bench`` and ``validate``."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

import fastmomentum
from fastmomentum.backends import cpu
from fastmomentum.cli.errors import Failure, UsageError, system_errors
from fastmomentum.cli.terminal import Terminal
from fastmomentum.cli.tune import check_picture


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run the command in `options` and return its exit status."""
    if options.command == "demo":
        from fastmomentum.cli import demo

        check_picture("--picture", options.picture)
        return demo.run(options.picture, terminal, options.rule)
    if not cpu.has_compiler():
        raise Failure(
            "expected Numba's compiler, as compiled kernels are measured; the variable NUMBA_DISABLE_JIT switches it "
            "off: unset it"
        )
    out = _make_folder(options.out)
    if options.command == "validate":
        from fastmomentum.cli.validation import report

        return report.run(out, options.small, terminal)
    root = Path(fastmomentum.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise Failure(
            "the benchmarks are not in the installed package: run ./scripts/bench in a clone of fastmomentum's "
            "repository, or in its unpacked source distribution"
        )
    if sys.path[0] != str(root):  # so that no other package named benchmarks is found first
        sys.path.insert(0, str(root))
    status = import_module("benchmarks.__main__").run(out, options.smoke, terminal)
    return int(status)


def _make_folder(path: Path) -> Path:
    """Return `path`, after making the folder if it does not exist and checking that files can be made in it."""
    with system_errors(f"--out {path}: expected a folder that can be made", UsageError):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path}: expected a folder that can be written to")
    return path
