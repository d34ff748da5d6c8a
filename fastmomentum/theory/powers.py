"""Powers of small matrices, of many at once, at steps as large as one likes."""

from math import exp, factorial, log
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum import checks
from fastmomentum.theory.curvatures import Floats
from fastmomentum.theory.linear import Linear

Ints = npt.NDArray[np.int64]

FARTHEST = 2**60
"""The greatest exponent that is kept: sums of two still fit."""

LIMIT = 4e9
"""Steps times coordinates that may be looked at one by one: half a minute or so."""


def check_steps(value: Any, name: str = "t") -> Ints:
    """`value` as an array of numbers of steps, each a whole number from 0 up to 2⁶²."""
    found = np.asarray(value)
    found = found.astype(np.int64) if not found.size else found
    if found.dtype.kind not in "iu" or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected whole numbers from 0 to 2**62; got {checks.shown(value)}")
    if found.size and (found.min() < 0 or found.max() > 2**62):
        raise ValueError(f"{name}: expected whole numbers from 0 to 2**62; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


def powers(matrix: Floats, t: Ints) -> tuple[Floats, Ints]:
    """matrix^t as a mantissa, of shape (..., n, n), and an exponent of 2, so that nothing leaves double precision.

    By repeated squaring; the relative error grows like t·ε, as that of t exact multiplications would.
    """
    shape, size = np.broadcast_shapes(matrix.shape[:-2], t.shape), matrix.shape[-1]
    result = np.broadcast_to(np.eye(size), (*shape, size, size))
    exponent = np.zeros(shape, np.int64)
    square, scale = _normalised(matrix)
    t = np.broadcast_to(t, shape)
    while t.any():
        odd = t % 2 == 1
        product, shift = _normalised(result @ square)
        result = np.where(odd[..., None, None], product, result)
        exponent = np.clip(exponent + np.where(odd, scale + shift, 0), -FARTHEST, FARTHEST)
        square, shift = _normalised(square @ square)
        scale = np.clip(2 * scale + shift, -FARTHEST, FARTHEST)
        t = t // 2
    return result, exponent


def _normalised(matrix: Floats) -> tuple[Floats, Ints]:
    exponent = np.frexp(np.abs(matrix).max(axis=(-2, -1)))[1]
    return np.ldexp(matrix, -exponent[..., None, None]), exponent.astype(np.int64)


def run(matrix: Floats, count: int) -> Floats:
    """A^0, …, A^(count − 1), of shape (count, ..., n, n)."""
    found = np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)[None]
    while len(found) < count:
        found = np.concatenate([found, found @ (found[-1] @ matrix)])
    return found[:count]


def growth(radius: float, count: int) -> float:
    """What |e_s|, …, |e_{s+count−1}| can grow to at most, over the largest of them, at whatever later step.

    The impulse response of a recurrence whose `count` = n roots are at most ρ in modulus is at most
    C(t + n − 1, n − 1)·ρ^t, and its coefficients are at most C(n, j)·ρ^j; this is the supremum over t of what follows.
    """
    n, fall = count, min(-log(radius), 1.0) if radius > 0.0 else 1.0
    return n * 2.0**n * max(1.0, ((n - 1) / fall) ** (n - 1) * exp((fall - 1.0) * (n - 1)) / factorial(n - 1))


def check_affordable(steps: float, cost: int) -> None:
    """Refuse to look at so many steps one by one, each of which costs as much as so many coordinates.

    Raises
    ------
    ValueError
        If that would take minutes.
    """
    if steps * cost > LIMIT:
        raise ValueError(
            f"lr, momentum: expected a setting that settles within some {LIMIT / cost:.0e} steps, which are looked at "
            f"one by one; got one that takes about {steps:.0e}"
        )


def companion(map: Linear) -> Floats:
    """The map in the coordinates (e_t, e_{t−1}, …), as many as it has eigenvalues, two at least.

    e_{t+1} = c₁e_t + c₂e_{t−1} + …, where λⁿ − c₁λⁿ⁻¹ − c₂λⁿ⁻² − … is the characteristic polynomial (Cayley and
    Hamilton). All rules that draw the same trajectory have the same one, whatever units their state has.
    """
    matrix = map.matrix
    size = max(2, matrix.shape[-1])
    result = np.zeros((*map.shape, size, size))
    result[..., 1:, :-1] = np.eye(size - 1)
    product, unit = np.zeros_like(matrix), np.eye(matrix.shape[-1])
    coefficient = np.full(map.shape, -1.0)
    for k in range(matrix.shape[-1]):  # Faddeev and LeVerrier
        product = matrix @ product - coefficient[..., None, None] * unit
        coefficient = np.trace(matrix @ product, axis1=-2, axis2=-1) / (k + 1)
        result[..., 0, k] = coefficient
    return result
