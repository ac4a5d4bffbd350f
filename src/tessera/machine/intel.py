"""Intel's OpenCL devices: GPUs, and the CPU runtime that runs the same SPIR-V."""

from __future__ import annotations

from .simt import SimtMachine

# One sub-group a block: the CPU runtime then runs a block as one vector loop, and nothing has to be kept across barriers
# between sub-groups, which its compiler (2026.2) does not always get right.  Shuffles would need the work-group's barrier (it
# answers them with 0 otherwise), in whose lowering it sometimes dies; memory is as fast.
INTEL_CPU = SimtMachine("Intel OpenCL on a CPU", "intel", "spirv64-unknown-unknown", "", (), lanes=16, block_threads=16,
                        max_threads=256, shared_bytes=128 << 10, units=8, resident_blocks=64, global_bandwidth=4e10, block_work=16384,
                        map_unroll=1, llvm_level=0, registers=16, has_shuffles=False)
INTEL_XE = SimtMachine("Intel Xe GPU", "intel", "spirv64-unknown-unknown", "", (), lanes=16, block_threads=128,
                       max_threads=512, shared_bytes=64 << 10, units=128, resident_blocks=512, global_bandwidth=1e12, llvm_level=0)

__all__ = ["INTEL_CPU", "INTEL_XE"]
