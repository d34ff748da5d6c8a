"""Define the record that rules and stages share: names, defaults, ranges and formulas of their hyper-parameters."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from inspect import signature
from operator import and_
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.advice import did_you_mean
from fastmomentum.checks import FINITE, RANGES, Range
from fastmomentum.rules.assemble import Function, Part

STEP = "step"
"""The name under which a function of `derived` gets the number of the update.

It is the number of the update that an array gets since its state was at rest, from 1. Optimisers count for each array.
"""

KEPT = "_kept"
"""The attribute of a record under which :mod:`fastmomentum.rules.cache` keeps what is made of it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """Describe the hyper-parameters of a rule or a stage.

    Attributes
    ----------
    hyper : sequence of str
        The names of the function's last arguments, in order.
    derived : mapping of str to callable
        Functions for the entries of `hyper` that are computed from the hyper-parameters that users give. The names of a
        function's arguments are the names of those hyper-parameters; the argument `step` is the number of the update
        that an array gets since its state was at rest, from 1, and optimisers count it. The function computes in double
        precision; its result is cast to the arrays' dtype.
    defaults : mapping of str to float or str
        Values for hyper-parameters that users leave out; a str names the hyper-parameter whose value is taken.
    ranges : mapping of str to Range
        The values that users may give; names without an entry have their range in :data:`fastmomentum.checks.RANGES`.
        An entry for a derived hyper-parameter limits its value in the arrays' dtype.
    first : mapping of str to float
        Values of hyper-parameters for an array's first step after a reset; optimisers use them, step() does not.
    sums : mapping of str to callable
        Functions whose values are summed over all elements of an array before the update, in double precision and in a
        fixed order. A function takes what the update function takes before its hyper-parameters, and after them any
        hyper-parameters by name. Functions of `derived` may have the sums among their arguments.
    scope : {"array", "all"}
        Whether a sum is that of each array, or that of all arrays of an optimiser.
    memory : mapping of str to float
        Names and first values of numbers that an optimiser keeps from step to step: for each array, or with the scope
        "all" once. Functions of `derived` may have them among their arguments. A derived number with the name of an
        entry is its next value; with the scope "all" it must be the same in all groups.
    name : str, optional
        The name in messages and in saved states.
    """

    hyper: Sequence[str] = ()
    derived: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    ranges: Mapping[str, Range | tuple[float, float]] = field(default_factory=dict)
    first: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, Function] = field(default_factory=dict)
    scope: str = "array"
    memory: Mapping[str, float] = field(default_factory=dict)
    name: str | None = None

    @cached_property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the hyper-parameters that each derived hyper-parameter is computed from."""
        return {name: tuple(signature(how).parameters) for name, how in self.derived.items()}

    @property
    def links(self) -> Sequence["Record"]:
        """The records whose hyper-parameters stand one after another in `hyper`: this one, unless it is composed."""
        return (self,)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The hyper-parameters that users give, in order, each once."""
        return tuple(
            dict.fromkeys(
                name
                for link in self.links
                for hyper in dict.fromkeys((*link.hyper, *link.memory))
                for name in link.sources.get(hyper, (hyper,))
                if name not in link.sums and name not in link.memory
            )
        )

    @cached_property
    def late(self) -> frozenset[str]:
        """The names of this record's own derived numbers that depend on sums or memory."""
        known = {*self.sums, *self.memory}
        return frozenset(name for name, sources in self.sources.items() if known.intersection((name, *sources)))

    @cached_property
    def late_parameters(self) -> tuple[str, ...]:
        """The values that users give, and the step, that numbers derived from sums or memory depend on."""
        return tuple(
            dict.fromkeys(
                source
                for link in self.links
                for name in link.derived
                for source in link.sources[name]
                if name in link.late and source not in link.sums and source not in link.memory
            )
        )

    def range_of(self, parameter: str) -> Range:
        """Return the values that users may give for `parameter`.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> print(fm.rules.pytorch.range_of("momentum"))
        a number in [0, 1]
        """
        return Range(*self.ranges[parameter]) if parameter in self.ranges else RANGES.get(parameter, FINITE)

    def arguments(self, given: Mapping[str, float]) -> tuple[float, ...]:
        """Return the function's hyper-parameters, in order, from the users' values, in double precision.

        Examples
        --------
        >>> import fastmomentum as fm
        >>> fm.rules.ema.hyper, fm.rules.ema.arguments({"lr": 0.1, "momentum": 0.75})
        (('lr', 'momentum', 'keep'), (0.1, 0.75, 0.25))

        Raises
        ------
        TypeError
            If a number depends on sums or memory, which only an optimiser has.
        """
        if any(link.late for link in self.links):
            raise TypeError(
                f"rule {self} sums over arrays, or keeps numbers from step to step: use it in an optimiser, "
                "fastmomentum.Optimizer(params, rule=...)"
            )
        return self._early_arguments(given)

    def _early_arguments(self, given: Mapping[str, float]) -> tuple[float, ...]:
        """Return :meth:`arguments` as they are before sums are known: numbers that depend on them are 1."""
        return tuple(
            [
                given[name] if derive is None else derive(*[given[source] for source in sources])
                for name, derive, sources in self.early_entries
            ]
        )

    @cached_property
    def entries(self) -> Sequence[tuple[str, Callable[..., float] | None, tuple[str, ...]]]:
        """For each entry of `hyper` its name, the function that derives it (None if users give it), and its sources."""
        return [
            (name, link.derived.get(name), link.sources.get(name, (name,)))
            for link in self.links
            for name in link.hyper
        ]

    @cached_property
    def early_entries(self) -> Sequence[tuple[str, Callable[..., float] | None, tuple[str, ...]]]:
        """The :attr:`entries`, in which numbers that depend on sums or memory are 1."""
        late = [name in link.late for link in self.links for name in link.hyper]
        return [(entry[0], unknown_yet, ()) if is_late else entry for entry, is_late in zip(self.entries, late)]

    @cached_property
    def allowed(self) -> Mapping[str, Range]:
        """The values that users may give for each parameter."""
        return {name: self.range_of(name) for name in self.parameters}

    @property
    def parts(self) -> Sequence[Part]:
        """The scalar functions, in the order in which they run."""
        raise NotImplementedError

    @property
    def functions(self) -> tuple[Function, ...]:
        """The scalar functions, each once."""
        return tuple(dict.fromkeys(part.function for part in self.parts))

    @cached_property
    def description(self) -> str:
        """The text by which a saved state tells this rule from others: names and defaults, as code cannot be saved."""
        return self.own_description

    @property
    def own_description(self) -> str:
        """The description of this record's own hyper-parameters."""
        title = self.name or " ".join(function.__qualname__ for function in self.functions)
        defaults = {name: value if isinstance(value, str) else float(value) for name, value in self.defaults.items()}
        text = f"{title}({', '.join(self.hyper)}) from {dict(self.sources)}, defaults {defaults}"
        if self.sums or self.memory:
            text += f", sums {list(self.sums)} of {self.scope}, memory {dict(self.memory)}"
        return text

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != KEPT}

    def __str__(self) -> str:
        made_of = ", ".join(function.__name__.lstrip("_") for function in self.functions)
        return repr(self.name) if self.name else f"{type(self).__name__}({made_of})"


