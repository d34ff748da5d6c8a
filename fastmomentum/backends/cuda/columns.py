"""Hyper-parameters that follow from scalars in device memory: which columns of a kernel's row these are, and how.

The host cannot read such a scalar without waiting for the device, nor can a captured graph be told of a new one. So
the device computes what the host computes for numbers, by the same functions of the rule's record.
"""

from collections.abc import Callable, Container
from typing import Any, NamedTuple

from fastmomentum.compose import Composite
from fastmomentum.records import Update
from fastmomentum.trace import Symbol, trace_formula


class Column(NamedTuple):
    """One hyper-parameter of a kernel: its place in the row, and the function of users' hyper-parameters that it is."""

    place: int
    function: Callable[..., Any]
    sources: tuple[str, ...]

    def formula(self) -> Symbol:
        """The function's operations.

        Raises
        ------
        TypeError
            If it does more than arithmetic.
        """
        return trace_formula(self.function, self.sources)


def columns_of(update: Update, on_device: Container[str]) -> tuple[Column, ...]:
    """The columns that follow from these, which users give or (a norm's factor) a kernel computes."""
    found, place = [], 0
    for part in update.leaves if isinstance(update, Composite) else (update,):
        for name in part.hyper:
            derived = name in part.derived and name not in on_device
            sources = part.sources[name] if derived else (name,)
            if any(source in on_device for source in sources):
                found.append(Column(place, part.derived[name] if derived else _itself, sources))
            place += 1
    return tuple(found)


def _itself(value: Any) -> Any:
    return value
