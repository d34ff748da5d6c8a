"""View, copy, zero and fetch arrays in device memory: the operations other than updates.

:mod:`fastmomentum.backends.host_arrays` has the same functions for the host. Most functions here wait for the device:
they are for construction, reset, saving and loading, and not for a step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy.typing as npt
from numba import config, cuda
from numba.cuda.cudadrv import driver

from fastmomentum.backends.cuda.device_array import DeviceArray, find_reader
from fastmomentum.backends.cuda.kernels import VECTOR_BYTES, run_one
from fastmomentum.backends.cuda.scalars import DeviceScalar
from fastmomentum.backends.cuda.streams import handle_of
from fastmomentum.backends.host_arrays import part_of
from fastmomentum.checks import describe
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule


def view(name: str, value: Any) -> DeviceArray:
    """Return `value` as a DeviceArray.

    Raises
    ------
    TypeError, ValueError
        If `value` is no array in device memory, or one that is not supported (masked, or with an old protocol).
    """
    read = find_reader(value)
    if read is None:
        raise TypeError(f"{name}: expected an array in device memory, as the others are; got {describe(value)}")
    try:
        return DeviceArray(value, *read(value))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def device_of(array: DeviceArray) -> int | None:
    """Return the number of the device that holds the array; None for an empty array."""
    if config.ENABLE_CUDASIM or not array.size:
        return 0 if array.size else None
    attribute = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.driver.cuPointerGetAttribute(attribute, driver.binding.CUdeviceptr(array.address)))


def one_device(names: Sequence[str], arrays: Sequence[DeviceArray]) -> int:
    """Return the number of the device that holds all arrays.

    Raises
    ------
    ValueError
        If they are on several devices.
    """
    devices = {device: name for name, array in zip(names, arrays) if (device := device_of(array)) is not None}
    if len(devices) > 1:
        (first, first_name), (second, second_name) = list(devices.items())[:2]
        raise ValueError(
            f"{second_name}: expected an array on device {first}, as {first_name} is; got one on device {second}"
        )
    return next(iter(devices), 0)


def on(device: int) -> AbstractContextManager[Any]:
    """Return a context in which this device is current, so that kernels are compiled and launched for it."""
    return nullcontext() if config.ENABLE_CUDASIM else cuda.gpus[device]


def empty(count: int, dtype: npt.DTypeLike) -> Any:
    """Return a new Numba device array with undefined values."""
    return cuda.device_array(count, dtype)


def empty_like(array: DeviceArray) -> Any:
    """Return a new Numba device array of the same shape and dtype, with undefined values.

    Its address modulo 16 is that of `array`, so that kernels can load vectors from both.
    """
    offset = array.address % VECTOR_BYTES // array.dtype.itemsize
    return cuda.device_array(offset + array.size, array.dtype)[offset:].reshape(array.shape)


def copy(target: Any, source: Any, rows: slice = slice(None)) -> None:
    """Copy these rows of `source`, on the host or on the device, to the same rows of `target`, a Numba device array."""
    _wait()
    source = _as_numba(source) if isinstance(source, DeviceArray) else source
    part_of(target, rows).copy_to_device(part_of(source, rows))
    _wait()


def zero(target: Any, rows: slice = slice(None)) -> None:
    """Set these rows of `target`, a Numba device array, to zero."""
    _wait()
    part = part_of(target, rows)
    if part.size:
        driver.device_memset(part.reshape(-1), 0, part.nbytes)
    _wait()


def is_moving(values: Any) -> bool:
    """Return whether any element is not zero."""
    return bool(fetch(values).any())


def fetch(values: Any) -> npt.NDArray[Any]:
    """Return a copy in host memory."""
    _wait()
    found: npt.NDArray[Any] = (_as_numba(values) if isinstance(values, DeviceArray) else values).copy_to_host()
    return found


def number(value: Any) -> float:
    """Return the value of a setting as a float; a scalar in device memory is copied to the host."""
    return float(fetch(value.array).reshape(-1)[0]) if isinstance(value, DeviceScalar) else float(value)


def point(rule: Rule, arrays: tuple[DeviceArray, ...], row: tuple[Any, ...], stream: Any) -> None:
    """Write the look-ahead point to the last of (p, velocity, point), without waiting for the device."""
    run_one(point_rule(rule), (*arrays, arrays[0]), row, device_of(arrays[0]) or 0, handle_of(stream))


def _wait() -> None:
    cuda.synchronize()


def _as_numba(array: DeviceArray) -> Any:
    if config.ENABLE_CUDASIM:
        return array.owner
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.address, False), "version": 3}
    return cuda.from_cuda_array_interface(interface, owner=array.owner, sync=False)
