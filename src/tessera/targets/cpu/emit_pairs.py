"""Products by AVX-512's dot instructions: ``dot`` ops whose ``unit`` is ``dpbf16`` or ``vnni``.

One instruction takes a *group* of k in each of 16 sums: pairs of bf16 (``vdpbf16ps``), or four int8 (``vpdpbusd``).  The left operand's
groups lie side by side where its rows run along k; the right operand's do where it was stored in groups, ``[k / g, g n]``, and
turned into rows only by reshape and transpose (see ``emit_amx``), else they are brought together by shuffles.

``vpdpbusd`` reads its left operand as unsigned: signed elements get 128 added (their upper bit flipped), and 128 times the sums of the
right operand's columns, which the same instruction makes, are taken off at the end.  All of it is exact modulo 2^32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CompileError
from ...ir.core import Op
from ...types.dtypes import DType, bf16, f32, int8, int32
from .emit_dot import readable
from .emit_memory import Access, store_piece
from .emit_move import Move, move
from .emit_tiles import Tile, geometry, made_tile
from .emit_writer import Writer

LANES = 16


@dataclass(frozen=True)
class Unit:
    """One instruction: what it multiplies, how many k a group has, and LLVM's types of an element, of 16 groups and of 16 sums."""

    name: str
    operand: DType
    accumulate: DType
    group: int
    element: str
    native: str
    sums: str
    intrinsic: str

    @property
    def stored(self) -> str:
        """16 groups as they lie in memory."""
        return f"<{self.group * LANES} x {self.element}>"

    def multiply(self, w: Writer, total: str, left: str, right: str) -> str:
        return w.let(f"call {self.sums} @{self.intrinsic}({self.sums} {total}, {self.native} {left}, {self.native} {right})")

    def as_native(self, w: Writer, kind: str, value: str) -> str:
        return value if kind == self.native else w.let(f"bitcast {kind} {value} to {self.native}")


UNITS = {u.name: u for u in (
    Unit("dpbf16", bf16, f32, 2, "i16", "<32 x bfloat>", "<16 x float>", "llvm.x86.avx512bf16.dpbf16ps.512"),
    Unit("vnni", int8, int32, 4, "i8", "<64 x i8>", "<16 x i32>", "llvm.x86.avx512.vpdpbusd.512"),
)}


