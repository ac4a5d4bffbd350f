"""Programs that read a row once and write it once: softmax, layer norm, RMS norm, for machines whose blocks have many threads.

A block keeps a row in registers (long rows are read again instead, piece by piece).  Sums are taken within a thread first, then across
lanes, then across warps, so that one value a thread is passed on: the tile is seen as [piece, warp, lane, vector] for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..ir.core import BufferType, Function, Op
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue
from ..types.dims import Dim, DimLike, evaluate, product
from ..types.dtypes import DType
from .programs import working

KEPT = 32  # elements of a row that a thread keeps
MOST_THREADS = 512
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Rows:
    """How rows of ``n`` elements are cut: ``threads`` of a block, ``lanes`` of a warp, ``vector`` elements of one access, and ``piece``
    elements in registers at a time (a power of two; all of the row, where it fits)."""

    n: int
    threads: int
    lanes: int
    vector: int
    piece: int

    @staticmethod
    def of(n: int, dtype: DType, lanes: int) -> Rows:
        vector = max(1, min(16 // dtype.itemsize, 8))
        whole = 1 << max(0, (n - 1).bit_length())
        threads = max(lanes, min(MOST_THREADS, whole // KEPT))
        return Rows(n, threads, lanes, vector, max(threads * vector, min(whole, threads * KEPT)))

    @property
    def pieces(self) -> int:
        return -(-self.n // self.piece)


def row_program(op: Op, lanes: int, env: Mapping[str, int]) -> Function:
    """The tile program of a ``row`` template: operand 0 is read, the last is written, those between are weight and bias.

    The row's length is taken from ``env``; how many rows there are stays symbolic.
    """
    x = op.operands[0].type
    n = int(evaluate(x.shape[-1], dict(env)))
    count: DimLike = product(x.shape[:-1])
    cut = Rows.of(n, x.dtype, lanes)
    types = [(f"b{i}", BufferType(v.type.dtype, (count, n) if v.type.rank > 1 or v is op.operands[0] or v is op.operands[-1] else (n,)))
             for i, v in enumerate(op.operands)]
    sizes = tuple(sorted(count.names)) if isinstance(count, Dim) else ()
    program = tile.TileProgram(str(op.attrs["op"]), types, sizes, grid=(count,), loc=op.loc)
    program.fn.attrs["threads"] = cut.threads
    return tile.build(program, lambda *buffers: _row(op, cut, buffers))


def _row(op: Op, cut: Rows, buffers: tuple[Buffer, ...]) -> None:
    x, *affine, out = buffers
    row = tile.program_id(0)
    r = Row(x, row, cut)
    finish = _softmax if op.attrs["op"] == "softmax" else _norm(op.attrs["op"] == "layer_norm", float(op.attrs.get("eps", 1e-5)), affine)
    write = finish(r)
    for i in range(cut.pieces):
        tile.store(out, (row, i * cut.piece), write(r.piece(i), i), check=(1,))


class Row:
    """One row, in pieces."""

    def __init__(self, x: Buffer, row: TileValue, cut: Rows):
        self.x, self.row, self.cut = x, row, cut
        self.compute = working(x.dtype)
        self._kept: TileValue | None = None

    def piece(self, i: int) -> TileValue:
        """Piece ``i`` in the dtype of the computation; 0 beyond the row's end."""
        if self._kept is not None:
            return self._kept
        t = tile.load(self.x, (self.row, i * self.cut.piece), (self.cut.piece,), check=(1,)).to(self.compute)
        if self.cut.pieces == 1:
            self._kept = t
        return t

    def inside(self, i: int) -> TileValue | None:
        """Which elements of piece ``i`` lie in the row; None: all."""
        left = self.cut.n - i * self.cut.piece
        return None if left >= self.cut.piece else tile.iota((self.cut.piece,)) < left

    def total(self, f: Callable[[TileValue, int], TileValue], combine: str = "add") -> TileValue:
        """The sum (or maximum) of ``f(piece, number)`` over the row."""
        out: TileValue | None = None
        for i in range(self.cut.pieces):
            here = self._within_threads(f(self.piece(i), i), combine)
            out = here if out is None else out + here if combine == "add" else tile.maximum(out, here)
        assert out is not None
        while out.rank:
            out = tile.reduce(out, out.rank - 1, combine)
        return out

    def _within_threads(self, t: TileValue, combine: str) -> TileValue:
        c = self.cut
        warps = c.threads // c.lanes
        t = tile.reshape(t, (c.piece // (c.threads * c.vector), warps, c.lanes, c.vector))
        return tile.reduce(tile.reduce(t, 3, combine), 0, combine)


def _softmax(r: Row) -> Callable[[TileValue, int], TileValue]:
    """Narrow floats take the special-function unit's exponential, whose error is far below their rounding."""
    approximate = r.x.dtype.bits < 32

    def masked(t: TileValue, i: int) -> TileValue:
        p = r.inside(i)
        return t if p is None else tile.where(p, t, float("-inf"))

    top = r.total(masked, "max")

    def power(t: TileValue, i: int) -> TileValue:
        d = masked(t, i) - top
        return tile.exp2_approx(d * LOG2_E) if approximate else tile.exp(d)

    if r.cut.pieces == 1:
        p = power(r.piece(0), 0)
        total = r.total(lambda _t, _i: p)
        scale = 1.0 / total
        return lambda _t, _i: (p * scale if approximate else p / total).to(r.x.dtype)
    total = r.total(power)
    return lambda t, i: (power(t, i) / total).to(r.x.dtype)


def _norm(centred: bool, eps: float, affine: list[Buffer]) -> Callable[[Row], Callable[[TileValue, int], TileValue]]:
    """(x - mean) / sqrt(variance + eps) * weight + bias; the variance from the differences, which are at hand."""

    def finish(r: Row) -> Callable[[TileValue, int], TileValue]:
        mean = r.total(lambda t, _: t) / float(r.cut.n) if centred else None

        def centre(t: TileValue, i: int) -> TileValue:
            if mean is None:
                return t
            p = r.inside(i)
            d = t - mean
            return d if p is None else tile.where(p, d, 0.0)

        def square(t: TileValue, i: int) -> TileValue:
            d = centre(t, i)
            return d * d

        scale = tile.rsqrt(r.total(square) / float(r.cut.n) + eps)

        def write(t: TileValue, i: int) -> TileValue:
            y = centre(t, i) * scale
            at = i * r.cut.piece
            for k, b in enumerate(affine):
                w = tile.load(b, (at,), (r.cut.piece,), check=(0,)).to(r.compute)
                y = y * w if k == 0 else y + w
            return y.to(r.x.dtype)

        return write

    return finish


__all__ = ["Row", "Rows", "row_program"]
