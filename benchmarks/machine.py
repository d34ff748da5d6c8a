"""Describe the machine and the installed packages for a record."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("fastmomentum", "numpy", "numba", "numba-cuda", "scipy", "torch", "numexpr", "jax", "optax", "cupy-cuda13x")


def processor() -> str:
    """Return the name of the processor and its number of cores; without Linux, a name as Python's platform has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of all packages in PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def caches() -> dict[str, int]:
    """Return the bytes of each data cache by its level, such as "L1"; the dict is empty if Linux does not list them."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((cache / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) * 1024
    return found
