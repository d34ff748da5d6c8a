"""Scalars in device memory, which lr and momentum may be: a captured graph reads them anew at each replay."""

from typing import Any, Self

import numpy as np

from fastmomentum.backends.cuda.arrays import DeviceArray, find_reader
from fastmomentum.checks import shown


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
        raise TypeError(f"{name}: expected one number in device memory, as it was; got {shown(value)}")
    array = DeviceArray(value, *read(value))
    if array.size != 1 or array.dtype not in (np.float32, np.float64) or not array.flags.aligned:
        raise TypeError(f"{name}: expected one number of float32 or float64 in device memory; got {array}")
    return array
