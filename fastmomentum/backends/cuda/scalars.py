"""Represent lr and momentum as scalars in device memory, and the hyper-parameters that are derived from them.

A captured graph reads such a scalar anew at each replay. The host cannot read it without waiting for the device, and
cannot pass a new number to a captured graph. So the device computes the derived hyper-parameters, by the same functions
of the rule as the host does for ordinary numbers.
"""

from collections.abc import Container
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum.backends.cuda.device_array import DeviceArray, find_reader
from fastmomentum.checks import describe
from fastmomentum.rules.assemble import Function, identity
from fastmomentum.rules.base import Rule
from fastmomentum.rules.symbolic import Symbol, evaluate_formula


class DeviceScalar(float):
    """Represent a number in device memory, which the host does not read.

    Its value as a float is 0.5, which passes the checks of every lr and momentum.

    Attributes
    ----------
    array : DeviceArray
        The array of one element that holds the number.
    """

    array: DeviceArray

    @property
    def owner(self) -> Any:
        """The array that the user passed."""
        return self.array.owner

    def __new__(cls, array: DeviceArray) -> Self:
        """Make the scalar from an array of one element."""
        scalar = super().__new__(cls, 0.5)
        scalar.array = array
        return scalar

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceScalar) and self.owner is other.owner

    def __hash__(self) -> int:
        return id(self.owner)


def view(name: str, value: Any) -> DeviceArray:
    """Return a user's scalar in device memory as an array of one element.

    Raises
    ------
    TypeError
        If `value` is not one number of float32 or float64 in device memory.
    """
    read = find_reader(value)
    if read is None:
        raise TypeError(f"{name}: expected one number in device memory; got {describe(value)}")
    array = DeviceArray(value, *read(value))
    if array.size != 1 or array.dtype not in (np.float32, np.float64) or not array.flags.aligned:
        raise TypeError(f"{name}: expected one number of float32 or float64 in device memory; got {array}")
    return array


class DerivedScalar(NamedTuple):
    """Hold a hyper-parameter of a kernel that the device computes from the hyper-parameters that users give.

    Attributes
    ----------
    column : int
        Its column in the kernel's row of hyper-parameters.
    function : callable
        ``function(*sources)``, the rule's formula for it.
    sources : tuple of str
        The names of the hyper-parameters that the function takes.
    """

    column: int
    function: Function
    sources: tuple[str, ...]

    def formula(self) -> Symbol:
        """Return the operations of the function as a symbolic expression.

        Raises
        ------
        TypeError
            If the function does more than arithmetic.
        """
        return evaluate_formula(self.function, self.sources)


def derived_from(rule: Rule, on_device: Container[str]) -> tuple[DerivedScalar, ...]:
    """Return the hyper-parameters that depend on the names in `on_device`: scalars of a user, or the clip factor."""
    found = []
    for column, (name, derive, sources) in enumerate(rule.entries):
        function: Function = identity if derive is None or name in on_device else derive
        needed = (name,) if function is identity else sources
        if any(source in on_device for source in needed):
            found.append(DerivedScalar(column, function, needed))
    return tuple(found)
