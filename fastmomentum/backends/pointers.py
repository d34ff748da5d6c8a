"""Updates as C functions, which whatever can call a function pointer can call, without Python's global lock."""

from typing import Any

import numpy as np
from numba import carray, cfunc, types
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastmomentum.backends.cpu import vector
from fastmomentum.backends.headers import make_views
from fastmomentum.backends.loops import make_advance, make_cast, make_loop
from fastmomentum.records import Update


def make_pointer(rule: Update, dtype: np.dtype[Any]) -> Any:
    """``void update(int64_t n, T **arrays, const double *hyper)``, as Numba's object for it."""
    written, taken = 1 + len(rule.state), len(rule.hyper)
    given = written + 1
    views = make_views([vector(dtype)] * given)
    loop, cast = make_loop(make_advance(rule), written), make_cast(taken)

    def update(n: Any, arrays: Any, hyper: Any) -> None:
        each = views(carray(arrays, (1, given)), 0, 0, n)
        loop(each[:written], each[written:], cast(to_fixed_tuple(carray(hyper, (taken,)), taken), each[0]))

    addresses, numbers = types.CPointer(types.int64), types.CPointer(types.float64)
    return cfunc(types.void(types.int64, addresses, numbers), error_model="numpy")(update)
