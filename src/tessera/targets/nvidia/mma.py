"""NVIDIA's matrix instructions of a warp: ``mma.sync``.

Source: PTX ISA 9.0, "Multiply-and-accumulate instruction: mma".
"""

from __future__ import annotations

from collections.abc import Sequence

from ...machine.cpu import MatrixInstruction
from ...types.dtypes import DType, f32
from ..cpu.emit_writer import representation
from ..simt.emit import Emitter, Handler
from ..simt.products import MatrixUnit, dot_by, vector

_NAMES = {"int8": "s8", "uint8": "u8", "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2", "int32": "s32"}
CHAIN = 4
"""Instructions on fp8 whose sums the hardware keeps; longer sums are formed in f32."""


def _ptx(dtype: DType) -> str:
    return _NAMES.get(dtype.name, dtype.name)


def _words(e: Emitter, dtype: DType, names: Sequence[str]) -> str:
    """The operand as registers of 32 bits, separated by commas."""
    each = 4 // dtype.itemsize
    return ", ".join(f"i32 {word(e, dtype, names[j:j + each])}" for j in range(0, len(names), each))


def word(e: Emitter, dtype: DType, names: Sequence[str]) -> str:
    """The elements of one register of 32 bits."""
    known = getattr(e, "packed", {}).get(tuple(names))
    return known if known is not None else vector(e, representation(dtype), names, "i32")


def _left(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return _words(e, i.lhs, names)


def _right(e: Emitter, i: MatrixInstruction, names: Sequence[str]) -> str:
    return _words(e, i.rhs, names)


def mma_asm(i: MatrixInstruction) -> tuple[str, str, str]:
    """(instruction, constraints, result type), its accumulator tied to its results."""
    a, b = i.m * i.k * i.lhs.itemsize // 128, i.k * i.n * i.rhs.itemsize // 128
    register, kind = ("f", "float") if i.accumulate is f32 else ("r", "i32")

    def group(first: int, n: int) -> str:
        return "{" + ",".join(f"${first + j}" for j in range(n)) + "}"

    acc = _ptx(i.accumulate)
    asm = (f"mma.sync.aligned.m{i.m}n{i.n}k{i.k}.row.col.{acc}.{_ptx(i.lhs)}.{_ptx(i.rhs)}.{acc} "
           f"{group(0, 4)}, {group(4, a)}, {group(4 + a, b)}, {group(0, 4)};")
    constraints = ",".join([f"={register}"] * 4 + ["r"] * (a + b) + [str(j) for j in range(4)])
    return asm, constraints, "{" + ",".join([kind] * 4) + "}"


def _multiply(e: Emitter, i: MatrixInstruction, left: Sequence[str], right: Sequence[str], acc: Sequence[str]) -> list[str]:
    if not (i.lhs.is_float and i.lhs.itemsize == 1):
        return _chain(e, i, left, right, acc)
    total = list(acc)
    for j in range(0, len(left), CHAIN):
        part = _chain(e, i, left[j:j + CHAIN], right[j:j + CHAIN], ["0.0"] * 4)
        total = [e.w.binary("fadd", "float", 1, t, p) for t, p in zip(total, part, strict=True)]
    return total


def _chain(e: Emitter, i: MatrixInstruction, left: Sequence[str], right: Sequence[str], acc: Sequence[str]) -> list[str]:
    asm, constraints, result = mma_asm(i)
    kind = "float" if i.accumulate is f32 else "i32"
    w, now = e.w, list(acc)
    for a, b in zip(left, right, strict=True):
        given = ", ".join(f"{kind} {c}" for c in now)
        made = w.let(f'call {result} asm "{asm}", "{constraints}"({a}, {b}, {given}) #1')
        now = [w.let(f"extractvalue {result} {made}, {j}") for j in range(4)]
    convergent(e)
    return now


def convergent(e: Emitter) -> None:
    """Inline assembly that all lanes of a warp run together."""
    line = "attributes #1 = { convergent nounwind }"
    if line not in e.tail:
        e.tail.append(line)


HANDLERS: dict[str, Handler] = {"dot": dot_by(MatrixUnit(_left, _right, _multiply))}

__all__ = ["HANDLERS", "convergent", "mma_asm", "word"]
