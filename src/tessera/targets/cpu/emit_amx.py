"""Products in AMX tiles: ``dot`` ops whose ``unit`` is ``amx_bf16``.

The matrix unit has eight registers of 16 rows x 64 bytes.  Its left operand is 16 rows of 32 elements as they lie in
memory; its right one is 16 rows of 16 *pairs* of elements that follow each other in k.  So a program keeps the right operand in
scratch with its pairs side by side, ``[k / 2, 2 n]``, and writes the matrix that this stands for:

    %r = load(%scratch, …) : tile<bf16[16, 64]>     %p = reshape(%r) : tile<bf16[16, 32, 2]>
    %q = transpose(%p) {perm = (0, 2, 1)}           %b = reshape(%q) : tile<bf16[32, 32]>
    %c = dot(%a, %b, %acc) {unit = "amx_bf16"}

Neither operand ever goes through vector registers.  Accumulators live in the unit's registers for as long as they only pass
through loops, conditionals and dots; elsewhere they go through memory.  LLVM configures the tiles and allocates registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import CompileError
from ...ir.core import Block, Function, Op, Value, uses
from ...machine.cpu import CpuMachine
from ...types.dtypes import f32
from .emit_writer import Writer

ROWS, COLUMNS, DEPTH = 16, 16, 32
UNIT = "amx_bf16"


@dataclass
class Held:
    """A matrix of f32 in tile registers, ``ROWS x COLUMNS`` each, row-major."""

    shape: tuple[int, ...]
    names: list[str]


@dataclass
class Matrices:
    """What of a function the matrix unit takes.

    Attributes:
        left, right: for each of its dots, the load that the operand is.
        unmade: ops that only say how an operand lies in memory.
        held: values that live in tile registers.
    """

    left: dict[Op, Op] = field(default_factory=dict)
    right: dict[Op, Op] = field(default_factory=dict)
    unmade: set[Op] = field(default_factory=set)
    held: set[Value] = field(default_factory=set)


def find(fn: Function, machine: CpuMachine) -> Matrices:
    """The dots that name the unit, their operands, and the values that may stay in its registers.

    Raises:
        CompileError: the machine has no such unit, or a dot does not have the form above.
    """
    m = Matrices()
    dots = [op for op in fn.walk() if op.name == "dot" and op.attrs.get("unit") not in (None, "dpbf16", "vnni")]
    if not dots:
        return m
    table = uses(fn.body)
    for op in dots:
        if op.attrs["unit"] != UNIT or machine.matrix_instruction(UNIT) is None:
            raise CompileError(f"{machine.name} has no matrix unit {op.attrs['unit']!r}", loc=op.loc)
        _dot_form(op, m)
    chain = {o for load in (*m.left.values(), *m.right.values()) for o in _chain(load, table)}
    for o in chain:
        if all(user in chain or user in m.left for user, _ in table.get(o.result, ())):
            m.unmade.add(o)
    m.held |= {v for op in dots for v in (op.operands[2], op.result)}
    while _spread(fn.body, m.held):
        pass
    return m


def _dot_form(op: Op, m: Matrices) -> None:
    a, b, acc = op.operands
    (rows, depth), columns = a.type.shape, b.type.shape[1]
    right = _undo(_undo(_undo(b, "reshape"), "transpose", (0, 2, 1)), "reshape")
    left = a.op
    fits = rows % ROWS == 0 and columns % COLUMNS == 0 and depth % DEPTH == 0 and acc.type.dtype is f32
    for load in (left, right.op if right is not None else None):
        if not fits or load is None or load.name != "load" or load.attrs.get("check") or load.attrs.get("masked"):
            raise CompileError(f"dot in {UNIT}: the operands are plain loads, the right one of pairs side by side, with extents that "
                               f"are multiples of {ROWS}, {COLUMNS} and {DEPTH}; this one is {a.type} by {b.type}", loc=op.loc)
    assert left is not None and right is not None and right.op is not None
    m.left[op], m.right[op] = left, right.op


def _undo(v: Value | None, name: str, perm: tuple[int, ...] | None = None) -> Value | None:
    if v is None or v.op is None or v.op.name != name or (perm is not None and tuple(v.op.attrs["perm"]) != perm):
        return None
    return v.op.operands[0]


def _chain(load: Op, table: dict[Value, list[tuple[Op, int]]]) -> list[Op]:
    """A load and the moves made of it."""
    out, todo = [], [load]
    while todo:
        op = todo.pop()
        out.append(op)
        todo += [user for user, _ in table.get(op.result, ()) if user.name in ("reshape", "transpose")]
    return out


def _spread(block: Block, held: set[Value]) -> bool:
    """Values that a held one is, at the other end of a loop or conditional, are held too; True if any was added."""
    before = len(held)
    for op in block.walk():
        groups: list[Sequence[Value]] = []
        if op.name == "for":
            groups = list(zip(op.operands[3:], op.blocks[0].args[1:], op.blocks[0].terminator.operands, op.results, strict=True))
        elif op.name == "if":
            groups = list(zip(*(b.terminator.operands for b in op.blocks), op.results, strict=True))
        for group in groups:
            if any(v in held for v in group):
                held.update(group)
    return len(held) > before


# -- instructions ----------------------------------------------------------------------------------------------------------
def _parts(shape: Sequence[int]) -> list[tuple[int, int]]:
    """(row, column) of the first element of each register of a matrix."""
    return [(r, c) for r in range(0, shape[0], ROWS) for c in range(0, shape[1], COLUMNS)]


def zeros(w: Writer, shape: tuple[int, ...]) -> Held:
    return Held(shape, [w.let(f"call x86_amx @llvm.x86.tilezero.internal(i16 {ROWS}, i16 64)") for _ in _parts(shape)])


def _load(w: Writer, pointer: str, stride: str) -> str:
    return w.let(f"call x86_amx @llvm.x86.tileloadd64.internal(i16 {ROWS}, i16 64, ptr {pointer}, i64 {stride})")


def read(w: Writer, shape: tuple[int, ...], pointer: str, row: str) -> Held:
    """A matrix of f32 from memory; ``row``: bytes from one row to the next."""
    return Held(shape, [_load(w, _at(w, pointer, row, r, 4 * c), row) for r, c in _parts(shape)])


def write(w: Writer, held: Held, pointer: str, row: str) -> None:
    for (r, c), name in zip(_parts(held.shape), held.names, strict=True):
        at = _at(w, pointer, row, r, 4 * c)
        w.line(f"call void @llvm.x86.tilestored64.internal(i16 {ROWS}, i16 64, ptr {at}, i64 {row}, x86_amx {name})")


def _at(w: Writer, pointer: str, row: str, r: int, column: int) -> str:
    if r:
        down = str(int(row) * r) if row.isdigit() else w.binary("mul", "i64", 1, row, str(r))
        pointer = w.gep("i8", pointer, down)
    return w.gep("i8", pointer, str(column))


def dot(w: Writer, acc: Held, depth: int, left: tuple[str, str], right: tuple[str, str]) -> Held:
    """``acc + left @ right``; operands as (pointer, bytes from row to row)."""
    names = list(acc.names)
    rows, columns = range(0, acc.shape[0], ROWS), range(0, acc.shape[1], COLUMNS)
    for k in range(0, depth, DEPTH):
        a = [_load(w, _at(w, left[0], left[1], r, 2 * k), left[1]) for r in rows]
        b = [_load(w, _at(w, right[0], right[1], k // 2, 4 * c), right[1]) for c in columns]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                n = i * len(b) + j
                names[n] = w.let(f"call x86_amx @llvm.x86.tdpbf16ps.internal(i16 {ROWS}, i16 64, i16 64, "
                                 f"x86_amx {names[n]}, x86_amx {x}, x86_amx {y})")
    return Held(acc.shape, names)


__all__ = ["UNIT", "Held", "Matrices", "dot", "find", "read", "write", "zeros"]
