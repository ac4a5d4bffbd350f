"""AMD data-centre GPUs and their matrix instructions (MFMA).

Source: "AMD Instinct MI300" and "CDNA 4" instruction set architecture references, chapter Matrix Arithmetic Instructions; AMD's matrix
instruction calculator for where lanes hold which elements.  How the sums inside one instruction are rounded is not documented.
"""

from __future__ import annotations

from ..types.dtypes import DType, bf16, f16, f32, fp8_e4m3, int8, int32
from .cpu import MatrixInstruction
from .simt import Fragments, SimtMachine

_ROUNDING = "products are exact; the sums of one instruction are formed and rounded in an order of the hardware's own"
_EXACT = "exact: products and sums of integers"


def _mfma(edge: int, k: int, lhs: DType, accumulate: DType = f32) -> tuple[MatrixInstruction, Fragments]:
    """An instruction on ``edge`` x ``edge`` results: 64 lanes are ``edge`` rows (columns) times 64 / edge groups of neighbouring k."""
    name = f"mfma_{edge}x{edge}x{k}_{lhs}"
    groups = 64 // edge
    each = k // groups  # neighbouring k of one lane
    along = tuple(1 << i for i in range(edge.bit_length() - 1))
    mine = tuple(1 << i for i in range(each.bit_length() - 1))
    group = tuple(each << i for i in range(groups.bit_length() - 1))
    rows = tuple((4 << i, 0) for i in range(groups.bit_length() - 1))  # groups of lanes hold four rows each, in turn
    more = tuple((4 * groups << i, 0) for i in range((edge // (4 * groups)).bit_length() - 1))
    fragments = Fragments(
        name,
        lhs=(tuple((0, x) for x in mine), (*((x, 0) for x in along), *((0, x) for x in group))),
        rhs=(tuple((x, 0) for x in mine), (*((0, x) for x in along), *((x, 0) for x in group))),
        result=(((1, 0), (2, 0), *more), (*((0, x) for x in along), *rows)))
    rounding = _ROUNDING if lhs.is_float else _EXACT
    return MatrixInstruction(name, "mai-insts", lhs, lhs, accumulate, edge, edge, k, rounding, False), fragments


_GFX942 = (_mfma(32, 8, bf16), _mfma(32, 8, f16), _mfma(32, 16, int8, int32), _mfma(16, 16, bf16), _mfma(16, 16, f16),
           _mfma(16, 32, int8, int32))
_GFX950 = (_mfma(32, 16, bf16), _mfma(32, 16, f16), _mfma(32, 16, fp8_e4m3), _mfma(32, 32, int8, int32), _mfma(16, 32, bf16),
           _mfma(16, 32, f16), _mfma(16, 32, fp8_e4m3), _mfma(16, 64, int8, int32), *_GFX942)

AMD_GFX942 = SimtMachine("AMD CDNA 3 (gfx942)", "amd", "amdgcn-amd-amdhsa", "gfx942", (), lanes=64, block_threads=256,
                         max_threads=1024, register_bytes=512 << 10, shared_bytes=64 << 10, units=304, resident_blocks=1216,
                         global_bandwidth=5.3e12,
                         instructions=tuple(i for i, _ in _GFX942), fragments=tuple(f for _, f in _GFX942))
AMD_GFX950 = SimtMachine("AMD CDNA 4 (gfx950)", "amd", "amdgcn-amd-amdhsa", "gfx950", (), lanes=64, block_threads=256,
                         max_threads=1024, register_bytes=512 << 10, shared_bytes=160 << 10, units=256, resident_blocks=1024,
                         global_bandwidth=8.0e12,
                         instructions=tuple(i for i, _ in _GFX950), fragments=tuple(f for _, f in _GFX950))

__all__ = ["AMD_GFX942", "AMD_GFX950"]
