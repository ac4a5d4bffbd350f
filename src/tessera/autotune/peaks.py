"""What a device can do: operations and bytes a second, measured by micro-benchmarks of a fraction of a second."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ..types import dtypes as dt
from .measure import time

ROUNDS = 12
SIZES = {"cpu": (1024, 64 << 20), "gpu": (8192, 1 << 30), "intel": (512, 32 << 20)}
"""Kind of device -> (extent of the product's matrices, bytes of what is copied)."""


def _least(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls: a peak is what nothing disturbed."""
    call()
    best = math.inf
    for _ in range(ROUNDS):
        start = time()
        call()
        best = min(best, time() - start)
    return best


def flops(device: Any, dtype: Any = None) -> float:
    """Operations a second of a product of two square matrices of ``dtype``."""
    kind = _kind(device)
    wanted = dt.as_dtype(dtype) if dtype is not None else dt.bf16 if kind == "gpu" else dt.f32
    return _flops(_place(device), kind, wanted.name, _threads())


def bandwidth(device: Any) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    return _bandwidth(_place(device), _kind(device), _threads())


@functools.cache
def _flops(place: str, kind: str, dtype: str, threads: int) -> float:
    import tessera as ts
    n = SIZES[kind][0]
    a, b = ((ts.randn(n, n) * 0.1).to(dt.as_dtype(dtype)).to(place) for _ in range(2))
    return 2.0 * n**3 / _least(lambda: a @ b)


@functools.cache
def _bandwidth(place: str, kind: str, threads: int) -> float:
    import tessera as ts
    x = ts.zeros(SIZES[kind][1] // 4).to(place)
    copy = ts.jit(lambda x: x * 1.5)
    return 2.0 * x.nbytes / _least(lambda: copy(x))


def _kind(device: Any) -> str:
    return "cpu" if device.simulated else str(device.partition(":")[0])


def _place(device: Any) -> str:
    return "cpu" if device.simulated else str.__str__(device)


def _threads() -> int:
    from ..runtime import get_num_threads
    return get_num_threads()


__all__ = ["bandwidth", "flops"]
