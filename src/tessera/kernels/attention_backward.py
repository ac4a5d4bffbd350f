"""Attention's reverse pass: probabilities are made again from the log-sum-exp of each row, block by block.

``p = exp(scale * query key^T - lse)``, ``ds = p * (cotangent value^T - delta)``; then ``dv = p^T cotangent``,
``dk = scale * ds^T query`` and ``dq = scale * ds key``.  For a block of keys and a block of rows, p and ds are made strip by
strip and kept in scratch; the three products are then sums over whole blocks.

Every element of dq is one chain of ``fma`` over the keys in order, every element of dk and dv one over the rows, whatever the
blocks are and whoever computes them: so the number of threads, and whether one launch makes all three or one makes dq and
another dk and dv, leaves the bits alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue, tile_function
from ..tiling.templates import register
from ..types.dims import DimLike, ceildiv, product
from ..types.dtypes import DType
from .attention import LOWEST, Attention, Operands, Shape, copy_across, copy_rows, fit, power_of_two, score_tile
from .attention import static_width as static
from .fused import Lanes
from .plan import AHEAD, prefetch_row, register_tile
from .programs import open_program

ROWS = 96  # about as many query rows are taken at a time: p and ds of a block stay in the second-level cache


class SharedHeads(Operands):
    """What an ``attention_backward`` template op adds: the cotangent, what is known of each row, what is written, and heads that share
    keys."""

    lse: Buffer
    delta: Buffer
    writes: dict[str, Buffer]
    key_heads: DimLike
    group: DimLike

    def bind(self, op: Op, buffers: Sequence[Buffer]) -> None:
        self.maps["cotangent"] = (buffers[3], op.attrs["cotangent"])
        self.lse, self.delta = buffers[4:6]
        self.writes = dict(zip(op.attrs["writes"], buffers[6:], strict=False))
        self.key_heads = op.attrs["key_heads"]
        heads = self.batch[-1][1] if self.batch else 1
        self.group = heads // self.key_heads if self.key_heads != 0 else 1

    @property
    def key_head(self) -> Any:
        """The number of the block's key head, over all batch loops."""
        total: Any = 0
        for name, extent in self.batch[:-1]:
            total = total * tile.size(extent) + self.env[name]
        return total * tile.size(self.key_heads) + self._shared() if self.batch else 0

    def _shared(self) -> Any:
        return tile.program_id(len(self.batch) - 1)

    def member(self, g: Any) -> Self:
        """The same for query head ``g`` of those that share the block's key head."""
        one = copy.copy(self)
        if self.batch:
            one.env = {**self.env, self.batch[-1][0]: self._shared() * tile.size(self.group) + g}
        return one


class Gradient(SharedHeads, Attention):
    """One ``attention_backward`` template op in terms of tiles: see :class:`Attention`, and what is written."""

    def __init__(self, op: Op, buffers: list[Buffer], shape: Shape):
        super().__init__(op, buffers, shape)
        self.bind(op, buffers)


