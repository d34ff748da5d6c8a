"""What a rule and a stage are: a scalar function, and the record of what its arguments mean."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any

from fastmomentum.parts import Function, Part, Wrap, as_it_is
from fastmomentum.trace import trace


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
        trace(self.build(), ("p", *self.slots, "g", *self.hyper), 1 + len(self.state))

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

    def build(self, wrap: Wrap = as_it_is) -> Function:
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

    def build(self, wrap: Wrap = as_it_is) -> Function:
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
        trace(self.function, (*arguments[self.kind], *self.hyper))

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
