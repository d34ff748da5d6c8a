"""What an optimiser does with arrays in device memory beside updating them: the same names as in `backends.host`.

All of it waits for the device: it is for construction, reset, saving and loading, not for a step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numba import config, cuda
from numba.cuda.cudadrv import driver

from fastmomentum.backends.cuda.device_array import DeviceArray, find_reader
from fastmomentum.backends.cuda.kernels import BYTES, run_one
from fastmomentum.backends.cuda.scalars import DeviceScalar
from fastmomentum.backends.cuda.streams import handle_of
from fastmomentum.backends.host_arrays import part_of
from fastmomentum.checks import describe
from fastmomentum.rules.base import Rule
from fastmomentum.rules.compose import point_rule


def view(name: str, value: Any) -> DeviceArray:
    """`value` as an array in device memory.

    Raises
    ------
    TypeError, ValueError
        If it is none, or says of itself what cannot be served.
    """
    read = find_reader(value)
    if read is None:
        raise TypeError(f"{name}: expected an array in device memory, as others are; got {describe(value)}")
    try:
        return DeviceArray(value, *read(value))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def device_of(array: DeviceArray) -> int | None:
    """The number of the device whose memory it is; None for an empty array."""
    if config.ENABLE_CUDASIM or not array.size:
        return 0 if array.size else None
    attribute = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.driver.cuPointerGetAttribute(attribute, driver.binding.CUdeviceptr(array.address)))


def one_device(names: Sequence[str], arrays: Sequence[DeviceArray]) -> int:
    """The device that all of them are on.

    Raises
    ------
    ValueError
        If they are on several.
    """
    found = {device: name for name, array in zip(names, arrays) if (device := device_of(array)) is not None}
    if len(found) > 1:
        (first, ours), (second, theirs) = list(found.items())[:2]
        raise ValueError(f"{theirs}: expected an array on device {first}, as {ours} is; got one on device {second}")
    return next(iter(found), 0)


def on(device: int) -> AbstractContextManager[Any]:
    """In which kernels are compiled and launched for this device."""
    return nullcontext() if config.ENABLE_CUDASIM else cuda.gpus[device]


def empty(count: int, dtype: Any) -> Any:
    """A new array of Numba's."""
    return cuda.device_array(count, dtype)


def empty_like(array: DeviceArray) -> Any:
    """A new array of Numba's, like this one, so many bytes behind a vector's place as this one is."""
    behind = array.address % BYTES // array.dtype.itemsize
    return cuda.device_array(behind + array.size, array.dtype)[behind:].reshape(array.shape)


def copy(target: Any, source: Any, rows: slice = slice(None)) -> None:
    """Write to one of our own arrays, in these rows, what another holds, on the host or on the device."""
    _wait()
    source = _as_numba(source) if isinstance(source, DeviceArray) else source
    part_of(target, rows).copy_to_device(part_of(source, rows))
    _wait()


def zero(target: Any, rows: slice = slice(None)) -> None:
    """Write zeros to these rows of one of our own arrays."""
    _wait()
    part = part_of(target, rows)
    if part.size:
        driver.device_memset(part.reshape(-1), 0, part.nbytes)
    _wait()


def is_moving(values: Any) -> bool:
    """Whether any number is not zero."""
    return bool(fetch(values).any())


def fetch(values: Any) -> Any:
    """A copy on the host."""
    _wait()
    return (_as_numba(values) if isinstance(values, DeviceArray) else values).copy_to_host()


def number(value: Any) -> float:
    """The number that a setting is, on the host or on the device."""
    return float(fetch(value.array).reshape(-1)[0]) if isinstance(value, DeviceScalar) else float(value)


def point(rule: Rule, arrays: tuple[DeviceArray, ...], row: tuple[Any, ...], stream: Any) -> None:
    """Write where momentum will carry the parameter, the first of the arrays; nothing waits for it."""
    run_one(point_rule(rule), (*arrays, arrays[0]), row, device_of(arrays[0]) or 0, handle_of(stream))


def _wait() -> None:
    cuda.synchronize()


def _as_numba(array: DeviceArray) -> Any:
    if config.ENABLE_CUDASIM:
        return array.owner
    told = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.address, False), "version": 3}
    return cuda.from_cuda_array_interface(told, owner=array.owner, sync=False)
