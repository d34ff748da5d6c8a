"""The device functions that kernels are made of: LLVM code on a device, Python in Numba's simulator."""

from numba import config

if config.ENABLE_CUDASIM:
    from fastmomentum.backends.cuda.simulator import (
        make_loads,
        make_scalar,
        make_settle,
        make_store,
        make_sums,
        make_sweep,
        make_update,
    )
else:
    from fastmomentum.backends.cuda.codegen import (
        make_loads,
        make_scalar,
        make_settle,
        make_store,
        make_sums,
        make_sweep,
        make_update,
    )

__all__ = ["make_loads", "make_scalar", "make_settle", "make_store", "make_sums", "make_sweep", "make_update"]
