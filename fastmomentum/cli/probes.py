"""Ask in separate processes, with a time limit, for facts about the machine whose query could hang or crash.

A missing or broken driver or library then costs one answer, not the command. ``python -m fastmomentum.cli.probes NAME``
prints the answer of one probe as JSON.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

SECONDS = 20.0
"""The time limit for all answers together: importing Numba takes half a second, waking a CUDA driver a few."""

VECTOR_BITS = {"avx512f": 512, "avx": 256, "sse2": 128, "neon": 128}
"""The vector width that each feature of a processor gives, the widest first."""

Answer = dict[str, Any]
"""The answer of a probe as JSON has it; {"error": why} if there is none."""


def ask(names: Iterable[str], seconds: float = SECONDS) -> dict[str, Answer]:
    """Run these probes at the same time, and return their answers."""
    end, running = monotonic() + seconds, {name: _start(name) for name in names}
    try:
        return {name: _wait_for_answer(process, end) for name, process in running.items()}
    finally:  # after Ctrl-C, too
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def _start(name: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fastmomentum.cli.probes", name]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=nothing, text=True, errors="replace")


def _wait_for_answer(process: "subprocess.Popen[str]", end: float) -> Answer:
    try:
        out, err = process.communicate(timeout=max(end - monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return {"error": "no answer in time"}
    try:
        return dict(json.loads(out.splitlines()[-1]))
    except (ValueError, IndexError):
        last_line = err.strip().splitlines()[-1:] or [f"it ended with status {process.returncode}"]
        return {"error": last_line[0]}


def processor() -> Answer:
    """Return the processor and its vector width, as LLVM, which compiles the kernels, sees them."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    width = next((bits for feature, bits in VECTOR_BITS.items() if features.get(feature)), None)
    return {"llvm": binding.get_host_cpu_name(), "vector_bits": width}


def threads() -> Answer:
    """Return how many threads may run, and Numba's threading layer, which this call starts."""
    from fastmomentum.backends.cpu.threads import available, layer

    return {"available": available(), "layer": layer()}


def cuda() -> Answer:
    """Return the devices that the CUDA driver itself reports, and whether numba-cuda can use them."""
    found: Answer = {"available": False, "devices": []}
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return found | {"why": "no CUDA driver is installed: it comes with the system, not with pip"}
    status, count = driver.cuInit(0), ctypes.c_int()
    if status or driver.cuDeviceGetCount(ctypes.byref(count)):
        return found | {"why": f"the CUDA driver finds no device (cuInit gives {status})"}
    for number in range(count.value):
        device, name, major, minor = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), number)
        driver.cuDeviceGetName(name, 256, device)
        for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found["devices"].append({"name": name.value.decode(), "capability": f"{major.value}.{minor.value}"})
    from fastmomentum.backends.cuda import require

    try:
        require()
    except RuntimeError as error:
        return found | {"why": str(error).splitlines()[0]}
    return found | {"available": True}


PROBES: dict[str, Callable[[], Answer]] = {"processor": processor, "threads": threads, "cuda": cuda}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]]()))
