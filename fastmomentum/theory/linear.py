"""Represent a rule as a linear map on a quadratic, and compute powers and bounds of such maps.

The map is computed by the rule's own function, with linear forms (weighted sums of p, the state and the noise) in place
of numbers and with the gradient g = h·p + noise. The result holds the iteration matrix A on a quadratic of curvature h,
and the column b by which noise in the gradient enters. No formula is written a second time, so the theory describes the
code that the kernels run. It also describes a rule that a user adds, if that rule is linear in p, state and g.
"""

from collections.abc import Mapping
from functools import partial
from math import exp, factorial, log
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_discrete_lyapunov

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO
from fastmomentum.rules.base import Rule
from fastmomentum.rules.options import resolve_options
from fastmomentum.rules.record import STEP, resolve_values

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Number = float | Floats
"""One number, or an array of numbers."""

Setting = npt.ArrayLike | None
"""The value of a hyper-parameter or of an option of step(): a number, an array of numbers, a bool or None."""

# Public functions that broadcast return Any, as NumPy's do: they return a float64 for numbers and an array for arrays,
# and a union of the two would force every caller to narrow it.

SAMPLES = 256
"""The number of curvatures computed between the ends of a spectrum, if only the ends are known."""

MAX_EXPONENT = 2**60
"""The greatest exponent of 2 that is kept, so that the sum of two of them fits in 64 bits."""

MAX_WORK = 4e9
"""The greatest number of steps times coordinates that is computed step by step: about half a minute."""

NOISE = -1
"""The key of the noise in a linear form. The key of p is 0, and the keys of the state slots are 1, 2, …"""


def check_curvature(value: npt.ArrayLike, name: str = "curvature") -> Floats:
    """Return `value` as an array of curvatures, each > 0.

    Raises
    ------
    TypeError, ValueError
        If a curvature is not a finite number > 0. Without curvature no force brings the parameter back to the minimum,
        and there is no rate.
    """
    try:
        return checks.numbers(name, value, ABOVE_ZERO)
    except ValueError as error:
        raise ValueError(f"{error}. Weight decay adds λ to each curvature, if coupled: pass the sums") from None


def check_eigenvalues(value: npt.ArrayLike) -> Floats:
    """Return the argument `spectrum` as a 1-D array of curvatures, at least one."""
    found = check_curvature(value, "spectrum")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"spectrum: expected the eigenvalues in one dimension, or (m, L); got shape {found.shape}")
    return found


def check_ends(m: float, L: float) -> tuple[float, float]:
    """Return the ends of a spectrum as floats, if 0 < m ≤ L."""
    check_curvature(m, "m")
    check_curvature(L, "L")
    return checks.ends(m, L)


