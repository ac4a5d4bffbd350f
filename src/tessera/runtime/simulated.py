"""Simulated devices: memory of the host under a device's name, and the host's compiler behind it.

A program on a simulated device runs on the CPU with the CPU's bits; what is real is where tensors live: results stay on the device,
operands on two devices are refused, and data move only when they are told to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.core import Function
from ..tracing import eager
from ..tracing.placed import DeviceArray, placed_dtype
from ..types.dtypes import as_dtype


class SimulatedArray(DeviceArray):
    """An array of the host that lives on the simulated device ``device`` (``simulated:0``)."""

    __slots__ = ("host",)

    def __init__(self, host: np.ndarray[Any, Any], device: str):
        self.host, self.shape, self.pointer = host, host.shape, host.ctypes.data
        self.dtype = placed_dtype(as_dtype(host.dtype), device)

    def to_host(self) -> np.ndarray[Any, Any]:
        return self.host.copy()

    def dlpack(self) -> Any:
        from .capsules import lent_array
        return lent_array(self.host, self.dtype.dtype)

    def dlpack_device(self) -> tuple[int, int]:
        place: tuple[int, int] = self.host.__dlpack_device__()
        return place


class _Compiler:
    """``compile(fn)`` for one simulated device."""

    def __init__(self, device: str):
        self.device = device

    def compile(self, fn: Function) -> Callable[[Sequence[Any]], list[SimulatedArray]]:
        run, device = eager.compile_graph(fn), self.device

        def call(arrays: Sequence[Any]) -> list[SimulatedArray]:
            return [SimulatedArray(a, device) for a in run([a.host if type(a) is SimulatedArray else a for a in arrays])]

        return call


def compiler(device: str) -> _Compiler:
    """The compiler for a simulated device."""
    return _Compiler(device)


def upload(a: np.ndarray[Any, Any], device: str) -> SimulatedArray:
    """A copy of a host array on a simulated device."""
    return SimulatedArray(np.array(a, order="C"), device)


__all__ = ["SimulatedArray", "compiler", "upload"]
