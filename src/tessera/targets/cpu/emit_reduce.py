"""Reductions of a tile along one axis, in the order that Tile IR fixes: repeated halving.

While n > 1, with h the largest power of two below n, element l of the first h takes in element h + l where that exists.
Several rows are reduced along the lanes at once: each step packs two rows into one vector, which keeps every row's own
order and saves most of the shuffles.
"""

from __future__ import annotations

import numpy as np

from ...types.dtypes import DType
from .emit_move import _shuffle
from .emit_pointwise import pointwise
from .emit_tiles import Geometry, Tile
from .emit_writer import Writer, representation, vector_literal

COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum", "and": "bitwise_and", "or": "bitwise_or",
           "xor": "bitwise_xor"}


def reduce_tile(w: Writer, t: Tile, axis: int, combine: str, geo: Geometry) -> Tile:
    """The tile ``t`` with ``axis`` removed."""
    if axis == len(t.shape) - 1:
        return _along_lanes(w, t, combine, geo)
    index = np.moveaxis(np.arange(t.geo.rows).reshape(t.shape[:-1]), axis, -1)
    rows = index.reshape(-1, t.shape[axis])
    per_row = len(t.geo.pieces)

    def make(i: int) -> str:
        row, p = divmod(i, per_row)
        return _halve(w, lambda k: t.piece(int(rows[row, k]) * per_row + p), t.shape[axis], combine, t.dtype,
                      t.geo.pieces[p].width)

    return Tile(t.dtype, geo, make)


def _apply(w: Writer, combine: str, dtype: DType, width: int, a: str, b: str) -> str:
    return pointwise(w, COMBINE[combine], (a, b), (dtype, dtype), dtype, width)


def _halve(w: Writer, get: object, n: int, combine: str, dtype: DType, width: int) -> str:
    """The halving tree over ``get(0 … n-1)``, evaluated depth first so that few values are live."""
    assert callable(get)

    def value(l: int, m: int) -> str:
        """Element l after all steps that bring n down to m."""
        if m == n:
            return str(get(l))
        above = min(n, 2 * m)
        own = value(l, above)
        return _apply(w, combine, dtype, width, own, value(l + m, above)) if l + m < above else own

    return value(0, 1)


def _along_lanes(w: Writer, t: Tile, combine: str, geo: Geometry) -> Tile:
    group = w.lanes

    def make(i: int) -> str:
        # Piece i of the result: rows start .. start + valid of the source, which the result numbers row-major too.
        piece = geo.piece(i)
        first = i // len(geo.pieces) * geo.last + piece.start
        rows = [_row_vector(w, t, first + r, combine) for r in range(piece.valid)]
        lanes = min(1 << (t.geo.last.bit_length() - 1), group)
        return reduce_rows(w, rows, lanes, piece.width, combine, t.dtype)

    return Tile(t.dtype, geo, make)


def _row_vector(w: Writer, t: Tile, row: int, combine: str) -> str:
    """One row as one vector of valid lanes; a short row of n lanes, n no power of two, has its first step behind it."""
    pieces, per_row = t.geo.pieces, len(t.geo.pieces)
    n, dtype = t.geo.last, t.dtype
    rep = representation(dtype)
    if per_row == 1:
        name, width = t.piece(row), pieces[0].width
        if n == width:
            return name
        half = width // 2  # lanes [half, n) go to the first n - half lanes; what lies beyond is not looked at again
        low = _lanes(w, rep, width, name, 0, half)
        high = _lanes(w, rep, width, name, half, half)
        both = _apply(w, combine, dtype, half, low, high)
        mask = vector_literal("i1", [half + l < n for l in range(half)])
        return w.select(mask, rep, half, both, low)
    lanes = pieces[0].width

    def value(c: int, m: int) -> str:
        """Piece c (m pieces remain) after the steps above m pieces."""
        if m >= per_row:
            return t.piece(row * per_row + c)
        above = min(per_row, 2 * m)
        own = value(c, above)
        if c + m >= above:
            return own
        other = value(c + m, above)
        last = pieces[c + m]
        if above == per_row and last.valid < lanes:
            if last.width < lanes:
                other = (_shuffle(w, rep, last.width, other, "poison", [x if x < last.width else -1 for x in range(lanes)])
                         if last.width > 1 else w.splat(rep, lanes, other))
            both = _apply(w, combine, dtype, lanes, own, other)
            return w.select(vector_literal("i1", [l < last.valid for l in range(lanes)]), rep, lanes, both, own)
        return _apply(w, combine, dtype, lanes, own, other)

    return value(0, 1)


def _lanes(w: Writer, rep: str, width: int, name: str, start: int, count: int) -> str:
    if count == 1:
        return w.extract(rep, width, name, start)
    return _shuffle(w, rep, width, name, "poison", range(start, start + count))


def reduce_rows(w: Writer, rows: list[str], lanes: int, width: int, combine: str, dtype: DType) -> str:
    """Vectors of ``lanes`` lanes, each reduced to one lane of a result of ``width`` lanes."""
    rep = representation(dtype)
    count = width
    rows = rows + [rows[-1]] * (count - len(rows))
    held, left = 1, lanes  # rows in one vector, lanes of each that remain
    if width == 1:
        name = rows[0]
        while left > 1:
            left //= 2
            name = _apply(w, combine, dtype, left, _lanes(w, rep, 2 * left, name, 0, left),
                          _lanes(w, rep, 2 * left, name, left, left))
        return name
    while left > 1:
        half = left // 2
        if len(rows) > 1:
            low = [r * left + l for r in range(2 * held) for l in range(half)]
            merged = []
            for a, b in zip(rows[::2], rows[1::2], strict=True):
                lo = _shuffle(w, rep, held * left, a, b, low)
                hi = _shuffle(w, rep, held * left, a, b, [x + half for x in low])
                merged.append(_apply(w, combine, dtype, held * left, lo, hi))
            rows, held = merged, 2 * held
        else:
            low = [r * left + l for r in range(held) for l in range(half)]
            lo = _shuffle(w, rep, held * left, rows[0], "poison", low)
            hi = _shuffle(w, rep, held * left, rows[0], "poison", [x + half for x in low])
            rows = [_apply(w, combine, dtype, held * half, lo, hi)]
        left = half
    while len(rows) > 1:  # more rows than lanes to halve: put them side by side
        rows = [_join(w, rep, held, a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        held *= 2
    return rows[0]


def _join(w: Writer, rep: str, width: int, a: str, b: str) -> str:
    if width > 1:
        return _shuffle(w, rep, width, a, b, range(2 * width))
    first = w.let(f"insertelement <2 x {rep}> poison, {rep} {a}, i32 0")
    return w.let(f"insertelement <2 x {rep}> {first}, {rep} {b}, i32 1")
