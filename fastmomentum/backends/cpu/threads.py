"""When, and over how many threads, a kernel may run in parallel.

Numba's threads are one set a process, and not every kind survives what users do (measured): with `workqueue` two
callers at a time abort the process; with `omp` a forked child is killed at its first parallel kernel, or hangs if its
parent ran one of torch's before the fork. So a parallel kernel runs only where threads were asked for, on another layer
than workqueue, not in a forked child, one at a time, and where there is enough to do; else the serial kernel runs, with
the same bits. Nothing here sets a variable of the environment or of Numba.
"""

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

from fastmomentum import checks

ELEMENTS = 32_768
"""The fewest elements a thread.

A parallel region costs 2 µs with omp, as much as the serial kernel takes for 20,000 elements. Measured on two cores,
float32, two threads against one: 1.09 times as long at 30,000 elements, 0.86 at 60,000, 0.47 at 100,000.
"""

_region = Lock()
_process = os.getpid()
_default = 1


def worthwhile(elements: int, threads: int | None) -> int:
    """Over how many threads to run, of so many asked for; 1 if a parallel kernel would be slower, or unsafe.

    −1 asks for all, None for what :func:`set_threads` says.
    """
    threads = default() if threads is None else threads
    if threads == 1 or elements < 2 * ELEMENTS:
        return 1
    most = available()
    count = min(most if threads == -1 else threads, most, elements // ELEMENTS)
    return count if count > 1 and _safe() else 1


def default() -> int:
    """How many threads are asked for where none are named."""
    return _default


def set_threads(threads: int) -> None:
    """How many threads an update uses where none are named: 1 until this is called.

    Parameters
    ----------
    threads : int
        From 1, or −1 for all that this process may use: its cores, OMP_NUM_THREADS where that is less, and Numba's own
        limit. It holds for optimisers made, and calls of fm.step, from now on.

    Raises
    ------
    TypeError, ValueError
        If it is no such number.

    Notes
    -----
    The bits are the same whatever the number. Fewer threads are used where more would be slower (small arrays), and one
    where more are not safe: on Numba's workqueue layer, in a forked child, and for a second caller at the same time.

    What is limited is into how many parts an update is cut; all of Numba's threads may wake to look for one. They are
    brought up by the first such update, with Intel's TBB if it is installed and NUMBA_THREADING_LAYER names no other.
    Numba then fixes the start method of multiprocessing: what calls ``multiprocessing.set_start_method`` must come
    before.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.set_threads(-1)
    >>> fm.set_threads(1)
    """
    global _default
    found = checks.threads(threads)
    if found is None:
        raise TypeError("threads: expected a whole number >= 1, or -1 for all; got None")
    _default = found


def available() -> int:
    """How many threads may run: the cores that this process has, OMP_NUM_THREADS if it says less, Numba's own limit."""
    from numba import config

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    limit = max(1, int(wanted)) if wanted.isdecimal() and len(wanted) < 10 else cores
    return min(cores, int(config.NUMBA_NUM_THREADS), limit)


def region() -> "Lock | None":
    """The lock of the only parallel region, for ``with``; None where the serial kernel must serve.

    Who comes at the very moment between the look and the ``with`` waits for the other's update. A context manager of
    our own could be torn apart by a signal, and be left holding by whoever keeps the exception.
    """
    return None if os.getpid() != _process or _region.locked() else _region


def _safe() -> bool:
    return os.getpid() == _process and not _was_forked() and layer() not in (None, "workqueue")


@cache
def _was_forked() -> bool:
    """Whether this process was forked without another program's start, before this module took its number down."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[6])
    except (OSError, ValueError, IndexError):
        multiprocessing = sys.modules.get("multiprocessing")
        return multiprocessing is not None and multiprocessing.parent_process() is not None
    return bool(flags & 0x40)  # PF_FORKNOEXEC in Linux's sched.h


@cache
def layer() -> str | None:
    """The threading layer of this process, which is brought up if none is; None where there is none."""
    import numba
    from numba.np.ufunc import parallel

    # Numba's module finds this library only if it is loaded already: a virtual environment's is in no search path.
    if numba.config.THREADING_LAYER not in ("omp", "workqueue"):
        with suppress(OSError):
            ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), ctypes.RTLD_GLOBAL)
    try:
        parallel._launch_threads()
        return str(numba.threading_layer())
    except (ValueError, ImportError, OSError, Warning):  # what NUMBA_THREADING_LAYER names is missing, or is old
        return None
