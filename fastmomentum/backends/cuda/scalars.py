"""Scalars in device memory, which lr and momentum may be: a captured graph reads them anew at each replay.

Hyper-parameters that follow from scalars in device memory: which columns of a kernel's row these are, and how.

The host cannot read such a scalar without waiting for the device, nor can a captured graph be told of a new one. So
the device computes what the host computes for numbers, by the same functions of the rule's record.
"""

from collections.abc import Callable, Container
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum.backends.cuda.device_array import DeviceArray, find_reader
from fastmomentum.checks import describe
from fastmomentum.rules.base import Rule
from fastmomentum.rules.symbolic import Symbol, evaluate_formula


class DeviceScalar(float):
    """A number that the device alone knows; to the host's checks it is 0.5, which every lr and momentum may be.

    Attributes
    ----------
    array : DeviceArray
        Where it lies.
    """

    array: DeviceArray

    @property
    def owner(self) -> Any:
        """What the user passed."""
        return self.array.owner

    def __new__(cls, array: DeviceArray) -> Self:
        """The number in an array of one."""
        scalar = super().__new__(cls, 0.5)
        scalar.array = array
        return scalar

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceScalar) and self.owner is other.owner

    def __hash__(self) -> int:
        return id(self.owner)


def view(name: str, value: Any) -> DeviceArray:
    """The number in device memory that a user passed.

    Raises
    ------
    TypeError
        If it is no one number of float32 or float64.
    """
    read = find_reader(value)
    if read is None:
        raise TypeError(f"{name}: expected one number in device memory, as it was; got {describe(value)}")
    array = DeviceArray(value, *read(value))
    if array.size != 1 or array.dtype not in (np.float32, np.float64) or not array.flags.aligned:
        raise TypeError(f"{name}: expected one number of float32 or float64 in device memory; got {array}")
    return array


class DerivedScalar(NamedTuple):
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
        return evaluate_formula(self.function, self.sources)


def derived_from(update: Rule, on_device: Container[str]) -> tuple[DerivedScalar, ...]:
    """The columns that follow from these, which users give or (a norm's factor) a kernel computes."""
    found, place = [], 0
    for part in update.links:
        for name in part.hyper:
            derived = name in part.derived and name not in on_device
            sources = part.sources[name] if derived else (name,)
            if any(source in on_device for source in sources):
                found.append(DerivedScalar(place, part.derived[name] if derived else _itself, sources))
            place += 1
    return tuple(found)


def _itself(value: Any) -> Any:
    return value
