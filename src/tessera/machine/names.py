"""Machines by the names that people give them: the ``--target`` of the command line, ``target_archs=``, ``plan(target=)``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import ArgumentError, suggest
from .amd import AMD_GFX942, AMD_GFX950
from .cpu import AARCH64_NEON, X86_AMX, X86_AVX2, X86_AVX512
from .intel import INTEL_CPU, INTEL_XE, INTEL_XE_HPC
from .nvidia import NVIDIA_SM80, NVIDIA_SM86, NVIDIA_SM89, NVIDIA_SM90

BY_NAME: dict[str, Any] = {
    "avx2": X86_AVX2, "avx512": X86_AVX512, "amx": X86_AMX, "neon": AARCH64_NEON, "intel": INTEL_XE, "intel-cpu": INTEL_CPU,
    "xe-hpc": INTEL_XE_HPC,
    "nvidia": NVIDIA_SM90, "sm_80": NVIDIA_SM80, "sm_86": NVIDIA_SM86, "sm_89": NVIDIA_SM89, "sm_90a": NVIDIA_SM90,
    "sm_90": replace(NVIDIA_SM90, name="NVIDIA Hopper (sm_90)", cpu="sm_90", has_warp_groups=False),
    "amd": AMD_GFX942, "gfx942": AMD_GFX942, "gfx950": AMD_GFX950,
}


def machine(name: str) -> Any:
    """The machine called ``name``.

    Raises:
        ArgumentError: there is none.
    """
    found = BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise ArgumentError(f"there is no target {name!r}{suggest(str(name), BY_NAME)}", expected=", ".join(BY_NAME), received=repr(name))
    return found


__all__ = ["BY_NAME", "machine"]
