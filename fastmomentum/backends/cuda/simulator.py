"""What :mod:`fastmomentum.backends.cuda.emit` makes, in Python, for Numba's CUDA simulator, which runs no LLVM code.

Its device memory is the host's, and its threads are Python's, one element at a time.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastmomentum.backends.cuda.scalars import DerivedScalar
from fastmomentum.rules.base import Rule


def _numbers(address: Any, dtype: np.dtype[Any], count: int) -> Any:
    # A GPU faults on an address that is not a multiple of what is loaded from it.
    if address % (dtype.itemsize * count):
        raise RuntimeError(f"misaligned access of {count} {dtype} at {address}")
    memory: Any = (ctypes.c_char * (dtype.itemsize * count)).from_address(int(address))
    return np.frombuffer(memory, dtype)


def make_update(rule: Rule, dtype: np.dtype[Any], width: int) -> Callable[..., None]:
    """See :func:`fastmomentum.backends.cuda.emit.make_update`."""
    compute, dtype = rule.build(), dtype

    def update(addresses: Any, i: int, values: Any) -> None:
        arrays = [_numbers(address + i * dtype.itemsize, dtype, width) for address in addresses]
        with np.errstate(all="ignore"):
            found = [compute(*(array[lane] for array in arrays), *values) for lane in range(width)]
        for lane, numbers in enumerate(found):
            for array, number in zip(arrays, numbers):
                array[lane] = number

    return update


def make_scalar(rule: Rule) -> Callable[..., Any]:
    """See :func:`fastmomentum.backends.cuda.inside.make_scalar`."""
    compute = rule.build()

    def scalar(p: Any, *others: Any) -> Any:
        with np.errstate(all="ignore"):
            return compute(p, *map(np.result_type(p).type, others))

    return scalar


def make_sweep(rule: Rule) -> Callable[..., None]:
    """See :func:`fastmomentum.backends.cuda.inside.make_sweep`."""
    scalar, behind = make_scalar(rule), 2 + len(rule.state)

    def sweep(start: int, stride: int, *given: Any) -> None:
        arrays = given[:behind]
        if len({array.dtype for array in arrays}) > 1:
            raise TypeError(f"expected one dtype for all arrays; got {[array.dtype for array in arrays]}")
        for i in range(start, arrays[0].size, stride):
            for array, number in zip(arrays, scalar(*(each[i] for each in arrays), *given[behind:])):
                array[i] = number

    return sweep


def make_loads(dtype: np.dtype[Any], count: int) -> Callable[..., Any]:
    """See :func:`fastmomentum.backends.cuda.emit.make_loads`."""
    return lambda address: tuple(_numbers(address + i * dtype.itemsize, dtype, 1)[0] for i in range(count))


def make_store(dtype: np.dtype[Any]) -> Callable[..., None]:
    """See :func:`fastmomentum.backends.cuda.emit.make_store`."""

    def store(address: int, value: Any) -> None:
        _numbers(address, dtype, 1)[0] = value

    return store


def make_settle(
    columns: Sequence[DerivedScalar], names: Sequence[str], on_device: Mapping[str, np.dtype[Any]], dtype: np.dtype[Any]
) -> Callable[..., None]:
    """See :func:`fastmomentum.backends.cuda.emit.make_settle`."""

    def settle(addresses: Any, values: Any, row: int) -> None:
        known = dict(zip(names, values))
        for address, (name, stored) in zip(addresses, on_device.items()):
            known[name] = float(_numbers(address, stored, 1)[0])
        with np.errstate(all="ignore"):
            for column in columns:
                found = column.function(*(known[source] for source in column.sources))
                _numbers(row + column.place * dtype.itemsize, dtype, 1)[0] = found

    return settle


TERMS: dict[str, Callable[[Any], Any]] = {"x": lambda x: x, "x²": lambda x: x * x, "0·x": lambda x: x * np.float64(0.0)}


def make_sums(dtype: np.dtype[Any], stride: int, terms: Sequence[str]) -> Callable[..., tuple[Any, ...]]:
    """See :func:`fastmomentum.backends.cuda.emit.make_sums`."""

    def sums(address: int, count: int) -> tuple[Any, ...]:
        step, totals = stride * dtype.itemsize, [np.float64(0.0)] * len(terms)
        with np.errstate(all="ignore"):
            for i in range(count):
                x = np.float64(_numbers(address + i * step, dtype, 1)[0])
                totals = [total + TERMS[term](x) for total, term in zip(totals, terms)]
        return tuple(totals)

    return sums
