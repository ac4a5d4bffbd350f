"""Target descriptions: plain data, and the questions that shared code asks of it."""

from .cpu import AARCH64_NEON, X86_AMX, X86_AVX2, X86_AVX512, Cache, CpuMachine, MatrixInstruction
from .host import cpu_limit, host_cpu

__all__ = ["AARCH64_NEON", "X86_AMX", "X86_AVX2", "X86_AVX512", "Cache", "CpuMachine", "MatrixInstruction", "cpu_limit",
           "host_cpu"]
