"""A rule as a linear map on a quadratic, read off the rule's own function, and the algebra of such maps.

The rule's function is applied to linear forms (weighted sums of unit vectors) with the gradient g = h·p + noise. The
results are its iteration matrix on a quadratic of curvature h, and the column with which noise in the gradient enters.
No formula is written a second time: the theory describes the code that the kernels run, also for a rule that a user
adds, if it is linear in p, state and g.
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
"""The number of curvatures tried between the ends of a spectrum, if only the ends are known."""


def check_curvature(value: Any, name: str = "curvature") -> Floats:
    """Return `value` as an array of curvatures, each > 0.

    Raises
    ------
    ValueError
        If one is not: without curvature no force brings the parameter back, and there is no rate.
    """
    try:
        return checks.numbers(name, value, ABOVE_ZERO)
    except ValueError as error:
        raise ValueError(f"{error}. Weight decay adds curvature where the function has none") from None


def check_spectrum(value: Any) -> Floats:
    """Return `value` as a 1-D array of at least one curvature."""
    found = check_curvature(value, "spectrum")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"spectrum: expected the eigenvalues in one dimension, or (m, L); got shape {found.shape}")
    return found


def check_ends(m: Any, L: Any) -> tuple[float, float]:
    """Return the ends of a spectrum as floats, if 0 < m ≤ L."""
    check_curvature(m, "m")
    check_curvature(L, "L")
    return checks.ends(m, L)


def curvatures(spectrum: Any) -> Floats:
    """Return the eigenvalues; two numbers are the ends (m, L), and curvatures between them are added."""
    found = check_spectrum(spectrum)
    return between(*check_ends(*found)) if found.size == 2 else found


def between(m: float, L: float, count: int = BETWEEN) -> Floats:
    """Return m and L, unrounded, and curvatures between them, spread evenly in their logarithm."""
    return np.concatenate([[m], np.geomspace(m, L, count + 2)[1:-1], [L]])


NOISE = -1
"""The key of the noise in a linear form; the others are 0 for p, and 1, 2, … for the state slots."""


class LinearForm:
    """A linear form Σ weight·key; the weights are numbers or arrays. A sum with a number is not a linear form."""

    __slots__ = ("weights",)
    __array_ufunc__ = None  # array * form calls __rmul__, and minimum or sqrt of a form is a TypeError

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
    """The linear map x ← A·x + b·noise, with x = (p − p*, state).

    Attributes
    ----------
    rows : tuple of LinearForm
        One for p and one for each state slot: the rows of A and, under the key NOISE, of b.
    rest : ndarray
        x with the initial state, and p − p* = 1.
    shape : tuple of int
        The shape to which learning rate, momentum, curvature and the other hyper-parameters broadcast.
    """

    rows: tuple[LinearForm, ...]
    rest: Floats
    shape: tuple[int, ...]

    @property
    def matrix(self) -> Floats:
        """The matrix A, of shape (*shape, n, n)."""
        return np.stack([self._vector([row[key] for key in range(len(self.rows))]) for row in self.rows], axis=-2)

    @property
    def noise(self) -> Floats:
        """The column b, of shape (*shape, n)."""
        return self._vector([row[NOISE] for row in self.rows])

    def _vector(self, entries: list[Any]) -> Floats:
        return np.stack([np.broadcast_to(np.asarray(entry, np.float64), self.shape) for entry in entries], axis=-1)


class ResolvedRule(NamedTuple):
    """A rule with its options, and the other hyper-parameters that users gave it."""

    update: Rule
    given: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Return whether the rule takes lr or momentum, as named."""
        return name in self.update.parameters

    @property
    def sweeps(self) -> bool:
        """Whether hyper-parameters other than lr and momentum are arrays."""
        return any(np.ndim(value) for value in self.given.values())

    def inputs(self, lr: Any, momentum: Any) -> tuple[Floats, Floats]:
        """Return both as arrays; they are checked even if the rule does not take them."""
        return (
            checks.numbers("lr", lr, self.update.range_of("lr")),
            checks.numbers("momentum", momentum, self.update.range_of("momentum")),
        )

    def linear(self, lr: Any, momentum: Any, curvature: Any) -> Linear:
        """Return the rule as a linear map at this learning rate, momentum and curvature, which broadcast.

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
            if ahead is not None:  # the point is not independent state: it follows from p and the velocity
                forms.append(ahead(*forms, values["lr_next"], values["momentum_next"]))
            gradient = curvature * forms[update.gradient_at] + LinearForm({NOISE: 1.0})
            rows = update.build()(*forms, gradient, *arguments)[:size]
        except TypeError as error:
            raise ValueError(
                f"rule: expected one that is linear in p, state and g, as others have no rate; got {update}: {error}"
            ) from error
        rest = np.array([1.0, *(float(at == "param") for _, at in update.state)])[:size]
        return Linear(rows, rest, np.broadcast_shapes(*(np.shape(value) for value in inputs)))


def linear_map(rule: str | Rule, lr: Any, momentum: Any, curvature: Any, hyper: Mapping[str, Any]) -> Linear:
    """Return `rule` as a linear map, with these options and hyper-parameters, all checked."""
    return resolve_rule(rule, hyper).linear(lr, momentum, check_curvature(curvature))


def resolve_rule(rule: str | Rule, hyper: Mapping[str, Any]) -> ResolvedRule:
    """Return `rule` with the options and hyper-parameters in `hyper`, which must not hold lr and momentum."""
    if hyper.get("max_norm") is not None:
        raise ValueError(f"max_norm: expected None, as clipping is not linear; got {hyper['max_norm']!r}")
    for name in ("lr", "momentum"):
        if name in hyper:
            raise TypeError(
                f"{name}: expected as an argument of its own, or as the result; got {hyper[name]!r} among the others"
            )
    update, given = resolve_options(rule, lr=0.0, momentum=0.0, **hyper)
    return ResolvedRule(update, {name: value for name, value in given.items() if name not in ("lr", "momentum")})


def _evaluate(update: Rule, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of the rule's function, element by element if a derived function takes only numbers."""
    try:
        return update.arguments(values)
    except (TypeError, ValueError):
        names, each = list(values), np.broadcast(*values.values())
        rows = [update.arguments(dict(zip(names, map(float, point)))) for point in each]
        columns = np.array(rows, np.float64).reshape(each.size, len(update.hyper)).T
        return tuple(column.reshape(each.shape) for column in columns)


