"""Define the class Rule: an update rule, alone or with stages before, inside and after it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any, NoReturn

from fastmomentum.rules.assemble import Call, Function, Part, Wrap, assemble, identifiers, identity, write_source
from fastmomentum.rules.record import Record, check_record, check_state_slots
from fastmomentum.rules.stage import Stage, check_sum_functions, results_of
from fastmomentum.rules.symbolic import evaluate, formula


def _no_update(*_: Any) -> NoReturn:
    """Stand for the update function that a rule made of parts assembles itself."""
    raise TypeError("update: expected a plain Python function; got none")


@dataclass(frozen=True, eq=False)
class Rule(Record):
    """Hold an update rule: the function ``update(p, *state, g, *hyper) -> (p, *state)`` and what it needs.

    Parameters
    ----------
    update : callable
        A function of scalars: assignments and one return, made of ``+ - * /``, ``numpy.minimum``, ``numpy.maximum``,
        ``numpy.absolute``, ``numpy.sqrt``, ``numpy.sign``, and ``numpy.where(a < b, x, y)`` with one comparison, ``<``,
        ``<=``, ``>`` or ``>=``; no branch, no loop, no numeric literal. The sign of ±0 is +0, and that of a NaN is a
        NaN. A comparison with a NaN does not hold, so that where returns y; +0 and −0 are equal. Of +0 and −0, minimum
        and maximum may return either, depending on the backend; a hyper-parameter of +0, added to the result, makes it
        +0.
    state : sequence of (str, str)
        Name and initial value of every state slot; the initial value is "zero", or "param" if the slot starts as a copy
        of the parameter. One slot ("velocity", "zero") unless given.
    hyper : sequence of str
        The names of `update`'s last arguments, ("lr", "momentum") unless given.
    derived, defaults, ranges, first : mapping, optional
        As for :class:`~fastmomentum.rules.record.Record`.
    nesterov : str, optional
        The name of the rule that ``nesterov=True`` selects: the folded Nesterov form, whose p is the look-ahead point.
    at_zero_momentum : str, optional
        The name of a rule without state that optimisers use while momentum is 0, so that the state stays as it is.
    ahead : callable, optional
        ``ahead(p, velocity, lr, mu)`` returns the look-ahead point, from the next step's lr and momentum. A rule of one
        slot that has it can be run with ``Momentum(lookahead=True)``.
    evaluation : callable, optional
        The function of arrays p, of slots, of numbers in memory and of hyper-parameters, all by name, that returns the
        point at which to evaluate the model, where that is not p: :meth:`fastmomentum.Optimizer.evaluate` calls it.
    formula : str
        The update as the field writes it.
    name : str, optional
        The name in messages. After :func:`fastmomentum.rules.register` it can be passed in place of the rule.

    Attributes
    ----------
    parts : tuple of Part
        The scalar functions that the rule is made of, in the order in which they run.
    given : tuple of str
        The arrays of :mod:`fastmomentum.rules.elementwise` that the function takes after g; empty for other rules.
    composed_of : tuple of Rule and Stage
        The links of a composed rule, in the order of the hyper-parameters. Exactly one of them is a rule, the
        :attr:`core`. Empty for a rule that is not composed.
    gradient_slot : str
        The value at which gradients are taken: "p", or the state slot "point" of a look-ahead.

    Raises
    ------
    TypeError
        If `update` does not have this form; the message says why.
    ValueError
        If an initial value is neither "zero" nor "param", two slots have one name, or a name in a mapping is unknown.

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

    A composed rule prints the function that the kernels run:

    >>> print(fm.chain(fm.stages.weight_decay(0.1), "pytorch").source)
    def update(p, velocity, g, weight_decay, lr, momentum, keep):
        g = weight_decay_function(g, p, weight_decay)
        p, velocity = pytorch(p, velocity, g, lr, momentum, keep)
        return p, velocity
    """

    update: Function = field(default_factory=lambda: _no_update)
    _: KW_ONLY
    hyper: Sequence[str] = ("lr", "momentum")
    state: Sequence[tuple[str, str]] = (("velocity", "zero"),)
    nesterov: str | None = None
    at_zero_momentum: str | None = None
    ahead: Function | None = None
    formula: str = ""
    gradient_slot: str = "p"
    evaluation: Callable[..., Any] | None = None
    parts: Sequence[Part] = ()
    composed_of: Sequence[Record] = ()
    given: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.composed_of:
            object.__setattr__(self, "parts", tuple(part for part, _, _ in self._placed_parts()))
        else:
            check_record(self)
            check_state_slots(self.state)
            if not self.parts:
                if self.update is _no_update:
                    _no_update()
                values = ("p", *self.slots)
                object.__setattr__(self, "parts", (Part(self.update, (*values, "g"), values, tuple(self.hyper), True),))
            for part in self.parts:
                evaluate(part.function, (*part.reads, *part.hyper), results_of(part))
            check_sum_functions(self, ("p", *self.slots, "g"))
        if self.update is _no_update:
            object.__setattr__(self, "update", self.build() if self._is_assembled else self.parts[0].function)

    @classmethod
    def positions(
        cls,
        descend: Function,
        extrapolate: Function,
        *,
        state: Sequence[tuple[str, str]] = (("previous", "param"),),
        descend_hyper: Sequence[str] = ("lr",),
        extrapolate_hyper: Sequence[str] = ("momentum",),
        **record: Any,
    ) -> "Rule":
        """Return a position rule: a gradient step, then an extrapolation from positions.

        ``x = descend(p, g, *descend_hyper)``; then ``p, *state = extrapolate(x, p, *state, *extrapolate_hyper)``.

        Between the two, :func:`fastmomentum.chain` can put a proximal map of x.

        Parameters
        ----------
        descend, extrapolate : callable
            Scalar functions, made of the same operations as an update rule.
        state : sequence of (str, str)
            The state slots, ("previous", "param") unless given.
        descend_hyper, extrapolate_hyper : sequence of str
            The names of each function's last arguments.
        **record
            Other arguments of :class:`Rule`: derived, defaults, ranges, name, formula.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> rule = fm.Rule.positions(lambda p, g, lr: p - lr * g, lambda x, p, q, mu: (x + mu * (x - q), x))
        >>> lasso = fm.chain(rule, fm.stages.soft_threshold(0.5))
        >>> p = np.array([2.0])
        >>> fm.step(p, p.copy(), np.array([1.0]), rule=lasso, lr=1.0, momentum=0.0)
        >>> p  # 2 − 1, then 0.5 nearer to 0
        array([0.5])
        """
        slots = tuple(slot for slot, _ in state)
        parts = (
            Part(descend, ("p", "g"), ("x",), tuple(descend_hyper)),
            Part(extrapolate, ("x", "p", *slots), ("p", *slots), tuple(extrapolate_hyper)),
        )
        hyper = tuple(dict.fromkeys((*descend_hyper, *extrapolate_hyper)))
        return cls(state=state, hyper=hyper, parts=parts, **record)

    @property
    def links(self) -> Sequence[Record]:
        """The records whose hyper-parameters stand one after another in `hyper`."""
        return self.composed_of or (self,)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names of the state slots."""
        return tuple(slot for slot, _ in self.state)

    @property
    def gradient_at(self) -> int:
        """The index in (p, *state) of the value at which gradients are taken."""
        return ("p", *self.slots).index(self.gradient_slot)

    @property
    def core(self) -> "Rule":
        """The rule around which the stages stand; the rule itself if it is not composed."""
        return next((link for link in self.composed_of if isinstance(link, Rule)), self)

    @property
    def stages_before(self) -> list[Stage]:
        """The stages before the core."""
        before = itertools.takewhile(lambda link: not isinstance(link, Rule), self.composed_of)
        return [link for link in before if isinstance(link, Stage)]

    @property
    def stages_after(self) -> list[Stage]:
        """The stages inside and after the core."""
        after = self.composed_of[len(self.stages_before) :]
        return [link for link in after if isinstance(link, Stage)]

    @property
    def takes_prox(self) -> bool:
        """Whether the core is a position rule, which takes proximal maps."""
        return any("x" in part.writes for part in self.core.parts)

    @cached_property
    def description(self) -> str:
        """The text by which a saved state tells this rule from others."""
        if self.composed_of:
            return "; ".join(link.description for link in self.composed_of)
        return f"{self.own_description}, state {[tuple(slot) for slot in self.state]}"

    def __str__(self) -> str:
        if self.composed_of and not self.name:
            return f"chain({', '.join(link.name or str(link) for link in self.composed_of)})"
        return super().__str__()

    def _placed_parts(self) -> list[tuple[Part, tuple[int, ...], Record]]:
        """Return the parts in the order in which they run, each with its link and the places of its hyper-parameters.

        A proximal map runs after the gradient step of the core; all others run in the order of the links.
        """
        placed: list[tuple[Part, tuple[int, ...], Record]] = []
        start = 0
        for link in self.links:
            for part in link.parts:
                at = len(placed)
                if part.reads == part.writes == ("x",):
                    at = max(at for at, (other, _, _) in enumerate(placed) if "x" in other.writes) + 1
                elif part.writes == ("g",):  # decay is taken at the point where the gradient is
                    reads = tuple(self.gradient_slot if value == "p" else value for value in part.reads)
                    part = part._replace(reads=reads)
                placed.insert(at, (part, tuple(start + link.hyper.index(name) for name in part.hyper), link))
            start += len(link.hyper)
        return placed

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """The key of the compiled code: rules of equal structure share their kernels.

        It holds the operations of each function and not the function, so that rules that a factory makes in a loop, or
        that are unpickled, are compiled once.
        """
        wiring = (
            (formula(part.function, len(part.reads) + len(part.hyper)), part.reads, part.writes, part.packed, places)
            for part, places, _ in self._placed_parts()
        )
        return *wiring, self.slots, len(self.hyper), *map(_structure_of_sums, enumerate(self.links))

    @cached_property
    def summing_links(self) -> tuple[Record, ...]:
        """The links that sum over arrays, or keep numbers from step to step, in the order in which they run."""
        links = dict.fromkeys(link for _, _, link in self._placed_parts())
        return tuple(link for link in links if link.sums or link.memory)

    def program(self, until: Record | None = None) -> tuple[list[str], list[Call], list[str]]:
        """Return the arguments, the calls and the results of the scalar function, as variables.

        With `until`, a link, the calls are those before its first part, and the results the values that it reads.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> arguments, calls, results = fm.rules.pytorch.program()
        >>> arguments, results
        (['p', 'velocity', 'g', 'lr', 'momentum', 'keep'], ['p', 'velocity'])
        """
        values, placed = ("p", *self.slots, "g"), self._placed_parts()
        passing = dict.fromkeys(value for part, _, _ in placed for value in part.writes if value not in values)
        names = identifiers((*values, *self.hyper, *passing))
        arguments, others = names[: len(values) + len(self.hyper)], names[len(values) + len(self.hyper) :]
        variables, hyper = (
            dict(zip((*values, *passing), (*arguments[: len(values)], *others))),
            arguments[len(values) :],
        )
        calls = [
            Call(
                part.function,
                (*(variables[value] for value in part.reads), *(hyper[place] for place in places)),
                tuple(variables[value] for value in part.writes),
                part.packed,
            )
            for part, places, _ in itertools.takewhile(lambda each: each[-1] is not until, placed)
        ]
        if until is None:
            return arguments, calls, arguments[: len(values) - 1]
        placed_reads = next(part.reads for part, _, link in placed if link is until)
        reads = ("p", *until.slots, "g") if isinstance(until, Rule) else placed_reads
        return arguments, calls, [variables[value] for value in reads]

    @property
    def source(self) -> str:
        """The text of the scalar function ``update(p, *state, g, *hyper)``, as it is assembled from the parts."""
        return write_source("update", *self.program())

    def build(self, wrap: Wrap = identity) -> Function:
        """Return the scalar function ``(p, *state, g, *hyper) -> (p, *state)``, its parts put through `wrap`.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.rules.classical.build()(1.0, 0.5, 2.0, 0.25, 0.5)  # p, v, g, lr, mu
        (0.25, 0.75)
        """
        if self._is_assembled:
            return wrap(assemble("update", *self.program(), wrap))
        (part,) = self.parts
        return wrap(self.update, len(part.reads) + len(part.hyper))

    @property
    def _is_assembled(self) -> bool:
        """Whether the scalar function is made of parts: an update function of all values is used as it is."""
        return len(self.parts) > 1 or not self.parts[0].packed or self.parts[0].writes != ("p", *self.slots)

    def __getstate__(self) -> dict[str, Any]:
        # pickle cannot save a function that was assembled; __setstate__ assembles it again.
        left_out = {"update"} if self._is_assembled else set()
        return {name: value for name, value in super().__getstate__().items() if name not in left_out}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        if "update" not in saved:
            self.__dict__["update"] = self.build()


def _structure_of_sums(numbered: tuple[int, Record]) -> tuple[Any, ...]:
    """Return the key of the sums of a link."""
    number, link = numbered
    names = [tuple(signature(function).parameters) for function in link.sums.values()]
    functions = zip(names, link.sums.values())
    return (
        (number, link.scope, *[(taken, formula(function, len(taken))) for taken, function in functions])
        if names
        else ()
    )
