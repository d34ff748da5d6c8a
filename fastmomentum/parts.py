"""What rules and stages share: names for the hyper-parameters that their functions take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

from fastmomentum.ranges import FINITE, RANGES, Range

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
"""What a backend puts around a function so that its compiled code may call it."""


def as_it_is(function: Function) -> Function:
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
