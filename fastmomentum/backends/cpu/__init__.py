"""Run updates by CPU kernels that Numba compiles."""
