"""NVIDIA GPUs by compute capability, and the matrix instructions of a warp (``mma.sync``).

Source: PTX ISA 9.0, "Warp-level matrix instructions: mma" and its figures of where lanes hold which elements.
"""

from __future__ import annotations

from dataclasses import replace

from ..types.dtypes import DType, bf16, f16, f32, fp8_e4m3, fp8_e5m2, int8, int32, uint8
from .cpu import MatrixInstruction
from .simt import Fragments, SimtMachine

_ROUNDING = "products are exact; the sums of one instruction are formed and rounded in an order of the hardware's own"
_FEW_BITS = f"{_ROUNDING}, which keeps fewer bits than f32; four instructions at a time are summed so, and those sums in f32"
_EXACT = "exact: products and sums of integers"


def _mma(k: int, lhs: DType, rhs: DType, accumulate: DType = f32) -> tuple[MatrixInstruction, Fragments]:
    """m16n8k``k``: lane ``4 g + t`` holds rows ``g`` and ``g + 8``, and of k the ``t``-th 32 bits of each 128."""
    name = f"mma_16x8x{k}_{lhs}" + ("" if rhs is lhs else f"_{rhs}")
    each = 4 // lhs.itemsize  # neighbouring k of one register
    mine = [1 << i for i in range(each.bit_length() - 1)]
    more = [4 * each << i for i in range((k // (4 * each)).bit_length() - 1)]
    lanes = (each, 2 * each)
    fragments = Fragments(
        name,
        lhs=((*((0, x) for x in mine), (8, 0), *((0, x) for x in more)), (*((0, x) for x in lanes), (1, 0), (2, 0), (4, 0))),
        rhs=(tuple((x, 0) for x in (*mine, *more)), (*((x, 0) for x in lanes), (0, 1), (0, 2), (0, 4))),
        result=(((0, 1), (8, 0)), ((0, 2), (0, 4), (1, 0), (2, 0), (4, 0))))
    rounding = _EXACT if not lhs.is_float else _FEW_BITS if lhs.itemsize == 1 else _ROUNDING
    return MatrixInstruction(name, "", lhs, rhs, accumulate, 16, 8, k, rounding, False), fragments


_SM80 = (_mma(16, bf16, bf16), _mma(16, f16, f16), _mma(32, int8, int8, int32), _mma(32, uint8, uint8, int32),
         _mma(8, bf16, bf16), _mma(8, f16, f16), _mma(16, int8, int8, int32), _mma(16, uint8, uint8, int32))
_FP8 = (fp8_e4m3, fp8_e5m2)
_SM89 = (*_SM80, *(_mma(32, a, b) for a in _FP8 for b in _FP8))

NVIDIA_SM80 = SimtMachine("NVIDIA Ampere (sm_80)", "nvidia", "nvptx64-nvidia-cuda", "sm_80", ("ptx80",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=163 << 10, units=108, resident_blocks=864,
                          global_bandwidth=2.0e12, instructions=tuple(i for i, _ in _SM80), fragments=tuple(f for _, f in _SM80),
                          has_async_copies=True, has_special_functions=True, tile_elements=16384)
# GeForce RTX 30 and A10 are sm_86, GeForce RTX 40 and L4 are sm_89: the instructions of sm_80, less shared memory.
NVIDIA_SM86 = replace(NVIDIA_SM80, name="NVIDIA Ampere (sm_86)", cpu="sm_86", shared_bytes=99 << 10, units=84, resident_blocks=672,
                      global_bandwidth=7.6e11)
NVIDIA_SM89 = replace(NVIDIA_SM86, name="NVIDIA Ada (sm_89)", cpu="sm_89", units=128, resident_blocks=1024, global_bandwidth=1.0e12,
                      features=("ptx84",), instructions=tuple(i for i, _ in _SM89), fragments=tuple(f for _, f in _SM89))
NVIDIA_SM90 = SimtMachine("NVIDIA Hopper (sm_90a)", "nvidia", "nvptx64-nvidia-cuda", "sm_90a", ("ptx86",), lanes=32,
                          block_threads=128, max_threads=1024, shared_bytes=227 << 10, units=132, resident_blocks=1056,
                          global_bandwidth=4.8e12, has_warp_groups=True, instructions=NVIDIA_SM89.instructions,
                          fragments=NVIDIA_SM89.fragments, has_async_copies=True, has_special_functions=True, tile_elements=16384)

__all__ = ["NVIDIA_SM80", "NVIDIA_SM86", "NVIDIA_SM89", "NVIDIA_SM90"]
