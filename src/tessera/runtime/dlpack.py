"""DLPack for device memory, in both directions."""

from __future__ import annotations

from typing import Any

from ..errors import DeviceError, DTypeError
from ..targets.nvidia import driver
from .capsules import Opened, dense, lent
from .gpu import GpuArray

CUDA = 2


def capsule(a: GpuArray) -> Any:
    """A capsule of an array's memory, which lives until its taker lets go."""
    return lent(a.pointer, (CUDA, a.gpu.number), a.dtype.dtype, a.shape, a)


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
    opened = Opened(x.__dlpack__(stream=gpu.stream.number))
    if not opened.dense:
        raise DTypeError("a device tensor is taken over where it is dense and row-major",
                         received=f"strides {opened.strides} of {list(opened.shape)}",
                         hints=["Call .contiguous() in the other library first"])
    out = GpuArray(gpu, opened.dtype, opened.shape, opened.pointer, keep=opened)
    opened.take(out)
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
    if strides is not None and not dense(shape, tuple(s // dtype.itemsize for s in strides)):
        raise DTypeError("a device tensor is taken over where it is dense and row-major", received=f"strides {strides} of {list(shape)}")
    gpu = driver.gpu(number)
    if view.get("stream") not in (None, gpu.stream.number):
        gpu.enter()
        driver.call("cuCtxSynchronize")
    return GpuArray(gpu, dtype, shape, int(view["data"][0]), keep=x)


__all__ = ["capsule", "interface", "taken"]
