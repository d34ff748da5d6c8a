"""Arrays in device memory, whoever made them: what they say of themselves, without any work on the device.

Read are, in this order, torch's own attributes (torch refuses both protocols to tensors that require a gradient),
``__cuda_array_interface__`` of versions 2 and 3, the arrays of Numba's simulator, and DLPack.
"""

import sys
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastmomentum.backends.cuda import dlpack

LEGACY, TORCH = 1, -1
"""Streams that are no handles: CUDA's default stream by the interface's number, and the one that torch is on."""


class Look(NamedTuple):
    """What is compared from step to step: equal looks, unchanged arrays. A stride of None stands for C order."""

    address: int
    shape: tuple[int, ...]
    dtype: Any
    strides: tuple[int, ...] | None
    readonly: bool


class Flags(NamedTuple):
    """Of ``ndarray.flags`` those that matter here."""

    c_contiguous: bool
    aligned: bool
    writeable: bool

    @property
    def carray(self) -> bool:
        """Whether a kernel may write to it."""
        return all(self)


class DeviceArray:
    """An array in device memory, with as much of an ndarray as checks ask for.

    Attributes
    ----------
    owner : object
        What the user passed, which keeps the memory alive.
    look : Look
        What it says of itself.
    stream : int, optional
        The handle of the stream that it belongs to.
    address, dtype, shape, strides, size, nbytes, ndim, flags
        As of an ndarray.
    """

    def __init__(self, owner: Any, look: Look, stream: int | None = None) -> None:
        self.owner, self.look, self.stream = owner, look, stream
        self.address, self.shape = look.address, tuple(map(int, look.shape))
        self.dtype: np.dtype[Any] = np.dtype(look.dtype)
        self.ndim, self.size = len(self.shape), prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        packed = _packed(self.shape, self.dtype.itemsize)
        self.strides = packed if look.strides is None else tuple(look.strides)
        in_order = all(ours == theirs for n, ours, theirs in zip(self.shape, self.strides, packed) if n > 1)
        self.flags = Flags(
            c_contiguous=in_order or not self.size,
            aligned=self.address % max(self.dtype.itemsize, 1) == 0,
            writeable=not look.readonly,
        )

    def __repr__(self) -> str:
        return f"an array of {self.dtype} on a device, shape {self.shape}"


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_on_device(value: Any) -> bool:
    """Whether the array lies in a device's memory."""
    return not isinstance(value, np.ndarray) and find_reader(value) is not None


def find_reader(value: Any) -> Callable[[Any], tuple[Look, int | None]] | None:
    """The function that tells the look of such an array, and its stream; None if it is in no device's memory."""
    if is_tensor(value):
        return _read_torch if value.is_cuda else None
    if hasattr(value, "__cuda_array_interface__"):
        return _read_interface
    if getattr(type(value), "__cuda_ndarray__", False):
        return _read_simulated
    return _read_dlpack if dlpack.on_device(value) else None


def is_tensor(value: Any) -> bool:
    """Whether it is one of torch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def increment_versions(tensors: Sequence[Any]) -> None:
    """Tell torch that these were written to, so that its backward refuses to use them as they were."""
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)


def _read_torch(tensor: Any) -> tuple[Look, int | None]:
    if tensor.is_neg():
        raise ValueError("expected a plain tensor; got one that is to be negated: resolve_neg() makes a copy")
    strides = None
    if not tensor.is_contiguous():
        strides = tuple(step * tensor.element_size() for step in tensor.stride())
    return Look(tensor.data_ptr(), tuple(tensor.shape), _name_of(tensor.dtype), strides, False), TORCH


def _name_of(dtype: Any) -> str:
    """The name of a dtype of torch, as NumPy has it; torch's bfloat16 has none, and no complex one is needed."""
    name = str(dtype).removeprefix("torch.")
    return name if hasattr(np, name) else "V2"


def _read_interface(value: Any) -> tuple[Look, int | None]:
    told = value.__cuda_array_interface__
    if told.get("version", 0) < 2:
        raise ValueError(f"expected version 2 or 3 of __cuda_array_interface__; got {told.get('version')}")
    if told.get("mask") is not None:
        raise TypeError("expected a plain array; got a masked one, whose mask would be ignored")
    address, readonly = told["data"] or (0, False)
    look = Look(int(address or 0), told["shape"], told["typestr"], told.get("strides"), bool(readonly))
    return look, told.get("stream")


def _read_simulated(value: Any) -> tuple[Look, int | None]:
    array = value._ary
    strides = None if array.flags.c_contiguous else array.strides
    look = Look(array.ctypes.data, array.shape, array.dtype.str, strides, not array.flags.writeable)
    return look, None


def _read_dlpack(value: Any) -> tuple[Look, int | None]:
    # Its producer makes the legacy stream wait for what is still to be written.
    return Look(*dlpack.read(value, stream=LEGACY)), LEGACY