def lyapunov(matrix: Floats, weight: Any) -> Floats:
    """Return the solution of P = weight + Aᵀ P A for matrices A of shape (..., n, n) with ρ(A) < 1.

    P is positive definite if the weight is. It is computed by scipy.linalg.solve_discrete_lyapunov, in units of the
    state that balance its exchange with p (velocity and position may differ by factors of millions), and by the
    bilinear transform: near ρ = 1 the direct method loses thousands of times more digits (measured at critical damping
    with ρ = 1 − 1e-4: a relative error of 1e-3 against 3e-8).
    """
    to_state, from_state = np.abs(matrix[..., :, 0]), np.abs(matrix[..., 0, :])
    both = (to_state > 0.0) & (from_state > 0.0)
    ratio = np.divide(to_state, from_state, out=np.ones_like(to_state), where=both)
    units = np.exp2(np.round(0.5 * np.log2(ratio)))
    balanced = matrix * units[..., None, :] / units[..., :, None]
    scale = units[..., None, :] * units[..., :, None]
    with catch_warnings():
        simplefilter(
            "ignore", RuntimeWarning
        )  # SciPy warns that it perturbs a matrix that is singular up to rounding, as for r → ρ
        found: Floats = _each(np.swapaxes(balanced, -2, -1), weight * scale) / scale
    return found


_each = np.vectorize(
    partial(solve_discrete_lyapunov, method="bilinear"), signature="(n,n),(n,n)->(n,n)", otypes=[np.float64]
)

Ints = npt.NDArray[np.int64]

FARTHEST = 2**60
"""The greatest exponent that is kept, so that the sum of two still fits."""

LIMIT = 4e9
"""The number of steps times coordinates that may be computed one by one, in about half a minute."""


def check_steps(value: Any, name: str = "t") -> Ints:
    """Return `value` as an array of numbers of steps, each a whole number from 0 up to 2⁶²."""
    found = np.asarray(value)
    found = found.astype(np.int64) if not found.size else found
    if found.dtype.kind not in "iu" or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected whole numbers from 0 to 2**62; got {checks.describe(value)}")
    if found.size and (found.min() < 0 or found.max() > 2**62):
        raise ValueError(f"{name}: expected whole numbers from 0 to 2**62; got {found.min()} to {found.max()}")
    return found.astype(np.int64)


def powers(matrix: Floats, t: Ints) -> tuple[Floats, Ints]:
    """Return matrix^t as a mantissa, of shape (..., n, n), and an exponent of 2, so that no number overflows.

    It is computed by repeated squaring; the relative error grows like t·ε, as that of t exact multiplications would.
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
    """Return A^0, …, A^(count − 1), of shape (count, ..., n, n)."""
    found = np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)[None]
    while len(found) < count:
        found = np.concatenate([found, found @ (found[-1] @ matrix)])
    return found[:count]


def growth(radius: float, count: int) -> float:
    """Return a bound on the growth of |e_s|, …, |e_{s+count−1}| at any later step, over the largest of them.

    The impulse response of a recurrence whose `count` = n roots are at most ρ in modulus is at most
    C(t + n − 1, n − 1)·ρ^t, and its coefficients are at most C(n, j)·ρ^j; the bound is the supremum over t of the
    resulting product.
    """
    n, fall = count, min(-log(radius), 1.0) if radius > 0.0 else 1.0
    return n * 2.0**n * max(1.0, ((n - 1) / fall) ** (n - 1) * exp((fall - 1.0) * (n - 1)) / factorial(n - 1))


def check_affordable(steps: float, cost: int) -> None:
    """Check that this number of steps can be computed one by one, each at the cost of this number of coordinates.

    Raises
    ------
    ValueError
        If it would take minutes.
    """
    if steps * cost > LIMIT:
        raise ValueError(
            f"lr, momentum: expected a setting that settles within some {LIMIT / cost:.0e} steps, which are looked at "
            f"one by one; got one that takes about {steps:.0e}"
        )


def companion(map: Linear) -> Floats:
    """Return the map in the coordinates (e_t, e_{t−1}, …), as many as it has eigenvalues, and at least two.

    e_{t+1} = c₁e_t + c₂e_{t−1} + …, where λⁿ − c₁λⁿ⁻¹ − c₂λⁿ⁻² − … is the characteristic polynomial (Cayley and
    Hamilton). Rules that draw the same trajectory share it, in any units their state is.
    """
    matrix = map.matrix
    size = max(2, matrix.shape[-1])
    result = np.zeros((*map.shape, size, size))
    result[..., 1:, :-1] = np.eye(size - 1)
    product, unit = np.zeros_like(matrix), np.eye(matrix.shape[-1])
    coefficient = np.full(map.shape, -1.0)
    for k in range(matrix.shape[-1]):  # the method of Faddeev and LeVerrier
        product = matrix @ product - coefficient[..., None, None] * unit
        coefficient = np.trace(matrix @ product, axis1=-2, axis2=-1) / (k + 1)
        result[..., 0, k] = coefficient
    return result
