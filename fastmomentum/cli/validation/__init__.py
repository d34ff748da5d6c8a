"""Measure on the compiled kernels what the theory predicts, and report both in a table, a record and pictures."""
