"""What rules and stages share: names for the hyper-parameters that their functions take.

Every check of a user's arguments, in one place.

A refused argument gets a TypeError or a ValueError that names it, says what was expected and what came. Nothing here
writes to an array, so a step refused here has changed nothing. NaN and infinite *gradients* are data and pass.

What a rule and a stage are: a scalar function, and the record of what its arguments mean.

How scalar functions are put together: a proximal map inside a position rule, stages around a rule.

Every function here returns a closure over its parts and does nothing else; in compiled code the parts are inlined, so
that a chain runs at the speed of one hand-written loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import FINITE, RANGES, Range, number
from fastmomentum.rules.symbolic import evaluate

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
"""What a backend puts around a function so that its compiled code may call it."""


def identity(function: Function) -> Function:
    """The wrap of plain Python."""
    return function


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """What rules and stages share: names for the hyper-parameters that their functions take.

    Attributes
    ----------
    hyper : tuple of str
        The names of the function's last arguments, in order.
    derived : mapping of str to callable
        How those of `hyper` that users do not give are computed: a function whose argument names say from what.
        It runs on the host, in double precision; the result is then cast to the arrays' dtype.
    defaults : mapping of str to float or str
        Values for what users leave out; a str names the hyper-parameter whose value is taken.
    ranges : mapping of str to Range
        What values users may give, where :data:`fastmomentum.ranges.RANGES` does not say; and what derived ones may
        come to in the arrays' dtype.
    """

    hyper: Sequence[str] = ()
    derived: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    ranges: Mapping[str, Range | tuple[float, float]] = field(default_factory=dict)
    name: str | None = None

    @cached_property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """For each derived hyper-parameter the names of those that it comes from."""
        return {name: tuple(signature(how).parameters) for name, how in self.derived.items()}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The hyper-parameters that users give, in order, each once."""
        return tuple(dict.fromkeys(name for hyper in self.hyper for name in self.sources.get(hyper, (hyper,))))

    def range_of(self, parameter: str) -> Range:
        """The values that users may give for `parameter`.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> print(fm.rules.pytorch.range_of("momentum"))
        a number in [0, 1]
        """
        return Range(*self.ranges[parameter]) if parameter in self.ranges else RANGES.get(parameter, FINITE)

    def arguments(self, given: Mapping[str, float]) -> tuple[float, ...]:
        """The function's hyper-parameters, in order, from the users' `given`, in double precision.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.rules.ema.hyper, fm.rules.ema.arguments({"lr": 0.1, "momentum": 0.75})
        (('lr', 'momentum', 'keep'), (0.1, 0.75, 0.25))
        """

        def value(name: str) -> float:
            if name not in self.derived:
                return given[name]
            return self.derived[name](*(given[source] for source in self.sources[name]))

        return tuple(value(name) for name in self.hyper)

    def __str__(self) -> str:
        made_of = ", ".join(function.__name__.lstrip("_") for function in self.functions)
        return repr(self.name) if self.name else f"{type(self).__name__}({made_of})"

    @property
    def functions(self) -> tuple[Function, ...]:
        """The scalar functions that it is made of."""
        raise NotImplementedError

    @property
    def structure(self) -> tuple[Any, ...]:
        """What fixes the compiled code: equal structures, equal kernels."""
        return type(self), self.functions, len(self.hyper)

    @property
    def description(self) -> str:
        """What tells it from others in a saved state: names and defaults, as code cannot be saved."""
        who = self.name or " ".join(function.__qualname__ for function in self.functions)
        defaults = {name: value if isinstance(value, str) else float(value) for name, value in self.defaults.items()}
        return f"{who}({', '.join(self.hyper)}) from {dict(self.sources)}, defaults {defaults}"

    def _check_record(self) -> None:
        """Refuse a record whose names do not fit each other."""
        if isinstance(self.hyper, str) or not all(isinstance(name, str) and name.isidentifier() for name in self.hyper):
            raise TypeError(f"hyper: expected a sequence of names; got {self.hyper!r}")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name: expected a str; got {self.name!r}")
        named = (*self.parameters, *self.hyper)
        for field_name, known in (("derived", self.hyper), ("defaults", self.parameters), ("ranges", named)):
            for name in getattr(self, field_name):
                if name not in known:
                    raise ValueError(f"{field_name}: expected names among {', '.join(known) or 'none'}; got {name!r}")
        for name, default in self.defaults.items():
            if isinstance(default, str) and (default not in self.parameters or default in self.defaults):
                raise ValueError(
                    f"defaults: expected for {name} a number or another name without default; got {default!r}"
                )
            if not isinstance(default, str) and float(default) not in self.range_of(name):
                raise ValueError(f"defaults: expected for {name} {self.range_of(name)}; got {default!r}")


