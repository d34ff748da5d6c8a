"""Read torch tensors inside compiled code, so that a step can recheck 1,000 of them.

torch 2.10 and later have DLPack's exchange API: C functions, of which one writes the address, dtype, shape and strides
of a tensor to a ``DLTensor`` (dlpack.h, version 1). Its call takes 0.05 µs (measured); ``data_ptr``, ``stride`` and
``dtype`` of Python together take 0.4 µs. The layout of tensors themselves is private to torch.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastmomentum.backends.cpu import headers
from fastmomentum.backends.cpu.headers import DIMENSIONS, NDIM, STRIDES, UNFIT, load_half, load_word
from fastmomentum.backends.cpu.kernels import compiled

EXCHANGE_API = "__dlpack_c_exchange_api__"
"""The attribute of torch.Tensor that holds the functions."""

VERSION = 1
"""The major version of DLPack whose structures are read here."""

HEADER, FILL = 16, 3
"""Where the functions begin, after the version and a pointer, and which of them fills a DLTensor."""

CPU = 1
"""The type of the device of a DLTensor in host memory, kDLCPU."""

FILL_SYMBOL = "fastmomentum_fill_tensor"
"""The name by which compiled code finds that function."""

KINDS = {"f": 2, "c": 5}
"""The codes of dtypes, kDLFloat and kDLComplex."""


def dlpack_dtype(dtype: np.dtype[Any]) -> int:
    """Return the word of a DLTensor that identifies a dtype: code, bits, lanes."""
    return KINDS[dtype.kind] | dtype.itemsize * 8 << 8 | 1 << 16


@cache
def fill_function() -> int | None:
    """Return the address of torch's function that fills a DLTensor; None if this torch has none."""
    torch = sys.modules.get("torch")
    capsule = getattr(getattr(torch, "Tensor", None), EXCHANGE_API, None)
    if capsule is None:
        return None
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = get(capsule, b"dlpack_exchange_api")
    if ctypes.c_uint32.from_address(address).value != VERSION:
        return None
    function = ctypes.c_void_p.from_address(address + HEADER + 8 * FILL).value
    llvmlite.binding.add_symbol(FILL_SYMBOL, function)  # kernels that are kept on disk find it by this name
    return function


@intrinsic
def _fill(typing_context: Any, tensor: Any) -> Any:
    """Return 0 and the words of the DLTensor of an object; another number if the object has none.

    The caller must hold Python's global lock.
    """
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = cgutils.alloca_once(builder, ir.ArrayType(word, 6))
        kind = ir.FunctionType(ir.IntType(32), [word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, FILL_SYMBOL)
        status = builder.call(function, [arguments[0], builder.ptrtoint(target, word)])
        with builder.if_then(builder.icmp_signed("!=", status, ir.Constant(status.type, 0)), likely=False):
            context.get_python_api(builder).err_clear()
        words = cgutils.unpack_tuple(builder, builder.load(target))
        return context.make_tuple(builder, signature.return_type, [builder.sext(status, word), *words])

    return types.UniTuple(types.int64, 7)(types.int64), codegen


@cache
def tensor_check(arrays: int) -> Callable[[Any, Any, int], bool]:
    """Return ``check(table, written, grads)``: :func:`~fastmomentum.backends.cpu.headers.make_check` for tensors.

    `arrays` is the number of arrays of a parameter that are written. The objects in the table and the gradients may be
    tensors or NumPy arrays. Bits of torch that negate or conjugate a tensor are not seen.

    Raises
    ------
    RuntimeError
        If torch is older than 2.10.
    """
    if fill_function() is None:
        raise RuntimeError("expected torch 2.10 or later, whose tensors compiled code can read")

    @register_jitable
    def read(item: Any, like: Any, dtype: Any, flags: Any, tensor_dtype: Any) -> Any:
        if load_word(item + headers.TYPE) == load_word(like + headers.TYPE):
            return headers.read_array(item, like, dtype, flags, tensor_dtype)
        status, data, device, kind, shape, strides, offset = _fill(item)
        if status != 0 or device & 0xFFFFFFFF != CPU or kind >> 32 & 0xFFFFFFFF != tensor_dtype:
            return UNFIT
        ndim = load_half(like + NDIM)
        if kind & 0xFFFFFFFF != ndim:
            return UNFIT
        sizes, steps, itemsize = load_word(like + DIMENSIONS), load_word(like + STRIDES), tensor_dtype >> 11 & 0x1F
        elements, fit = 1, True
        for axis in range(ndim):
            size = load_word(sizes + 8 * axis)
            if load_word(shape + 8 * axis) != size:
                return UNFIT
            fit &= size == 1 or load_word(strides + 8 * axis) * itemsize == load_word(steps + 8 * axis)
            elements *= size
        return data + offset if fit or elements == 0 else UNFIT

    check = headers.make_check(read)

    def check_tensors(table: Any, written: Any, grads: Any) -> Any:
        return check(table, written, arrays, grads)

    table = types.Array(types.int64, 2, "C")
    return compiled(check_tensors, types.boolean(table, table, types.int64), nogil=False)  # torch's function needs it
