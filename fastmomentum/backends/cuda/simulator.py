"""Provide the functions of :mod:`~fastmomentum.backends.cuda.codegen` in plain Python, for Numba's CUDA simulator.

The simulator cannot run LLVM code. Its device memory is host memory, and its threads are Python threads.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from operator import add, ge, gt, le, lt, mul, neg, sub, truediv
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.backends.cuda.scalars import DerivedScalar
from fastmomentum.rules.base import Rule
from fastmomentum.rules.symbolic import COMPARISONS, FUNCTIONS, WHERE, Formula, follow


def _view_memory(address: int, dtype: np.dtype, count: int) -> npt.NDArray[Any]:
    """Return an array of `count` numbers at this address; raise RuntimeError if a GPU could not load them at once."""
    # A GPU raises a fault for an address that is not a multiple of the size that is loaded.
    if address % (dtype.itemsize * count):
        raise RuntimeError(f"misaligned access of {count} {dtype} at {address}")
    memory: Any = (ctypes.c_char * (dtype.itemsize * count)).from_address(int(address))
    return np.frombuffer(memory, dtype)


def make_update(rule: Rule, dtype: np.dtype, width: int) -> Callable[..., None]:
    """Return ``update(addresses, i, values)``, which updates the elements i to i + width − 1 of all arrays."""
    compute = rule.build()

    def update(addresses: Sequence[int], i: int, values: Sequence[np.floating]) -> None:
        arrays = [_view_memory(address + i * dtype.itemsize, dtype, width) for address in addresses]
        with np.errstate(all="ignore"):
            results = [compute(*(array[lane] for array in arrays), *values) for lane in range(width)]
        for lane, numbers in enumerate(results):
            for array, number in zip(arrays, numbers):
                array[lane] = number

    return update


def make_scalar(rule: Rule) -> Callable[..., tuple[np.floating, ...]]:
    """Return ``scalar(p, *state, g, *hyper) -> (p, *state)``, which casts all arguments to the dtype of p."""
    compute = rule.build()

    def scalar(p: np.floating, *others: float) -> tuple[np.floating, ...]:
        with np.errstate(all="ignore"):
            results: tuple[np.floating, ...] = compute(p, *map(np.result_type(p).type, others))
            return results

    return scalar


def make_sweep(rule: Rule) -> Callable[..., None]:
    """Return ``sweep(start, stride, p, *state, g, *hyper)``, which updates the elements start, start + stride, …."""
    scalar, n_arrays = make_scalar(rule), 2 + len(rule.state)

    def sweep(start: int, stride: int, *given: Any) -> None:
        arrays = given[:n_arrays]
        if len({array.dtype for array in arrays}) > 1:
            raise TypeError(f"expected one dtype for all arrays; got {[array.dtype for array in arrays]}")
        for i in range(start, arrays[0].size, stride):
            for array, number in zip(arrays, scalar(*(each[i] for each in arrays), *given[n_arrays:])):
                array[i] = number

    return sweep


def make_loads(dtype: np.dtype, count: int) -> Callable[[int], tuple[Any, ...]]:
    """Return ``loads(address)``, which returns a tuple of the first `count` numbers from this address."""
    return lambda address: tuple(_view_memory(address + i * dtype.itemsize, dtype, 1)[0] for i in range(count))


def make_store(dtype: np.dtype) -> Callable[[int, float], None]:
    """Return ``store(address, value)``, which writes one number."""

    def store(address: int, value: float) -> None:
        _view_memory(address, dtype, 1)[0] = value

    return store


def make_derive(
    derived: Sequence[DerivedScalar], names: Sequence[str], on_device: Mapping[str, np.dtype], dtype: np.dtype
) -> Callable[[Sequence[int], Sequence[float], int], None]:
    """Return ``derive(addresses, values, row)``, which writes derived hyper-parameters to the row at this address."""

    def derive(addresses: Sequence[int], values: Sequence[float], row: int) -> None:
        known = dict(zip(names, values))
        for address, (name, stored) in zip(addresses, on_device.items()):
            known[name] = float(_view_memory(address, stored, 1)[0])
        with np.errstate(all="ignore"):
            for scalar in derived:
                result = scalar.function(*(known[source] for source in scalar.sources))
                _view_memory(row + scalar.column * dtype.itemsize, dtype, 1)[0] = result

    return derive


OPERATIONS: dict[str, Callable[..., Any]] = {
    **dict(zip(("+", "-", "*", "/", *COMPARISONS), (add, sub, mul, truediv, lt, le, gt, ge))),
    **{name: function for function, name in FUNCTIONS.items()},
    "negative": neg,
    "widen": np.float64,
    WHERE: np.where,
}
"""The operations of what :func:`make_sums` adds up."""


def make_sums(
    dtype: np.dtype, stride: int, program: Formula, arrays: int, n_hyper: int
) -> Callable[..., tuple[np.float64, ...]]:
    """Return ``sums(addresses, first, count, values)``, which adds up the summands of `count` elements, in order."""

    def apply(name: str, *operands: Any) -> Any:
        return OPERATIONS[name](*operands)

    def sums(addresses: Sequence[int], first: int, count: int, values: Sequence[Any]) -> tuple[np.float64, ...]:
        totals = [np.float64(0.0)] * len(program[-1])
        with np.errstate(all="ignore"):
            for i in range(count):
                offset = (first + i * stride) * dtype.itemsize
                element = [_view_memory(address + offset, dtype, 1)[0] for address in addresses]
                summands = follow(program, [*element, *values[:n_hyper]], apply)
                totals = [total + summand for total, summand in zip(totals, summands)]
        return tuple(totals)

    return sums
