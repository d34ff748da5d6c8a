"""Compile the update and the memory streams as loops in C, by the system's compiler."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Dtype = type[np.float32] | type[np.float64]
Run = Callable[[], object]
"""A function that does one update, or one pass of a stream."""

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
"""The elements that each memory stream reads and writes per element that it computes."""


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled loops; None without a C compiler that supports OpenMP."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "update.c"), Path(folder, "update.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC"]
        done = subprocess.run([compiler, *flags, source, "-o", library], capture_output=True, check=False)
        return ctypes.CDLL(str(library)) if done.returncode == 0 else None


def loop(name: str, p: Array, v: Array, g: Array, threads: int, lr: float, mu: float) -> Run | None:
    """Return a function that runs the named loop once over the arrays.

    It is None without a C compiler that supports OpenMP.
    """
    library = _library()
    if library is None:
        return None
    number = ctypes.c_float if p.dtype == np.float32 else ctypes.c_double
    function = getattr(library, f"{name}_{'float' if p.dtype == np.float32 else 'double'}")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (p, v, g)]
    arguments = (ctypes.c_long(p.size), ctypes.c_int(threads), *pointers, number(lr), number(mu), number(1.0))

    def run(arrays: tuple[Array, ...] = (p, v, g)) -> None:  # the default keeps the arrays alive; a C pointer does not
        function(*arguments)

    return run


def streams(moved: int, dtype: Dtype, threads: int) -> dict[str, Callable[[], Run | None]]:
    """Return the makers of the memory streams; each moves `moved` elements, read and written together."""
    memory = cache(lambda: np.full(moved, 1.5, dtype))

    def make(name: str) -> Run | None:
        count = moved // MOVED[name]
        parts = [memory()[i * count : (i + 1) * count] for i in range(MOVED[name])]
        return loop(name, parts[0], parts[-1], parts[1], threads, 1e-3, 1.0)

    return {name: partial(make, name) for name in MOVED}
