"""Read address, shape and dtype of arrays in device memory, of any library, without work on the device.

They are read from the first of these that an array has: torch's own attributes (torch refuses both protocols for
tensors that require a gradient), ``__cuda_array_interface__`` of version 2 or 3, the attributes of arrays of Numba's
simulator, and DLPack.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastmomentum.advice import is_tensor
from fastmomentum.backends.cuda import dlpack
from fastmomentum.checks import InDeviceMemory

LEGACY, TORCH = 1, -1
"""Numbers that stand for a stream's handle: 1 for CUDA's legacy default stream, −1 for torch's current stream."""


class ArrayHeader(NamedTuple):
    """Hold the properties of an array that are compared in every step; an equal header means an unchanged array.

    Strides are in bytes; None means C order.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    readonly: bool


class Flags(NamedTuple):
    """Hold the members of ``ndarray.flags`` that the checks use."""

    c_contiguous: bool
    aligned: bool
    writeable: bool

    @property
    def carray(self) -> bool:
        """Whether the array is contiguous, aligned and writeable, so that a kernel may write to it."""
        return all(self)


class DeviceArray(InDeviceMemory):
    """Represent an array in device memory, with the attributes of an ndarray that the checks use.

    Attributes
    ----------
    owner : object
        The object that the user passed, which keeps the memory alive.
    header : ArrayHeader
        Its properties, as read from that object.
    stream : int, optional
        The handle of the stream in which the array is written; LEGACY and TORCH are allowed.
    address : int
        The address of its first element.
    dtype, shape, strides, size, nbytes, ndim, flags
        The same as those of an ndarray.
    """

    def __init__(self, owner: Any, header: ArrayHeader, stream: int | None = None) -> None:
        self.owner, self.header, self.stream = owner, header, stream
        self.address, self.shape = header.address, tuple(map(int, header.shape))
        self.dtype: np.dtype = np.dtype(header.dtype)
        self.ndim, self.size = len(self.shape), prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        c_order = _strides_in_c_order(self.shape, self.dtype.itemsize)
        self.strides = c_order if header.strides is None else tuple(header.strides)
        in_order = all(ours == theirs for n, ours, theirs in zip(self.shape, self.strides, c_order) if n > 1)
        self.flags = Flags(
            c_contiguous=in_order or not self.size,
            aligned=self.address % max(self.dtype.itemsize, 1) == 0,
            writeable=not header.readonly,
        )

    def __repr__(self) -> str:
        return f"an array of {self.dtype} on a device, shape {self.shape}"


def _strides_in_c_order(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_on_device(value: Any) -> bool:
    """Return whether `value` is an array in device memory."""
    return not isinstance(value, np.ndarray) and find_reader(value) is not None


def find_reader(value: Any) -> Callable[[Any], tuple[ArrayHeader, int | None]] | None:
    """Return the function that reads header and stream of `value`; None if `value` is no array in device memory."""
    if is_tensor(value):
        return _read_torch if value.is_cuda else None
    if hasattr(value, "__cuda_array_interface__"):
        return _read_interface
    if getattr(type(value), "__cuda_ndarray__", False):
        return _read_simulated
    return _read_dlpack if dlpack.on_device(value) else None


def _read_torch(tensor: Any) -> tuple[ArrayHeader, int | None]:
    if tensor.is_neg():
        raise ValueError(
            "expected a plain tensor; got one with the negative bit, whose memory holds the values with the opposite "
            "sign. A gradient can be passed as tensor.resolve_neg(), which is a copy"
        )
    strides = None
    if not tensor.is_contiguous():
        strides = tuple(step * tensor.element_size() for step in tensor.stride())
    return ArrayHeader(tensor.data_ptr(), tuple(tensor.shape), _name_of(tensor.dtype), strides, False), TORCH


def _name_of(dtype: Any) -> str:
    """Return NumPy's name of a torch dtype; "V2" for dtypes that NumPy does not have, such as bfloat16."""
    name = str(dtype).removeprefix("torch.")
    return name if hasattr(np, name) else "V2"


def _read_interface(value: Any) -> tuple[ArrayHeader, int | None]:
    interface = value.__cuda_array_interface__
    if interface.get("version", 0) < 2:
        raise ValueError(f"expected version 2 or 3 of __cuda_array_interface__; got {interface.get('version')}")
    if interface.get("mask") is not None:
        raise TypeError("expected a plain array; got a masked one, whose mask would be ignored: pass its data")
    address, readonly = interface["data"] or (0, False)
    header = ArrayHeader(
        int(address or 0), interface["shape"], interface["typestr"], interface.get("strides"), bool(readonly)
    )
    return header, interface.get("stream")


def _read_simulated(value: Any) -> tuple[ArrayHeader, int | None]:
    array = value._ary
    strides = None if array.flags.c_contiguous else array.strides
    header = ArrayHeader(array.ctypes.data, array.shape, array.dtype.str, strides, not array.flags.writeable)
    return header, None


def _read_dlpack(value: Any) -> tuple[ArrayHeader, int | None]:
    # With this argument of __dlpack__, the array's library lets the legacy stream wait until the array is written.
    return ArrayHeader(*dlpack.read(value, stream=LEGACY)), LEGACY