def hyper_row(rule: Part, given: Mapping[str, object], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """What `rule`'s function takes behind the gradient, cast to `dtype`, from the users' hyper-parameters.

    Defaults are filled in, derived ones are computed in double precision, and every value must lie in its range both
    before and after the cast.
    """
    values = resolve_values(rule, given)
    for name, value in values.items():
        allowed = rule.range_of(name)
        with np.errstate(over="ignore"):
            cast = dtype.type(value)
        if float(cast) not in allowed:
            raise ValueError(f"{name}: expected {allowed}; got {value!r}, which is {cast} in {dtype}")
    arguments = rule.arguments(values)
    with np.errstate(over="ignore"):
        row = tuple(dtype.type(value) for value in arguments)
    for name, value, cast in zip(rule.hyper, arguments, row, strict=True):
        lost = np.isnan(cast) or (np.isinf(cast) and not np.isinf(list(values.values())).any())
        if lost or (name in rule.ranges and float(cast) not in rule.range_of(name)):
            raise ValueError(f"{name}: expected a number that {dtype} can hold; got {value!r}, derived from {values}")
    return row


def resolve_values(rule: Part, given: Mapping[str, object], check: Callable[..., Any] = number) -> dict[str, Any]:
    """Every hyper-parameter that users give to `rule`, by name, defaults filled in, each put through `check`."""
    for name in given:
        if name not in rule.parameters:
            takes = f"it takes {', '.join(rule.parameters)}{checks.did_you_mean(name, rule.parameters)}"
            raise TypeError(f"{name}: rule {rule} takes no such hyper-parameter; {takes}")
    return {name: check(name, _given_or_default(rule, name, given), rule.range_of(name)) for name in rule.parameters}


def _given_or_default(rule: Part, name: str, given: Mapping[str, object]) -> object:
    if name in given:
        return given[name]
    if name not in rule.defaults:
        raise TypeError(f"{name}: rule {rule} needs this hyper-parameter; it was not given")
    default = rule.defaults[name]
    return _given_or_default(rule, default, given) if isinstance(default, str) else default


@dataclass(frozen=True, eq=False, kw_only=True)
class Update(Part):
    """What rules and chains share: state slots, and a scalar function built from parts.

    Attributes
    ----------
    state : sequence of (str, str)
        Name and rest of every state slot; rest is "zero", or "param" where the slot starts as a copy of the parameter.
    nesterov : str, optional
        The name of the folded Nesterov form, which ``nesterov=True`` selects.
    first : mapping of str to float
        Hyper-parameters that have another value in an array's first step from rest (Momentum alone uses them).
    formula : str
        The update as the field writes it.
    gradient_at : int
        Which of (p, *state) is the point at which the gradient was taken: 0, the parameter itself, but for look-ahead.
    """

    state: Sequence[tuple[str, str]] = (("velocity", "zero"),)
    nesterov: str | None = None
    first: Mapping[str, float] = field(default_factory=dict)
    formula: str = ""
    gradient_at: int = 0

    def __post_init__(self) -> None:
        self._check_record()
        slots: Any = self.state
        if isinstance(slots, str) or any(isinstance(slot, str) or len(slot) != 2 for slot in slots):
            raise TypeError(f"state: expected a sequence of pairs (name, rest); got {self.state!r}")
        if len(set(self.slots)) != len(self.slots):
            raise ValueError(f"state: expected slots with names of their own; got {self.state!r}")
        for slot, rest in self.state:
            if rest not in ("zero", "param"):
                raise ValueError(f"state: slot {slot!r} must rest at 'zero' or 'param'; got {rest!r}")
        evaluate(self.build(), ("p", *self.slots, "g", *self.hyper), 1 + len(self.state))

    @property
    def structure(self) -> tuple[Any, ...]:
        """See :class:`Part`."""
        return *super().structure, len(self.state)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names of the state slots."""
        return tuple(slot for slot, _ in self.state)

    @property
    def description(self) -> str:
        """See :class:`Part`."""
        return f"{super().description}, state {[tuple(slot) for slot in self.state]}"

    def build(self, wrap: Wrap = identity) -> Function:
        """The scalar function ``(p, *state, g, *hyper) -> (p, *state)``, its parts put through `wrap`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Rule(Update):
    """An update rule: ``update(p, *state, g, *hyper) -> (p, *state)``.

    Parameters
    ----------
    update : callable
        A function of scalars: assignments and one return, made of ``+ - * /``, ``numpy.minimum``, ``numpy.maximum``,
        ``numpy.absolute`` and ``numpy.sqrt``; no branch, no loop, no numeric literal. Of +0 and −0 minimum and maximum
        may return either, here or there: add a zero where that matters.
    state, nesterov, first, formula : optional
        See :class:`Update`; the state is one velocity at rest at zero unless it is given.
    hyper : sequence of str
        The names of `update`'s last arguments, ("lr", "momentum") unless given.
    derived, defaults, ranges : mapping, optional
        See :class:`Part`.
    ahead : callable, optional
        ``ahead(p, velocity, lr, mu)``: the point where momentum will carry p, from the next step's lr and momentum; a
        rule of one slot that has it can be run with ``Momentum(lookahead=True)``.
    name : str, optional
        What it is called in messages and, after :func:`fastmomentum.rules.register`, wherever a name is taken.

    Raises
    ------
    TypeError
        If `update` does not have this form; the message says where it departs from it.
    ValueError
        If a rest is neither "zero" nor "param".

    Examples
    --------
    Quasi-hyperbolic momentum (Ma and Yarats 2019), with a hyper-parameter ν of its own:

    >>> import numpy as np, fastmomentum as fm
    >>> def qhm(p, v, g, lr, beta, keep, nu, direct):
    ...     v = beta * v + keep * g
    ...     return p - lr * (direct * g + nu * v), v
    >>> rule = fm.Rule(qhm, hyper=("lr", "momentum", "keep", "nu", "direct"), name="qhm",
    ...                derived={"keep": lambda momentum: 1 - momentum, "direct": lambda nu: 1 - nu},
    ...                defaults={"nu": 0.7}, ranges={"nu": (0, 1)})
    >>> p, v = np.array([1.0]), np.array([0.0])
    >>> fm.step(p, v, np.array([0.5]), rule=rule, lr=0.1, momentum=0.5)
    >>> p, v
    (array([0.9675]), array([0.25]))
    """

    update: Function
    _: KW_ONLY
    hyper: Sequence[str] = ("lr", "momentum")
    ahead: Function | None = None

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.update,)

    def build(self, wrap: Wrap = identity) -> Function:
        """See :class:`Update`.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.rules.classical.build()(1.0, 0.5, 2.0, 0.25, 0.5)  # p, v, g, lr, mu
        (0.25, 0.75)
        """
        return wrap(self.update)


