"""Measuring one candidate: the metrics, and a clock that waits for the device."""

from __future__ import annotations

import statistics
import time as _time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, DeviceError, suggest

BUDGET = 0.1        # seconds that one candidate is measured for
LEAST, MOST = 5, 200  # timed calls
RAPL = Path("/sys/class/powercap")


def time() -> float:
    """Seconds on a monotonic clock, after everything that was launched before has finished."""
    synchronize()
    return _time.perf_counter()


def synchronize() -> None:
    """Wait for the devices; calls on the CPU have finished when they return."""
    from .. import runtime
    runtime.synchronize()


def latency(call: Callable[[], Any]) -> float:
    """Median seconds of a call, warm, over some calls (at least 5)."""
    start = time()
    call()
    once = max(time() - start, 1e-7)
    seconds: list[float] = []
    for _ in range(max(LEAST, min(MOST, int(BUDGET / once)))):
        start = time()
        call()
        seconds.append(time() - start)
    return statistics.median(seconds)


def memory(call: Callable[[], Any]) -> float:
    """Bytes of tensor memory at the peak of a call, beyond what is in use before it."""
    from ..runtime.allocator import ALLOCATOR
    call()
    ALLOCATOR.reset_peak()
    before = ALLOCATOR.usage()["in_use"]
    kept = call()
    peak = ALLOCATOR.usage()["peak"] - before
    del kept
    return float(peak)


def energy(call: Callable[[], Any]) -> float:
    """Joules of a call, from the processor's own counters.

    Raises:
        DeviceError: the system does not let this process read them.
    """
    counters = sorted(RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
    counters = [c for c in counters if c.parent.name.count(":") == 1]
    try:
        before = [int(c.read_text()) for c in counters]
    except OSError:
        before = []
    if not before:
        raise DeviceError("the energy of a call cannot be measured here: no readable counters", expected=f"{RAPL}/intel-rapl:0/energy_uj",
                          hints=['Use metric="latency"', "Let the process read the counters (they belong to root)"])
    calls, start = 0, _time.perf_counter()
    while calls < LEAST or _time.perf_counter() - start < BUDGET:
        call()
        calls += 1
    synchronize()
    used = 0
    for counter, was in zip(counters, before, strict=True):
        now = int(counter.read_text())
        if now < was:  # the counter started over
            now += int((counter.parent / "max_energy_range_uj").read_text())
        used += now - was
    return used * 1e-6 / calls


METRICS: dict[str, Callable[[Callable[[], Any]], float]] = {
    "latency": latency, "throughput": lambda call: -1.0 / latency(call), "memory": memory, "energy": energy,
}
"""Name → a measurement of a call; less is better (throughput, calls a second, is negative)."""


def metric(name: Any) -> Callable[[Callable[[], Any]], float]:
    """The measurement called ``name``, or a user's own function of a call.

    Raises:
        ArgumentError: there is none.
    """
    if callable(name):
        return name  # type: ignore[no-any-return]
    if name not in METRICS:
        raise ArgumentError(f"there is no metric {name!r}{suggest(str(name), METRICS)}", expected=", ".join(METRICS))
    return METRICS[name]


__all__ = ["METRICS", "latency", "metric", "synchronize", "time"]
