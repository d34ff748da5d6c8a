"""Make the loop of rule "fire" for a minimiser: steps of one optimiser, which has a time step and a restart of its own.

The loop runs in Python, as a step is one call of compiled code. It has no line search and no proximal map.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastmomentum.optim.optimizer import Optimizer
from fastmomentum.solvers.loop import BEST, CONVERGED, DIVERGED, RUNNING, SETTLED, STALL_STEPS, ObjectiveFunctions, P
from fastmomentum.solvers.passes import Floats


def make_fire_loop(point: Floats, settings: Mapping[str, Any], functions: ObjectiveFunctions) -> Callable[..., int]:
    """Return a loop with the arguments of :func:`fastmomentum.solvers.loop.make_loop`, whose steps are those of FIRE.

    F = −g; v ← (1−α)v + α‖v‖F/‖F‖ if F·v > 0, else 0; v ← v + dt·F; p ← p + dt·v, at most max_step long

    Parameters
    ----------
    point : ndarray
        The start, of any shape. The loop updates it in place, so it must always be the array with the role P.
    settings : mapping
        The rule's settings, lr among them.
    functions : ObjectiveFunctions
        The function to minimise, in Python.

    Raises
    ------
    TypeError, ValueError
        If a setting has a wrong type or value.

    Notes
    -----
    The rule is that of Bitzek et al. 2006 as ASE integrates it (:data:`fastmomentum.rules.fire`). From step to step the
    loop keeps the same numbers and counts as the loops of other rules; the numbers of restarts and the scale of lr stay
    as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmomentum.solvers.objective import make_objective
    >>> x, g, calls = np.ones(2), np.ones(2), np.zeros(2, np.int64)
    >>> objective = make_objective(lambda x: 0.5 * x @ x, lambda x: x, ())
    >>> loop = make_fire_loop(x, {"lr": 0.5}, objective.checked(False))
    >>> numbers, counts = np.array([1.0, np.inf, np.inf, np.inf, 1.0]), np.zeros(4, np.int64)
    >>> loop(1, (x, x, x, x, x.copy()), g, None, numbers, counts, None, None, (0.0, 1e-5, 0.0, 0.0), (), calls, ())
    0
    >>> x.round(4)  # the step of −0.25 in each direction is longer than max_step = 0.2
    array([0.8586, 0.8586])
    """
    optimizer = Optimizer(point, "fire", **settings)

    def loop(
        steps: int,
        arrays: tuple[Floats, ...],
        g: Floats,
        order: Any,
        numbers: Any,
        counts: Any,
        lrs: Any,
        mus: Any,
        tolerances: tuple[float, float, float, float],
        limits: Any,
        calls: Any,
        args: tuple[object, ...],
    ) -> int:
        p, best = arrays[P], arrays[BEST]
        value, objective, best_merit, norm, scale = map(float, numbers)
        _, gtol, ftol, _ = tolerances
        since, restarts, stalled, before = map(int, counts)
        done, status = 0, RUNNING
        while done < steps:
            largest = float(np.abs(g).max())  # a NaN if one element is
            if not np.isfinite(largest) or not np.isfinite(value):
                status = DIVERGED
                break
            norm = largest
            if norm <= gtol:
                status = CONVERGED
                break
            stalled = stalled + 1 if abs(value - objective) <= ftol * max(abs(value), 1.0) else 0
            if ftol > 0.0 and stalled >= STALL_STEPS:
                status = SETTLED
                break
            merit = value if functions.valued else norm
            if merit < best_merit:
                best_merit = merit
                best[:] = p
            optimizer.step(g)
            objective, done = value, done + 1
            value = functions.evaluate(p, g, calls, args)
        numbers[:] = value, objective, best_merit, norm, scale
        counts[:] = since + done, restarts, stalled, before + done
        return status

    return loop
