"""Products of tiles by AMD's matrix instructions (MFMA).

Both operands move into the instruction's fragments (through shared memory, swizzled); the result stays in its fragment's layout, which
the layout pass has given to everything that is summed into, so that a loop over k moves operands alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.core import Op
from ...machine.cpu import MatrixInstruction
from ...tiling.assign import powers
from ...tiling.layouts import Layout, of_fragments, warps_of_product
from ..cpu.emit_writer import representation
from ..simt.emit import HANDLERS as SIMT
from ..simt.emit import Emitter, Handler, layout_of
from ..simt.tiles import convert
from ..simt.values import Regs

# name -> (intrinsic, LLVM's type of one lane's operand, of its result)
_INTRINSICS: dict[str, tuple[str, str, str]] = {
    "mfma_32x32x8_bf16": ("mfma.f32.32x32x8bf16.1k", "<4 x i16>", "<16 x float>"),
    "mfma_32x32x8_f16": ("mfma.f32.32x32x8f16", "<4 x half>", "<16 x float>"),
    "mfma_32x32x16_int8": ("mfma.i32.32x32x16.i8", "i64", "<16 x i32>"),
    "mfma_16x16x16_bf16": ("mfma.f32.16x16x16bf16.1k", "<4 x i16>", "<4 x float>"),
    "mfma_16x16x16_f16": ("mfma.f32.16x16x16f16", "<4 x half>", "<4 x float>"),
    "mfma_16x16x32_int8": ("mfma.i32.16x16x32.i8", "i64", "<4 x i32>"),
    "mfma_32x32x16_bf16": ("mfma.f32.32x32x16.bf16", "<8 x bfloat>", "<16 x float>"),
    "mfma_32x32x16_f16": ("mfma.f32.32x32x16.f16", "<8 x half>", "<16 x float>"),
    "mfma_32x32x16_fp8_e4m3": ("mfma.f32.32x32x16.fp8.fp8", "i64", "<16 x float>"),
    "mfma_32x32x32_int8": ("mfma.i32.32x32x32.i8", "<4 x i32>", "<16 x i32>"),
    "mfma_16x16x32_bf16": ("mfma.f32.16x16x32.bf16", "<8 x bfloat>", "<4 x float>"),
    "mfma_16x16x32_f16": ("mfma.f32.16x16x32.f16", "<8 x half>", "<4 x float>"),
    "mfma_16x16x32_fp8_e4m3": ("mfma.f32.16x16x32.fp8.fp8", "i64", "<4 x float>"),
    "mfma_16x16x64_int8": ("mfma.i32.16x16x64.i8", "<4 x i32>", "<4 x i32>"),
}


def operand_layouts(unit: MatrixInstruction, e: Emitter, m: int, n: int, k: int) -> tuple[Layout, Layout, Layout]:
    """The layouts of lhs [m, k], rhs [k, n] and the result [m, n]."""
    fragments = e.machine.fragments_of(unit)
    warps = warps_of_product(m, n, (unit.m, unit.n), max(1, e.threads // e.machine.lanes))
    rows = [s if s[0] else (0, 0) for s in warps]
    columns = [s if s[1] else (0, 0) for s in warps]
    return (of_fragments((m, k), (unit.m, unit.k), fragments.lhs, rows), of_fragments((k, n), (unit.k, unit.n), fragments.rhs, columns),
            of_fragments((m, n), (unit.m, unit.n), fragments.result, warps))


def _dot(e: Emitter, op: Op) -> None:
    a, b, acc = (e.tile(v) for v in op.operands)
    (m, k), n = a.shape, b.shape[1]
    unit = e.machine.tile_instruction(a.dtype, b.dtype, acc.dtype, m, n, k) if powers((m, n, k)) and op.attrs.get("unit") is None else None
    if unit is None:
        SIMT["dot"](e, op)
        return
    at_a, at_b, at_c = operand_layouts(unit, e, m, n, k)
    a, b, held = convert(e, a, at_a), convert(e, b, at_b), convert(e, acc, at_c)
    names = _multiply(e, unit, a, b, held, m, n, k)
    result = Regs(acc.dtype, acc.shape, at_c, names)
    e.define(op, convert(e, result, layout_of(op.result.type)).names)


def _multiply(e: Emitter, unit: MatrixInstruction, a: Regs, b: Regs, c: Regs, m: int, n: int, k: int) -> list[str]:
    """One instruction for each block of this warp's result and each step of k."""
    intrinsic, operand, result = _INTRINSICS[unit.name]
    own_a, own_b, own_c = unit.m * unit.k // 64, unit.k * unit.n // 64, unit.m * unit.n // 64
    depth = k // unit.k
    down, across = len(a.names) // own_a // depth, len(b.names) // own_b // depth
    w = e.w
    # Registers number one instruction's elements, then instructions along rows, then along columns (``of_fragments``).
    left = [[_packed(e, a, own_a, r + down * s, operand) for s in range(depth)] for r in range(down)]
    right = [[_packed(e, b, own_b, s + depth * c_, operand) for s in range(depth)] for c_ in range(across)]
    names = list(c.names)
    rep = representation(c.dtype)
    for r in range(down):
        for column in range(across):
            first = (r + down * column) * own_c
            total = _vector(e, rep, names[first:first + own_c], result)
            for s in range(depth):
                total = w.let(f"call {result} @llvm.amdgcn.{intrinsic}({operand} {left[r][s]}, {operand} {right[column][s]}, "
                              f"{result} {total}, i32 0, i32 0, i32 0)")
            names[first:first + own_c] = [w.let(f"extractelement {result} {total}, i32 {i}") for i in range(own_c)]
    return names


def _packed(e: Emitter, t: Regs, own: int, block: int, wanted: str) -> str:
    """The registers of one instruction's operand as the intrinsic takes them."""
    rep = representation(t.dtype)
    names = t.names[block * own:(block + 1) * own]
    vector = f"<{own} x {rep}>"
    made = _vector(e, rep, names, vector)
    return made if vector == wanted else e.w.let(f"bitcast {vector} {made} to {wanted}")


def _vector(e: Emitter, rep: str, names: Sequence[str], vector: str) -> str:
    out = "poison"
    for i, n in enumerate(names):
        out = e.w.let(f"insertelement {vector} {out}, {rep} {n}, i32 {i}")
    return out


HANDLERS: dict[str, Handler] = {"dot": _dot}

__all__ = ["HANDLERS", "operand_layouts"]