@dataclass(frozen=True, eq=False)
class Stage(Part):
    """An elementwise step before or behind a rule: what :func:`fastmomentum.chain` composes.

    Calling a stage with values gives a stage that has them as defaults: ``stages.clip_value(1.0)``.

    Attributes
    ----------
    function : callable
        ``(g, p, *hyper) -> g`` where kind is "gradient"; ``(p, *hyper) -> p`` where it is "param";
        ``(x, *hyper) -> x`` where it is "prox".
    kind : str
        "gradient", "param" or "prox".

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> def shifted(g, p, shift):
    ...     return g - shift
    >>> shift = fm.Stage(shifted, hyper=("shift",), name="shift")
    >>> p, g = np.array([1.0]), np.array([3.0])
    >>> fm.step(p, None, g, rule=fm.chain(shift(2.0), "sgd"), lr=0.5)
    >>> p
    array([0.5])
    """

    function: Function
    kind: str = "gradient"

    def __post_init__(self) -> None:
        self._check_record()
        arguments = {"gradient": ("g", "p"), "param": ("p",), "prox": ("x",)}
        if self.kind not in arguments:
            raise ValueError(f"kind must be one of {', '.join(arguments)}; got {self.kind!r}")
        evaluate(self.function, (*arguments[self.kind], *self.hyper))

    def __call__(self, *values: float, **named: float) -> "Stage":
        """The same stage with `values`, in the order of its parameters but lr and momentum, as defaults."""
        mine = tuple(name for name in self.parameters if name not in ("lr", "momentum"))
        takes = f"stage {self} takes {', '.join(mine) or 'no values'}"
        if len(values) > len(mine):
            raise TypeError(f"{takes}; got {len(values)} values")
        bound = dict(zip(mine, values)) | named
        for name in bound:
            if name not in mine:
                raise TypeError(f"{takes}; got {name!r}")
        return replace(self, defaults={**self.defaults, **bound})

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.function,)

    @property
    def structure(self) -> tuple[Any, ...]:
        """See :class:`Part`."""
        return *super().structure, self.kind


