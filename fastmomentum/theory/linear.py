"""Curvatures: the eigenvalues of a Hessian, one by one or as the ends of an interval.

A rule as a linear map, read off the rule itself.

The function of a rule is applied to linear forms (weighted sums of unit vectors) with the gradient g = h·p + noise.
What comes back is its iteration matrix on a quadratic of curvature h, and the column with which noise in the gradient
enters. Nothing is written down a second time: the theory speaks of the very code that the kernels run, also for a rule
that a user adds, as long as it is linear in p, state and g.

The discrete Lyapunov equation, for many small matrices at once.

Powers of small matrices, of many at once, at steps as large as one likes.
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
from fastmomentum.rules.record import resolve_values

Floats = npt.NDArray[np.float64]

BETWEEN = 256
"""Curvatures looked at between the ends of a spectrum, where only these are known."""


def check_curvature(value: Any, name: str = "curvature") -> Floats:
    """`value` as an array of curvatures, each > 0.

    Raises
    ------
    ValueError
        If one is not: without curvature nothing calls the parameter back, and there is no rate.
    """
    try:
        return checks.numbers(name, value, ABOVE_ZERO)
    except ValueError as error:
        raise ValueError(f"{error}. Weight decay adds curvature where the function has none") from None


def check_spectrum(value: Any) -> Floats:
    """`value` as a 1-D array of curvatures, one at least."""
    found = check_curvature(value, "spectrum")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"spectrum: expected the eigenvalues in one dimension, or (m, L); got shape {found.shape}")
    return found


def check_ends(m: Any, L: Any) -> tuple[float, float]:
    """The ends of a spectrum, 0 < m ≤ L, as floats."""
    check_curvature(m, "m")
    check_curvature(L, "L")
    return checks.ends(m, L)


def curvatures(spectrum: Any) -> Floats:
    """The eigenvalues; where only two are given, these are the ends (m, L), and others are taken between them."""
    found = check_spectrum(spectrum)
    return between(*check_ends(*found)) if found.size == 2 else found


def between(m: float, L: float, count: int = BETWEEN) -> Floats:
    """m and L, to the bit, and so many curvatures between them, spread evenly in their logarithm."""
    return np.concatenate([[m], np.geomspace(m, L, count + 2)[1:-1], [L]])


NOISE = -1
"""The key of the noise in a form; the others are 0 for p, and 1, 2, … for the state slots."""


class LinearForm:
    """A linear form Σ weight·key; weights are numbers or arrays of them. A sum with a number is no linear form."""

    __slots__ = ("weights",)
    __array_ufunc__ = None  # so that array * form comes here, and minimum or sqrt of a form is a TypeError

    def __init__(self, weights: Mapping[int, Any]) -> None:
        self.weights = weights

    def __getitem__(self, key: int) -> Any:
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

    def __mul__(self, factor: Any) -> "LinearForm":
        if isinstance(factor, LinearForm):
            return NotImplemented
        return LinearForm({key: factor * weight for key, weight in self.weights.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "LinearForm":
        if isinstance(divisor, LinearForm):
            return NotImplemented
        return LinearForm({key: weight / divisor for key, weight in self.weights.items()})


class Linear(NamedTuple):
    """x ← A·x + b·noise, where x = (p − p*, state).

    Attributes
    ----------
    rows : tuple of Form
        One for p and each state slot: A's rows and, under NOISE, b.
    rest : ndarray
        x at rest, with p − p* = 1.
    shape : tuple of int
        To which learning rate, momentum, curvature and what else users gave broadcast.
    """

    rows: tuple[LinearForm, ...]
    rest: Floats
    shape: tuple[int, ...]

    @property
    def matrix(self) -> Floats:
        """A, of shape (*shape, n, n)."""
        return np.stack([self._vector([row[key] for key in range(len(self.rows))]) for row in self.rows], axis=-2)

    @property
    def noise(self) -> Floats:
        """b, of shape (*shape, n)."""
        return self._vector([row[NOISE] for row in self.rows])

    def _vector(self, entries: list[Any]) -> Floats:
        return np.stack([np.broadcast_to(np.asarray(entry, np.float64), self.shape) for entry in entries], axis=-1)


class ResolvedRule(NamedTuple):
    """A rule with its options, and what else users gave it."""

    update: Rule
    given: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether lr or momentum has a part in the rule."""
        return name in self.update.parameters

    @property
    def sweeps(self) -> bool:
        """Whether hyper-parameters other than lr and momentum are arrays."""
        return any(np.ndim(value) for value in self.given.values())

    def inputs(self, lr: Any, momentum: Any) -> tuple[Floats, Floats]:
        """Both as arrays, checked also where they have no part in the rule."""
        return (
            checks.numbers("lr", lr, self.update.range_of("lr")),
            checks.numbers("momentum", momentum, self.update.range_of("momentum")),
        )

    def linear(self, lr: Any, momentum: Any, curvature: Any) -> Linear:
        """The rule as a linear map at this learning rate, momentum and curvature, which broadcast.

        Raises
        ------
        TypeError, ValueError
            If a hyper-parameter is out of range, or the rule is not linear.
        """
        update = self.update
        chosen = {name: value for name, value in (("lr", lr), ("momentum", momentum)) if self.has(name)}
        values = resolve_values(update, {**self.given, **chosen}, checks.numbers)
        inputs = (*self.inputs(lr, momentum), curvature, *values.values())
        ahead = update.core.ahead if update.gradient_slot == "point" else None
        size = 1 + len(update.slots) - (ahead is not None)
        try:
            arguments = _evaluate(update, values)
            forms = [LinearForm({key: 1.0}) for key in range(size)]
            if ahead is not None:  # the point is no state of its own: p and velocity say where it lies
                forms.append(ahead(*forms, values["lr_next"], values["momentum_next"]))
            gradient = curvature * forms[update.gradient_at] + LinearForm({NOISE: 1.0})
            rows = update.build()(*forms, gradient, *arguments)[:size]
        except TypeError as error:
            raise ValueError(
                f"rule: expected one that is linear in p, state and g, for which there is a rate; got {update}: {error}"
            ) from error
        rest = np.array([1.0, *(float(at == "param") for _, at in update.state)])[:size]
        return Linear(rows, rest, np.broadcast_shapes(*(np.shape(value) for value in inputs)))


