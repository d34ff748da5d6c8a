"""The loop of a minimiser: update, measure, decide, evaluate; compiled where the user's functions are, else in Python.

What may be asked of a step (backtracking, a restart) is a function of its own: a loop that does not ask for it does not
hold it.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable

from fastmomentum.backends.embedded import STRICT
from fastmomentum.backends.passes import Terms, make_advance, make_measure

RUNNING, CONVERGED, SETTLED, DIVERGED, STUCK = range(5)
ENOUGH = 10
"""Steps in a row that must change the objective by no more than ftol: where momentum turns round, one does so, too."""


SHORTER, LONGER, LEAST = 0.5, 1.05, 1e-30
"""What backtracking multiplies the learning rate by, where it is too long and where not; and where it gives up, as it
does where the step is lost in the rounding of p."""


class Plan(NamedTuple):
    """What a loop is made for.

    Attributes
    ----------
    rule : str
        "heavy_ball" or "nesterov_positions".
    terms : Terms
        What is minimised beside `fun`.
    backtracking : bool
        Whether the learning rate is looked for.
    restart : str
        "gradient", "function" or "never".
    valued : bool
        Whether `evaluate` tells the value of `fun`.
    """

    rule: str
    terms: Terms
    backtracking: bool
    restart: str
    valued: bool

    @property
    def sums(self) -> frozenset[str]:
        """What is to be measured of each step."""
        asked = {"squares": True, "slope": self.restart == "gradient", "descent": self.backtracking}
        asked |= dict.fromkeys(("size", "size_next"), self.terms.l1)
        return frozenset(name for name, wanted in asked.items() if wanted)


class Numbers(NamedTuple):
    """What goes from step to step beside arrays.

    Attributes
    ----------
    value : float
        `fun` at p; 0 where it is not evaluated.
    objective : float
        The objective of the last step, for restarts and ftol.
    least : float
        The merit of the best point: its objective, or, where values are unknown, the norm of its prox-gradient.
    norm : float
        The largest element of the last prox-gradient.
    scale : float
        What the learning rate is multiplied by.
    since, restarts, quiet : int
        Steps since the last restart, restarts, steps in a row that changed the objective little.
    """

    value: float
    objective: float
    least: float
    norm: float
    scale: float
    since: int
    restarts: int
    quiet: int


@lru_cache(maxsize=64)
def make_run(plan: Plan, evaluate: Callable[..., Any], value_at: Callable[..., Any], compiled: bool) -> Any:
    """``run(steps, arrays, numbers, lrs, mus, settings, limits, counts, args) -> (status, done, arrays, numbers)``.

    Parameters
    ----------
    plan : Plan
        What it is made for.
    evaluate : function
        ``evaluate(p, g, counts, args) -> f``: the gradient at p to g, and the value where `plan.valued`.
    value_at : function
        ``value_at(p, counts, args) -> f``.
    compiled : bool
        Whether both are compiled, and the loop is to be.

    Notes
    -----
    `arrays` are p, q, room for the next two, the best p so far, and g at p; `lrs` and `mus` hold lr and momentum by the
    steps since a restart, the last of each for all that follow; `settings` are l1, gtol, ftol, and how exact values of
    `fun` are.
    """
    advance, measure = make_advance(plan.rule, plan.terms), make_measure(plan.terms, plan.sums)
    look = _make_look(value_at) if plan.backtracking or plan.restart == "function" else _no_look
    is_too_far, grown = (_exceeds, _grown) if plan.backtracking else (_never, _as_it_is)
    is_astray = {"gradient": _climbs, "function": _rises, "never": _never}[plan.restart]
    merit = _first if plan.valued else _second
    moved = _of_state if plan.rule == "nesterov_positions" else _of_point

    def run(
        steps: Any, arrays: Any, numbers: Any, lrs: Any, mus: Any, settings: Any, limits: Any, counts: Any, args: Any
    ) -> Any:
        p, q, next_p, next_q, best, g = arrays
        value, objective, least, norm, scale, since, restarts, quiet = numbers
        l1, gtol, ftol, noise = settings
        status, done = RUNNING, 0
        while status == RUNNING and done < steps:
            lr, mu = scale * float(lrs[min(since, lrs.size - 1)]), float(mus[min(since, mus.size - 1)])
            advance((next_p, next_q), (p, q), g, lr, mu, l1, limits)
            after, before = moved(next_p, next_q, p, q)
            found = measure(p, g, after, before, lr, l1, limits)
            if not np.isfinite(found.squares) or not np.isfinite(value):
                status = DIVERGED
                break
            norm, here = found.largest / lr, value + l1 * found.size
            if norm <= gtol:
                status = CONVERGED
                break
            smooth, size = look(next_q, value, found, counts, args)
            there = smooth + l1 * size
            if is_too_far(value, smooth, found, lr, noise):
                scale *= SHORTER
                if scale < LEAST or found.largest <= noise * np.abs(p).max():
                    status = STUCK
                continue
            if since > 0 and is_astray(found, there, objective):
                # The same step again, from rest.
                q[:] = p
                since, restarts = 0, restarts + 1
                continue
            quiet = quiet + 1 if abs(there - objective) <= ftol * max(abs(there), 1.0) else 0
            if ftol > 0.0 and quiet >= ENOUGH:
                status = SETTLED
                break
            worth = merit(here, norm)
            if worth < least:
                least = worth
                best, p, next_p = p, next_p, best
            else:
                p, next_p = next_p, p
            q, next_q = next_q, q
            objective, scale, since, done = there, grown(scale, value, found, lr, noise), since + 1, done + 1
            value = evaluate(p, g, counts, args)
        numbers = Numbers(value, objective, least, norm, scale, since, restarts, quiet)
        return status, done, (p, q, next_p, next_q, best, g), numbers

    return njit(**STRICT)(run) if compiled else run


def _make_look(value_at: Callable[..., Any]) -> Any:
    """f(x⁺) and Σ|x⁺|."""
    return register_jitable(lambda x, value, found, counts, args: (value_at(x, counts, args), found.size_next))


@register_jitable
def _no_look(x: Any, value: Any, found: Any, counts: Any, args: Any) -> Any:
    """Those at p will do."""
    return value, found.size


@register_jitable
def _exceeds(value: Any, smooth: Any, found: Any, lr: Any, noise: Any) -> Any:
    """Whether f(x⁺) is above f(p) − ⟨g, p − x⁺⟩ + ‖p − x⁺‖²/2lr, by more than rounding; so it is where it is no number.

    Beck and Teboulle 2009, (2.5) and section 4.
    """
    return not smooth <= value - found.descent + found.squares / (2.0 * lr) + noise * max(abs(value), abs(smooth))


@register_jitable
def _grown(scale: Any, value: Any, found: Any, lr: Any, noise: Any) -> Any:
    """A longer step next time, unless rounding hides what is too long."""
    return scale * LONGER if found.squares / (2.0 * lr) > 100.0 * noise * abs(value) else scale


@register_jitable
def _as_it_is(scale: Any, value: Any, found: Any, lr: Any, noise: Any) -> Any:
    return scale


@register_jitable
def _climbs(found: Any, there: Any, objective: Any) -> Any:
    """O'Donoghue and Candès's gradient scheme: the step goes up the gradient."""
    return found.slope > 0.0


@register_jitable
def _rises(found: Any, there: Any, objective: Any) -> Any:
    """Their function scheme."""
    return there > objective


@register_jitable
def _never(*told: Any) -> Any:
    return False


@register_jitable
def _first(objective: Any, norm: Any) -> Any:
    return objective


@register_jitable
def _second(objective: Any, norm: Any) -> Any:
    return norm


@register_jitable
def _of_state(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    return next_q, q


@register_jitable
def _of_point(next_p: Any, next_q: Any, p: Any, q: Any) -> Any:
    return next_p, p
