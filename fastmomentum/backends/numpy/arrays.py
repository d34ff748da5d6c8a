"""Operations on arrays in host memory, as the NumPy backend uses them."""

from fastmomentum.backends.host_arrays import *  # noqa: F403
