"""Eager kernel calls on the tensors of a device: started there in place, or as a program of one kernel whose results they take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.core import TensorType
from ..tracing import eager, placed
from ..tracing.recorder import Trace, tracing
from ..tracing.tensor import Tensor

if TYPE_CHECKING:
    from .frontend import Built

Build = Callable[..., "Built"]
Record = Callable[[Trace, Mapping[str, Any]], Any]


def device_of_call(tensors: Mapping[str, Any]) -> str | None:
    """The device that holds the arguments; None: the CPU.  A CPU tensor of one number goes along.

    Raises:
        DeviceError: they are on different devices.
    """
    return placed.where([t._p if isinstance(t, Tensor) else t for t in tensors.values()])


def started(device: str, tensors: Mapping[str, Any], build: Build) -> list[Any] | None:
    """Start the kernel in place, where its device can; what it writes, or None.  Memory that other tensors share is copied first."""
    start = placed.LAUNCH.get(device.partition(":")[0])
    if start is None:
        return None
    shared = {n for n, t in tensors.items() if isinstance(t, Tensor) and sys.getrefcount(t._p) > 2}  # its tensor, and the call
    arrays = {n: _there(t, device) for n, t in tensors.items()}
    if any(a.pointer % 16 for a in arrays.values()):
        return None
    built = build({n: TensorType(a.dtype.dtype, a.shape) for n, a in arrays.items()})
    for n in shared & {built.names[i] for i in built.writes}:
        arrays[n] = placed.to_device(arrays[n].to_host(), device)
    if all(arrays[built.names[i]].nbytes for i in built.writes):
        start(built.function, [arrays[n] for n in built.names])
    return _taken([built.names[i] for i in built.writes], [arrays[built.names[i]] for i in built.writes], tensors)


def computed(device: str, tensors: Mapping[str, Any], build: Build, record: Record, programs: dict[Any, Any], key: Any) -> list[Any]:
    """Run the kernel as a program of its own on ``device``; the tensors that it writes take the results.

    Args:
        programs: keeps the program under ``key`` and the arguments' types; None as the key: it is made for this call alone.
    """
    arrays = {n: _there(t, device) for n, t in tensors.items()}
    types = {n: TensorType(a.dtype.dtype, a.shape) for n, a in arrays.items()}
    key = None if key is None else (device, key, tuple(types.items()))
    run = programs.get(key)
    if run is None:
        trace = Trace("kernel")
        params = {n: trace.parameter(t) for n, t in types.items()}
        with tracing(trace):
            out = record(trace, params)
        run = eager.compile_graph(trace.finish(list(out) if isinstance(out, tuple) else [out]), device)
        if key is not None:
            programs[key] = run
    built = build(types)
    return _taken([built.names[i] for i in built.writes], list(run(list(arrays.values()))), tensors)


def _there(t: Any, device: str) -> placed.DeviceArray:
    a = t._p if isinstance(t, Tensor) else t
    return a if isinstance(a, placed.DeviceArray) else placed.to_device(np.asarray(a), device)


def _taken(names: list[str], arrays: list[Any], tensors: Mapping[str, Any]) -> list[Any]:
    """The written arguments with their new contents; those of the host (one number) are read back."""
    for n, a in zip(names, arrays, strict=True):
        target = tensors[n]
        if isinstance(target, np.ndarray):
            target[...] = a.to_host()
        elif isinstance(target._p, placed.DeviceArray):
            target._p = a
        else:
            target._p = a.to_host()
    return [tensors[n] for n in names]


__all__ = ["computed", "device_of_call", "started"]
