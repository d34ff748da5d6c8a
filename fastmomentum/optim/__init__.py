"""Optimisers: the function step(), the classes Optimizer, Momentum and SparseRows, and what they are made of."""
