"""The update as a loop in C, and how fast this machine's memory is at best, by the system's compiler."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = """
#define LOOP _Pragma("omp parallel for num_threads(threads) if(threads > 1)") for (long i = 0; i < n; i++)
#define ALL(T) \
void update_##T(long n, int threads, T *restrict p, T *restrict v, const T *restrict g, T lr, T mu, T keep) { \
    LOOP { v[i] = mu * v[i] + keep * g[i]; p[i] = p[i] - lr * v[i]; } } \
void copy_##T(long n, int threads, T *restrict p, T *restrict v, const T *restrict g, T a, T b, T c) { \
    LOOP { p[i] = g[i]; } } \
void scale_##T(long n, int threads, T *restrict p, T *restrict v, const T *restrict g, T a, T b, T c) { \
    LOOP { p[i] = b * p[i]; } } \
void triad_##T(long n, int threads, T *restrict p, T *restrict v, const T *restrict g, T a, T b, T c) { \
    LOOP { p[i] = v[i] + a * g[i]; } }
ALL(float)
ALL(double)
"""

MOVED = {"copy": 2, "scale": 2, "triad": 3}
"""The streams that a ceiling is the best of: elements read and written for each that is computed."""


@cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "update.c"), Path(folder, "update.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC"]
        done = subprocess.run([compiler, *flags, source, "-o", library], capture_output=True, check=False)
        return ctypes.CDLL(str(library)) if done.returncode == 0 else None


def loop(name: str, p: Any, v: Any, g: Any, threads: int, lr: float, mu: float) -> Callable[[], Any] | None:
    """One pass of the loop of this name over these arrays; None without a compiler that knows OpenMP."""
    library = _library()
    if library is None:
        return None
    number = ctypes.c_float if p.dtype == np.float32 else ctypes.c_double
    function = getattr(library, f"{name}_{'float' if p.dtype == np.float32 else 'double'}")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (p, v, g)]
    given = (ctypes.c_long(p.size), ctypes.c_int(threads), *pointers, number(lr), number(mu), number(1.0))

    def run(alive: Any = (p, v, g)) -> None:  # a pointer keeps nothing so
        function(*given)

    return run


def streams(moved: int, dtype: Any, threads: int) -> dict[str, Callable[[], Callable[[], Any] | None]]:
    """What makes loops that move so many elements, read and written together: how fast memory is at best."""
    room = cache(lambda: np.full(moved, 1.5, dtype))

    def make(name: str) -> Callable[[], Any] | None:
        count = moved // MOVED[name]
        parts = [room()[i * count : (i + 1) * count] for i in range(MOVED[name])]
        return loop(name, parts[0], parts[-1], parts[1], threads, 1e-3, 1.0)

    return {name: partial(make, name) for name in MOVED}
