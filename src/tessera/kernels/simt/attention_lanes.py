"""Attention forward where the threads of a block are the lanes of a CPU's vectors, one query each.

The tiles stand on their side: scores are [keys, queries], results [columns, queries], so that a row of a tile is a vector and
everything that the softmax does happens within a thread.  A CPU has few registers and its vendors' compilers take their time: keys,
values and results rest in memory of the block, in the dtype of the computation, and loops go over pieces of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...tiling import dsl as tile
from ...tiling.dsl import TileValue, tile_function
from ...types.dtypes import int32
from ..attention import LOWEST, larger
from ..fused import Lanes, Point

if TYPE_CHECKING:
    from .attention import Attention

STEP = 8    # of a head's width, in the products that give scores
PIECE = 16  # of a head's width that is copied, or weighted, at a time


class Memory:
    """What a block keeps: queries and results on their side, a block of keys and of values, and the weights of those keys."""

    def __init__(self, p: Attention):
        rows, keys, d = p.cut.rows, p.cut.keys, p.compute
        self.depth, self.width = (-(-sum(n for _, n in pieces) // PIECE) * PIECE for pieces in (p.depths, p.widths))
        self.query, self.out = tile.alloc((self.depth, rows), d), tile.alloc((self.width, rows), p.accumulate)
        self.key, self.value = tile.alloc((keys, self.depth), d), tile.alloc((keys, self.width), d)
        self.weights = tile.alloc((keys, rows), d)


@tile_function
def attend(p: Attention, q0: Any) -> None:
    """The queries q0 … of one head."""
    rows, keys, m = p.cut.rows, p.cut.keys, Memory(p)
    for d in tile.range(0, m.depth, PIECE):
        tile.store(m.query, (d, 0), p.piece("query", q0, rows, d, PIECE), axes=(1, 0))
    for e in tile.range(0, m.width, PIECE):
        tile.store(m.out, (e, 0), tile.zeros((PIECE, rows), p.accumulate))
    top, total = tile.full((1, rows), LOWEST, p.compute), tile.zeros((1, rows), p.compute)
    for t0 in tile.range(0, p.seen(q0, rows), keys):
        for d in tile.range(0, m.depth, PIECE):
            tile.store(m.key, (0, d), p.piece("key", t0, keys, d, PIECE))
        for e in tile.range(0, m.width, PIECE):
            tile.store(m.value, (0, e), p.piece("value", t0, keys, e, PIECE))
        scores = changed(p, product(p, m), q0, t0)
        higher = larger(tile.max(scores, 0, keepdims=True), top)
        base = p.base(tile.where(tile.eq(higher, LOWEST), 0.0, higher))  # a query that sees nothing yet: 2^(-inf + 0) = 0
        weights, decay = p.power(p.exponent(scores, base)), p.power(p.exponent(top, base))
        total = total * decay + tile.sum(weights, 0, keepdims=True)
        top = higher
        tile.store(m.weights, (0, 0), weights)
        weigh(p, m, decay)
    if p.sums is not None:
        scaled = top * p.scale if p.folded else top
        tile.store(p.sums, (p.head, q0), tile.reshape(tile.log(total) + scaled, (rows,)), check=(1,))
    finish(p, m, total, q0)


@tile_function
def product(p: Attention, m: Memory) -> TileValue:
    """key @ query, [keys, queries]."""
    rows, keys = p.cut.rows, p.cut.keys
    acc = tile.zeros((keys, rows), p.compute)
    for d in tile.range(0, m.depth, STEP):
        acc = tile.dot(tile.load(m.key, (0, d), (keys, STEP)), tile.load(m.query, (d, 0), (STEP, rows)), acc)
    return acc


def changed(p: Attention, acc: TileValue, q0: Any, t0: Any) -> TileValue:
    """The scores, scaled and as the user's block wants them; -inf for keys that do not exist or are not seen."""
    rows, keys = p.cut.rows, p.cut.keys
    if not p.folded:
        acc = p.held(acc * tile.constant(p.scale, p.compute))
    if p.score is not None:
        point = Point(p.env, (p.keys(t0, keys, p.partly(p.t, keys)), p.queries(q0, rows, p.partly(p.q, rows))))
        acc = tile.broadcast_to(p.score.run(point, acc)[0], acc.shape)
    if not p.causal and not p.partly(p.t, keys):
        return acc
    left = tile.convert(tile.minimum(tile.maximum(tile.size(p.t) - t0, 0), keys), int32)
    if p.causal:
        ahead = tile.convert(tile.minimum(tile.maximum(q0 - t0 + tile.size(p.offset), -rows), keys), int32)
        left = tile.minimum(tile.iota((1, rows), 1).to(int32) + (ahead + 1), left)
    seen = tile.iota(acc.shape, 0).to(int32) < left
    return tile.where(seen, acc, tile.constant(LOWEST, p.compute))


@tile_function
def weigh(p: Attention, m: Memory, decay: TileValue) -> None:
    """out = out * decay + weights @ values, some columns at a time."""
    rows, keys = p.cut.rows, p.cut.keys
    for e in tile.range(0, m.width, PIECE):
        acc = tile.load(m.out, (e, 0), (PIECE, rows)).to(p.compute) * decay
        acc = tile.dot(tile.load(m.value, (0, e), (PIECE, keys), axes=(1, 0)), tile.load(m.weights, (0, 0), (keys, rows)), acc)
        tile.store(m.out, (e, 0), acc.to(p.accumulate))


@tile_function
def finish(p: Attention, m: Memory, total: TileValue, q0: Any) -> None:
    """Divide by the sums (a query that saw nothing gives 0) and hand the results to the epilogue."""
    share = tile.where(tile.eq(total, 0.0), 1.0, total)
    for e in tile.range(0, m.width, PIECE):
        store(p, q0, e, tile.load(m.out, (e, 0), (PIECE, p.cut.rows)).to(p.compute) / share)


def store(p: Attention, q0: Any, e: Any, value: TileValue) -> None:
    place, rows = p.places["out"], p.cut.rows
    if place is not None:
        place.store(p.out, p.env, (q0, e), value.to(p.out.dtype), turned=True)
        return
    assert p.epilogue is not None and isinstance(p.e, int)
    columns = Lanes(p.e_name, e, PIECE, p.e, p.e % PIECE != 0, aligned=True)
    p.epilogue.run(Point(p.env, (columns, p.queries(q0, rows, p.partly(p.q, rows)))), value)


__all__ = ["Memory", "attend", "changed", "finish", "product", "store", "weigh"]
