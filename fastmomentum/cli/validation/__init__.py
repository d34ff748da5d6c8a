"""Measures the theory against the compiled kernels: predictions, runs, a table and pictures."""
