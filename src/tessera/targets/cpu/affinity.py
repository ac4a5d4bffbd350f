"""How many processors this process may use: its affinity mask, bounded by its cgroup's CPU quota."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def usable_cpus() -> int:
    """At least 1: the processors in the affinity mask, or fewer where a cgroup limits the time."""
    try:
        n = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        n = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, n if quota is None else min(n, max(1, round(quota))))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The CPU quota in processors (cgroup v2, then v1); None where there is no limit."""
    smallest: float | None = None
    for directory in _cgroup_directories(root, membership):
        quota = _read_quota(directory)
        if quota is not None:
            smallest = quota if smallest is None else min(smallest, quota)
    return smallest


def _cgroup_directories(root: Path, membership: Path) -> list[Path]:
    """The process's cgroup and its ancestors: a limit anywhere above counts."""
    out = [root, root / "cpu"]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return out
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        base = root if not controllers else root / "cpu" if "cpu" in controllers.split(",") else None
        if base is None:
            continue
        node = base / path.lstrip("/")
        while node not in (base, node.parent):
            out.append(node)
            node = node.parent
    return out


def _read_quota(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        q = int((directory / "cpu.cfs_quota_us").read_text())
        p = int((directory / "cpu.cfs_period_us").read_text())
        return q / p if q > 0 and p > 0 else None
    except (OSError, ValueError):
        return None