def dot_groups(w: Writer, op: Op, a: Tile, b: Tile, acc: Tile) -> Tile:
    """The product added to ``acc``, made at once.

    Raises:
        CompileError: the machine has no such instruction, or dtypes or extents do not fit it.
    """
    unit = UNITS[op.attrs["unit"]]
    if w.machine.matrix_instruction(unit.name) is None:
        raise CompileError(f"{w.machine.name} has no {unit.operand} dot product, which this op asks for", loc=op.loc)
    (rows, depth), columns, g = a.shape, b.shape[1], unit.group
    wanted = (unit.operand, unit.operand, unit.accumulate)
    if (a.dtype, b.dtype, acc.dtype) != wanted or depth % g or columns % LANES or b.shape[0] != depth:
        raise CompileError(f"{unit.name} multiplies {unit.operand} [i, {g} j] by [{g} j, 16 l] into {unit.accumulate}, not {a.dtype} "
                           f"{list(a.shape)} by {b.dtype} {list(b.shape)} into {acc.dtype}", loc=op.loc)
    left, right = _elements_in_memory(w, unit, a), _group_rows(w, unit, b)
    across, biased = columns // LANES, unit.operand is int8
    sums = [acc.piece(i) for i in range(acc.geo.count)]
    excess = ["zeroinitializer"] * across
    bias = _all_bytes(w, unit, 128) if biased else ""
    for k in range(depth // g):
        vectors = [right(k, p) for p in range(across)]
        if biased:
            excess = [unit.multiply(w, e, bias, v) for e, v in zip(excess, vectors, strict=True)]
        for m in range(rows):
            group = w.let(f"load i32, ptr {left(m, g * k)}, align {unit.operand.itemsize}")
            if biased:
                group = w.let(f"xor i32 {group}, {0x80808080 - (1 << 32)}")
            spread = unit.as_native(w, f"<{LANES} x i32>", w.splat("i32", LANES, group))
            for p, vector in enumerate(vectors):
                i = m * across + p
                sums[i] = unit.multiply(w, sums[i], spread, vector)
    if biased:
        sums = [w.let(f"sub {unit.sums} {s}, {excess[i % across]}") for i, s in enumerate(sums)]
    return made_tile(unit.accumulate, acc.geo, sums)


def _all_bytes(w: Writer, unit: Unit, byte: int) -> str:
    word = int.from_bytes(bytes([byte] * 4), "little", signed=True)
    return unit.as_native(w, f"<{LANES} x i32>", w.splat("i32", LANES, str(word)))


def _elements_in_memory(w: Writer, unit: Unit, t: Tile) -> Callable[[int, int], str]:
    """The address of element (m, k), next to that of (m, k + 1): where the tile was loaded from, or on the stack."""
    access, element = t.origin, unit.element
    if isinstance(access, Access) and readable(t) and access.contiguous and len(access.shape) == 2:
        return lambda m, k: w.gep(element, access.row(m)[0], str(k))
    width = t.geo.pieces[-1].start + t.geo.pieces[-1].width
    slot, per_row = w.alloca(element, t.geo.rows * width), len(t.geo.pieces)
    for i in range(t.geo.count):
        row, p = divmod(i, per_row)
        piece = t.geo.pieces[p]
        store_piece(w, t.dtype, w.gep(element, slot, str(row * width + piece.start)), piece.width, None, t.piece(i))
    # As in emit_dot: LLVM must not see through the slot.
    hidden = w.let(f'call ptr asm sideeffect "", "=r,0,~{{memory}}"(ptr {slot})')
    return lambda m, k: w.gep(element, hidden, str(m * width + k))


def _group_rows(w: Writer, unit: Unit, t: Tile) -> Callable[[int, int], str]:
    """Row group k in columns 16 p … as one vector of 16 groups."""
    (depth, columns), g = t.shape, unit.group
    grouped = np.arange(depth * columns).reshape(depth // g, g, columns).transpose(0, 2, 1).reshape(-1)
    source, index = _trace(t)
    stored = source.geo.last == g * columns and source.geo.rows == depth // g and np.array_equal(index[grouped], np.arange(len(grouped)))
    access = source.origin
    if stored and isinstance(access, Access) and readable(source) and access.contiguous:
        def load(k: int, p: int) -> str:
            at = w.gep(unit.element, access.row(k)[0], str(g * LANES * p))
            return unit.as_native(w, unit.stored, w.let(f"load {unit.stored}, ptr {at}, align {unit.operand.itemsize}"))
        return load
    rows = source if stored else move(w, geometry((depth // g, g * columns), w.lanes), [t], None, grouped)
    per_row = len(rows.geo.pieces)

    def join(k: int, p: int) -> str:
        parts, width = [rows.piece(k * per_row + g * p + i) for i in range(g)], LANES
        while len(parts) > 1:
            lanes = ", ".join(f"i32 {x}" for x in range(2 * width))
            vector = f"<{width} x {unit.element}>"
            parts = [w.let(f"shufflevector {vector} {a}, {vector} {b}, <{2 * width} x i32> <{lanes}>")
                     for a, b in zip(parts[::2], parts[1::2], strict=True)]
            width *= 2
        return unit.as_native(w, unit.stored, parts[0])

    return join


def _trace(t: Tile) -> tuple[Tile, np.ndarray[Any, Any]]:
    """(where a tile's elements come from through moves of one source, their numbers there)."""
    index = np.arange(t.geo.rows * t.geo.last)
    while isinstance(t.origin, Move) and len(t.origin.sources) == 1 and t.untouched:
        index = t.origin.index.reshape(-1)[index]
        t = t.origin.sources[0]
    return t, index
