"""Products of bf16 by AVX-512's ``vdpbf16ps``: ``dot`` ops whose ``unit`` is ``dpbf16``.

One instruction takes two steps of k: to each of 16 sums it adds the products of a pair of elements.  The left operand's
pairs lie side by side where its rows run along k; the right operand's do where it was stored in pairs, ``[k / 2, 2 n]``, and
turned into rows only by reshape and transpose (see ``emit_amx``), else they are brought together by shuffles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import CompileError
from ...ir.core import Op
from ...types.dtypes import bf16, f32
from .emit_dot import readable
from .emit_memory import Access, store_piece
from .emit_move import Move, move
from .emit_tiles import Tile, geometry, made_tile
from .emit_writer import Writer

UNIT = "dpbf16"
LANES = 16
_PAIRS = f"<{2 * LANES} x i16>"
_NATIVE = f"<{2 * LANES} x bfloat>"
_SUMS = f"<{LANES} x float>"


def dot_pairs(w: Writer, op: Op, a: Tile, b: Tile, acc: Tile) -> Tile:
    """The product added to ``acc``, made at once.

    Raises:
        CompileError: the machine has no such instruction, or dtypes or extents do not fit it.
    """
    if w.machine.matrix_instruction(UNIT) is None:
        raise CompileError(f"{w.machine.name} has no bf16 dot product, which this op asks for", loc=op.loc)
    (rows, depth), columns = a.shape, b.shape[1]
    if (a.dtype, b.dtype, acc.dtype) != (bf16, bf16, f32) or depth % 2 or columns % LANES or b.shape[0] != depth:
        raise CompileError(f"{UNIT} multiplies bf16 [i, 2 j] by [2 j, 16 l] into f32, not {a.dtype} {list(a.shape)} by "
                           f"{b.dtype} {list(b.shape)} into {acc.dtype}", loc=op.loc)
    left, right = _elements_in_memory(w, a), _pair_rows(w, b)
    across = columns // LANES
    sums = [acc.piece(i) for i in range(acc.geo.count)]
    for k in range(depth // 2):
        vectors = [right(k, p) for p in range(across)]
        for m in range(rows):
            pair = w.let(f"load i32, ptr {left(m, 2 * k)}, align 2")
            spread = w.let(f"bitcast <{LANES} x i32> {w.splat('i32', LANES, pair)} to {_NATIVE}")
            for p, vector in enumerate(vectors):
                i = m * across + p
                sums[i] = w.let(f"call {_SUMS} @llvm.x86.avx512bf16.dpbf16ps.512({_SUMS} {sums[i]}, {_NATIVE} {spread}, "
                                f"{_NATIVE} {vector})")
    return made_tile(f32, acc.geo, sums)


def _elements_in_memory(w: Writer, t: Tile) -> Callable[[int, int], str]:
    """The address of element (m, k), next to that of (m, k + 1): where the tile was loaded from, or on the stack."""
    access = t.origin
    if isinstance(access, Access) and readable(t) and access.contiguous and len(access.shape) == 2:
        return lambda m, k: w.gep("i16", access.row(m)[0], str(k))
    width = t.geo.pieces[-1].start + t.geo.pieces[-1].width
    slot, per_row = w.alloca("i16", t.geo.rows * width), len(t.geo.pieces)
    for i in range(t.geo.count):
        row, p = divmod(i, per_row)
        piece = t.geo.pieces[p]
        store_piece(w, t.dtype, w.gep("i16", slot, str(row * width + piece.start)), piece.width, None, t.piece(i))
    # As in emit_dot: LLVM must not see through the slot.
    hidden = w.let(f'call ptr asm sideeffect "", "=r,0,~{{memory}}"(ptr {slot})')
    return lambda m, k: w.gep("i16", hidden, str(m * width + k))


def _pair_rows(w: Writer, t: Tile) -> Callable[[int, int], str]:
    """The pairs of rows 2 k and 2 k + 1 in columns 16 p … as one vector of bf16."""
    depth, columns = t.shape
    pair = np.arange(depth * columns).reshape(depth // 2, 2, columns).transpose(0, 2, 1).reshape(-1)
    source, index = _trace(t)
    stored = source.geo.last == 2 * columns and source.geo.rows == depth // 2 and np.array_equal(index[pair], np.arange(len(pair)))
    access = source.origin
    if stored and isinstance(access, Access) and readable(source) and access.contiguous:
        def load(k: int, p: int) -> str:
            loaded = w.let(f"load {_PAIRS}, ptr {w.gep('i16', access.row(k)[0], str(2 * LANES * p))}, align 2")
            return w.let(f"bitcast {_PAIRS} {loaded} to {_NATIVE}")
        return load
    rows = source if stored else move(w, geometry((depth // 2, 2 * columns), w.lanes), [t], None, pair)
    per_row = len(rows.geo.pieces)

    def join(k: int, p: int) -> str:
        low, high = (rows.piece(k * per_row + 2 * p + half) for half in (0, 1))
        lanes = ", ".join(f"i32 {x}" for x in range(2 * LANES))
        both = w.let(f"shufflevector <{LANES} x i16> {low}, <{LANES} x i16> {high}, <{2 * LANES} x i32> <{lanes}>")
        return w.let(f"bitcast {_PAIRS} {both} to {_NATIVE}")

    return join


def _trace(t: Tile) -> tuple[Tile, np.ndarray[Any, Any]]:
    """(where a tile's elements come from through moves of one source, their numbers there)."""
    index = np.arange(t.geo.rows * t.geo.last)
    while isinstance(t.origin, Move) and len(t.origin.sources) == 1 and t.untouched:
        index = t.origin.index.reshape(-1)[index]
        t = t.origin.sources[0]
    return t, index
