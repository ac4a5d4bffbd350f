"""AMD's matrix instructions (MFMA)."""

from __future__ import annotations

from collections.abc import Sequence

from ...machine.cpu import MatrixInstruction
from ..cpu.emit_writer import representation
from ..simt.emit import Emitter, Handler
from ..simt.products import MatrixUnit, dot_by, vector

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


def _left(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return vector(e, representation(i.lhs), names, _INTRINSICS[i.name][1])


def _right(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return vector(e, representation(i.rhs), names, _INTRINSICS[i.name][1])


def _multiply(e: Emitter, i: MatrixInstruction, left: Sequence[str], right: Sequence[str], acc: Sequence[str]) -> list[str]:
    intrinsic, operand, result = _INTRINSICS[i.name]
    w, total = e.w, vector(e, representation(i.accumulate), acc)
    for a, b in zip(left, right, strict=True):
        total = w.let(f"call {result} @llvm.amdgcn.{intrinsic}({operand} {a}, {operand} {b}, {result} {total}, i32 0, i32 0, i32 0)")
    return [w.let(f"extractelement {result} {total}, i32 {j}") for j in range(len(acc))]


HANDLERS: dict[str, Handler] = {"dot": dot_by(MatrixUnit(_left, _right, _multiply))}

__all__ = ["HANDLERS"]