def linear_map(rule: str | Rule, lr: Any, momentum: Any, curvature: Any, hyper: Mapping[str, Any]) -> Linear:
    """`rule` with the options and hyper-parameters in `hyper` as a linear map, all arguments checked."""
    return resolve_rule(rule, hyper).linear(lr, momentum, check_curvature(curvature))


def resolve_rule(rule: str | Rule, hyper: Mapping[str, Any]) -> ResolvedRule:
    """`rule` with the options and hyper-parameters in `hyper`, which takes neither lr nor momentum."""
    if hyper.get("max_norm") is not None:
        raise ValueError(f"max_norm: expected None, as clipping is not linear; got {hyper['max_norm']!r}")
    for name in ("lr", "momentum"):
        if name in hyper:
            raise TypeError(
                f"{name}: expected in its own place, or as what is looked for; got {hyper[name]!r} beside it"
            )
    update, given = resolve_options(rule, lr=0.0, momentum=0.0, **hyper)
    return ResolvedRule(update, {name: value for name, value in given.items() if name not in ("lr", "momentum")})


def _evaluate(update: Rule, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of the rule's function; element by element where a user's derivation takes only numbers."""
    try:
        return update.arguments(values)
    except (TypeError, ValueError):
        names, each = list(values), np.broadcast(*values.values())
        rows = [update.arguments(dict(zip(names, map(float, point)))) for point in each]
        columns = np.array(rows, np.float64).reshape(each.size, len(update.hyper)).T
        return tuple(column.reshape(each.shape) for column in columns)


def lyapunov(matrix: Floats, weight: Any) -> Floats:
    """P = weight + Aᵀ P A, for matrices A of shape (..., n, n) with ρ(A) < 1; positive definite where the weight is.

    By scipy.linalg.solve_discrete_lyapunov, in units of the state that balance its exchange with p (velocity and
    position may be millions of times apart), and by the bilinear transform: near ρ = 1 the direct method loses
    thousands of times more digits (measured at critical damping with ρ = 1 − 1e-4: 1e-3 against 3e-8, relatively).
    """
    to_state, from_state = np.abs(matrix[..., :, 0]), np.abs(matrix[..., 0, :])
    both = (to_state > 0.0) & (from_state > 0.0)
    ratio = np.divide(to_state, from_state, out=np.ones_like(to_state), where=both)
    units = np.exp2(np.round(0.5 * np.log2(ratio)))
    balanced = matrix * units[..., None, :] / units[..., :, None]
    scale = units[..., None, :] * units[..., :, None]
    with catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # SciPy's, that it perturbs what is singular to rounding, as r → ρ is
        found: Floats = _each(np.swapaxes(balanced, -2, -1), weight * scale) / scale
    return found


_each = np.vectorize(
    partial(solve_discrete_lyapunov, method="bilinear"), signature="(n,n),(n,n)->(n,n)", otypes=[np.float64]
)

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
        raise TypeError(f"{name}: expected whole numbers from 0 to 2**62; got {checks.describe(value)}")
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
