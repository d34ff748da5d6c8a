"""Decide whether a kernel may run in parallel, and on how many threads.

Numba has one set of threads in a process, and some threading layers fail in ordinary use (measured): with `workqueue`
two callers at the same time abort the process; with `omp` a forked child is killed at its first parallel kernel, or
hangs if its parent ran a parallel kernel of torch before the fork. So a parallel kernel runs only if the user asked for
threads, the layer is not workqueue, the process is not a forked child, no other parallel kernel is running, and the
arrays are large enough. Otherwise the serial kernel runs, which gives the same bits. This module sets no environment
variable and no option of Numba.
"""

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

from fastmomentum import checks
from fastmomentum.backends import cpu

ELEMENTS = 32_768
"""The smallest number of elements for which a thread is used.

Measured on two cores with float32: starting a parallel region takes 2 µs with omp, in which the serial kernel updates
20,000 elements; two threads take 1.09 times as long as one at 30,000 elements, 0.86 at 60,000, 0.47 at 100,000.
"""

_region = Lock()
_process = os.getpid()
threads_by_default = 1
"""The number of threads that :func:`set_threads` set; 1 before its first call."""


def worthwhile(elements: int, threads: int | None) -> int:
    """Return the number of threads for an update of this many elements; 1 if more would be slower, or unsafe.

    `threads` is the number that the user asked for: −1 for all, None for the number given to :func:`set_threads`.
    """
    threads = threads_by_default if threads is None else threads
    if threads == 1 or elements < 2 * ELEMENTS:
        return 1
    most = available()
    count = min(most if threads == -1 else threads, most, elements // ELEMENTS)
    return count if count > 1 and _safe() else 1


def set_threads(threads: int) -> None:
    """Set the number of threads for updates that do not name one; it is 1 before the first call.

    Parameters
    ----------
    threads : int
        At least 1; or −1 for all that this process may use: the smallest of its number of cores, OMP_NUM_THREADS, and
        Numba's own limit. It applies to optimisers that are made, and to calls of fm.step, after this call.

    Raises
    ------
    TypeError, ValueError
        If `threads` is not such a number.

    Notes
    -----
    The bits do not depend on the number of threads. An update uses fewer threads if more would be slower (small
    arrays), and one if more are not safe: on Numba's workqueue layer, in a forked child, and while another update runs
    in parallel.

    `threads` limits the number of parts that an update is cut into; all of Numba's threads may wake to look for a part.
    The first parallel update starts the threads, on Intel's TBB if that is installed and NUMBA_THREADING_LAYER names no
    other layer. Numba then fixes the start method of multiprocessing: call ``multiprocessing.set_start_method`` before.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.set_threads(-1)
    >>> fm.set_threads(1)
    """
    global threads_by_default
    found = checks.threads(threads)
    if found is None:
        raise TypeError("threads: expected a whole number >= 1, or -1 for all; got None")
    threads_by_default = found


def available() -> int:
    """Return the most threads that may run: the least of this process's cores, OMP_NUM_THREADS and Numba's limit."""
    from numba import config

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    limit = max(1, int(wanted)) if wanted.isdecimal() and len(wanted) < 10 else cores
    return min(cores, int(config.NUMBA_NUM_THREADS), limit)


def region() -> "Lock | None":  # quoted, as threading.Lock is a function before Python 3.13
    """Return the lock to hold (``with``) while a parallel kernel runs; None if the serial kernel must be used.

    The lock is returned only if it is free. If another thread takes it before the caller's ``with``, the caller waits
    until that update is done.
    """
    # A plain Lock: a signal could interrupt a context manager written in Python between taking the lock and entering
    # the block, and the exception's traceback would then keep the lock held.
    return None if os.getpid() != _process or _region.locked() else _region


def _safe() -> bool:
    """Return whether a parallel kernel may run in this process."""
    alone = os.getpid() == _process and not _was_forked()
    return alone and cpu.has_compiler() and layer() not in (None, "workqueue")


@cache
def _was_forked() -> bool:
    """Return whether this process was forked, without starting another program, before this module was imported."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[6])
    except (OSError, ValueError, IndexError):
        multiprocessing = sys.modules.get("multiprocessing")
        return multiprocessing is not None and multiprocessing.parent_process() is not None
    return bool(flags & 0x40)  # PF_FORKNOEXEC in Linux's sched.h


@cache
def layer() -> str | None:
    """Return the name of this process's threading layer, which is started if none runs; None if none can start."""
    import numba
    from numba.np.ufunc import parallel

    # A virtual environment's lib folder is in no search path, so Numba finds TBB there only if it is already loaded.
    if numba.config.THREADING_LAYER not in ("omp", "workqueue"):
        with suppress(OSError):
            ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), ctypes.RTLD_GLOBAL)
    try:
        parallel._launch_threads()
        return str(numba.threading_layer())
    except (ValueError, ImportError, OSError, Warning):
        return None  # the layer named by NUMBA_THREADING_LAYER is missing or too old
