"""When, and over how many threads, a kernel may run in parallel.

Numba's threads are one set a process, and not every kind survives what users do (measured): with `workqueue` two
callers at a time abort the process; with `omp` a forked child is killed at its first parallel kernel, or hangs if its
parent ran one of torch's before the fork. So a parallel kernel runs only where threads were asked for, on another layer
than workqueue, not in a forked child, one at a time, and where there is enough to do; else the serial kernel runs, with
the same bits. Nothing here sets a variable or chooses the layer: both belong to the process.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

ELEMENTS = 32_768
"""The fewest elements a thread.

A parallel region costs 2 µs with omp, as much as the serial kernel takes for 20,000 elements. Measured on two cores,
float32, two threads against one: 1.09 times as long at 30,000 elements, 0.86 at 60,000, 0.47 at 100,000.
"""

_region = Lock()
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def worthwhile(elements: int, threads: int) -> int:
    """Over how many threads to run, of so many asked for (−1: all); 1 if a parallel kernel would be slower, or unsafe."""
    if threads == 1 or elements < 2 * ELEMENTS or not _safe():
        return 1
    most = available()
    return max(1, min(most if threads == -1 else threads, most, elements // ELEMENTS))


def available() -> int:
    """How many threads may run: the cores that this process has, OMP_NUM_THREADS if it says less, Numba's own limit."""
    from numba import config

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, config.NUMBA_NUM_THREADS, max(1, int(wanted)) if wanted.isdecimal() else cores)


@contextmanager
def region() -> Iterator[bool]:
    """Hold the only parallel region, if it may be had now: where the answer is False, the serial kernel must serve."""
    if _forked or not _region.acquire(False):
        yield False
        return
    try:
        yield True
    finally:
        _region.release()


def _safe() -> bool:
    return not _forked and not _was_forked() and _layer() not in (None, "workqueue")


@cache
def _was_forked() -> bool:
    """Whether this process was forked without another program's start, before this module could take note."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[6])
    except (OSError, ValueError, IndexError):
        multiprocessing = sys.modules.get("multiprocessing")
        return multiprocessing is not None and multiprocessing.parent_process() is not None
    return bool(flags & 0x40)  # PF_FORKNOEXEC in Linux's sched.h


@cache
def _layer() -> str | None:
    """The threading layer of this process, which is brought up if none is; None where there is none."""
    import numba
    from numba.np.ufunc import parallel

    # Numba's own module finds this library only if a loader has it already: a virtual environment's is in no search path.
    with suppress(OSError):
        ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), ctypes.RTLD_GLOBAL)
    try:
        parallel._launch_threads()
        return str(numba.threading_layer())
    except (ValueError, ImportError, OSError):  # the layer that NUMBA_THREADING_LAYER names is not installed
        return None
