"""Models of performance: analytical (roofline) and empirical (nearby measurements)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from ..scheduling.decisions import Schedule
from .measure import time
from .space import Config


class PerformanceModel:
    """The protocol of performance models, with what interpolating ones need.

    A subclass has ``predict(kernel)`` or ``predict(kernel, config)`` → seconds.  It may keep ``measurements``: configuration → seconds
    (a list or a number).
    """

    measurements: Any = None

    def predict(self, kernel: Any, *args: Any) -> float:
        """Seconds of one call of a kernel (under a configuration)."""
        raise ArgumentError(f"{type(self).__name__} has no predict(kernel)",
                            hints=["Define predict(self, kernel) or predict(self, kernel, config)"])

    def record(self, config: Any, seconds: float) -> None:
        """Remember a measurement."""
        if self.measurements is None:
            self.measurements = defaultdict(list)
        self.measurements[Config(_mapping(config))].append(seconds)

    def find_similar_configs(self, config: Any, most: int = 4) -> list[tuple[Config, float, float]]:
        """Measured configurations near ``config``: (configuration, seconds, distance), nearest first.

        The distance is that of the parameters' logarithms; one whose parameters differ in name, or that lies more than a factor of
        four away along any of them, is not similar.
        """
        wanted = _mapping(config)
        out = []
        for known, seconds in (self.measurements or {}).items():
            other = _mapping(known)
            if set(other) != set(wanted):
                continue
            steps = [_distance(wanted[n], other[n]) for n in wanted]
            if all(s <= 2.0 for s in steps):
                out.append((Config(other), statistics.median(seconds) if isinstance(seconds, Sequence) else float(seconds),
                            math.sqrt(sum(s * s for s in steps))))
        return sorted(out, key=lambda x: x[2])[:most]

    @staticmethod
    def interpolate(similar: Sequence[tuple[Config, float, float]], config: Any) -> float:
        """Seconds between those of similar configurations: their logarithms, weighted by the inverse square of the distance.

        Raises:
            ArgumentError: there is no similar configuration.
        """
        if not similar:
            raise ArgumentError("there is nothing to interpolate between", hints=["Measure some configurations first"])
        exact = next((s for _, s, d in similar if d == 0), None)
        if exact is not None:
            return exact
        weights = [1 / (d * d) for *_, d in similar]
        return math.exp(sum(w * math.log(s) for w, (_, s, _) in zip(weights, similar, strict=True)) / sum(weights))


def _mapping(config: Any) -> dict[str, Any]:
    if isinstance(config, Schedule):
        return config.decisions
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, tuple | frozenset):  # items of a mapping, as a dictionary's key
        return dict(config)
    raise ArgumentError(f"a configuration is a mapping or a schedule, not a {type(config).__name__}")


def _distance(a: Any, b: Any) -> float:
    if isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool):
        return abs(math.log2(max(a, 0) + 1e-9 if a <= 0 else a) - math.log2(b if b > 0 else 1e-9)) if a != b else 0.0
    return 0.0 if a == b else math.inf


class RooflineModel(PerformanceModel):
    """The roofline (S. Williams, A. Waterman, D. Patterson, CACM 52(4), 2009): a kernel is bound by arithmetic or by memory.

    Args:
        device: has ``peak_flops()`` (operations a second) and ``peak_bandwidth()`` (bytes a second).
    """

    def __init__(self, device: Any):
        self.peak_flops: float = device.peak_flops()
        self.peak_bandwidth: float = device.peak_bandwidth()

    def bound(self, kernel: Any) -> str:
        """"memory" or "compute": what limits a kernel that has example arguments."""
        return "memory" if kernel.arithmetic_intensity() < self.peak_flops / self.peak_bandwidth else "compute"

    def predict(self, kernel: Any, *args: Any) -> float:
        seconds: float = max(kernel.count_flops() / self.peak_flops, kernel.count_memory_bytes() / self.peak_bandwidth)
        return seconds


class EmpiricalModel(PerformanceModel):
    """Seconds from measurements: interpolated between similar configurations, measured where there is none."""

    def __init__(self, runs: int = 100) -> None:
        self.runs = runs
        self.measurements = defaultdict(list)

    def measure(self, kernel: Any, config: Any) -> float:
        """The median of ``runs`` timed runs of a kernel on its example arguments, after one to warm up."""
        kernel.run(config)
        seconds = []
        for _ in range(self.runs):
            start = time()
            kernel.run(config)
            seconds.append(time() - start)
        median = statistics.median(seconds)
        self.record(config, median)
        return median

    def predict(self, kernel: Any, *args: Any) -> float:
        similar = self.find_similar_configs(args[0])
        return self.interpolate(similar, args[0]) if similar else self.measure(kernel, args[0])


class ScheduleGenerator:
    """A first schedule from a kernel's arithmetic intensity: above 10 operations a byte it is taken to be bound by arithmetic."""

    threshold = 10.0

    def generate(self, kernel: Any, target: Any = None) -> Schedule:
        """A schedule for a kernel that has example arguments.

        Raises:
            KernelError: it has none.
        """
        if kernel.arithmetic_intensity() > self.threshold:
            return self.compute_bound_schedule(kernel, target)
        return self.memory_bound_schedule(kernel, target)

    def compute_bound_schedule(self, kernel: Any, target: Any = None) -> Schedule:
        """Large tiles that are reused, few stages."""
        return Schedule(tile_m=128, tile_n=128, tile_k=32, warps=8, stages=2, vector_width=4)

    def memory_bound_schedule(self, kernel: Any, target: Any = None) -> Schedule:
        """Smaller tiles, wide accesses and more of them in flight."""
        return Schedule(tile_m=64, tile_n=64, tile_k=64, warps=4, stages=4, vector_width=8)


__all__ = ["EmpiricalModel", "PerformanceModel", "RooflineModel", "ScheduleGenerator"]
