"""Select the device functions of kernels: LLVM code for a device, plain Python for Numba's CUDA simulator."""

from numba import config

if config.ENABLE_CUDASIM:
    from fastmomentum.backends.cuda.simulator import (
        make_derive,
        make_loads,
        make_scalar,
        make_store,
        make_sums,
        make_sweep,
        make_update,
    )
else:
    from fastmomentum.backends.cuda.codegen import (
        make_derive,
        make_loads,
        make_scalar,
        make_store,
        make_sums,
        make_sweep,
        make_update,
    )

__all__ = ["make_derive", "make_loads", "make_scalar", "make_store", "make_sums", "make_sweep", "make_update"]
