"""Tensors in the memory of another device: what a Tensor's payload is there.

The payload's ``dtype`` says where the tensor lives as well as what it holds (:class:`PlacedDType`), so every table that is keyed by
dtypes and shapes keeps devices apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DeviceError, DTypeError
from ..types.dtypes import DType
from .tensor import _OF_NUMPY, Tensor, make, ndarray


class PlacedDType:
    """An element type on a device; one object for each pair."""

    __slots__ = ("device", "dtype")

    def __init__(self, dtype: DType, device: str):
        self.dtype, self.device = dtype, device

    def __repr__(self) -> str:
        return f"{self.dtype} on {spoken(self.device)}"


_placed: dict[tuple[str, str], PlacedDType] = {}


def placed_dtype(dtype: DType, device: str) -> PlacedDType:
    """The element type ``dtype`` on a device."""
    key = (dtype.name, device)
    found = _placed.get(key)
    if found is None:
        found = _placed[key] = PlacedDType(dtype, device)
        _OF_NUMPY[found] = dtype
    return found


def stored(dtype: DType) -> Any:
    """NumPy's type of an element in device memory: 4-bit integers are extended to a byte, whatever the host keeps in its upper half."""
    return dtype.np if dtype.bits != 4 or not dtype.is_integer else np.int8 if dtype.kind == "int" else np.uint8


TAKE: Callable[[Any], DeviceArray] | None = None
"""Another library's device tensor (DLPack) as a payload; filled when the package is assembled."""
TAKE_ON_HOST: Callable[[Any], np.ndarray[Any, Any]] | None = None
"""Another library's tensor of the host (DLPack) as an array, in element types that NumPy's own reader lacks; filled likewise."""
MOVE: dict[str, Callable[[Any, str], DeviceArray]] = {}
"""Kinds of devices ("gpu", "simulated") -> (host array, device) -> its copy there; filled when the package is assembled."""


LAUNCH: dict[str, Callable[[Any, Any], None]] = {}
"""Kinds of devices -> (Tile function, its buffers on the device): run it there, in place; filled when the package is assembled."""


class DeviceArray:
    """Dense row-major memory on a device.  A device's runtime derives its own class.

    Attributes:
        shape, dtype: sizes, and a :class:`PlacedDType`.
        pointer: the address on the device.
    """

    __slots__ = ("__weakref__", "dtype", "pointer", "shape")
    shape: tuple[int, ...]
    dtype: PlacedDType
    pointer: int

    @property
    def nbytes(self) -> int:
        n = self.dtype.dtype.itemsize
        for d in self.shape:
            n *= d
        return n

    @property
    def size(self) -> int:
        return self.nbytes // self.dtype.dtype.itemsize

    def to_host(self) -> np.ndarray[Any, Any]:
        """The values, once the device has made them."""
        raise NotImplementedError

    def dlpack(self) -> Any:
        """A DLPack capsule of the memory."""
        raise self._not_lent()

    def dlpack_device(self) -> tuple[int, int]:
        """DLPack's number of the device's kind, and which one."""
        raise self._not_lent()

    def _not_lent(self) -> BufferError:
        return BufferError(f"the memory of {spoken(self.dtype.device)} has no DLPack form; copy it to the CPU first: x.cpu()")

    def cuda_interface(self) -> dict[str, Any]:
        """``__cuda_array_interface__``, version 3."""
        raise AttributeError("__cuda_array_interface__")


def where(payloads: Any) -> str | None:
    """The device of a computation's operands; None: the CPU.  CPU scalars go along with any device.

    Raises:
        DeviceError: operands live on different devices.
    """
    found: str | None = None
    for p in payloads:
        if isinstance(p, DeviceArray):
            if found is not None and p.dtype.device != found:
                raise _mixed(found, p.dtype.device)
            found = p.dtype.device
    if found is not None:
        for p in payloads:
            if type(p) is ndarray and any(s for s, n in zip(p.strides, p.shape, strict=True) if n > 1):  # else one number, stretched
                raise _mixed("cpu", found)
    return found


def from_foreign(x: Any) -> np.ndarray[Any, Any]:
    """Another library's tensor of the host as an array that shares its memory (a copy where only ``__array__`` gives it).

    Raises:
        DeviceError: it lives on a device.
        DTypeError: its library does not lend it, or its element type does not exist here.
    """
    device = x.__dlpack_device__() if hasattr(x, "__dlpack_device__") else (1, 0)
    if int(device[0]) != 1:
        raise DeviceError(f"a {type(x).__name__} on a device (DLPack's {int(device[0])}, {int(device[1])}) is no array of the host",
                          hints=["Take it over where it is: ts.from_dlpack(x)", "Move it to the CPU first: x.cpu()"])
    readers: list[Any] = [np.from_dlpack, TAKE_ON_HOST, np.asarray if hasattr(x, "__array__") else None]
    reasons: list[Exception] = []
    for read in readers:
        if read is None:
            continue
        try:
            a: np.ndarray[Any, Any] = read(x)
            return a
        except (BufferError, RuntimeError, TypeError, ValueError, DTypeError) as e:
            reasons.append(e)
    detach = hasattr(x, "detach") and getattr(x, "requires_grad", False)
    raise DTypeError(f"a {type(x).__name__} gives no array: {str(reasons[0]).partition(chr(10))[0]}",
                     received=f"{getattr(x, 'dtype', '?')}{list(getattr(x, 'shape', ()))}",
                     hints=["Detach it first: x.detach()" if detach else "Convert it to f32 in the other library first"]) from None


def returned(a: Any, like: DeviceArray) -> DeviceArray:
    """A payload on the device of ``like``: a host array is copied there."""
    return a if isinstance(a, DeviceArray) else to_device(a, like.dtype.device)


def to_device(a: np.ndarray[Any, Any], device: str) -> DeviceArray:
    """A copy of a host array on a device."""
    return MOVE[device.partition(":")[0]](a, device)


def beside(x: Tensor, made: Any) -> Tensor:
    """A tensor of ``made``, an array of the host or a tensor, on the device of ``x``; what is traced stays as it is."""
    a = made._p if isinstance(made, Tensor) else made
    if isinstance(x._p, DeviceArray) and type(a) is ndarray:
        a = returned(a, x._p)
    return make(a)


def spoken(device: str) -> str:
    """The name by which users know a payload's device: a simulated one (``simulated:0``) goes by ``gpu:0``."""
    kind, _, number = device.partition(":")
    return f"gpu:{number}" if kind == "simulated" else device


def payload_name(device: Any) -> str | None:
    """A :class:`tessera.device.Device` as payloads name it; None: the CPU."""
    name = str.__str__(device)
    return None if name == "cpu" else f"simulated:{device.number}" if device.simulated else name


def _mixed(a: str, b: str) -> DeviceError:
    a, b = spoken(a), spoken(b)
    return DeviceError(f"operands live on different devices: {a} and {b}", expected="one device", received=f"{a} and {b}",
                       sentence="Data move between devices only when they are told to.",
                       hints=[f'Move one of them: x.to("{b}")', "Python numbers and 0-d CPU tensors go along with any device"])


__all__ = [
    "DeviceArray", "PlacedDType", "beside", "from_foreign", "payload_name", "placed_dtype", "returned", "spoken", "stored", "to_device",
    "where"]
