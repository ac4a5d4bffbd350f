"""Attention in one pass over the keys: the scores of a block of keys are made, exponentiated and used at once.

``s[q, t] = scale * sum_d query[q, d] * key[t, d]``, ``p = softmax over t``, ``out[q, e] = sum_t p[q, t] * value[t, e]``.

Keys are taken ``key_block`` at a time (a numeric parameter).  For every query row a running maximum ``top`` and sum ``total``
are kept; when a block raises the maximum, what was summed so far is scaled down.  Within a block:

* the keys are copied to panels ``[d, columns]`` (transposed), the values to panels ``[t, columns]``;
* for each strip of query rows: scores through ``dot``, then their maximum, exponentials and sum row by row, then the
  weighted values through ``dot``.

A causal product stops at the diagonal: panels of keys that no row of a strip sees are neither computed nor read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.core import Function, Op
from ..scheduling.templates import affine, block, flat_index
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue, tile_function
from ..tiling.templates import register
from ..tiling.vmath_tables import EXP2_F32, EXP2_F64
from ..types.dims import DimLike, ceildiv, product
from ..types.dtypes import DType, f32, f64, int32, int64
from .fused import BlockRunner, Lanes, Point, load
from .plan import AHEAD, prefetch_row, register_tile
from .programs import open_program

LOWEST = float("-inf")
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Shape:
    """How the work is cut: rows of a strip, columns of the score and value panels, rows of a block, keys of a step."""

    mr: int
    score: int
    value: int
    rows: int
    keys: int
    together: int  # rows of a strip that the softmax takes at a time

    @property
    def strips(self) -> int:
        return self.keys // self.score


class Operands:
    """One ``attention`` template op: its loops, operands and blocks, in terms of tiles."""

    def __init__(self, op: Op, buffers: Sequence[Buffer]):
        a = op.attrs
        self.batch: tuple[tuple[str, DimLike], ...] = a["batch"]
        (self.q_name, self.q), (self.t_name, self.t), (self.d_name, self.d), (self.e_name, self.e) = (a[x] for x in "qtde")
        self.compute: DType = a.get("compute", f32)
        self.accumulate: DType = a.get("accumulate", self.compute)
        self.scale, self.causal, self.offset = a["scale"], a["causal"], a.get("causal_offset", 0)
        self.maps = {role: (buffers[i], a[role]) for i, role in enumerate(("query", "key", "value"))}
        score, epilogue = block(op, "score"), block(op, "epilogue")
        self.score = BlockRunner(score, buffers) if score is not None else None
        self.epilogue = BlockRunner(epilogue, buffers) if epilogue is not None else None
        self.sums: Buffer | None = buffers[a["sums"]] if "sums" in a else None
        self.env: dict[str, Any] = {name: tile.program_id(i) if extent != 1 else 0 for i, (name, extent) in enumerate(self.batch)}

    def held(self, t: TileValue) -> TileValue:
        """What an accumulator holds of ``t``."""
        return t if self.accumulate is self.compute else t.to(self.accumulate).to(self.compute)

    def operand(self, role: str, *lanes: Lanes) -> TileValue:
        """A tile of query, key or value, as it is in memory."""
        buffer, index = self.maps[role]
        point = Point(self.env, lanes)
        return tile.broadcast_to(load(buffer, index, point), point.shape)

    def queries(self, at: Any, n: int, ragged: bool) -> Lanes:
        return Lanes(self.q_name, at, n, self.q, ragged)

    def keys(self, at: Any, n: int, ragged: bool) -> Lanes:
        return Lanes(self.t_name, at, n, self.t, ragged, aligned=True)

    def depth(self, at: Any, n: int, ragged: bool = False) -> Lanes:
        return Lanes(self.d_name, at, n, self.d, ragged)

    def columns(self, at: Any, n: int, ragged: bool) -> Lanes:
        return Lanes(self.e_name, at, n, self.e, ragged, aligned=True)

    def base(self, top: TileValue) -> TileValue:
        """What :meth:`exponent` takes for scores less ``top``."""
        return top * -LOG2_E if self.score is None else top

    def exponent(self, score: TileValue, base: TileValue) -> TileValue:
        """log2(e) * (score - top).  What masks add may be the least number there is, whose multiples overflow."""
        return tile.fma(score, LOG2_E, base) if self.score is None else (score - base) * LOG2_E

    def row(self, role: str) -> tuple[str, DimLike]:
        """The loop along a row of an operand: d of queries and keys, e of values and what is like the result."""
        return (self.d_name, self.d) if role in ("query", "key") else (self.e_name, self.e)

    @property
    def head(self) -> Any:
        """The number of the block's query head, over all batch loops."""
        total: Any = 0
        for name, extent in self.batch:
            total = total * tile.size(extent) + self.env[name]
        return total

    def along(self, role: str, loop: str) -> bool:
        """True when neighbours in memory are neighbours in ``loop``."""
        buffer, index = self.maps[role]
        form = affine(flat_index(index, buffer.shape), [loop])
        return form is not None and form[1][loop] == 1

    def seen(self, first_row: Any, rows: int) -> Any:
        """How many keys the rows from ``first_row`` on see at most: all, or up to the diagonal."""
        if not self.causal:
            return tile.size(self.t)
        return tile.minimum(tile.size(self.t), tile.maximum(first_row + rows + tile.size(self.offset), 0))


