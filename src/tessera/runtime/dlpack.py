"""DLPack for device memory, in both directions.

Layout: ``dlpack.h``, version 0.8 (``DLManagedTensor``), which every library still reads.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from ..errors import DeviceError, DTypeError
from ..targets.nvidia import driver
from ..types import dtypes as dt
from ..types.dtypes import DType
from .gpu import GpuArray

CUDA = 2
_CODES = {"int": 0, "uint": 1, "float": 2, "complex": 5, "bool": 6}
_SPECIAL = {"bf16": 4, "fp8_e4m3": 10, "fp8_e5m2": 12}


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64))


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))
_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_lent: dict[int, Any] = {}  # address of a managed tensor -> what it and its memory consist of


def _give_back(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


def _drop(capsule: int) -> None:
    """The destructor of a capsule that nobody took over."""
    if _api.PyCapsule_IsValid(capsule, b"dltensor"):
        get = ctypes.pythonapi["PyCapsule_GetPointer"]
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
        _lent.pop(int(get(capsule, b"dltensor") or 0), None)


_release = _DELETER(_give_back)
_forget = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_drop)


def _code(dtype: DType) -> int:
    code = _SPECIAL.get(dtype.name, _CODES.get(dtype.kind) if dtype.bits in (8, 16, 32, 64, 128) or dtype.kind == "bool" else None)
    if code is None:
        raise BufferError(f"DLPack has no form for {dtype}")
    return code


def capsule(a: GpuArray) -> Any:
    """A capsule of an array's memory, which lives until its taker lets go."""
    dtype, rank = a.dtype.dtype, len(a.shape)
    shape = (ctypes.c_int64 * max(1, rank))(*a.shape)
    made = _Managed(_Tensor(a.pointer, CUDA, a.gpu.number, rank, _code(dtype), 8 * dtype.itemsize, 1, shape, None, 0), None, _release)
    _lent[ctypes.addressof(made)] = (made, shape, a)
    return _api.PyCapsule_New(ctypes.addressof(made), b"dltensor", ctypes.cast(_forget, ctypes.c_void_p))


def _dtype(t: _Tensor) -> DType:
    for d in dt.ALL:
        try:
            if t.lanes == 1 and t.bits == 8 * d.itemsize and t.code == _code(d):
                return d
        except BufferError:
            continue
    raise DTypeError(f"this DLPack tensor has an element type (code {t.code}, {t.bits} bits) that is not available here")


def _dense(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    step = 1
    for n, s in zip(reversed(shape), reversed(strides or ()), strict=False):
        if n != 1 and s != step:
            return False
        step *= n
    return True


def taken(x: Any) -> GpuArray:
    """The memory of another library's device tensor, shared.

    Raises:
        DeviceError: it lives on a device of another kind.
        DTypeError: its element type does not exist here, or it is not dense row-major.
    """
    kind, number = x.__dlpack_device__()
    if int(kind) != CUDA:
        raise DeviceError(f"the tensor lives on DLPack device {(int(kind), int(number))}, which is neither the CPU nor a CUDA device",
                          hints=["Move it to the CPU first"])
    gpu = driver.gpu(int(number))
    got = x.__dlpack__(stream=gpu.stream.number)
    address = _api.PyCapsule_GetPointer(got, b"dltensor")
    managed = _Managed.from_address(int(address or 0))
    t = managed.tensor
    dtype, shape = _dtype(t), tuple(t.shape[i] for i in range(t.ndim))
    strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else None
    if not _dense(shape, strides):
        raise DTypeError("a device tensor is taken over where it is dense and row-major", received=f"strides {strides} of {list(shape)}",
                         hints=["Call .contiguous() in the other library first"])
    _api.PyCapsule_SetName(got, b"used_dltensor")
    out = GpuArray(gpu, dtype, shape, int(t.data or 0) + int(t.byte_offset), keep=got)
    if managed.deleter:
        weakref.finalize(out, managed.deleter, ctypes.pointer(managed)).atexit = False
    return out


def interface(x: Any, number: int = 0) -> GpuArray:
    """The memory behind ``__cuda_array_interface__``, shared.

    Raises:
        DTypeError: its element type does not exist here, or it is not dense row-major.
    """
    import numpy as np

    from ..types.dtypes import as_dtype
    view = x.__cuda_array_interface__
    shape, dtype = tuple(view["shape"]), as_dtype(np.dtype(view["typestr"]))
    strides = view.get("strides")
    if strides is not None and not _dense(shape, tuple(s // dtype.itemsize for s in strides)):
        raise DTypeError("a device tensor is taken over where it is dense and row-major", received=f"strides {strides} of {list(shape)}")
    gpu = driver.gpu(number)
    if view.get("stream") not in (None, gpu.stream.number):
        gpu.enter()
        driver.call("cuCtxSynchronize")
    return GpuArray(gpu, dtype, shape, int(view["data"][0]), keep=x)


__all__ = ["capsule", "interface", "taken"]
