"""The tolerances of the published tables, and the two interfaces that each table is run through."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

import fastmomentum as fm
from tests.helpers.reference import assert_same_bits

APIS = ("Momentum", "step")


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference to a published number, and the reason for it.

    One unit is the eps of the dtype times the largest expected number, or times 1 if that is larger. A rounding costs
    half a unit at most. `printed` is added for numbers that the source prints with few digits. If all three numbers
    are 0, the bits are compared.
    """

    reason: str
    units: float = 0.0
    units_a_step: float = 0.0
    printed: float = 0.0

    def check(self, found: NDArray[np.floating], expected: ArrayLike, step: int = 1) -> None:
        """Check that an array is as near to the published numbers as allowed after `step` steps, counted from 1."""
        units = self.units + step * self.units_a_step
        if units == self.printed == 0:
            assert_same_bits(found, np.asarray(expected, found.dtype))
        else:
            scale = max(np.abs(expected).max(initial=0), 1.0)
            atol = self.printed + units * np.finfo(found.dtype).eps * scale
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=self.reason)


BITS = Tolerance("The source rounds each operation as the package does, or rounds none.")


def typed(dtype: DTypeLike, values: list) -> list[NDArray[np.floating]]:
    """Return each item of a list as a new array of the dtype."""
    return [np.array(value, dtype) for value in values]


def updates(
    api: str, params: list, settings: dict, steps: int, grads: Callable[[int], list], velocities: list | None = None
) -> Iterator[list]:
    """Update `params` in place in each of the steps, and yield the velocities after each step.

    The interface "Momentum" is one optimizer of all arrays; "step" is one call of `fm.step` for each array and step.
    `grads(t)` returns the gradients of step t, counted from 0. `velocities` are the initial ones, zero if not given.
    A rule without velocity yields nothing in place of each velocity.
    """
    has_velocity = settings.get("rule") != "sgd"
    if api == "Momentum":
        opt = fm.Momentum(params, **settings)
        if velocities is not None:
            for v, start in zip(opt.velocity, velocities, strict=True):
                v[...] = start
        for t in range(steps):
            opt.step(grads(t))
            yield opt.velocity if has_velocity else [None] * len(params)
        return
    states = [np.zeros_like(p) for p in params] if velocities is None else [v.copy() for v in velocities]
    if not has_velocity:
        states = [None] * len(params)
    for t in range(steps):
        lr = settings["lr"](t) if callable(settings["lr"]) else settings["lr"]
        for p, v, g in zip(params, states, grads(t), strict=True):
            fm.step(p, v, g, **{**settings, "lr": lr})
        yield states
