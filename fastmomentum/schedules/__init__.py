"""Learning rate and momentum as functions of the step.

A schedule is a small value: it is called with the number of the update to come, from 0, and returns a float; it prints
as its formula, equals what has the same fields, and pickles. Nothing in it moves on, so that a run taken up again at
whatever step continues it. What has an end holds its last value from there on.

>>> import fastmomentum as fm
>>> annealed = fm.schedules.Linear(0.5, 0.9, steps=1000)
>>> print(annealed)
0.5 + (0.9 − 0.5)·min(t/1000, 1)
>>> annealed(500), annealed(5000)
(0.7, 0.9)

``first.then(second, after=steps)`` puts one behind another, ``schedule.warmup(steps)`` a linear rise before it:

>>> print(fm.schedules.Cosine(0.1, 0.0, steps=900).warmup(100))
0 + (0.1 − 0)·min(t/100, 1) for t < 100, then 0 + (0.1 − 0)·(1 + cos(π·min((t − 100)/900, 1)))/2

:class:`fastmomentum.Momentum` takes these and any other callable, and refuses a value that is NaN or out of range at
the step where it comes, with nothing changed. A range is therefore no business of a schedule. Saved with a run, these
come back with it; :func:`pack` and :func:`unpack` are how.
"""

from fastmomentum.schedules.base import Linear, Schedule, Then
from fastmomentum.schedules.curves import Constant, Cosine, Cycle, Exponential, Pair, Step, WarmRestarts, one_cycle
from fastmomentum.schedules.sequences import (
    Chebyshev,
    ChebyshevLR,
    ChebyshevMomentum,
    Nesterov,
    NesterovSimple,
    Sutskever,
)
from fastmomentum.schedules.serialize import is_packable, pack, unpack

__all__ = [
    "Chebyshev",
    "ChebyshevLR",
    "ChebyshevMomentum",
    "Constant",
    "Cosine",
    "Cycle",
    "Exponential",
    "Linear",
    "Nesterov",
    "NesterovSimple",
    "Pair",
    "Schedule",
    "Step",
    "Sutskever",
    "Then",
    "WarmRestarts",
    "is_packable",
    "one_cycle",
    "pack",
    "unpack",
]
