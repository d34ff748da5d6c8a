"""Functions of the step, as users pass them for lr and momentum. They stand in a module so that they can be pickled."""


def falling(step):
    """Return a learning rate that falls as 1/(step + 1)."""
    return 0.1 / (step + 1)


def halving(step):
    """Return a learning rate that halves after every third step, so that all ratios are exact."""
    return 2.0 ** -(step // 3)


def annealed(step):
    """Return a momentum that rises from 0.5 to 0.9 in 20 steps."""
    return min(0.5 + 0.02 * step, 0.9)
