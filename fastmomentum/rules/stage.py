"""Define the class Stage: an elementwise function that a chain puts before, inside or after a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from inspect import signature

from fastmomentum.rules.assemble import Function, Part
from fastmomentum.rules.record import Record, check_record, check_state_slots
from fastmomentum.rules.symbolic import evaluate

LOOK_AHEAD, LR_CORRECTION = "look_ahead", "lr_correction"  # kinds of stages that only the package makes

KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]] | None] = {
    "gradient": (("g", "p"), ("g",)),
    "param": (("p",), ("p",)),
    "prox": (("x",), ("x",)),
    "filter": None,
    "state": None,
    LOOK_AHEAD: None,
    LR_CORRECTION: None,
}
"""For each kind of stage the values that it reads and writes; None if each stage of the kind names its own."""


@dataclass(frozen=True, eq=False)
class Stage(Record):
    """Hold an elementwise function that :func:`fastmomentum.chain` puts before, inside or after a rule.

    Parameters
    ----------
    function : callable
        A function of scalars, of the form of :class:`Rule`'s. It takes the values of its kind, then hyper-parameters:
        ``(g, p, *hyper) -> g`` for "gradient", ``(p, *hyper) -> p`` for "param", ``(x, *hyper) -> x`` for "prox",
        ``(*reads, *hyper) -> writes`` for "filter" and "state".
    kind : {"gradient", "param", "prox", "filter", "state"}
        A gradient stage stands before the rule; a parameter stage before or after it; a proximal map inside a position
        rule, after its gradient step. A filter stands before the rule and a state stage after it; both may have state
        slots of their own.
    hyper, derived, defaults, ranges, first, sums, scope, name
        As for :class:`~fastmomentum.rules.record.Record`.
    reads, writes : sequence of str
        For "filter" and "state" alone: the values that it takes and returns, "p", "g" or names of state slots.
    state : sequence of (str, str)
        For "filter" and "state" alone: name and initial value ("zero" or "param") of the slots that the stage adds.

    Raises
    ------
    TypeError, ValueError
        If the function is not of this form, or a name is not known.

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
    _: KW_ONLY
    reads: Sequence[str] = ()
    writes: Sequence[str] = ()
    state: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        if self.kind != LOOK_AHEAD:  # the defaults of a look-ahead name hyper-parameters of its rule
            check_record(self)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(list(KINDS)[:5])}; got {self.kind!r}")
        if KINDS[self.kind] is None:
            if not self.writes:
                raise ValueError(f"writes: expected the names of the values that the stage sets; got {self.writes!r}")
        elif (self.reads, self.writes, self.state) != ((), (), ()):
            raise ValueError(
                f"reads, writes, state: expected for the kinds 'filter' and 'state' alone; got them for {self.kind!r}"
            )
        check_state_slots(self.state)
        (part,) = self.parts
        evaluate(self.function, (*part.reads, *part.hyper), results_of(part))
        check_sum_functions(self, part.reads)
        if self.memory:
            raise ValueError("memory: expected for a rule alone; got some for a stage")

    def __call__(self, *values: float, **named: float) -> "Stage":
        """Return this stage with `values`, in the order of its parameters except lr and momentum, as defaults."""
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
    def parts(self) -> tuple[Part, ...]:
        """The stage's function, with the values that it reads and writes."""
        reads, writes = KINDS[self.kind] or (tuple(self.reads), tuple(self.writes))
        return (Part(self.function, reads, writes, tuple(self.hyper)),)


def results_of(part: Part) -> int | None:
    """Return the length of the tuple that the part's function returns; None if it returns one value."""
    return len(part.writes) if part.packed or len(part.writes) > 1 else None


def check_sum_functions(record: Record, reads: Sequence[str]) -> None:
    """Check that functions of sums take these values and then names of hyper-parameters that do not depend on sums.

    Raises
    ------
    TypeError, ValueError
        If one takes other arguments, or does more than a rule may.
    """
    for name, function in record.sums.items():
        taken = tuple(signature(function).parameters)
        if len(taken) < len(reads) or not {*taken[len(reads) :]} <= {*record.hyper} - record.late:
            raise TypeError(
                f"sums: expected for {name} a function of {', '.join(reads)}, then names of hyper-parameters that "
                f"depend on no sum; got one of {', '.join(taken)}"
            )
        evaluate(function, taken)
