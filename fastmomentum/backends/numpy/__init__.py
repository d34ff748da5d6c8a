"""Run updates as plain NumPy: the reference, whose bits every other backend gives."""
