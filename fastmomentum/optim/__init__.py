"""Optimisers: one step, the Momentum object, its groups, state, engine, checkpoints and traces."""
