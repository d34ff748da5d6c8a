"""Benchmarks: every comparison runs its sides in turn within one process."""
