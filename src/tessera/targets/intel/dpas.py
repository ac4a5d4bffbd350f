"""Intel's matrix instruction (DPAS), as SPIR-V says it: ``OpSubgroupMatrixMultiplyAccumulateINTEL``.

Source: SPV_INTEL_subgroup_matrix_multiply_accumulate, revision 1; the table of shapes and types of sub-groups of 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...machine.cpu import MatrixInstruction
from ...types.dtypes import bf16, f16, f32, int8, uint8
from ..cpu.emit_writer import representation
from ..simt.emit import Emitter, Handler
from ..simt.products import MatrixUnit, dot_by, vector

# The bits of the instruction's last operand: both matrices signed; both hold 8-bit integers, f16, bf16.
_SIGNED, _INT8, _F16, _BF16 = 0x3, 0x30, 0xC00, 0x3000
_FLAGS = {bf16: _BF16, f16: _F16, int8: _SIGNED | _INT8, uint8: _INT8}
ROWS = 8


def _packed(e: Emitter, i: MatrixInstruction, names: Sequence[str], bits: int) -> str:
    """Operand registers as a vector of eight integers, neighbours in one (vectors of SPIR-V have 16 elements at most)."""
    rep, each, word = representation(i.lhs), bits // (8 * i.lhs.itemsize), f"i{bits}"
    if each > 1:
        return vector(e, word, [vector(e, rep, names[j:j + each], word) for j in range(0, len(names), each)])
    return vector(e, word, names if rep == word else [e.w.let(f"bitcast {rep} {n} to {word}") for n in names])


def _left(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return _packed(e, i, names, 16)


def _right(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return _packed(e, i, names, 32)


def _multiply(e: Emitter, i: MatrixInstruction, left: Sequence[str], right: Sequence[str], acc: Sequence[str]) -> list[str]:
    w = e.w
    element, mangled = ("float", "f") if i.accumulate is f32 else ("i32", "i")
    kind = f"<{ROWS} x {element}>"
    last = "S0_" if mangled == "i" else "Dv8_f"  # a mangled name refers to a type that it has said before
    symbol = f"_Z45__spirv_SubgroupMatrixMultiplyAccumulateINTELiDv8_sDv8_i{last}i"
    w.declare(f"declare spir_func {kind} @{symbol}(i32, <8 x i16>, <8 x i32>, {kind}, i32) convergent")
    total = vector(e, element, acc)
    for a, b in zip(left, right, strict=True):
        total = w.let(f"call spir_func {kind} @{symbol}(i32 {i.k}, <8 x i16> {a}, <8 x i32> {b}, {kind} {total}, i32 {_FLAGS[i.lhs]})")
    return [w.let(f"extractelement {kind} {total}, i32 {j}") for j in range(len(acc))]


HANDLERS: dict[str, Handler] = {"dot": dot_by(MatrixUnit(_left, _right, _multiply))}

__all__ = ["HANDLERS"]