@register("attention_backward")
def attention_backward(op: Op, machine: Any, name: str) -> Function:
    """The tile program of an ``attention_backward`` template op (attributes: ``scheduling/templates.py``)."""
    a = op.attrs
    q, t, d, e = (a[x][1] for x in "qtde")
    compute: DType = a["compute"]
    wide = max(static(d, "d"), static(e, "e"))
    most = 256 if wide <= 64 else 128 if wide <= 128 else 64
    keys = min(most, -(-max(t, 1) // machine.tile_lanes) * machine.tile_lanes) if isinstance(t, int) else most
    mr, score = register_tile(machine, compute, q, keys)
    keys = -(-keys // score) * score
    value = fit(register_tile(machine, compute, mr, wide)[1], mr, score, machine)
    together = next(n for n in (2, 3, 1) if mr % n == 0)
    rows = -(-ROWS // mr) * mr
    rows = min(rows, -(-max(q, 1) // mr) * mr) if isinstance(q, int) else rows
    shape = Shape(mr, score, value, rows, keys, together)
    batch = tuple(extent for _, extent in a["batch"])
    lead, grid = product(batch[:-1]), (*batch[:-1], *((a["key_heads"],) if batch else ()))
    queries, heads = product(batch), lead * a["key_heads"]
    shapes = {"dq": (queries, q, d), "dk": (heads, t, d), "dv": (heads, t, e)}
    parts = {"q": (ceildiv(q, rows),), "t": (ceildiv(t, keys),), None: ()}[a["cut"]]
    views = [None] * 4 + [(queries, q)] * 2 + [shapes[r] for r in a["writes"]]
    program = open_program(op, name, (*grid, *parts), [*views, *[None] * (len(op.operands) - len(views))])
    with program:
        p = Gradient(op, program.buffers, shape)
        differentiate(p, a["cut"], tile.program_id(len(grid)) if parts else 0)
    return program.finish()


class State:
    """The scratch memory of a block: panels of keys and values, copies of rows, p and ds, and sums of dk and dv."""

    def __init__(self, p: Gradient):
        s, d = p.shape, p.compute
        depth, width = static(p.d, "d"), static(p.e, "e")
        self.depth_panels, self.width_panels = -(-depth // s.value), -(-width // s.value)
        self.key = tile.alloc((s.strips, depth, s.score), d)
        self.value = tile.alloc((s.strips, width, s.score), d)
        self.query = tile.alloc((s.rows, self.depth_panels * s.value + 16), d)
        self.cotangent = tile.alloc((s.rows, self.width_panels * s.value + 16), d)
        self.base, self.delta = tile.alloc((s.rows,), d), tile.alloc((s.rows,), d)
        self.scores = tile.alloc((s.rows, s.keys + 16 + s.mr), d)   # then p
        self.slopes = tile.alloc((s.rows, s.keys + 16 + s.mr), d)   # ds
        if "dq" in p.writes:
            self.key_rows = tile.alloc((self.depth_panels, s.keys, s.value), d)
        if "dk" in p.writes:
            self.dk = tile.alloc((s.keys + s.mr, self.depth_panels * s.value), d)
            self.dv = tile.alloc((s.keys + s.mr, self.width_panels * s.value), d)


@tile_function
def differentiate(p: Gradient, cut: str | None, part: Any) -> None:
    """One key head: all of it, or the part of its rows (``cut`` = "q") or keys ("t") that is this block's."""
    s = p.shape
    state = State(p)
    row, rows_end = _share(p.q, s.rows, cut == "q", part)
    key, keys_end = _share(p.t, s.keys, cut == "t", part)
    if "dq" in p.writes:
        for g in tile.range(0, p.group):
            clear_rows(p.member(g), state, row, rows_end)
    for t0 in tile.range(key, keys_end, s.keys):
        count = tile.minimum(s.keys, tile.size(p.t) - t0)
        copy_across(p.member(0), state.key, "key", t0, count)
        copy_across(p.member(0), state.value, "value", t0, count)
        if "dq" in p.writes:
            copy_rows(p.member(0), state.key_rows, "key", t0, count, p.scale)
        if "dk" in p.writes:
            clear_sums(p, state)
        for g in tile.range(0, p.group):
            for q0 in tile.range(row, rows_end, s.rows):
                if p.seen(q0, s.rows) > t0:
                    one_block(p.member(g), state, q0, t0, count)
        if "dk" in p.writes:
            store_sums(p, state, t0, count)


def _share(extent: DimLike, size: int, cut: bool, part: Any) -> tuple[Any, Any]:
    """[first, end) of a loop for this block."""
    if not cut:
        return 0, tile.size(extent)
    return part * size, tile.minimum(part * size + size, tile.size(extent))


@tile_function
def clear_rows(p: Gradient, state: State, row: Any, end: Any) -> None:
    s = p.shape
    for q in tile.range(row, end, s.mr):
        for c in tile.range(0, state.depth_panels):
            tile.store(p.writes["dq"], (p.head, q, c * s.value), tile.zeros((s.mr, s.value), p.compute), check=(1, 2))


@tile_function
def clear_sums(p: Gradient, state: State) -> None:
    s = p.shape
    for t in tile.range(0, s.keys, s.mr):
        for c in tile.range(0, state.depth_panels):
            tile.store(state.dk, (t, c * s.value), tile.zeros((s.mr, s.value), p.compute))
        for c in tile.range(0, state.width_panels):
            tile.store(state.dv, (t, c * s.value), tile.zeros((s.mr, s.value), p.compute))


# -- a block of rows against a block of keys -----------------------------------------------------------------------------------
@tile_function
def one_block(p: Gradient, state: State, q0: Any, t0: Any, count: Any) -> None:
    s = p.shape
    rows = tile.minimum(s.rows, tile.size(p.q) - q0)
    all_panels = (count + (s.score - 1)) // s.score
    copy_block(p, state, q0, rows)
    for r in tile.range(0, rows, s.mr):
        here = tile.maximum(tile.minimum(count, p.seen(q0 + r, s.mr) - t0), 0)
        panels = (here + (s.score - 1)) // s.score
        for c in tile.range(0, panels):
            score_tile(p, state, r, q0 + r, t0, c)
            slope_tile(p, state, r, c)
        if "dk" in p.writes:
            for c in tile.range(panels, all_panels):   # nothing of this strip sees these keys
                tile.store(state.scores, (r, c * s.score), tile.zeros((s.mr, s.score), p.compute))
                tile.store(state.slopes, (r, c * s.score), tile.zeros((s.mr, s.score), p.compute))
        if "dq" in p.writes:
            for c in tile.range(0, state.depth_panels):
                add_to_queries(p, state, q0, r, c, here)
    if "dk" in p.writes:
        for t in tile.range(0, count, s.mr):
            for c in tile.range(0, state.width_panels):
                add_to_sums(p, state.scores, state.cotangent, state.dv, t, c, rows)
            for c in tile.range(0, state.depth_panels):
                add_to_sums(p, state.slopes, state.query, state.dk, t, c, rows)


@tile_function
def copy_block(p: Gradient, state: State, q0: Any, rows: Any) -> None:
    """scale * query and the cotangent of the block's rows, and what is subtracted from their scores and slopes."""
    s = p.shape
    for r in tile.range(0, rows, s.mr):
        if q0 + r + s.mr <= tile.size(p.q):
            _copy_strip(p, state, q0, r, False)
        else:
            _copy_strip(p, state, q0, r, True)
        lse = tile.load(p.lse, (p.head, q0 + r), (s.mr,), check=(1,))
        # a row that sees no key has -inf, and scores that are all -inf
        tile.store(state.base, (r,), p.base(tile.where(tile.eq(lse, LOWEST), 0.0, lse)))
        tile.store(state.delta, (r,), tile.load(p.delta, (p.head, q0 + r), (s.mr,), check=(1,)))


@tile_function
def _copy_strip(p: Gradient, state: State, q0: Any, r: Any, ragged: bool) -> None:
    for c in tile.range(0, state.depth_panels):
        tile.store(state.query, (r, c * p.shape.value), _strip(p, "query", q0 + r, c, ragged) * tile.constant(p.scale, p.compute))
    for c in tile.range(0, state.width_panels):
        tile.store(state.cotangent, (r, c * p.shape.value), _strip(p, "cotangent", q0 + r, c, ragged))


def _strip(p: Gradient, role: str, q: Any, c: Any, ragged: bool) -> TileValue:
    name, extent = p.row(role)
    width = p.shape.value
    return p.operand(role, p.queries(q, p.shape.mr, ragged), Lanes(name, c * width, width, extent, extent % width != 0, aligned=True))


@tile_function
def slope_tile(p: Gradient, state: State, r: Any, c: Any) -> None:
    """The scores of strip r and panel c become p; ds is made beside them."""
    s = p.shape
    acc = tile.zeros((s.mr, s.score), p.compute)
    for e in tile.range(0, p.e):
        prefetch_row(state.value, (c, e + AHEAD), s.score)
        acc = tile.dot(tile.load(state.cotangent, (r, e), (s.mr, 1)), tile.load(state.value, (c, e, 0), (1, s.score)), acc)
    tile.store(state.slopes, (r, c * s.score), acc)
    n = s.together
    for i in tile.range(0, s.mr, n):
        at = (r + i, c * s.score)
        base = tile.reshape(tile.load(state.base, (r + i,), (n,)), (n, 1))
        delta = tile.reshape(tile.load(state.delta, (r + i,), (n,)), (n, 1))
        weights = power_of_two(p.exponent(tile.load(state.scores, at, (n, s.score)), base))
        tile.store(state.scores, at, weights)
        tile.store(state.slopes, at, weights * (tile.load(state.slopes, at, (n, s.score)) - delta))


@tile_function
def add_to_queries(p: Gradient, state: State, q0: Any, r: Any, c: Any, count: Any) -> None:
    """dq of strip r, panel c += ds @ (scale * key)."""
    s = p.shape
    at = (p.head, q0 + r, c * s.value)
    acc = tile.load(p.writes["dq"], at, (s.mr, s.value), check=(1, 2))
    for t in tile.range(0, count):
        prefetch_row(state.key_rows, (c, t + AHEAD), s.value)
        acc = tile.dot(tile.load(state.slopes, (r, t), (s.mr, 1)), tile.load(state.key_rows, (c, t, 0), (1, s.value)), acc)
    tile.store(p.writes["dq"], at, acc, check=(1, 2))


@tile_function
def add_to_sums(p: Gradient, left: Buffer, right: Buffer, sums: Buffer, t: Any, c: Any, rows: Any) -> None:
    """sums[t : t + mr, panel c] += left[:, t : t + mr]^T @ right[:, panel c]."""
    s = p.shape
    acc = tile.load(sums, (t, c * s.value), (s.mr, s.value))
    for i in tile.range(0, rows):
        acc = tile.dot(tile.load(left, (i, t), (s.mr, 1), axes=(1, 0)), tile.load(right, (i, c * s.value), (1, s.value)), acc)
    tile.store(sums, (t, c * s.value), acc)


@tile_function
def store_sums(p: Gradient, state: State, t0: Any, count: Any) -> None:
    """dk and dv of a block of keys; strips that reach beyond it stop at its end."""
    for t in tile.range(0, count, p.shape.mr):
        for c in tile.range(0, state.depth_panels):
            _store_sum(p, state.dk, p.writes["dk"], t0, t, c, count)
        for c in tile.range(0, state.width_panels):
            _store_sum(p, state.dv, p.writes["dv"], t0, t, c, count)


@tile_function
def _store_sum(p: Gradient, sums: Buffer, out: Buffer, t0: Any, t: Any, c: Any, count: Any) -> None:
    s = p.shape
    got = tile.load(sums, (t, c * s.value), (s.mr, s.value))
    inside = tile.iota((s.mr, s.value), 0) < count - t
    tile.store(out, (p.key_head, t0 + t, c * s.value), got, check=(1, 2), mask=inside)


__all__ = ["Gradient", "SharedHeads", "attention_backward", "differentiate"]
