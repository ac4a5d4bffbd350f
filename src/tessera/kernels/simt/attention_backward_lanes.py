"""Attention's reverse pass where the threads of a block are the lanes of a CPU's vectors, one owned row each.

As in ``attention_lanes.py`` tiles stand on their side: p and ds are [streaming, owned], sums [columns, owned], and all of it rests in
memory of the block between loops over pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...types.dtypes import int32
from ..fused import Point
from .attention_lanes import PIECE, STEP

if TYPE_CHECKING:
    from .attention_backward import Gradient


class Memory:
    """What a block keeps: its rows and their sums on their side, the rows that stream past, p and ds."""

    def __init__(self, p: Gradient):
        rows, n, d = p.cut.rows, p.cut.keys, p.compute
        self.depth, self.width = (-(-sum(w for _, w in pieces) // PIECE) * PIECE for pieces in (p.depths, p.widths))
        self.owned = tile.alloc((self.depth, rows), d), tile.alloc((self.width, rows), d)
        self.stream = tile.alloc((n, self.depth), d), tile.alloc((n, self.width), d)
        self.slopes, self.weights = tile.alloc((n, rows), d), tile.alloc((n, rows), d)
        self.one = tile.alloc((self.depth, rows), d)
        self.other = None if p.of_queries else tile.alloc((self.width, rows), d)


@tile_function
def differentiate(p: Gradient, first: Any) -> None:
    """The cotangents of the owned rows first …"""
    rows, n, m = p.cut.rows, p.cut.keys, Memory(p)
    for role, kept, extent in zip(p.owned, m.owned, (m.depth, m.width), strict=True):
        for d in tile.range(0, extent, PIECE):
            tile.store(kept, (d, 0), p.owner.piece(role, first, rows, d, PIECE), axes=(1, 0))
    for sums, extent in ((m.one, m.depth), (m.other, m.width)):
        if sums is not None:
            for d in tile.range(0, extent, PIECE):
                tile.store(sums, (d, 0), tile.zeros((PIECE, rows), p.compute))
    begin, end = p.stretch(first)
    if p.of_queries:
        for t0 in tile.range(begin, end, n):
            step(p, m, first, t0)
    else:
        for g in tile.range(0, p.group):
            for q0 in tile.range(begin, end, n):
                step(p.member(g), m, first, q0)
    store(p, m.one, "dq" if p.of_queries else "dk", first, m.depth, p.scale)
    if m.other is not None:
        store(p, m.other, "dv", first, m.width, 1.0)


@tile_function
def step(p: Gradient, m: Memory, own: Any, stream: Any) -> None:
    """The streaming rows stream …"""
    rows, n = p.cut.rows, p.cut.keys
    for role, kept, extent in zip(p.streaming, m.stream, (m.depth, m.width), strict=True):
        for d in tile.range(0, extent, PIECE):
            tile.store(kept, (0, d), p.piece(role, stream, n, d, PIECE))
    lanes = p.lanes(own, stream, rows, n)
    lse, delta = (values(p, b, own, stream) for b in (p.lse, p.delta))
    shape = (n, rows)
    down, along = (tile.iota(shape, axis).to(int32) + tile.convert(at, int32) for axis, at in ((0, stream), (1, own)))
    key, query = (down, along) if p.of_queries else (along, down)
    weights = p.probabilities(against(m.stream[0], m.owned[0], m.depth, p), Point(p.env, (lanes[1], lanes[0])), lse, key,
                              query if p.causal else None)
    slopes = weights * (against(m.stream[1], m.owned[1], m.width, p) - delta)
    tile.store(m.slopes, (0, 0), slopes)
    add(m.one, m.stream[0], m.slopes, m.depth, p)
    if m.other is not None:
        tile.store(m.weights, (0, 0), weights)
        add(m.other, m.stream[1], m.weights, m.width, p)


def values(p: Gradient, buffer: Buffer, own: Any, stream: Any) -> TileValue:
    """The log-sum-exp or delta of each element's query: of a lane's own, or the same for all lanes."""
    n, rows = p.cut.keys, p.cut.rows
    if p.of_queries:
        return tile.reshape(tile.load(buffer, (p.head, own), (rows,), check=(1,)), (1, rows))
    query = tile.iota((n, rows), 0) + stream
    return tile.gather(buffer, query + p.head * tile.size(p.q), mask=query < tile.size(p.q))


@tile_function
def against(left: Buffer, right: Buffer, extent: int, p: Gradient) -> TileValue:
    """left @ right, [streaming, owned]."""
    rows, n = p.cut.rows, p.cut.keys
    acc = tile.zeros((n, rows), p.compute)
    for d in tile.range(0, extent, STEP):
        acc = tile.dot(tile.load(left, (0, d), (n, STEP)), tile.load(right, (d, 0), (STEP, rows)), acc)
    return acc


@tile_function
def add(sums: Buffer, left: Buffer, right: Buffer, extent: int, p: Gradient) -> None:
    """sums += left^T @ right, some columns at a time."""
    rows, n = p.cut.rows, p.cut.keys
    for d in tile.range(0, extent, PIECE):
        acc = tile.dot(tile.load(left, (0, d), (PIECE, n), axes=(1, 0)), tile.load(right, (0, 0), (n, rows)),
                       tile.load(sums, (d, 0), (PIECE, rows)))
        tile.store(sums, (d, 0), acc)


@tile_function
def store(p: Gradient, sums: Buffer, role: str, first: Any, extent: int, scale: float) -> None:
    rows, head = p.cut.rows, p.head if p.of_queries else p.key_head
    for d in tile.range(0, extent, PIECE):
        value = tile.load(sums, (d, 0), (PIECE, rows)) * tile.constant(scale, p.compute)
        tile.store(p.writes[role], (head, first, d), value, axes=(2, 1), check=(1, 2))


__all__ = ["Memory", "differentiate"]
