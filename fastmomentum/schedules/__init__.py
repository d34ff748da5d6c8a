"""Schedules: learning rate and momentum as functions of the step.

A schedule is a small value. It is called with the number of the update to come, from 0, and returns a float; it prints
as its formula, equals a schedule with equal fields, and can be pickled. It keeps no position, so a run that is resumed
at any step continues it. A schedule with an end keeps its last value from there on.

>>> import fastmomentum as fm
>>> annealed = fm.schedules.Linear(0.5, 0.9, steps=1000)
>>> print(annealed)
0.5 + (0.9 − 0.5)·min(t/1000, 1)
>>> annealed(500), annealed(5000)
(0.7, 0.9)

``first.then(second, after=steps)`` joins two schedules, ``schedule.warmup(steps)`` puts a linear rise before one:

>>> print(fm.schedules.Cosine(0.1, 0.0, steps=900).warmup(100))
0 + (0.1 − 0)·min(t/100, 1) for t < 100, then 0 + (0.1 − 0)·(1 + cos(π·min((t − 100)/900, 1)))/2

:class:`fastmomentum.Momentum` takes schedules and any other callable. It refuses a value that is NaN or out of range at
the step to which it belongs, and changes nothing then; so a schedule checks no range of its values. Schedules are saved
and loaded with a run, by :func:`pack` and :func:`unpack`.
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
