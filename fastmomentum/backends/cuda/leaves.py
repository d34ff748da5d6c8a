"""The device functions that kernels are made of: LLVM code on a device, Python in Numba's simulator."""

from numba import config

if config.ENABLE_CUDASIM:
    from fastmomentum.backends.cuda.simulated import (
        make_loads,
        make_scalar,
        make_settle,
        make_store,
        make_sums,
        make_sweep,
        make_update,
    )
else:
    from fastmomentum.backends.cuda.emit import make_loads, make_settle, make_store, make_sums, make_update
    from fastmomentum.backends.cuda.inside import make_scalar, make_sweep

__all__ = ["make_loads", "make_scalar", "make_settle", "make_store", "make_sums", "make_sweep", "make_update"]
