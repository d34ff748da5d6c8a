"""The CUDA backend: the only place that touches numba.cuda, and nothing here does so before it is asked to."""

from functools import cache
from importlib.util import find_spec


@cache
def require() -> None:
    """Refuse to go on where there is no CUDA.

    Raises
    ------
    RuntimeError
        If numba-cuda is not installed, or finds no device.
    """
    if find_spec("numba_cuda") is None:
        raise RuntimeError("backend 'cuda' needs numba-cuda, which is not installed: pip install fastmomentum[cuda]")
    from numba import cuda

    if not cuda.is_available():
        why = cuda.cuda_error() or "no error was told"
        raise RuntimeError(f"backend 'cuda' needs a CUDA device and its driver; numba-cuda finds none: {why}")
