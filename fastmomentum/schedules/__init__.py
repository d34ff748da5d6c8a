"""Define schedules: settings such as learning rate and momentum as functions of the step.

A schedule is a small immutable object. A call with the number of the next update, from 0, returns a float. A schedule
prints as its formula, equals a schedule with equal fields, and can be pickled. It stores no position, so a run that is
resumed at any step continues its schedules. A schedule that ends keeps its last value for all later steps.

>>> import fastmomentum as fm
>>> annealed = fm.schedules.Linear(0.5, 0.9, steps=1000)
>>> print(annealed)
0.5 + (0.9 − 0.5)·min(t/1000, 1)
>>> annealed(500), annealed(5000)
(0.7, 0.9)

``first.then(second, after=steps)`` joins two schedules, and ``schedule.warmup(steps)`` puts a linear warm-up first:

>>> print(fm.schedules.Cosine(0.1, 0.0, steps=900).warmup(100))
0 + (0.1 − 0)·min(t/100, 1) for t < 100, then 0 + (0.1 − 0)·(1 + cos(π·min((t − 100)/900, 1)))/2

:class:`fastmomentum.Momentum` takes schedules and any other callable as settings. It checks the value of every step,
and raises before it changes anything if the value is NaN or out of range; so schedules do not check their values.
Schedules are saved and loaded with a run, by :func:`pack` and :func:`unpack`.
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
