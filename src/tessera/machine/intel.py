"""Intel's OpenCL devices: GPUs, and the CPU runtime that runs the same SPIR-V."""

from __future__ import annotations

from .simt import SimtMachine

INTEL_CPU = SimtMachine("Intel OpenCL on a CPU", "intel", "spirv64-unknown-unknown", "", (), lanes=32, block_threads=32,
                        max_threads=256, shared_bytes=128 << 10, units=8, resident_blocks=64, global_bandwidth=4e10)
INTEL_XE = SimtMachine("Intel Xe GPU", "intel", "spirv64-unknown-unknown", "", (), lanes=16, block_threads=128,
                       max_threads=512, shared_bytes=64 << 10, units=128, resident_blocks=512, global_bandwidth=1e12)

__all__ = ["INTEL_CPU", "INTEL_XE"]
