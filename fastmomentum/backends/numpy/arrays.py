"""Provide the array operations of the NumPy backend, which are those of host memory."""

from fastmomentum.backends.host_arrays import *  # noqa: F403
