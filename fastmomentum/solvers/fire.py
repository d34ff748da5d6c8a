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
    loop keeps the same numbers and counts as the loops of other rules; those of restarts and of backtracking stay as
    they are.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmomentum.solvers.objective import make_objective
    >>> x, g, calls = np.ones(2), np.ones(2), np.zeros(2, np.int64)
    >>> objective = make_objective(lambda x: 0.5 * x @ x, lambda x: x, ())
    >>> loop = make_fire_loop(x, {"lr": 0.5}, objective.checked(False))
    >>> numbers, counts = np.array([1.0, np.inf, np.inf, np.inf, 1.0, 1.0, np.inf, 1.0]), np.zeros(5, np.int64)
    >>> state = (x, x, x, x, x.copy()), (g, g), None, numbers, counts
    >>> loop(1, *state, None, None, (0.0, 1e-5, 0.0, 0.0, 0.0), (), calls, ())
    0
    >>> x.round(4)  # the step of −0.25 in each direction is longer than max_step = 0.2
    array([0.8586, 0.8586])
    """
    optimizer = Optimizer(point, "fire", **settings)

    def loop(
        steps: int,
        arrays: tuple[Floats, ...],
        gradients: tuple[Floats, Floats],
        order: Any,
        numbers: Any,
        counts: Any,
        lrs: Any,
        mus: Any,
        tolerances: tuple[float, float, float, float, float],
        limits: Any,
        calls: Any,
        args: tuple[object, ...],
    ) -> int:
        p, best, g = arrays[P], arrays[BEST], gradients[0]
        value, objective, best_merit, norm = map(float, numbers[:4])
        _, gtol, ftol, _, _ = tolerances
        since, restarts, stalled, before = map(int, counts[:4])
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
            if not np.isfinite(p).all():
                status = DIVERGED
                break
            value = functions.evaluate(p, g, calls, args)
        numbers[:4] = value, objective, best_merit, norm
        counts[:4] = since + done, restarts, stalled, before + done
        return status

    return loop
