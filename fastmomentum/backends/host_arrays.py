"""What an optimiser does with arrays in the host's memory beside updating them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule


def view(name: str, value: Any) -> Any:
    """`value` itself; whether it is an array, checks will tell."""
    return value


def one_device(names: Sequence[str], arrays: Sequence[Any]) -> int:
    """The only one that there is here."""
    return 0


def on(device: int) -> AbstractContextManager[None]:
    """Nothing needs to be set up."""
    return nullcontext()


def number(value: Any) -> float:
    """The number that a setting is."""
    return float(value)


def point(rule: Rule, arrays: tuple[Any, ...], row: tuple[Any, ...], stream: None) -> None:
    """Write where momentum will carry the parameter, the first of the arrays."""
    param, velocity, target = arrays
    with np.errstate(all="ignore"):
        *_, target[...] = point_rule(rule).update(param, velocity, target, param, *row)


def empty_like(array: Any) -> Any:
    """A new array like this one."""
    return np.empty_like(array)


def copy(target: Any, source: Any, rows: slice = slice(None)) -> None:
    """Write to one of our own arrays, in these rows, what another holds."""
    part_of(target, rows)[...] = part_of(source, rows)


def zero(target: Any, rows: slice = slice(None)) -> None:
    """Write zeros to these rows of one of our own arrays."""
    part_of(target, rows)[...] = 0.0


def part_of(array: Any, rows: slice) -> Any:
    """A view of these rows; all of an array that has no axis."""
    return array[rows] if array.ndim else array


def is_moving(values: Any) -> bool:
    """Whether any number is not zero."""
    return bool(values.any())


def fetch(values: Any) -> Any:
    """A copy."""
    return values.copy()
