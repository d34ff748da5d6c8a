"""A rule as a linear map, read off the rule itself.

The function of a rule is applied to linear forms (weighted sums of unit vectors) with the gradient g = h·p + noise.
What comes back is its iteration matrix on a quadratic of curvature h, and the column with which noise in the gradient
enters. Nothing is written down a second time: the theory speaks of the very code that the kernels run, also for a rule
that a user adds, as long as it is linear in p, state and g.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.compose import Chain
from fastmomentum.lookahead import LookAhead
from fastmomentum.records import Update
from fastmomentum.settings import settle
from fastmomentum.theory.curvatures import Floats, check_curvature

NOISE = -1
"""The key of the noise in a form; the others are 0 for p, and 1, 2, … for the state slots."""


class Form:
    """A linear form Σ weight·key; weights are numbers or arrays of them. A sum with a number is no linear form."""

    __slots__ = ("weights",)
    __array_ufunc__ = None  # so that array * form comes here, and minimum or sqrt of a form is a TypeError

    def __init__(self, weights: Mapping[int, Any]) -> None:
        self.weights = weights

    def __getitem__(self, key: int) -> Any:
        return self.weights.get(key, 0.0)

    def __add__(self, other: object) -> "Form":
        if not isinstance(other, Form):
            return NotImplemented
        both = self.weights.keys() & other.weights.keys()
        return Form({**self.weights, **other.weights, **{key: self[key] + other[key] for key in both}})

    def __neg__(self) -> "Form":
        return Form({key: -weight for key, weight in self.weights.items()})

    def __sub__(self, other: object) -> "Form":
        return self + -other if isinstance(other, Form) else NotImplemented

    def __mul__(self, factor: Any) -> "Form":
        if isinstance(factor, Form):
            return NotImplemented
        return Form({key: factor * weight for key, weight in self.weights.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Form":
        if isinstance(divisor, Form):
            return NotImplemented
        return Form({key: weight / divisor for key, weight in self.weights.items()})


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

    rows: tuple[Form, ...]
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


class Settled(NamedTuple):
    """A rule with its options, and what else users gave it."""

    update: Update
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
        values = checks.settings(update, {**self.given, **chosen}, checks.numbers)
        inputs = (*self.inputs(lr, momentum), curvature, *values.values())
        rule = update.rule if isinstance(update, Chain) else update
        size = 1 + len(rule.rule.slots if isinstance(rule, LookAhead) else rule.slots)
        try:
            arguments = _evaluate(update, values)
            forms = [Form({key: 1.0}) for key in range(size)]
            if isinstance(rule, LookAhead):  # the point is no state of its own: p and velocity say where it lies
                forms.append(rule.ahead(*forms, values["lr_next"], values["momentum_next"]))
            gradient = curvature * forms[update.gradient_at] + Form({NOISE: 1.0})
            rows = update.build()(*forms, gradient, *arguments)[:size]
        except TypeError as error:
            raise ValueError(
                f"rule: expected one that is linear in p, state and g, for which there is a rate; got {update}: {error}"
            ) from error
        rest = np.array([1.0, *(float(at == "param") for _, at in rule.state)])[:size]
        return Linear(rows, rest, np.broadcast_shapes(*(np.shape(value) for value in inputs)))


def read(rule: str | Update, lr: Any, momentum: Any, curvature: Any, hyper: Mapping[str, Any]) -> Linear:
    """`rule` with the options and hyper-parameters in `hyper` as a linear map, all arguments checked."""
    return settled(rule, hyper).linear(lr, momentum, check_curvature(curvature))


def settled(rule: str | Update, hyper: Mapping[str, Any]) -> Settled:
    """`rule` with the options and hyper-parameters in `hyper`, which takes neither lr nor momentum."""
    if hyper.get("max_norm") is not None:
        raise ValueError(f"max_norm: expected None, as clipping is not linear; got {hyper['max_norm']!r}")
    for name in ("lr", "momentum"):
        if name in hyper:
            raise TypeError(
                f"{name}: expected in its own place, or as what is looked for; got {hyper[name]!r} beside it"
            )
    update, given = settle(rule, lr=0.0, momentum=0.0, **hyper)
    return Settled(update, {name: value for name, value in given.items() if name not in ("lr", "momentum")})


def _evaluate(update: Update, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of the rule's function; element by element where a user's derivation takes only numbers."""
    try:
        return update.arguments(values)
    except (TypeError, ValueError):
        names, each = list(values), np.broadcast(*values.values())
        rows = [update.arguments(dict(zip(names, map(float, point)))) for point in each]
        columns = np.array(rows, np.float64).reshape(each.size, len(update.hyper)).T
        return tuple(column.reshape(each.shape) for column in columns)
