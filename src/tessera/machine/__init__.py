"""Target descriptions: plain data, and the questions that shared code asks of it."""

from .amd import AMD_GFX942, AMD_GFX950
from .cpu import AARCH64_NEON, X86_AMX, X86_AVX2, X86_AVX512, Cache, CpuMachine, MatrixInstruction
from .host import cpu_limit, host_cpu
from .intel import INTEL_CPU, INTEL_XE, INTEL_XE_HPC
from .names import BY_NAME, machine
from .nvidia import NVIDIA_SM80, NVIDIA_SM86, NVIDIA_SM89, NVIDIA_SM90
from .simt import SimtMachine

__all__ = ["AARCH64_NEON", "AMD_GFX942", "AMD_GFX950", "BY_NAME", "INTEL_CPU", "INTEL_XE", "INTEL_XE_HPC", "NVIDIA_SM80", "NVIDIA_SM86",
           "NVIDIA_SM89", "NVIDIA_SM90", "X86_AMX", "X86_AVX2", "X86_AVX512", "Cache", "CpuMachine", "MatrixInstruction", "SimtMachine",
           "cpu_limit", "host_cpu", "machine"]
