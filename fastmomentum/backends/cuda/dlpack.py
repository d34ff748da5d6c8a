"""Read arrays through DLPack, the protocol of frameworks that have no ``__cuda_array_interface__``.

The structures are those of dlpack.h (version 0.8 of the unversioned form; 1.0 of the versioned one, which adds flags).
"""

import ctypes
from typing import Any

CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # DLDataTypeCode; NumPy has no dtype for 4, bfloat
READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *(("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32)),
        *(("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)),
        *(("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64))),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor),)


class _Versioned(ctypes.Structure):
    _fields_ = (
        *(("major", ctypes.c_uint32), ("minor", ctypes.c_uint32)),
        *(("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64)),
        ("tensor", _Tensor),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)


def on_device(value: Any) -> bool:
    """Return whether `value` supports DLPack and is in the memory of a CUDA device."""
    return hasattr(type(value), "__dlpack__") and value.__dlpack_device__()[0] in (CUDA, CUDA_MANAGED)


def read(value: Any, stream: int | None) -> tuple[int, tuple[int, ...], str, tuple[int, ...] | None, bool]:
    """Return address, shape, typestr, strides in bytes (None for C order), and whether the array is read-only.

    The capsule is not consumed, so it frees itself; `value` keeps the memory alive.
    """
    try:
        capsule = value.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # the library supports DLPack before 1.0, which has no versions
        capsule = value.__dlpack__(stream=stream)
    readonly = False
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        tensor, readonly = versioned.tensor, bool(versioned.flags & READ_ONLY)
    else:
        tensor = _Managed.from_address(_get_pointer(capsule, b"dltensor")).tensor
    itemsize = tensor.bits * tensor.lanes // 8
    kind = KINDS.get(tensor.code, "V") if tensor.lanes == 1 else "V"
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(step * itemsize for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    return (tensor.data or 0) + tensor.byte_offset, shape, f"{kind}{itemsize}", strides, readonly
