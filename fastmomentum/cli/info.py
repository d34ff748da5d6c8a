"""``fastmomentum info``: what is installed, what the machine has, what is missing and how to get it."""

import argparse
import os
import platform
import sys
import textwrap
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastmomentum
from fastmomentum.cli import probes
from fastmomentum.cli.terminal import Terminal

REQUIRED = ("numpy", "numba", "llvmlite", "scipy")

OPTIONAL = {
    "numba-cuda": ("CUDA", 'pip install "fastmomentum[cuda]"'),
    "rich": ("this command", 'pip install "fastmomentum[cli]"'),
    "matplotlib": ("pictures", 'pip install "fastmomentum[cli]"'),
    "scikit-learn": ("demo and validate", 'pip install "fastmomentum[cli]"'),
    "tbb": ("Intel's threading layer", 'pip install "fastmomentum[tbb]"'),
    "torch": ("its tensors, and bench", 'pip install "fastmomentum[bench]", or as pytorch.org says'),
    "jax": ("bench", 'pip install "fastmomentum[bench]"'),
    "optax": ("bench", 'pip install "fastmomentum[bench]"'),
    "numexpr": ("bench", 'pip install "fastmomentum[bench]"'),
    "threadpoolctl": ("bench", 'pip install "fastmomentum[bench]"'),
}
"""What each is for, and how to get it."""

INDENT = 16
"""Columns for what a line is about."""

VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Of the environment, beside Numba's own, that change what happens."""


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Ask, print; 0 whatever is missing."""
    with terminal.progress() as progress:
        progress.add_task("asking", total=None)
        found = facts()
    terminal.record(found)
    for what, how in _lines(found):
        filled = textwrap.fill(how, terminal.width - INDENT, break_long_words=False, break_on_hyphens=False)
        terminal.say(f"{what:{INDENT - 1}} " + filled.replace("\n", "\n" + " " * INDENT))
    return 0


def facts() -> dict[str, Any]:
    """All that is told, as JSON has it."""
    answers = probes.ask(probes.PROBES)
    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    variables = {name for name in os.environ if name.startswith("NUMBA_")} | set(VARIABLES) & set(os.environ)
    return {
        "fastmomentum": fastmomentum.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": packages,
        "processor": {"name": _processor(), "cores": os.cpu_count(), **answers["processor"]},
        "threads": answers["threads"],
        "cuda": answers["cuda"],
        "environment": {name: os.environ[name] for name in sorted(variables)},
        "missing": list(missing(packages, answers)),
    }


def missing(packages: Mapping[str, str | None], answers: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What is not there: what it would be for, and how to get it."""
    for name in REQUIRED:
        if packages[name] is None:
            yield {"what": name, "for": "everything", "get": f"pip install {name}"}
    for name, (purpose, get) in OPTIONAL.items():
        if packages[name] is None:
            yield {"what": name, "for": purpose, "get": get}
    layer = answers["threads"].get("layer")
    if "error" not in answers["threads"] and layer in (None, "workqueue"):
        yield {
            "what": "a threading layer that is safe",
            "for": "threads=n, which until then runs on one thread",
            "get": 'pip install "fastmomentum[tbb]", or an OpenMP library (libgomp1, libomp)',
        }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people: what, and how it is."""
    yield "fastmomentum", found["fastmomentum"]
    yield "Python", f"{found['python']}, {found['executable']}"
    yield "system", found["system"]
    for name, installed in found["packages"].items():
        yield name, installed or "-"
    processor, threads, cuda = found["processor"], found["threads"], found["cuda"]
    yield "processor", f"{processor['name']}, {processor['cores']} cores"
    if "error" in processor:
        yield "vector width", f"unknown: {processor['error']}"
    else:
        bits = processor["vector_bits"]
        counted = f"{bits} bits: {bits // 32} float32, {bits // 64} float64" if bits else "unknown"
        yield "vector width", f"{counted} (LLVM: {processor['llvm']})"
    if "error" in threads:
        yield "threads", f"unknown: {threads['error']}"
    else:
        yield "threads", f"{threads['available']} available, 1 used unless asked for"
        yield "threading layer", threads["layer"] or "none"
    devices = ", ".join(f"{each['name']} (compute capability {each['capability']})" for each in cuda.get("devices", ()))
    state = "available" if cuda.get("available") else f"not available: {cuda.get('why') or cuda.get('error')}"
    yield "CUDA", f"{state}{': ' if devices else ''}{devices}"
    for name, value in found["environment"].items():
        yield name, value
    for each in found["missing"]:
        yield "missing", f"{each['what']}, for {each['for']}: {each['get']}"
