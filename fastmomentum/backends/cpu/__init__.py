"""Run updates by CPU kernels that Numba compiles; numba is imported when the backend is first used."""


def has_compiler() -> bool:
    """Return whether Numba's compiler is on; the variable NUMBA_DISABLE_JIT switches it off, for debugging."""
    from numba import config

    return not config.DISABLE_JIT


def require() -> None:
    """Raise RuntimeError if Numba's compiler is switched off.

    Raises
    ------
    RuntimeError
        If NUMBA_DISABLE_JIT is set.
    """
    if not has_compiler():
        raise RuntimeError(
            "backend 'cpu' needs Numba's compiler, which the variable NUMBA_DISABLE_JIT switches off; unset it, or use "
            "backend 'numpy', which gives the same bits"
        )
