"""Run updates on CUDA devices; numba.cuda is imported by this package alone, when CUDA is first used."""

from functools import cache
from importlib.util import find_spec


@cache
def require() -> None:
    """Raise RuntimeError if CUDA cannot be used.

    Raises
    ------
    RuntimeError
        If numba-cuda is not installed, or finds no device.
    """
    if find_spec("numba_cuda") is None:
        raise RuntimeError("backend 'cuda' needs numba-cuda, which is not installed: pip install fastmomentum[cuda]")
    from numba import cuda

    if not cuda.is_available():
        why = cuda.cuda_error() or "it reports no error"
        raise RuntimeError(f"backend 'cuda' needs a CUDA device and its driver; numba-cuda finds none: {why}")
