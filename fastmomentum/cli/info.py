"""Run ``fastmomentum info``: show versions, the machine, and missing packages with how to install them."""

import argparse
import os
import platform
import sys
import textwrap
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fastmomentum
from fastmomentum.cli import probes
from fastmomentum.cli.terminal import Record, Terminal

REQUIRED = ("numpy", "numba", "llvmlite", "scipy")

OPTIONAL = {
    "numba-cuda": ("CUDA", 'pip install "fastmomentum[cuda]"'),
    "rich": ("this command", 'pip install "fastmomentum[cli]"'),
    "matplotlib": ("pictures", 'pip install "fastmomentum[cli]"'),
    "scikit-learn": ("demo and validate", 'pip install "fastmomentum[cli]"'),
    "tbb": ("Intel's threading layer", 'pip install "fastmomentum[tbb]"'),
    "torch": ("torch tensors, and bench", 'pip install "fastmomentum[bench]", or as pytorch.org says'),
    "jax": ("bench", 'pip install "fastmomentum[bench]"'),
    "optax": ("bench", 'pip install "fastmomentum[bench]"'),
    "numexpr": ("bench", 'pip install "fastmomentum[bench]"'),
    "threadpoolctl": ("bench", 'pip install "fastmomentum[bench]"'),
}
"""The use of each optional package, and how to install it."""

INDENT = 16
"""The number of columns for the name at the start of a line."""

LEAST_WIDTH = 24
"""The least number of columns for the text after the name, in a terminal however narrow."""

VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""The environment variables that change a run, besides those of Numba."""


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Collect and print all facts, and return 0, also if packages are missing."""
    with terminal.progress() as progress:
        progress.add_task("collecting", total=None)  # nothing tells how far the probes are
        facts = collect_facts()
    terminal.record(facts)
    for name, text in _format_lines(facts):
        width = max(terminal.width - INDENT, LEAST_WIDTH)
        filled = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        terminal.say(f"{name:{INDENT - 1}} " + filled.replace("\n", "\n" + " " * INDENT))
    return 0


def collect_facts() -> Record:
    """Return all facts as JSON has them."""
    answers = probes.ask(probes.PROBES)
    packages = {name: _installed_version(name) for name in (*REQUIRED, *OPTIONAL)}
    variables = {name for name in os.environ if name.startswith("NUMBA_")} | set(VARIABLES) & set(os.environ)
    return {
        "fastmomentum": fastmomentum.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": packages,
        "processor": {"name": _processor_name(), "cores": os.cpu_count(), **answers["processor"]},
        "threads": answers["threads"],
        "cuda": answers["cuda"],
        "environment": {name: os.environ[name] for name in sorted(variables)},
        "missing": list(missing(packages, answers)),
    }


def missing(packages: Mapping[str, str | None], answers: Record) -> Iterator[dict[str, str]]:
    """Yield each missing package or library, its use, and how to install it."""
    for name in REQUIRED:
        if packages[name] is None:
            yield {"what": name, "for": "everything", "get": f"pip install {name}"}
    for name, (use, install) in OPTIONAL.items():
        if packages[name] is None:
            yield {"what": name, "for": use, "get": install}
    layer = answers["threads"].get("layer")
    if "error" not in answers["threads"] and layer in (None, "workqueue"):
        yield {
            "what": "a threading layer that is safe",
            "for": "threads=n, which runs on one thread without it",
            "get": 'pip install "fastmomentum[tbb]", or an OpenMP library (libgomp1, libomp)',
        }


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor_name() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _format_lines(facts: Record) -> Iterator[tuple[str, str]]:
    """Yield the facts as lines of text, each with its name."""
    yield "fastmomentum", facts["fastmomentum"]
    yield "Python", f"{facts['python']}, {facts['executable']}"
    yield "system", facts["system"]
    for name, installed in facts["packages"].items():
        yield name, installed or "-"
    processor, threads, cuda = facts["processor"], facts["threads"], facts["cuda"]
    yield "processor", f"{processor['name']}, {processor['cores']} cores"
    if "error" in processor:
        yield "vector width", f"unknown: {processor['error']}"
    else:
        bits = processor["vector_bits"]
        width = f"{bits} bits: {bits // 32} float32, {bits // 64} float64" if bits else "unknown"
        yield "vector width", f"{width} (LLVM: {processor['llvm']})"
    if "error" in threads:
        yield "threads", f"unknown: {threads['error']}"
    else:
        yield "threads", f"{threads['available']} available, 1 used unless threads= asks for more"
        yield "threading layer", threads["layer"] or "none"
    devices = ", ".join(f"{each['name']} (compute capability {each['capability']})" for each in cuda.get("devices", ()))
    state = "available" if cuda.get("available") else f"not available: {cuda.get('why') or cuda.get('error')}"
    yield "CUDA", f"{state}{': ' if devices else ''}{devices}"
    for name, value in facts["environment"].items():
        yield name, value
    for each in facts["missing"]:
        yield "missing", f"{each['what']}, for {each['for']}: {each['get']}"
