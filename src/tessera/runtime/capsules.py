"""DLPack capsules: memory as other libraries lend and take it.

Layout: ``dlpack.h``, version 0.8 (``DLManagedTensor``), which every library still reads.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..types import dtypes as dt
from ..types.dtypes import DType

_CODES = {"int": 0, "uint": 1, "float": 2, "complex": 5, "bool": 6}
_SPECIAL = {"bf16": 4, "fp8_e4m3": 10, "fp8_e5m2": 12}


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64))


class Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(Managed))
Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))
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


def code_of(dtype: DType) -> int:
    code = _SPECIAL.get(dtype.name, _CODES.get(dtype.kind) if dtype.bits in (8, 16, 32, 64, 128) or dtype.kind == "bool" else None)
    if code is None:
        raise BufferError(f"DLPack has no form for {dtype}")
    return code


def lent(pointer: int, device: tuple[int, int], dtype: DType, shape: tuple[int, ...], owner: Any) -> Any:
    """A capsule of dense memory, which ``owner`` keeps alive until the taker lets go.

    Raises:
        BufferError: DLPack has no form for the element type.
    """
    rank = len(shape)
    sizes = (ctypes.c_int64 * max(1, rank))(*shape)
    made = Managed(_Tensor(pointer, *device, rank, code_of(dtype), 8 * dtype.itemsize, 1, sizes, None, 0), None, _release)
    _lent[ctypes.addressof(made)] = (made, sizes, owner)
    return _api.PyCapsule_New(ctypes.addressof(made), b"dltensor", ctypes.cast(_forget, ctypes.c_void_p))


class Opened:
    """What a capsule holds.  :meth:`take` makes it ours: it is given back with the object that is passed."""

    def __init__(self, capsule: Any):
        self._capsule = capsule
        self._managed = Managed.from_address(int(_api.PyCapsule_GetPointer(capsule, b"dltensor") or 0))
        t = self._managed.tensor
        self.dtype = _dtype(t)
        self.shape = tuple(t.shape[i] for i in range(t.ndim))
        self.strides = tuple(t.strides[i] for i in range(t.ndim)) if t.strides else None
        self.pointer = int(t.data or 0) + int(t.byte_offset)

    @property
    def dense(self) -> bool:
        """Whether the elements lie row-major without gaps."""
        return dense(self.shape, self.strides)

    def take(self, holder: Any) -> None:
        """Keep the memory for as long as ``holder`` lives."""
        _api.PyCapsule_SetName(self._capsule, b"used_dltensor")
        if self._managed.deleter:
            weakref.finalize(holder, self._managed.deleter, ctypes.pointer(self._managed)).atexit = False


def _dtype(t: _Tensor) -> DType:
    for d in dt.ALL:
        try:
            if t.lanes == 1 and t.bits == 8 * d.itemsize and t.code == code_of(d):
                return d
        except BufferError:
            continue
    raise DTypeError(f"this DLPack tensor has an element type (code {t.code}, {t.bits} bits) that is not available here")


def dense(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    step = 1
    for n, s in zip(reversed(shape), reversed(strides or ()), strict=False):
        if n != 1 and s != step:
            return False
        step *= n
    return True


def lent_array(a: np.ndarray[Any, Any], dtype: DType) -> Any:
    """A capsule of a host array (copied where it is read-only) in any element type that DLPack has: bf16 and fp8 too.

    The capsule is NumPy's, of integers of that size, under another name: what frees it must be no Python function, because a taker that
    refuses the type lets go of it while its error is on the way.
    """
    code = code_of(dtype)
    whole = a if a.flags.writeable else a.copy()
    made = whole.view(f"u{dtype.itemsize}").__dlpack__() if dtype.itemsize <= 2 else whole.__dlpack__()
    Managed.from_address(int(_api.PyCapsule_GetPointer(made, b"dltensor") or 0)).tensor.code = code
    return made


def taken_array(x: Any) -> np.ndarray[Any, Any]:
    """The host memory of another library's tensor, shared.

    Raises:
        DTypeError: its element type does not exist here.
        BufferError, RuntimeError: the other library does not lend it.
    """
    opened = Opened(x.__dlpack__())
    item = opened.dtype.itemsize
    strides = [s * item for s in opened.strides] if opened.strides is not None else None
    last = sum((n - 1) * s for n, s in zip(opened.shape, strides or (), strict=False)) if strides and all(opened.shape) else 0
    nbytes = last + item if strides else max(1, int(np.prod(opened.shape, dtype=np.int64)) * item)
    memory = (ctypes.c_uint8 * nbytes).from_address(opened.pointer) if opened.pointer else (ctypes.c_uint8 * nbytes)()
    opened.take(memory)
    buffer: Any = memory
    out: np.ndarray[Any, Any] = np.ndarray(opened.shape, opened.dtype.np, buffer, strides=strides)
    out.flags.writeable = False
    return out


__all__ = ["Managed", "Opened", "code_of", "dense", "lent", "lent_array", "taken_array"]