def check_steps(value: npt.ArrayLike, name: str = "t") -> Ints:
    """Return `value` as an array of numbers of steps, each a whole number from 0 to 2⁶²."""
    found = np.asarray(value)
    found = found.astype(np.int64) if not found.size else found
    if found.dtype.kind not in "iu" or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected whole numbers from 0 to 2**62; got {checks.describe(value)}")
    if found.size and (found.min() < 0 or found.max() > 2**62):
        raise ValueError(f"{name}: expected whole numbers from 0 to 2**62; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


def check_affordable(steps: float, cost: int) -> None:
    """Check that `steps` steps take less than a minute to compute, if one step costs as much as `cost` coordinates."""
    if steps * cost > MAX_WORK:
        raise ValueError(
            f"lr, momentum: expected values with which the run converges within some {MAX_WORK / cost:.0e} steps, as "
            f"each step is computed; got values with which it takes about {steps:.0e}"
        )


def sample_spectrum(spectrum: npt.ArrayLike) -> Floats:
    """Return the eigenvalues; if there are two, they are the ends (m, L), and curvatures between them are added."""
    found = check_eigenvalues(spectrum)
    return sample_interval(*check_ends(*found)) if found.size == 2 else found


def sample_interval(m: float, L: float, count: int = SAMPLES) -> Floats:
    """Return m, L (both unrounded) and `count` curvatures between them, evenly spaced in the logarithm."""
    return np.concatenate([[m], np.geomspace(m, L, count + 2)[1:-1], [L]])


class LinearForm:
    """Represent a linear form Σ weight·key, with numbers or arrays as weights.

    A rule's function can be called with linear forms in place of numbers. If the rule is not linear, the call raises a
    TypeError, as form·form, form + 1 and sqrt(form) do.
    """

    __slots__ = ("weights",)
    __array_ufunc__ = None  # so that array * form calls __rmul__, and minimum or sqrt of a form is a TypeError

    def __init__(self, weights: Mapping[int, Number]) -> None:
        self.weights = weights

    def __getitem__(self, key: int) -> Number:
        return self.weights.get(key, 0.0)

    def __add__(self, other: object) -> "LinearForm":
        if not isinstance(other, LinearForm):
            return NotImplemented
        both = self.weights.keys() & other.weights.keys()
        return LinearForm({**self.weights, **other.weights, **{key: self[key] + other[key] for key in both}})

    def __neg__(self) -> "LinearForm":
        return LinearForm({key: -weight for key, weight in self.weights.items()})

    def __sub__(self, other: object) -> "LinearForm":
        return self + -other if isinstance(other, LinearForm) else NotImplemented

    def __mul__(self, factor: "Number | LinearForm") -> "LinearForm":
        if isinstance(factor, LinearForm):
            return NotImplemented
        return LinearForm({key: factor * weight for key, weight in self.weights.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: "Number | LinearForm") -> "LinearForm":
        if isinstance(divisor, LinearForm):
            return NotImplemented
        return LinearForm({key: weight / divisor for key, weight in self.weights.items()})


class LinearMap(NamedTuple):
    """Represent one step of a rule on a quadratic as a linear map of x = (p − p*, *state).

    x ← A·x + b·noise

    Attributes
    ----------
    rows : tuple of LinearForm
        One form for p and one for each state slot: the rows of A and, under the key NOISE, the entries of b.
    start : ndarray, shape (n,)
        x at the initial state, with p − p* = 1.
    shape : tuple of int
        The shape to which learning rate, momentum, curvature and the other hyper-parameters broadcast.
    """

    rows: tuple[LinearForm, ...]
    start: Floats
    shape: tuple[int, ...]

    @property
    def matrix(self) -> Floats:
        """Return the matrix A, of shape (*shape, n, n)."""
        return np.stack([self._stack([row[key] for key in range(len(self.rows))]) for row in self.rows], axis=-2)

    @property
    def noise(self) -> Floats:
        """Return the column b, of shape (*shape, n)."""
        return self._stack([row[NOISE] for row in self.rows])

    def _stack(self, entries: list[Number]) -> Floats:
        return np.stack([np.broadcast_to(np.asarray(entry, np.float64), self.shape) for entry in entries], axis=-1)


class ResolvedRule(NamedTuple):
    """Hold a rule composed with its options, and the values of its hyper-parameters except lr and momentum."""

    rule: Rule
    values: Mapping[str, npt.ArrayLike]

    def takes(self, name: str) -> bool:
        """Return whether the rule takes a hyper-parameter of this name."""
        return name in self.rule.parameters

    @property
    def has_array_values(self) -> bool:
        """Return whether a hyper-parameter other than lr and momentum is an array."""
        return any(np.ndim(value) for value in self.values.values())

    def check_lr_and_momentum(self, lr: npt.ArrayLike, momentum: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return learning rate and momentum as arrays, checked even if the rule does not take them."""
        return (
            checks.numbers("lr", lr, self.rule.range_of("lr")),
            checks.numbers("momentum", momentum, self.rule.range_of("momentum")),
        )

    def linear(self, lr: npt.ArrayLike, momentum: npt.ArrayLike, curvature: Number) -> LinearMap:
        """Return the rule as a linear map; learning rate, momentum and curvature broadcast.

        Raises
        ------
        TypeError, ValueError
            If a hyper-parameter is out of range, or the rule is not linear.
        """
        rule = self.rule
        chosen = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if self.takes(name)}
        values = resolve_values(rule, {**self.values, **chosen}, checks.numbers)
        inputs = (*self.check_lr_and_momentum(lr, momentum), curvature, *values.values())
        look_ahead = rule.core.ahead if rule.gradient_slot == "point" else None
        size = 1 + len(rule.slots) - (look_ahead is not None)
        try:
            arguments = _arguments(rule, values)
            forms = [LinearForm({key: 1.0}) for key in range(size)]
            if look_ahead is not None:  # the slot "point" is no coordinate of x: it follows from p and the velocity
                forms.append(look_ahead(*forms, values["lr_next"], values["momentum_next"]))
            gradient = curvature * forms[rule.gradient_at] + LinearForm({NOISE: 1.0})
            rows = rule.build()(*forms, gradient, *arguments)[:size]
        except TypeError as error:
            raise ValueError(
                f"rule: expected one that is linear in p, state and g, as others have no rate; got {rule}"
            ) from error
        start = np.array([1.0, *(float(initial == "param") for _, initial in rule.state)])[:size]
        return LinearMap(rows, start, np.broadcast_shapes(*(np.shape(value) for value in inputs)))


def resolve_rule(rule: str | Rule, hyper: Mapping[str, Setting]) -> ResolvedRule:
    """Return `rule` with the options and hyper-parameters in `hyper`, which must contain neither lr nor momentum."""
    for name in ("clip_value", "clip_norm", "max_norm"):
        if hyper.get(name) is not None:
            raise ValueError(f"{name}: expected None, as clipping is not linear; got {hyper[name]!r}")
    for name in ("lr", "momentum"):
        if name in hyper:
            raise TypeError(
                f"{name}: expected no value, as this function varies {name} itself; got {hyper[name]!r}. Leave it out"
            )
    composed, values = resolve_options(rule, lr=0.0, momentum=0.0, **hyper)
    if STEP in composed.parameters or composed.summing_links:
        raise ValueError(f"rule: expected one that is linear in p, state and g at every step; got {composed}")
    return ResolvedRule(composed, {name: value for name, value in values.items() if name not in ("lr", "momentum")})


def linear_map(
    rule: str | Rule,
    lr: npt.ArrayLike,
    momentum: npt.ArrayLike,
    curvature: npt.ArrayLike,
    hyper: Mapping[str, Setting],
) -> LinearMap:
    """Return `rule`, with the options and hyper-parameters in `hyper`, as a linear map; all arguments are checked."""
    return resolve_rule(rule, hyper).linear(lr, momentum, check_curvature(curvature))


def _arguments(rule: Rule, values: Mapping[str, Any]) -> tuple[Number, ...]:
    """Return the hyper-parameters that the rule's function takes, derived ones included.

    They are computed element by element if a function that derives one does not take arrays.
    """
    try:
        return rule.arguments(values)
    except (TypeError, ValueError):
        names, points = list(values), np.broadcast(*values.values())
        rows = [rule.arguments(dict(zip(names, map(float, point)))) for point in points]
        columns = np.array(rows, np.float64).reshape(points.size, len(rule.hyper)).T
        return tuple(column.reshape(points.shape) for column in columns)


def companion(linear: LinearMap) -> Floats:
    """Return the matrix of the map in the coordinates (e_t, e_{t−1}, …), with e = p − p*.

    e_{t+1} = c₁e_t + c₂e_{t−1} + … + cₙe_{t−n+1}

    Rules with the same trajectory have the same matrix, in any units of their state. Its shape is
    (*linear.shape, k, k), where k is the number n of eigenvalues of A, and at least 2.

    Notes
    -----
    By Cayley and Hamilton, the coefficients are those of the characteristic polynomial of A, λⁿ − c₁λⁿ⁻¹ − … − cₙ.
    They are computed by the method of Faddeev and LeVerrier.
    """
    matrix = linear.matrix
    size = max(2, matrix.shape[-1])
    result = np.zeros((*linear.shape, size, size))
    result[..., 1:, :-1] = np.eye(size - 1)
    product, unit = np.zeros_like(matrix), np.eye(matrix.shape[-1])
    coefficient = np.full(linear.shape, -1.0)
    for k in range(matrix.shape[-1]):
        product = matrix @ product - coefficient[..., None, None] * unit
        coefficient = np.trace(matrix @ product, axis1=-2, axis2=-1) / (k + 1)
        result[..., 0, k] = coefficient
    return result


def powers(matrix: Floats, t: Ints) -> tuple[Floats, Ints]:
    """Return matrix^t as a mantissa and an exponent of 2, so that no number overflows or underflows.

    matrix^t = mantissa · 2^exponent

    Matrices and mantissas have the shape (..., n, n); t and exponents have the shape (...), and broadcast with them.
    The power is computed by repeated squaring; its relative error grows like t·ε, as that of t multiplications does.
    """
    shape, size = np.broadcast_shapes(matrix.shape[:-2], t.shape), matrix.shape[-1]
    result = np.broadcast_to(np.eye(size), (*shape, size, size))
    exponent = np.zeros(shape, np.int64)
    t = np.broadcast_to(t, shape)
    if not t.any():
        return result, exponent
    square, scale = split_exponent(matrix)
    while True:
        odd = t % 2 == 1
        product, shift = split_exponent(result @ square)
        result = np.where(odd[..., None, None], product, result)
        exponent = limit_exponent(exponent + np.where(odd, scale + shift, 0))
        t = t // 2
        if not t.any():
            return result, exponent
        square, shift = split_exponent(square @ square)
        scale = limit_exponent(2 * scale + shift)


def limit_exponent(exponent: Ints) -> Ints:
    """Return exponents of at most MAX_EXPONENT in size."""
    limited: Ints = np.minimum(np.maximum(exponent, -MAX_EXPONENT), MAX_EXPONENT)  # a third of the time of np.clip
    return limited


def split_exponent(matrix: Floats) -> tuple[Floats, Ints]:
    """Return each matrix divided by a power of 2, so that its largest entry is in [½, 1), and the exponents."""
    exponent = np.frexp(np.abs(matrix).max(axis=(-2, -1)))[1]
    return np.ldexp(matrix, -exponent[..., None, None]), exponent.astype(np.int64)


def first_powers(matrix: Floats, count: int) -> Floats:
    """Return A^0, …, A^(count − 1) of matrices of shape (..., n, n), as an array of shape (count, ..., n, n)."""
    found = np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)[None]
    while len(found) < count:
        found = np.concatenate([found, found @ (found[-1] @ matrix)])
    return found[:count]


def growth_bound(radius: float, count: int) -> float:
    """Return a factor by which a linear recurrence can grow, at most, over `count` values in a row.

    |e_t| ≤ factor · max(|e_s|, …, |e_{s+count−1}|) for every t ≥ s

    Parameters
    ----------
    radius : float
        ρ < 1, the largest modulus of the recurrence's roots.
    count : int
        The number n of the roots.

    Notes
    -----
    The impulse response of the recurrence is at most C(t + n − 1, n − 1)·ρ^t, and its coefficients are at most
    C(n, j)·ρ^j. The factor is the supremum over t of the resulting product.
    """
    n, fall = count, min(-log(radius), 1.0) if radius > 0.0 else 1.0
    return n * 2.0**n * max(1.0, ((n - 1) / fall) ** (n - 1) * exp((fall - 1.0) * (n - 1)) / factorial(n - 1))


def lyapunov(matrix: Floats, weight: Floats) -> Floats:
    """Return the solution P of the discrete Lyapunov equation, for matrices A with ρ(A) < 1.

    P = weight + Aᵀ P A

    P is positive definite if the weight is. Matrix, weight and P have the shape (..., n, n).

    Notes
    -----
    scipy.linalg.solve_discrete_lyapunov solves it in units of the state that balance the two entries by which p and
    the state act on each other, as velocity and position may differ by factors of millions. It uses the bilinear
    transform: near ρ = 1 the direct method loses thousands of times more digits (measured at critical damping with
    ρ = 1 − 1e-4: a relative error of 1e-3 against 3e-8).
    """
    to_state, from_state = np.abs(matrix[..., :, 0]), np.abs(matrix[..., 0, :])
    both = (to_state > 0.0) & (from_state > 0.0)
    ratio = np.divide(to_state, from_state, out=np.ones_like(to_state), where=both)
    units = np.exp2(np.round(0.5 * np.log2(ratio)))
    balanced = matrix * units[..., None, :] / units[..., :, None]
    scale = units[..., None, :] * units[..., :, None]
    with catch_warnings():
        # SciPy warns that it perturbs a matrix that is singular up to rounding, as for r → ρ.
        simplefilter("ignore", RuntimeWarning)
        found: Floats = _solve_lyapunov(np.swapaxes(balanced, -2, -1), weight * scale) / scale
    return found


_solve_lyapunov = np.vectorize(
    partial(solve_discrete_lyapunov, method="bilinear"), signature="(n,n),(n,n)->(n,n)", otypes=[np.float64]
)