def unknown_yet() -> float:
    """Return 1, which stands for a number that depends on sums or memory until these are known."""
    return 1.0


def check_record(record: Record) -> None:
    """Check that the names in a record fit each other.

    Raises
    ------
    TypeError, ValueError
        If a name is not an identifier, or an entry names a hyper-parameter that does not exist.
    """
    if isinstance(record.hyper, str) or not all(isinstance(name, str) and name.isidentifier() for name in record.hyper):
        raise TypeError(f"hyper: expected a sequence of names; got {record.hyper!r}")
    if record.name is not None and not isinstance(record.name, str):
        raise TypeError(f"name: expected a str; got {record.name!r}")
    check_functions(record)
    named = (*record.parameters, *record.hyper)
    check_sums(record)
    for field_name, known in (
        ("derived", (*record.hyper, *record.memory)),
        ("defaults", record.parameters),
        ("ranges", named),
    ):
        for name in getattr(record, field_name):
            if name not in known:
                raise ValueError(f"{field_name}: expected names among {', '.join(known) or 'none'}; got {name!r}")
    for name, default in record.defaults.items():
        if isinstance(default, str) and (default not in record.parameters or default in record.defaults):
            raise ValueError(f"defaults: expected for {name} a number or another name without default; got {default!r}")
        if not isinstance(default, str) and float(default) not in record.range_of(name):
            raise ValueError(f"defaults: expected for {name} {record.range_of(name)}; got {default!r}")


def check_functions(record: Record) -> None:
    """Check that functions of names are mappings, and that the arguments of the functions can be read.

    Raises
    ------
    TypeError
        If one is not, or if they cannot.
    """
    for field_name in ("derived", "sums", "memory"):
        given = getattr(record, field_name)
        if not isinstance(given, Mapping):
            raise TypeError(f"{field_name}: expected a mapping of names; got {checks.describe(given)}")
        for name, function in given.items() if field_name != "memory" else ():
            try:
                signature(function)
            except (TypeError, ValueError):
                expected = f"expected for {name} a Python function, whose arguments have names"
                raise TypeError(f"{field_name}: {expected}; got {function!r}") from None


def check_sums(record: Record) -> None:
    """Check the sums and the memory of a record.

    Raises
    ------
    TypeError, ValueError
        If the scope is unknown, a name is taken, or a first value is no number.
    """
    if record.scope not in ("array", "all"):
        raise ValueError(f"scope: expected 'array' or 'all'; got {record.scope!r}")
    for field_name in ("sums", "memory"):
        for name in getattr(record, field_name):
            taken = (*record.parameters, *record.hyper, STEP, *(record.memory if field_name == "sums" else ()))
            allowed = record.derived if field_name == "memory" else ()
            if not isinstance(name, str) or not name.isidentifier() or (name in taken and name not in allowed):
                raise ValueError(f"{field_name}: expected names of their own; got {name!r}")
    for name, value in record.memory.items():
        checks.number(f"memory[{name!r}]", value, FINITE)
        if name not in record.derived:
            raise ValueError(f"memory: expected a function of derived for the next value of {name!r}; got none")


