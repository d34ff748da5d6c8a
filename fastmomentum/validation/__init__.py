"""Measured against predicted: what the compiled kernels do, and what the theory says they will do.

Run as ``python -m fastmomentum.validation``, or ``./scripts/validate`` in a clone; needs the extra ``cli``.
"""