def _descend(p: Any, g: Any, lr: Any) -> Any:
    return p - lr * g


def _then(advance: Function, proximal: Function, taken: int) -> Function:
    """`advance`, which takes so many hyper-parameters, and a proximal map on where it arrives."""

    def composed(p: Any, g: Any, *hyper: Any) -> Any:
        return proximal(advance(p, g, *hyper[:taken]), *hyper[taken:])

    return composed


def _extrapolated(advance: Function, extrapolate: Function) -> Function:
    """The rule's own lr and mu come first, then what the proximal maps inside `advance` take."""

    def composed(p: Any, q: Any, g: Any, *hyper: Any) -> Any:
        return extrapolate(advance(p, g, *hyper[:1], *hyper[2:]), p, q, hyper[1])

    return composed


@dataclass(frozen=True, eq=False)
class PositionRule(Update):
    """x = p − lr·g, then ``extrapolate(x, p, q, mu) -> (p, q)``; its state q is a position, not a velocity.

    Written in two parts because a proximal map belongs between them: behind the gradient step, before momentum.
    """

    extrapolate: Function
    _: KW_ONLY
    state: tuple[tuple[str, str], ...] = (("previous", "param"),)
    hyper: tuple[str, ...] = ("lr", "momentum")

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.extrapolate,)

    @property
    def update(self) -> Function:
        """The scalar function ``(p, q, g, lr, mu) -> (p, q)``."""
        return self.build()

    def build(self, wrap: Wrap = identity, proximal: tuple[Stage, ...] = ()) -> Function:
        """See :class:`Update`; the hyper-parameters of the `proximal` maps stand behind lr and momentum."""
        advance, taken = wrap(_descend), 1
        for stage in proximal:
            advance = wrap(_then(advance, wrap(stage.function), taken))
            taken += len(stage.hyper)
        return wrap(_extrapolated(advance, wrap(self.extrapolate)))
