"""Measured against predicted: what the compiled kernels do, and what the theory says they will do.

Run as ``fastmomentum validate``, or ``./scripts/validate`` in a clone; needs the extra ``cli``.
"""
