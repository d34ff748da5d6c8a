"""Fit tensors of every dtype and layout to kernels: copies of parameters, and gradients in the layout of theirs."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from fastmomentum.checks import SERVED_WHERE_DENSE, is_dense

SERVED = tuple(getattr(torch, str(dtype)) for dtype in SERVED_WHERE_DENSE)
"""The dtypes of tensors that kernels update where they are."""


class OutdatedError(Exception):
    """Say that a run must be made again, as a tensor has another layout, or a setting asks for other state."""


def layout_of(tensor: Any) -> tuple[Any, ...]:
    """Return what decides whether a kernel that was chosen for a tensor still fits it."""
    layout = tensor.layout
    return tensor.dtype, tensor.device, layout, tensor.shape, tensor.stride() if layout is torch.strided else ()


def is_sparse_tensor(value: Any) -> bool:
    """Return whether a value is a tensor that is not strided."""
    return isinstance(value, torch.Tensor) and value.layout != torch.strided


def _elements_of(tensor: Any) -> NDArray[np.void]:
    """Return an array of elements without meaning that lie where those of a tensor lie, on any device."""
    size = tensor.element_size()
    strides = tuple([size * stride for stride in tensor.stride()])
    found = {"version": 3, "typestr": f"|V{size}", "data": (tensor.data_ptr(), False), "shape": tuple(tensor.shape)}
    return np.asarray(SimpleNamespace(__array_interface__={**found, "strides": strides}))


def check_memory(params: Sequence[Any]) -> None:
    """Check that no two parameters share an element; intervals of memory may overlap, as those of columns do.

    Raises
    ------
    ValueError
        If two do.
    """
    views = [_elements_of(param) for param in params]
    order = sorted([(*byte_bounds(view), i) for i, view in enumerate(views) if view.size])
    for place, (_, stop, i) in enumerate(order):
        for start, _, j in order[place + 1 :]:
            if start >= stop:
                break
            if np.shares_memory(views[i], views[j]):
                one, two = sorted((i, j))
                raise ValueError(
                    f"parameter {two}: expected memory of its own; got memory that it shares with parameter {one}"
                )


def copy_all(targets: list[Any], sources: list[Any]) -> None:
    """Copy tensors to others of the same shapes, and round each number to their dtypes."""
    if not targets:
        return
    with torch.no_grad():
        if any([tensor.is_conj() or tensor.is_neg() for tensor in (*targets, *sources)]):
            for target, source in zip(targets, sources):
                target.copy_(source)
        else:
            torch._foreach_copy_(targets, sources)


class Copies:
    """Hold dense copies of a parameter and its state, in a dtype that kernels have.

    They are made for tensors of other floating dtypes, and for tensors with holes between their elements. The copies
    are read before each step and written back after it, each number rounded once.

    Parameters
    ----------
    place : int
        The number of the parameter in its run.
    tensors : list of tensors
        The parameter and its state.

    Attributes
    ----------
    copies : list of tensors
        The copies of the parameter and its state.
    grad : tensor
        The copy of the gradient.
    """

    def __init__(self, place: int, tensors: Sequence[Any]) -> None:
        self.place, self.tensors, self._layouts = place, tensors, [*map(layout_of, tensors)]
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        self.copies = [torch.empty(tensor.shape, dtype=dtype, device=tensor.device) for tensor in tensors]
        self.grad = torch.empty_like(self.copies[0])

    @staticmethod
    def are_needed(param: Any) -> bool:
        """Return whether kernels cannot update this parameter where it is."""
        if param.dtype not in SERVED or not param.is_leaf or param.is_conj() or param.is_neg():
            return True
        if param.device.type != "cpu":
            return not param.is_contiguous() or param.is_complex()
        return not is_dense(param.detach().numpy())

    def check(self, grad: Any) -> None:
        """Check that a step can be done.

        Raises
        ------
        OutdatedError
            If a tensor has another layout than before, or the gradient is sparse.
        """
        if is_sparse_tensor(grad) or [*map(layout_of, self.tensors)] != self._layouts:
            raise OutdatedError


class Reader:
    """Turn gradients that kernels cannot read into arrays of the layout of their parameters.

    Parameters
    ----------
    params : sequence of tensors
        The parameters as kernels update them.
    written : sequence of lists of tensors
        Each parameter and its state: their layouts must stay as they are, and the state where it is in memory.
    """

    def __init__(self, params: Sequence[Any], written: Sequence[Sequence[Any]]) -> None:
        self._params, self._written = params, written
        self._places = self._find_places()

    def _find_places(self) -> list[Any]:
        """Return the layouts of all tensors, and the addresses of the state."""
        return [([*map(layout_of, each)], [slot.data_ptr() for slot in each[1:]]) for each in self._written]

    def __call__(self, grads: list[Any]) -> list[Any]:
        """Return the gradients of a step.

        Raises
        ------
        OutdatedError
            If a parameter has another layout than before, its state another layout or memory, or a gradient is sparse.
        """
        if self._find_places() != self._places:
            raise OutdatedError
        return [grad if grad is None else _fit(param, grad) for param, grad in zip(self._params, grads)]


def _fit(param: Any, grad: Any) -> Any:
    """Return a gradient as an array with the layout of its parameter; on a device as a tensor."""
    if is_sparse_tensor(grad):
        raise OutdatedError
    grad = grad.detach()
    if layout_of(grad) != layout_of(param) or grad.is_neg() or grad.is_conj():
        with torch.no_grad():
            grad = torch.empty_like(param).copy_(grad)
    return grad.numpy() if grad.device.type == "cpu" else grad
