"""Products of tiles: ``acc[m, n] = fma(a[m, k], b[k, n], acc[m, n])`` for ascending k.

The rows of ``b`` and ``acc`` are vectors, the elements of ``a`` scalars in every lane.  Where ``a`` comes straight from
memory its elements are loaded one by one, which the CPU does while it broadcasts; else ``a`` is put on the stack first.
"""

from __future__ import annotations

from ...errors import CompileError
from ...ir.core import Op
from ...types.dtypes import DType
from .emit_convert import convert
from .emit_memory import load_piece, store_piece
from .emit_move import Move
from .emit_pointwise import pointwise
from .emit_tiles import Tile, made_tile
from .emit_writer import Writer, memory_type, representation


def readable(t: Tile) -> bool:
    """Can the elements be read one by one from where the tile came from?  (A store may have ended that.)"""
    return t.element is not None and (not isinstance(t.origin, Move) or all(readable(s) for s in t.origin.sources))


def scalars_in_memory(w: Writer, t: Tile) -> Tile:
    """The tile with its elements readable one by one: from where it was loaded, or from the stack."""
    if readable(t):
        return t
    element, per_row = memory_type(t.dtype), len(t.geo.pieces)
    row_lanes = t.geo.pieces[-1].start + t.geo.pieces[-1].width
    slot = w.alloca(element, t.geo.rows * row_lanes)
    for i in range(t.geo.count):
        row, p = divmod(i, per_row)
        piece = t.geo.pieces[p]
        pointer = w.gep(element, slot, str(row * row_lanes + piece.start))
        store_piece(w, t.dtype, pointer, piece.width, None, t.piece(i))
    # LLVM must not see through the slot: it would turn the broadcasting loads into shuffles of the stored registers.
    hidden = w.let(f'call ptr asm sideeffect "", "=r,0,~{{memory}}"(ptr {slot})')
    known: dict[int, str] = {}

    def get(i: int) -> str:
        if i not in known:
            row, column = divmod(i, t.geo.last)
            pointer = w.gep(element, hidden, str(row * row_lanes + column))
            known[i] = load_piece(w, t.dtype, pointer, 1, None, 0)
        return known[i]

    return Tile(t.dtype, t.geo, t.piece, parts=(t,), element=get)


def dot(w: Writer, op: Op, a: Tile, b: Tile, acc: Tile) -> Tile:
    """The product added to ``acc``, made at once."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0] or acc.shape != (a.shape[0], b.shape[1]):
        raise CompileError(f"dot: extents {a.shape} x {b.shape} + {acc.shape} do not fit", loc=op.loc)
    (rows, depth), per_row = a.shape, len(acc.geo.pieces)
    out = acc.dtype
    lhs = scalars_in_memory(w, a)
    assert lhs.element is not None
    sums = [acc.piece(i) for i in range(acc.geo.count)]
    for k in range(depth):
        right = [_as(w, b.piece(k * per_row + p), b.dtype, out, acc.geo.pieces[p].width) for p in range(per_row)]
        for m in range(rows):
            left = _as(w, lhs.element(m * depth + k), a.dtype, out, 1)
            spread: dict[int, str] = {}
            for p in range(per_row):
                width, i = acc.geo.pieces[p].width, m * per_row + p
                if width not in spread:
                    spread[width] = w.splat(representation(out), width, left)
                sums[i] = pointwise(w, "fma", (spread[width], right[p], sums[i]), (out,) * 3, out, width)
    return made_tile(out, acc.geo, sums)


def _as(w: Writer, value: str, source: DType, target: DType, width: int) -> str:
    return convert(w, value, source, target, width)
