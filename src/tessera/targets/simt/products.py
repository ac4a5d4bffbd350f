"""Products of tiles by the matrix instructions of a warp: alike for all vendors but for the instruction itself.

Both operands move into the instruction's fragments (through shared memory, swizzled, where they are not there already); the result
stays in its fragment's layout, which the layout pass has given to everything that is summed into, so that a loop over k moves operands
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.core import Op
from ...machine.cpu import MatrixInstruction
from ...tiling.assign import operand_layouts, rows_first, unit_of
from ...tiling.layouts import Layout, movement
from .emit import HANDLERS as SIMT
from .emit import Emitter, Handler
from .tiles import convert, through_shared
from .values import Regs, layout_of


@dataclass(frozen=True)
class MatrixUnit:
    """How a vendor's instructions are written.

    Attributes:
        left, right: (emitter, instruction, the registers of its operand) -> the operand as the instruction takes it.
        multiply: (emitter, instruction, left, right, accumulator's registers) over all steps of k -> the sums.
    """

    left: Callable[[Emitter, MatrixInstruction, Sequence[str]], str]
    right: Callable[[Emitter, MatrixInstruction, Sequence[str]], str]
    multiply: Callable[[Emitter, MatrixInstruction, Sequence[str], Sequence[str], Sequence[str]], list[str]]


def dot_by(unit: MatrixUnit) -> Handler:
    """The handler of ``dot``: by the machine's matrix instruction where there is one for the tiles, else by fma."""

    def dot(e: Emitter, op: Op) -> None:
        a, b, acc = (e.tile(v) for v in op.operands)
        found = unit_of(op, e.machine)
        if found is None:
            SIMT["dot"](e, op)
            return
        m, n = acc.shape
        at_a, at_b, at_c = operand_layouts(found, e.machine, max(1, e.threads // e.machine.lanes), (m, a.shape[1], n), rows_first(e.fn))
        (a, b), held = _operands(e, (a, b), (at_a, at_b)), convert(e, acc, at_c)
        result = Regs(acc.dtype, acc.shape, at_c, _multiply(e, unit, found, a, b, held))
        e.define(op, convert(e, result, layout_of(op.result.type)).names)

    return dot


def _operands(e: Emitter, tiles: Sequence[Regs], layouts: Sequence[Layout]) -> list[Regs]:
    """Both operands as the instruction takes them; those that pass through shared memory do so together."""
    far = [i for i, (t, layout) in enumerate(zip(tiles, layouts, strict=True)) if movement(t.layout, layout).kind == "shared"]
    moved = dict(zip(far, through_shared(e, [(tiles[i], layouts[i]) for i in far]), strict=True)) if far else {}
    return [moved[i] if i in moved else convert(e, t, layout) for i, (t, layout) in enumerate(zip(tiles, layouts, strict=True))]


def _multiply(e: Emitter, unit: MatrixUnit, i: MatrixInstruction, a: Regs, b: Regs, c: Regs) -> list[str]:
    """One chain of instructions over k for each block of this warp's result."""
    lanes = e.machine.lanes
    own_a, own_b, own_c = i.m * i.k // lanes, i.k * i.n // lanes, i.m * i.n // lanes
    depth = a.shape[1] // i.k
    down, across = len(a.names) // own_a // depth, len(b.names) // own_b // depth
    # Registers number one instruction's elements, then instructions along rows, then along columns (``of_fragments``).
    left = [[unit.left(e, i, _block(a, own_a, r + down * s)) for s in range(depth)] for r in range(down)]
    right = [[unit.right(e, i, _block(b, own_b, s + depth * column)) for s in range(depth)] for column in range(across)]
    names = list(c.names)
    for r in range(down):
        for column in range(across):
            first = (r + down * column) * own_c
            names[first:first + own_c] = unit.multiply(e, i, left[r], right[column], names[first:first + own_c])
    return names


def _block(t: Regs, own: int, number: int) -> list[str]:
    return t.names[number * own:(number + 1) * own]


def vector(e: Emitter, element: str, names: Sequence[str], wanted: str = "") -> str:
    """Values as one LLVM vector, or as ``wanted``, another type of its size."""
    kind, out = f"<{len(names)} x {element}>", "poison"
    for i, n in enumerate(names):
        out = e.w.let(f"insertelement {kind} {out}, {element} {n}, i32 {i}")
    return out if wanted in ("", kind) else e.w.let(f"bitcast {kind} {out} to {wanted}")


__all__ = ["MatrixUnit", "dot_by", "vector"]
