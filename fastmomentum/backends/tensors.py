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

from fastmomentum.checks import WITH_COMPLEX

Run = Callable[[list[Any]], bool]
"""The function ``run(grads)`` of an executor, which returns whether it has done an update."""


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def increment_versions(tensors: Sequence[Any]) -> None:
    """Mark these torch tensors as modified, so that torch's backward refuses to use their old values."""
    if tensors:
        sys.modules["torch"].autograd.graph.increment_version(tensors)


class TensorMemory:
    """Lend the memory of a tensor to an ndarray, whose base is then this object.

    Attributes
    ----------
    tensor : torch.Tensor
        The tensor. Its memory can become another one later, by an assignment to ``tensor.data``.
    memory : ndarray
        A view of the memory of now, which keeps it alive.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.memory = tensor, tensor.detach().numpy()
        self.__array_interface__ = self.memory.__array_interface__


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
    if dtype not in [served.name for served in WITH_COMPLEX]:
        raise TypeError(
            f"{name}: expected a tensor of float32, float64, complex64 or complex128; got {dtype}. {replace} .float()"
        )
    try:
        return np.asarray(TensorMemory(tensor))
    except (TypeError, ValueError, RuntimeError) as error:  # on another device, or sparse
        raise TypeError(f"{name}: expected a dense tensor in host memory; got {tensor.device.type}: {error}") from error


def tensors_behind(arrays: Iterable[Any]) -> list[Any]:
    """Return the tensors whose memory these ndarrays view, as ``tensor.detach().numpy()`` does."""
    found = []
    for array in arrays if "torch" in sys.modules else ():
        base = array
        while isinstance(base, np.ndarray | memoryview):
            base = base.obj if isinstance(base, memoryview) else base.base
        owner = base.tensor if isinstance(base, TensorMemory) else base
        if is_tensor(owner):
            found.append(owner)
    return found


def count_writes(run: Run, arrays: Iterable[Any]) -> Run:
    """Return `run`, which writes to these ndarrays, such that it counts the writes to the tensors behind them.

    If the memory of a tensor has become another one, the returned function writes nothing and returns False. It is
    `run` itself if there is no tensor, so that the other steps cost nothing more.
    """
    tensors = tensors_behind(arrays)
    addresses = [tensor.data_ptr() for tensor in tensors]
    return partial(_run_counted, run, tensors, addresses) if tensors else run


def _run_counted(run: Run, tensors: Sequence[Any], addresses: list[int], grads: list[Any]) -> bool:
    if [tensor.data_ptr() for tensor in tensors] != addresses:
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
