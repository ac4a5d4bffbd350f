"""Intel's OpenCL devices: GPUs, and the CPU runtime that runs the same SPIR-V.

Source of the matrix instructions: cl_intel_subgroup_matrix_multiply_accumulate and SPV_INTEL_subgroup_matrix_multiply_accumulate, the
tables for devices whose sub-groups have 16 lanes at least.  How the sums inside one instruction are rounded is not documented.
"""

from __future__ import annotations

from dataclasses import replace

from ..types.dtypes import DType, bf16, f16, f32, int8, int32, uint8
from .cpu import MatrixInstruction
from .simt import Fragments, SimtMachine

_ROUNDING = "products are exact; the sums of one instruction are formed and rounded in an order of the hardware's own"
_EXACT = "exact: products and sums of integers"


def _dpas(lhs: DType, accumulate: DType) -> tuple[MatrixInstruction, Fragments]:
    """8 x 16 results from 32 bytes of k: a lane holds 16 bits of each of eight rows, or a column, of which 32 bits are one register."""
    k = 32 // lhs.itemsize
    each = 2 // lhs.itemsize  # neighbouring k of one row of a lane
    name = f"dpas_8x16x{k}_{lhs}"
    rows, columns = tuple((1 << i, 0) for i in range(3)), tuple((0, 1 << i) for i in range(4))
    fragments = Fragments(
        name, lhs=((*((0, 1 << i) for i in range(each.bit_length() - 1)), *rows), tuple((0, each << i) for i in range(4))),
        rhs=(tuple((1 << i, 0) for i in range(k.bit_length() - 1)), columns), result=(rows, columns))
    return MatrixInstruction(name, "", lhs, lhs, accumulate, 8, 16, k, _ROUNDING if lhs.is_float else _EXACT, False), fragments


_DPAS = (_dpas(bf16, f32), _dpas(f16, f32), _dpas(int8, int32), _dpas(uint8, int32))

# One sub-group a block: the CPU runtime then runs a block as one vector loop, and nothing has to be kept across barriers
# between sub-groups, which its compiler (2026.2) does not always get right.  Shuffles would need the work-group's barrier (it
# answers them with 0 otherwise), in whose lowering it sometimes dies; memory is as fast.
INTEL_CPU = SimtMachine("Intel OpenCL on a CPU", "intel", "spirv64-unknown-unknown", "", (), lanes=16, block_threads=16,
                        max_threads=256, shared_bytes=128 << 10, units=8, resident_blocks=64, global_bandwidth=4e10, block_work=16384,
                        map_unroll=1, llvm_level=0, registers=32, has_shuffles=False)
INTEL_XE = SimtMachine("Intel Xe GPU", "intel", "spirv64-unknown-unknown", "", (), lanes=16, block_threads=128,
                       max_threads=512, shared_bytes=64 << 10, units=128, resident_blocks=512, global_bandwidth=1e12, llvm_level=0,
                       register_bytes=128 << 10)
# Data-centre GPUs (Xe-HPC) and Xe2, whose matrix units serve sub-groups of 16 lanes.  (Those of Xe-HPG serve 8: they are an INTEL_XE.)
INTEL_XE_HPC = replace(INTEL_XE, name="Intel Xe-HPC GPU", max_threads=1024, shared_bytes=128 << 10, global_bandwidth=3.2e12,
                       instructions=tuple(i for i, _ in _DPAS), fragments=tuple(f for _, f in _DPAS))

__all__ = ["INTEL_CPU", "INTEL_XE", "INTEL_XE_HPC"]