class Attention(Operands):
    """The same, cut into register tiles and panels."""

    def __init__(self, op: Op, buffers: Sequence[Buffer], shape: Shape):
        super().__init__(op, buffers)
        self.shape = shape

    def operand(self, role: str, *lanes: Lanes) -> TileValue:
        """A tile of query, key or value, in the dtype of the computation."""
        return super().operand(role, *lanes).to(self.compute)


@register("attention")
def attention(op: Op, machine: Any, name: str) -> Function:
    """The tile program of an ``attention`` template op (attributes and blocks: ``scheduling/templates.py``)."""
    a = op.attrs
    q, e = a["q"][1], a["e"][1]
    compute: DType = a.get("compute", f32)
    keys = a["key_block"]
    mr, score = register_tile(machine, compute, q, keys)
    while keys % score:
        score -= machine.tile_lanes
    value = min(register_tile(machine, compute, mr, e if isinstance(e, int) else 64)[1], score * max(1, 28 // max(1, mr)))
    value = fit(value, mr, score, machine)
    together = next(n for n in (2, 3, 1) if mr % n == 0)
    rows, blocks = _rows(q, mr, dict(a.get("schedule", ())).get("tile_m"))
    shape = Shape(mr, score, value, rows, keys, together)
    batch = tuple(extent for _, extent in a["batch"])
    heads = product(batch)
    program = open_program(op, name, (*batch, blocks), [(heads, q) if i == a.get("sums") else None for i in range(len(op.operands))])
    with program:
        attend(Attention(op, program.buffers, shape), tile.program_id(len(batch)) * rows)
    return program.finish()


def fit(value: int, mr: int, score: int, machine: Any) -> int:
    """Columns of a value panel: no more registers than the score's tile takes."""
    while value > machine.tile_lanes and mr * value > max(mr * score, mr * machine.tile_lanes):
        value -= machine.tile_lanes
    return value


def _rows(q: DimLike, mr: int, asked: int | None = None) -> tuple[int, DimLike]:
    """(rows of a block, blocks): as asked, else about 18 strips, so that the copies of keys and values pay, and equal blocks where q is
    known."""
    if asked is not None:
        rows = min(-(-asked // mr), 128) * mr
        return rows, ceildiv(q, rows)
    if isinstance(q, int):
        strips = max(1, -(-q // mr))
        blocks = max(1, round(strips / 18))
        rows = -(-strips // blocks) * mr
        return rows, -(-q // rows)
    return 18 * mr, ceildiv(q, 18 * mr)


class State:
    """The scratch memory of a block: panels, one strip of scores, and what is kept for each row."""

    def __init__(self, p: Attention, rows: int):
        s, d = p.shape, p.compute
        depth, width = static_width(p.d, "d"), static_width(p.e, "e")
        self.width = -(-width // s.value) * s.value
        self.key = tile.alloc((s.strips, depth, s.score), d)
        self.value = tile.alloc((self.width // s.value, s.keys, s.value), d)
        self.query = tile.alloc((s.mr, depth + 16), d)
        self.scores = tile.alloc((s.mr, s.keys + 16), d)
        self.factor = tile.alloc((s.mr,), d)
        self.top, self.total = tile.alloc((rows,), d), tile.alloc((rows,), d)
        self.out = tile.alloc((rows, self.width), p.accumulate)


def static_width(n: DimLike, what: str) -> int:
    from ..errors import UnsupportedError
    if not isinstance(n, int):
        raise UnsupportedError(f"attention: the extent {what} of a head is a number known when the program is compiled, not {n}")
    return n


@tile_function
def attend(p: Attention, q0: Any) -> None:
    """The rows q0 … q0 + rows - 1 of one head."""
    s = p.shape
    state = State(p, s.rows)
    rows = tile.minimum(s.rows, tile.size(p.q) - q0)
    for r in tile.range(0, rows, s.mr):
        tile.store(state.top, (r,), tile.full((s.mr,), LOWEST, p.compute))
        tile.store(state.total, (r,), tile.zeros((s.mr,), p.compute))
        for c in tile.range(0, state.width, s.value):
            tile.store(state.out, (r, c), tile.zeros((s.mr, s.value), p.accumulate))
    for t0 in tile.range(0, p.seen(q0, s.rows), s.keys):
        count = tile.minimum(s.keys, p.seen(q0, s.rows) - t0)
        copy_across(p, state.key, "key", t0, count)
        copy_rows(p, state.value, "value", t0, count)
        for r in tile.range(0, rows, s.mr):
            here = tile.minimum(count, p.seen(q0 + r, s.mr) - t0)
            panels = (here + (s.score - 1)) // s.score
            if here > 0:
                copy_queries(p, state, q0 + r)
                for c in tile.range(0, panels):
                    score_tile(p, state, 0, q0 + r, t0, c)
                for i in tile.range(0, s.mr, s.together):
                    soften(p, state, r, i, panels)
                for c in tile.range(0, state.width // s.value):
                    weigh(p, state, r, c, panels * s.score)
    for r in tile.range(0, rows, s.together):
        if p.sums is not None:
            store_sums(p, state, q0, r)
        for c in tile.range(0, state.width, s.value):
            finish(p, state, q0, r, c)


# -- copies --------------------------------------------------------------------------------------------------------------
@tile_function
def copy_across(p: Attention, panels: Buffer, role: str, t0: Any, count: Any) -> None:
    """Rows t0 … t0 + count - 1 of keys or values to panels [d, columns]: transposed; rows beyond the last are zeros."""
    s = p.shape
    for c in tile.range(0, (count + (s.score - 1)) // s.score):
        t = t0 + c * s.score
        if t + s.score <= tile.size(p.t):
            _copy_panel_across(p, panels, role, c, t, False)
        else:
            _copy_panel_across(p, panels, role, c, t, True)


@tile_function
def _copy_panel_across(p: Attention, panels: Buffer, role: str, c: Any, t: Any, ragged: bool) -> None:
    name, depth = p.row(role)
    step = 1 if ragged else 16 if p.along(role, name) else 4   # at the edge, which is rare, code is kept small
    whole = depth - depth % step
    for d in tile.range(0, whole, step):
        _copy_piece_across(p, panels, role, c, t, d, step, ragged)
    for d in tile.range(whole, depth):
        _copy_piece_across(p, panels, role, c, t, d, 1, ragged)


def _copy_piece_across(p: Attention, panels: Buffer, role: str, c: Any, t: Any, d: Any, step: int, ragged: bool) -> None:
    name, depth = p.row(role)
    width = p.shape.score
    got = p.operand(role, Lanes(name, d, step, depth), p.keys(t, width, ragged))
    tile.store(panels, (c, d, 0), tile.reshape(got, (1, step, width)))


@tile_function
def copy_rows(p: Attention, panels: Buffer, role: str, t0: Any, count: Any, scale: float | None = None) -> None:
    """Rows t0 … of keys or values to panels [t, columns], to the end of the last panel of keys; what lies beyond is zeros."""
    s = p.shape
    rows = (count + (s.score - 1)) // s.score * s.score
    for c in tile.range(0, panels.shape[0]):
        for t in tile.range(0, rows, 8):
            if t0 + t + 8 <= tile.size(p.t):
                _copy_piece(p, panels, role, c, t0, t, scale, False)
            else:
                _copy_piece(p, panels, role, c, t0, t, scale, True)


def _copy_piece(p: Attention, panels: Buffer, role: str, c: Any, t0: Any, t: Any, scale: float | None, ragged: bool) -> None:
    name, depth = p.row(role)
    width = p.shape.value
    columns = Lanes(name, c * width, width, depth, depth % width != 0, aligned=True)
    got = p.operand(role, p.keys(t0 + t, 8, ragged), columns)
    got = got if scale is None else got * tile.constant(scale, p.compute)
    tile.store(panels, (c, t, 0), tile.reshape(got, (1, 8, width)))


@tile_function
def copy_queries(p: Attention, state: State, q: Any) -> None:
    """scale * query[q : q + mr, :] to the strip; rows beyond the last are zeros."""
    if q + p.shape.mr <= tile.size(p.q):
        _copy_query_strip(p, state, q, False)
    else:
        _copy_query_strip(p, state, q, True)


@tile_function
def _copy_query_strip(p: Attention, state: State, q: Any, ragged: bool) -> None:
    whole = p.d - p.d % 16
    for d in tile.range(0, whole, 16):
        got = p.operand("query", p.queries(q, p.shape.mr, ragged), p.depth(d, 16))
        tile.store(state.query, (0, d), got * tile.constant(p.scale, p.compute))
    for d in tile.range(whole, p.d):
        got = p.operand("query", p.queries(q, p.shape.mr, ragged), p.depth(d, 1))
        tile.store(state.query, (0, d), got * tile.constant(p.scale, p.compute))


# -- one strip of rows against one block of keys ---------------------------------------------------------------------------
@tile_function
def score_tile(p: Attention, state: Any, r: Any, q: Any, t0: Any, c: Any) -> None:
    """The scores of the strip at row r of the copy (q of the operand) against panel c of the keys."""
    s = p.shape
    acc = tile.zeros((s.mr, s.score), p.compute)
    for d in tile.range(0, p.d):
        prefetch_row(state.key, (c, d + AHEAD), s.score)
        acc = tile.dot(tile.load(state.query, (r, d), (s.mr, 1)), tile.load(state.key, (c, d, 0), (1, s.score)), acc)
    tile.store(state.scores, (r, c * s.score), p.held(acc))
    t = t0 + c * s.score
    inside = t + s.score <= tile.size(p.t)
    if p.causal:
        inside = inside & (t + (s.score - 1) <= q + tile.size(p.offset))
    if p.score is not None:
        inside = inside & (q + s.mr <= tile.size(p.q))
        if inside:
            change_scores(p, state, r, q, t, c, False)
        else:
            change_scores(p, state, r, q, t, c, True)
    elif tile.logical_not(inside):
        change_scores(p, state, r, q, t, c, True)


@tile_function
def change_scores(p: Attention, state: Any, r: Any, q: Any, t: Any, c: Any, edge: bool) -> None:
    """The user's block on the scores, row by row; at an edge, -inf for keys that do not exist or lie beyond the diagonal."""
    for i in tile.range(0, p.shape.mr):
        score = tile.load(state.scores, (r + i, c * p.shape.score), (1, p.shape.score))
        tile.store(state.scores, (r + i, c * p.shape.score), _changed_row(p, score, q + i, t, edge))


def _changed_row(p: Attention, score: TileValue, q: Any, t: Any, edge: bool) -> TileValue:
    width = p.shape.score
    point = Point(p.env, (Lanes(p.q_name, q, 1, p.q), p.keys(t, width, edge)))
    if p.score is not None:
        score = tile.cond(q < tile.size(p.q), lambda: _changed(p, point, score), lambda: score) if edge else _changed(p, point, score)
    if not edge:
        return score
    end = tile.size(p.t)
    if p.causal:
        end = tile.minimum(end, q + tile.size(p.offset) + 1)
    left = tile.convert(tile.minimum(tile.maximum(end - t, 0), width), int32)
    return tile.where(tile.iota((1, width), 1).to(int32) < left, score, tile.constant(LOWEST, p.compute))


def _changed(p: Attention, point: Point, score: TileValue) -> TileValue:
    assert p.score is not None
    return tile.broadcast_to(p.score.run(point, score)[0], score.shape)


@tile_function
def soften(p: Attention, state: State, r: Any, i: Any, panels: Any) -> None:
    """Rows r + i …: scores become exp(score - maximum), and the row's maximum, sum and factor are brought up to date."""
    s = p.shape
    n, width = s.together, s.score
    high = tile.full((n, width), LOWEST, p.compute)
    for c in tile.range(0, panels):
        high = larger(tile.load(state.scores, (i, c * width), (n, width)), high)
    old = tile.load(state.top, (r + i,), (n,))
    top = larger(tile.max(high, 1), old)
    base = p.base(tile.where(tile.eq(top, LOWEST), 0.0, top))   # a row that sees nothing yet: 2^(-inf + 0) = 0
    total = tile.zeros((n, width), p.compute)
    for c in tile.range(0, panels):
        score = tile.load(state.scores, (i, c * width), (n, width))
        weights = power_of_two(p.exponent(score, tile.reshape(base, (n, 1))))
        tile.store(state.scores, (i, c * width), weights)
        total = total + weights
    factor = power_of_two(p.exponent(old, base))
    tile.store(state.factor, (i,), factor)
    tile.store(state.top, (r + i,), top)
    tile.store(state.total, (r + i,), tile.load(state.total, (r + i,), (n,)) * factor + tile.sum(total, 1))


def larger(a: TileValue, b: TileValue) -> TileValue:
    """The larger; ``b`` where ``a`` is NaN (a NaN score shows in the sum)."""
    return tile.where(a > b, a, b)


def power_of_two(x: TileValue) -> TileValue:
    """2^x for x <= 0 (or slightly above); from 2^-126.5 down it is exactly 0.

    x = n + r with n whole; 2^r is a polynomial; n goes into the exponent's bits, where -127 makes the factor 0.
    """
    wide = x.dtype is f64
    mantissa, bias, coefficients = (52, 1023, EXP2_F64) if wide else (23, 127, EXP2_F32)
    x = tile.where(x < float(-bias), float(-bias), x)
    shift = 1.5 * 2.0**mantissa + bias
    shifted = x + shift
    r = x - (shifted - shift)
    p = tile.full(x.shape, coefficients[-1], x.dtype)
    for c in coefficients[-2::-1]:
        p = tile.fma(p, r, c)
    scale = tile.bitcast(tile.shift_left(tile.bitcast(shifted, int64 if wide else int32), mantissa), x.dtype)
    return tile.fma(p, r, 1.0) * scale


@tile_function
def weigh(p: Attention, state: State, r: Any, c: Any, count: Any) -> None:
    """out[r : r + mr, panel c] = out * factor + weights @ value."""
    s = p.shape
    shape = (s.mr, s.value)
    factor = tile.reshape(tile.load(state.factor, (0,), (s.mr,)), (s.mr, 1))
    acc = tile.load(state.out, (r, c * s.value), shape).to(p.compute) * factor
    for t in tile.range(0, count):
        prefetch_row(state.value, (c, t + AHEAD), s.value)
        acc = tile.dot(tile.load(state.scores, (0, t), (s.mr, 1)), tile.load(state.value, (c, t, 0), (1, s.value)), acc)
    tile.store(state.out, (r, c * s.value), acc.to(p.accumulate))


@tile_function
def store_sums(p: Attention, state: State, q0: Any, r: Any) -> None:
    """The log-sum-exp of rows r …: -inf for a row that saw nothing."""
    n = p.shape.together
    assert p.sums is not None
    total, top = tile.load(state.total, (r,), (n,)), tile.load(state.top, (r,), (n,))
    tile.store(p.sums, (p.head, q0 + r), tile.log(total) + top, check=True)


@tile_function
def finish(p: Attention, state: State, q0: Any, r: Any, c: Any) -> None:
    """Divide by the sum (a row that saw nothing gives 0) and hand the result to the epilogue."""
    s = p.shape
    n = s.together
    total = tile.load(state.total, (r,), (n,))
    share = tile.reshape(tile.where(tile.eq(total, 0.0), 1.0, total), (n, 1))
    acc = tile.load(state.out, (r, c), (n, s.value)).to(p.compute) / share
    ragged_columns = p.e % s.value != 0
    assert p.epilogue is not None
    if n == 1 or (isinstance(p.q, int) and p.q % n == 0) or q0 + r + n <= tile.size(p.q):
        p.epilogue.run(Point(p.env, (p.queries(q0 + r, n, False), p.columns(c, s.value, ragged_columns))), acc)
    else:
        p.epilogue.run(Point(p.env, (p.queries(q0 + r, n, True), p.columns(c, s.value, ragged_columns))), acc)


__all__ = ["Attention", "Operands", "Shape", "attend", "attention", "fit", "larger", "power_of_two", "static_width"]
