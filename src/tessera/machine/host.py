"""The CPU this process runs on, read from the kernel's own files: no library is loaded for it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import lru_cache
from pathlib import Path

from .cpu import AARCH64_NEON, AVX2_FEATURES, AVX512_FEATURES, X86_AVX2, Cache, CpuMachine

# The kernel's name of a flag -> LLVM's name of the feature.  Features that code generation never uses are left out:
# they would only split the compile cache.
X86_FLAGS = {
    "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "popcnt": "popcnt", "cx16": "cx16",
    "avx": "avx", "f16c": "f16c", "avx2": "avx2", "bmi1": "bmi", "bmi2": "bmi2", "abm": "lzcnt", "movbe": "movbe",
    "fma": "fma", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg", "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni", "gfni": "gfni",
    "amx_tile": "amx-tile", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8",
}
ARM_FLAGS = {"asimd": "neon", "fp": "fp-armv8", "fphp": "fullfp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
             "atomics": "lse"}

_ARCH_REQ_XCOMP_PERM, _XFEATURE_TILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The first processor's entries of ``/proc/cpuinfo``."""
    out: dict[str, str] = {}
    for line in text.strip().split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        out[key.strip()] = value.strip()
    return out


def x86_features(flags: set[str]) -> tuple[str, ...]:
    """LLVM's features for the kernel's flags, in the table's order.

    A feature counts only with everything it builds on: a hypervisor may hide one part of a group.
    """
    have = {llvm for kernel, llvm in X86_FLAGS.items() if kernel in flags}
    if not have.issuperset(AVX512_FEATURES):
        have = {f for f in have if not f.startswith(("avx512", "amx"))}
    if "amx-tile" not in have:
        have -= {"amx-bf16", "amx-int8"}
    return tuple(f for f in X86_FLAGS.values() if f in have)


def x86_tuning(vendor: str, features: tuple[str, ...]) -> str:
    """The CPU whose scheduling model fits, judged by features: hypervisors change model numbers."""
    if vendor == "AuthenticAMD":
        return "znver4" if "avx512bf16" in features else "znver3"
    if "amx-tile" in features:
        return "sapphirerapids"
    if "avx512vbmi2" in features:
        return "icelake-server"
    return "skylake-avx512" if "avx512f" in features else "haswell"


def cpu_limit() -> int:
    """Hardware threads this process may use: its affinity, cut by the CPU quota of its control groups."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count, int(quota + 0.999)) if quota else count)


def _cgroup_quota() -> float | None:
    limits = []
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    paths = [Path("/sys/fs/cgroup")]
    for line in groups:
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[0] == "0":
            p = Path("/sys/fs/cgroup") / parts[2].lstrip("/")
            paths += [p, *[q for q in p.parents if str(q).startswith("/sys/fs/cgroup/")]]
    for p in paths:
        quota = _read(p / "cpu.max").split()
        if len(quota) == 2 and quota[0] != "max":
            limits.append(int(quota[0]) / int(quota[1]))
    quota_us, period_us = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota_us and period_us and int(quota_us) > 0:
        limits.append(int(quota_us) / int(period_us))
    return min(limits, default=None)


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def read_caches(root: str = "/sys/devices/system/cpu/cpu0/cache") -> tuple[Cache, ...]:
    """The data and unified caches of the first CPU, nearest first; empty where the kernel does not say."""
    found = []
    for d in sorted(Path(root).glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(d / "size"))
        if _read(d / "type") == "Instruction" or not size:
            continue
        nbytes = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
        found.append(Cache(int(_read(d / "level") or 1), nbytes, int(_read(d / "ways_of_associativity") or 8),
                           int(_read(d / "coherency_line_size") or 64), _count_cpus(_read(d / "shared_cpu_list"))))
    return tuple(sorted(found, key=lambda c: c.level))


def _count_cpus(text: str) -> int:
    n = 0
    for part in filter(None, text.split(",")):
        lo, _, hi = part.partition("-")
        n += int(hi or lo) - int(lo) + 1
    return max(1, n)


def permit_amx() -> bool:
    """Ask the kernel to let this process use AMX tiles (once a process; threads and forks inherit it)."""
    try:
        syscall = ctypes.CDLL(None).syscall
        return int(syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_TILEDATA)) == 0
    except (AttributeError, OSError):
        return False


@lru_cache(maxsize=1)
def host_cpu() -> CpuMachine:
    """The description of this computer's CPU.

    Where the kernel does not say what the CPU has (no ``/proc``), it is taken to have AVX2 or NEON: the least that
    Tessera compiles for.
    """
    info = parse_cpuinfo(_read("/proc/cpuinfo"))
    system = {"Linux": "unknown-linux-gnu", "Darwin": "apple-darwin", "Windows": "pc-windows-msvc"}.get(
        platform.system(), "unknown-linux-gnu")
    threads, caches = cpu_limit(), read_caches()
    if platform.machine().lower() in ("aarch64", "arm64"):
        flags = set(info.get("Features", "fp asimd").split())
        features = tuple(v for k, v in ARM_FLAGS.items() if k in flags)
        return CpuMachine("AArch64 with NEON", f"aarch64-{system}", "generic", "generic", features, 128, 32,
                          caches or AARCH64_NEON.caches, threads)
    features = x86_features(set(info["flags"].split())) if "flags" in info else AVX2_FEATURES
    if "amx-tile" in features and not permit_amx():
        features = tuple(f for f in features if not f.startswith("amx"))
    wide = "avx512vl" in features
    level = "x86-64-v4" if wide else "x86-64-v3" if set(features) >= set(AVX2_FEATURES) else "x86-64"
    name = info.get("model name", "x86-64")
    return CpuMachine(name, f"x86_64-{system}", level, x86_tuning(info.get("vendor_id", ""), features), features,
                      512 if wide else 256 if "avx" in features else 128, 32 if wide else 16, caches or X86_AVX2.caches,
                      threads)
