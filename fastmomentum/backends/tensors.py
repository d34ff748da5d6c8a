"""Serve torch tensors without importing torch: view those in host memory, and mark them as modified.

torch's backward refuses a saved tensor whose version counter has moved since the forward pass. A write through a view
of the memory does not move the counter, so that backward would use the new values without an error. Code that writes to
the memory of a tensor therefore increments the counter.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmomentum.advice import describe, how_to_convert_tensor, is_tensor
from fastmomentum.checks import SERVED_WHERE_DENSE, is_dense

Run = Callable[[list[Any]], bool]
"""The function ``run(grads)`` of an executor, which returns whether it has done an update."""


def increment_versions(tensors: Sequence[Any]) -> None:
    """Mark these torch tensors as modified, so that torch's backward refuses to use their old values."""
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)


class TensorMemory:
    """Lend the memory of a tensor to an ndarray, whose base is then this object.

    Attributes
    ----------
    tensor : torch.Tensor
        The tensor. Its memory can become another one later, by an assignment to ``tensor.data`` or by a call of
        ``tensor.share_memory_()``.
    address : int
        The address of its memory of now.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.address = tensor, tensor.data_ptr()
        self._memory = tensor.detach().numpy()  # keeps the memory alive
        self.__array_interface__ = self._memory.__array_interface__


def view(name: str, tensor: Any) -> npt.NDArray[Any]:
    """Return an ndarray on the memory of a tensor that is to be updated in place.

    Raises
    ------
    TypeError, ValueError
        If the tensor is not a leaf, or if NumPy cannot view its memory.
    """
    if not tensor.is_leaf:
        raise ValueError(
            f"{name}: expected a leaf tensor; got the result of an operation, and an update of it would not reach the "
            "tensors that it was computed from. Pass those"
        )
    replace = "The tensor is updated in place: replace it everywhere by"
    for bit in ("conj", "neg"):
        if getattr(tensor, f"is_{bit}")():
            raise ValueError(
                f"{name}: expected a plain tensor; got one with the {bit} bit, whose memory holds other values. "
                f"{replace} .resolve_{bit}(), a copy"
            )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in [str(served) for served in SERVED_WHERE_DENSE]:
        advice = how_to_convert_tensor(tensor, None, write=True)
        raise TypeError(
            f"{name}: expected a tensor of float32, float64, complex64 or complex128; got {describe(tensor)}{advice}"
        )
    try:
        found = np.asarray(TensorMemory(tensor))
    except (TypeError, ValueError, RuntimeError) as error:  # on another device, or sparse
        got = f"{describe(tensor)} on {tensor.device.type}{how_to_convert_tensor(tensor, None, write=True)}"
        raise TypeError(f"{name}: expected a dense tensor in host memory; got {got}") from error
    if not is_dense(found):
        advice = "Update p = tensor.detach().contiguous(), a copy, and write it back: tensor.detach().copy_(p)"
        if 0 in found.strides:  # of an expanded tensor, whose elements share memory
            advice = f"{replace} .contiguous(), a copy"
        raise ValueError(
            f"{name}: expected elements that fill an interval of memory; got shape {found.shape} with strides "
            f"{tensor.stride()}. {advice}"
        )
    return found


VIEWS = (np.ndarray, memoryview)


def tensor_memory_of(arrays: Iterable[Any]) -> list[TensorMemory]:
    """Return the memory of each tensor that one of these ndarrays views, as ``tensor.detach().numpy()`` does."""
    found = []
    for array in arrays:
        base = array.base
        while base is not None and isinstance(base, VIEWS):
            base = base.obj if type(base) is memoryview else base.base
        if base is None:
            continue
        if type(base) is TensorMemory:
            found.append(base)
        elif is_tensor(base):
            found.append(TensorMemory(base))
    return found


def count_writes(arrays: Iterable[Any]) -> None:
    """Mark the tensors whose memory these ndarrays view as modified."""
    if found := tensor_memory_of(arrays):
        increment_versions([memory.tensor for memory in found])


def tensor_of(array: npt.NDArray[Any]) -> Any:
    """Return the tensor that :func:`view` made this ndarray of; None for any other ndarray."""
    base: object = array.base
    return base.tensor if isinstance(base, TensorMemory) else None


def counted(run: Run, arrays: Iterable[Any], addresses: bool = True) -> Run:
    """Return `run`, which writes to these ndarrays, so that it also counts the writes to tensors that they view.

    The returned function writes nothing and returns False if a gradient has a bit of torch that negates or conjugates
    it; also, if `addresses`, if the memory of a tensor has become another one. It is `run` itself if there is no
    tensor, so that the other steps cost nothing more.
    """
    memories = tensor_memory_of(arrays)
    if not memories:
        return run
    tensors = [memory.tensor for memory in memories]
    is_complex = any([tensor.is_complex() for tensor in tensors])
    return partial(_run_counted, run, tensors, [memory.address for memory in memories] if addresses else [], is_complex)


def _run_counted(run: Run, tensors: Sequence[Any], addresses: list[int], is_complex: bool, grads: list[Any]) -> bool:
    if addresses and [tensor.data_ptr() for tensor in tensors] != addresses:
        return False
    if has_lazy_bits(grads, is_complex):
        return False
    done = True
    try:
        done = run(grads)
        if done:
            increment_versions(tensors)
    except BaseException:  # Ctrl-C after the write; uninterrupted() takes 25 µs (measured) where this is free
        if done:
            increment_versions(tensors)
        raise
    return done


def has_lazy_bits(grads: Sequence[Any], is_complex: bool) -> bool:
    """Return whether a tensor among these arrays has the neg or the conj bit, so that its memory holds other values."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kind = torch.Tensor  # its methods take a third of the time of torch's functions (measured)
    try:
        return any(map(kind.is_neg, grads)) or (is_complex and any(map(kind.is_conj, grads)))
    except TypeError:  # not all are tensors
        tensors = [grad for grad in grads if isinstance(grad, kind)]
        return any(map(kind.is_neg, tensors)) or (is_complex and any(map(kind.is_conj, tensors)))