def hyper_row(record: Record, given: Mapping[str, object], dtype: np.dtype[Any]) -> tuple[np.floating[Any], ...]:
    """Return the hyper-parameters as a kernel takes them: checked, derived in double precision, cast to `dtype`.

    Raises
    ------
    TypeError
        If a hyper-parameter is missing, unknown, or not a number.
    ValueError
        If a value lies outside of its range, before or after the cast.
    """
    return tuple([dtype.type(value) for value in check_hyper(record, given, dtype)])


def check_hyper(
    record: Record, given: Mapping[str, object], dtype: np.dtype[Any], early: bool = False
) -> tuple[float, ...]:
    """Return the hyper-parameters in double precision, after the checks of :func:`hyper_row`.

    With `early` those that depend on sums or memory are 1, and after all of them come the values of
    :attr:`Record.late_parameters`, from which they will be derived.
    """
    values, cast = resolve_values(record, given), dtype.type
    with np.errstate(over="ignore"):
        for name, value in values.items():
            if float(cast(value)) not in record.allowed[name]:
                raise ValueError(
                    f"{name}: expected {record.allowed[name]}; got {value!r}, which is {cast(value)} in {dtype}"
                )
        arguments = record._early_arguments(values) if early else record.arguments(values)
        row = [float(cast(value)) for value in arguments]
    for (name, derive, _), value, number in zip(record.early_entries, arguments, row, strict=True):
        if derive is unknown_yet:
            continue
        lost = math.isnan(number) or (math.isinf(number) and not any(map(math.isinf, values.values())))
        if name in record.ranges:  # a factor that rounds to 0 would lose the state that it multiplies
            lost = lost or number not in record.range_of(name) or (number == 0 != value)
        if lost:
            raise ValueError(f"{name}: expected a number that {dtype} can hold; got {value!r}, derived from {values}")
    return (*arguments, *[values[name] for name in record.late_parameters])


def resolve_values(
    record: Record, given: Mapping[str, Any], check: Callable[[str, Any, Range], Any] = checks.number
) -> dict[str, Any]:
    """Return the values of all parameters of the record by name, with defaults filled in, each put through `check`.

    Raises
    ------
    TypeError
        If a hyper-parameter is missing or unknown.
    """
    refuse_unknown(record, given)
    allowed = record.allowed
    return {
        name: check(name, given[name] if name in given else _default(record, name, given), allowed[name])
        for name in record.parameters
    }


def refuse_unknown(record: Record, given: Iterable[str], known: Iterable[str] = (), function: str = "") -> None:
    """Check that the record has all these hyper-parameters.

    The message proposes one of them, or of the other names in `known` that the caller takes; :func:`did_you_mean` says
    what `function` is.

    Raises
    ------
    TypeError
        If it lacks one.
    """
    for name in given:
        if name not in record.parameters:
            hint = did_you_mean(name, (*record.parameters, *known), function)
            takes = f"it takes {', '.join(record.parameters) or 'none'}{hint}"
            raise TypeError(f"{name}: rule {record} takes no such hyper-parameter; {takes}")


def _default(record: Record, name: str, given: Mapping[str, Any]) -> Any:
    if name in given:
        return given[name]
    if name not in record.defaults:
        wanted = record.allowed[name]
        raise TypeError(f"{name}: expected {wanted}, as rule {record} needs this hyper-parameter; it was not given")
    default = record.defaults[name]
    return _default(record, default, given) if isinstance(default, str) else default


def merge_ranges(records: Sequence[Record]) -> dict[str, Range]:
    """Return a range for each name that has one in a record: the numbers that all records with this name allow."""
    names = dict.fromkeys(name for record in records for name in record.ranges)
    users = {name: [record for record in records if name in {*record.parameters, *record.hyper}] for name in names}
    return {name: reduce(and_, [record.range_of(name) for record in users[name]]) for name in names}


def check_state_slots(state: Any) -> None:
    """Check that `state` is a sequence of pairs, each a name of its own and an initial value.

    Raises
    ------
    TypeError
        If an entry is not a pair.
    ValueError
        If two slots have one name, a name is "p", "g" or "x", or an initial value is neither "zero" nor "param".
    """
    if isinstance(state, str) or any(isinstance(slot, str) or len(slot) != 2 for slot in state):
        raise TypeError(f"state: expected a sequence of pairs (name, initial value); got {state!r}")
    names = [slot for slot, _ in state]
    if len({*names, "p", "g", "x"}) != len(names) + 3:
        raise ValueError(f"state: expected slots with names of their own, other than p, g and x; got {state!r}")
    for slot, initial in state:
        if initial not in ("zero", "param"):
            raise ValueError(f"state: the initial value of slot {slot!r} must be 'zero' or 'param'; got {initial!r}")
