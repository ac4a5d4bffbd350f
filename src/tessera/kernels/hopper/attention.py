"""Attention forward with everything said: ``softmax(scale * Q K^T) V`` for one block of queries, keys and values streaming past.

One thread feeds two rings, of keys and of values, through the copy engine.  Each warp group keeps 64 queries.  It starts the scores of
the next keys *before* the values of the last ones are weighted, so that the matrix unit works while the exponentials are made; and
the groups take turns (named barriers), so that one group's exponentials run beside another's products.

Scores never leave registers: an accumulator of the first product, rounded to 16 bits, is the left operand of the second as it lies.

Source: J. Shah et al., "FlashAttention-3" (2024), for the overlap and the turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Function
from ...tiling import dsl
from ...tiling import explicit as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...tiling.values import as_value
from ...types.dims import Dim, DimLike, ceildiv
from ...types.dims import name as dim_name
from ...types.dtypes import DType, bf16, f32, int32

Scores = Callable[..., Callable[[TileValue], TileValue]]
"""(first row, first key, keys, loops, buffers) -> what becomes of the scores: it loads what it needs before they are there."""
Results = Callable[..., None]
"""(values [64, width] in f32, first row, loops, buffers): stores them."""

LOG2_E = math.log2(math.e)
TURN = 2  # the named barriers of the groups' turns start here


@dataclass(frozen=True)
class Config:
    """How the work is cut: warp groups of 64 queries, keys of a step (a multiple of 64), stages of each ring (a power
    of two)."""

    groups: int = 2
    keys: int = 128
    stages: int = 2

    @property
    def queries(self) -> int:
        return 64 * self.groups

    @staticmethod
    def of(width: int, scored: bool = False) -> Config:
        """Narrow heads leave registers for a third group: the exponentials of two run beside the products of one.  What is added to
        scores takes them again; wide heads leave less shared memory."""
        return Config(groups=3 if width <= 64 else 2, keys=64 if width > 128 or (width <= 64 and scored) else 128)

    @property
    def registers(self) -> tuple[int, int]:
        """Of the copying thread's group, and of the others' threads."""
        return {1: (56, 256), 2: (24, 240), 3: (32, 160)}[self.groups]


@dataclass(frozen=True)
class Heads:
    """Where the matrix of a head lies: a buffer seen as ``[outer, rows, columns]``, and (outer, column) at which it begins, in terms of
    the loops over heads."""

    buffer: int
    outer: DimLike
    rows: DimLike
    columns: DimLike
    at: tuple[DimLike, DimLike]

    @property
    def shape(self) -> tuple[DimLike, DimLike, DimLike]:
        return self.outer, self.rows, self.columns


@dataclass(frozen=True)
class Problem:
    """One attention.

    Attributes:
        batch: loops over heads, outermost first.
        width: of a head, a multiple of 32 up to 256.
        offset: of the keys that a causal query sees, which are those up to its own position and so many more.
        output: where the result lies, for the copy engine to store; None: ``epilogue`` does.
        sums: number of the buffer (f32, ``[heads, queries]``) for the log-sum-exp of each row, which the reverse pass needs.
        score: what becomes of the scaled scores before the softmax.
    """

    batch: tuple[tuple[str, DimLike], ...]
    queries: DimLike
    keys: DimLike
    width: int
    dtype: DType
    scale: float
    query: Heads
    key: Heads
    value: Heads
    output: Heads | None = None
    causal: bool = False
    offset: DimLike = 0
    sums: int | None = None
    score: Scores | None = None
    epilogue: Results | None = None

    @property
    def blind(self) -> bool:
        """A query may see no key at all."""
        return self.score is not None or (self.causal and self.offset != 0)

    @property
    def swizzle(self) -> int:
        return 128 if self.width % 64 == 0 else 64


def attention_program(heads: DimLike, queries: DimLike, keys: DimLike, width: int, *, dtype: DType = bf16, scale: float | None = None,
                      causal: bool = False, shared_by: int = 1, statistics: bool = True, config: Config | None = None,
                      name: str = "attention") -> Function:
    """The tile program for heads that lie one after the other.

    Args:
        heads: batch times heads; keys and values have ``heads / shared_by``.
        width: of a head, a multiple of 32 up to 256.
        scale: of the scores (default: 1 / sqrt(width)).
        causal: a query sees keys up to its own position (queries and keys are then equally many).
        statistics: also write the log-sum-exp of each row, which the reverse pass needs.

    The buffers are q, k, v, o (``[heads, length, width]``) and, with ``statistics``, lse (f32, ``[heads, queries]``).
    """
    head = dim_name("h")
    shared = (heads, head) if shared_by == 1 else (heads // shared_by, head // shared_by)
    q, o = (Heads(i, heads, queries, width, (head, 0)) for i in (0, 3))
    k, v = (Heads(i, shared[0], keys, width, (shared[1], 0)) for i in (1, 2))
    p = Problem((("h", heads),), queries, keys, width, dtype, 1.0 / math.sqrt(width) if scale is None else scale, q, k, v, o,
                causal=causal, sums=4 if statistics else None)
    buffers = [(n, BufferType(dtype, h.shape)) for n, h in zip("qkvo", (q, k, v, o), strict=True)]
    if statistics:
        buffers.append(("lse", BufferType(f32, (heads, queries))))
    return program(p, buffers, config=config, name=name)


def program(p: Problem, buffers: Sequence[tuple[str, BufferType]], *, config: Config | None = None, name: str = "attention") -> Function:
    """The tile program of an attention over these buffers."""
    c = config or Config.of(p.width, p.score is not None)
    extents = [extent for _, extent in p.batch]
    sizes: dict[str, None] = {}
    for d in (*extents, p.queries, p.keys, p.offset, *(d for _, t in buffers for d in t.shape)):
        if isinstance(d, Dim):
            sizes.update(dict.fromkeys(sorted(d.names)))
    made = dsl.TileProgram(name, list(buffers), tuple(sizes), grid=(*extents, ceildiv(p.queries, c.queries)))
    return dsl.build(made, _attention, p, c)


def _next(i: Any, stages: int) -> tuple[Any, Any]:
    """(stage, phase) of the i-th use of a ring."""
    return i & (stages - 1), i >> (stages.bit_length() - 1) & 1


def _sums(p: TileValue) -> TileValue:
    """Eight sums a row, within each thread; they are added up across threads once, at the end."""
    return dsl.sum(dsl.reshape(p, (64, p.shape[1] // 8, 8)), 1)


class _Block:
    """What the roles of a block share: its place in the problem, rings of keys and values, barriers."""

    def __init__(self, p: Problem, c: Config, buffers: Sequence[Buffer]):
        self.p, self.c, self.buffers = p, c, buffers
        query, key, value = (buffers[h.buffer] for h in (p.query, p.key, p.value))
        self.mine = tile.alloc_tiles(c.queries, p.width, dtype=query.dtype, swizzle=p.swizzle)
        self.ring_k = tile.alloc_tiles(c.stages, c.keys, p.width, dtype=key.dtype, swizzle=p.swizzle)
        self.ring_v = tile.alloc_tiles(c.stages, c.keys, p.width, dtype=value.dtype, swizzle=p.swizzle)
        self.here = tile.mbarriers(1)
        self.full_k, self.empty_k = tile.mbarriers(c.stages), tile.mbarriers(c.stages, arrivals=c.groups)
        self.full_v, self.empty_v = tile.mbarriers(c.stages), tile.mbarriers(c.stages, arrivals=c.groups)
        self.loops: Mapping[str, Any] = {name: dsl.program_id(i) if extent != 1 else 0 for i, (name, extent) in enumerate(p.batch)}
        self.offset = dsl.size(p.offset)
        number, every = dsl.program_id(len(p.batch)), dsl.size(ceildiv(p.keys, c.keys))
        if p.causal:  # the last queries have most to do: they start first
            self.first = (dsl.size(ceildiv(p.queries, c.queries)) - 1 - number) * c.queries
            self.blocks = dsl.minimum(dsl.cdiv(self.first + c.queries + self.offset, c.keys), every)
            if p.blind:
                self.blocks = dsl.maximum(self.blocks, 1)
        else:
            self.first, self.blocks = number * c.queries, as_value(every)
        self.last = self.blocks - 1
        self.factor = LOG2_E if p.score is not None else p.scale * LOG2_E  # of the scores in the exponent

    def at(self, h: Heads, row: Any) -> tuple[Any, Any, Any]:
        """Where rows of this block's head begin."""
        outer, column = (dsl.evaluate(d, dict(self.loops)) for d in h.at)
        return outer, row, column

    @property
    def head(self) -> Any:
        """The number of the head, over all loops."""
        total: Any = 0
        for name, extent in self.p.batch:
            total = self.loops[name] if isinstance(total, int) and total == 0 else total * dsl.size(extent) + self.loops[name]
        return total


class _Group:
    """A warp group's part: 64 queries against the block's keys, the last ones first."""

    def __init__(self, b: _Block, g: Any):
        self.b, self.row = b, b.first + g * 64
        self.queries = b.mine[g * 64:g * 64 + 64]
        groups = b.c.groups
        self.turn, self.following = g + TURN, TURN if groups == 1 else dsl.where(g == groups - 1, TURN, g + (TURN + 1))

    def take_turn(self) -> None:
        if self.b.c.groups > 1:
            tile.barrier_sync(self.turn, 256)

    def pass_turn(self) -> None:
        if self.b.c.groups > 1:
            tile.barrier_arrive(self.following, 256)

    @property
    def late(self) -> bool:
        """True where the last keys may be seen by later groups alone: this one lets them pass, turns and all."""
        p, c = self.b.p, self.b.c
        return p.causal and (c.keys % c.queries != 0 or p.offset != 0)

    def begun(self) -> Any:
        """The first step that is this group's."""
        b = self.b
        if not self.late:
            return 0
        seen = dsl.maximum(self.row + 63 + b.offset, 0) if b.p.blind else self.row
        return b.last - dsl.minimum(seen // b.c.keys, b.last)

    def scored(self, i: Any) -> Any:
        """What becomes of the scores of step ``i``, once they are there."""
        b = self.b
        if b.p.score is None:
            return None
        return b.p.score(self.row, (b.last - i) * b.c.keys, b.c.keys, b.loops, b.buffers)

    def seen(self, s: TileValue, i: Any, change: Any, edge: bool) -> TileValue:
        """The scores after the caller's change; ``edge``: with -inf where there is no key, or a later one than a causal query sees."""
        b = self.b
        if change is not None:
            s = change(s * b.p.scale)
        if not edge:
            return s
        column = (dsl.iota(s.shape, 1) + (b.last - i) * b.c.keys).to(int32)
        inside = column < as_value(dsl.size(b.p.keys)).to(int32) if not b.p.causal else \
            column <= (dsl.iota(s.shape, 0) + (self.row + b.offset if b.p.offset != 0 else self.row)).to(int32)
        return dsl.where(inside, s, float("-inf"))

    def exponentials(self, s: TileValue, top: TileValue) -> TileValue:
        """``2 ** (factor * (s - top))``, one fma and one exponential an element."""
        if self.b.p.score is not None:  # masks add numbers whose multiples overflow
            return dsl.exp2_approx((s - dsl.broadcast_to(top, s.shape)) * self.b.factor)
        return dsl.exp2_approx(dsl.fma(s, self.b.factor, dsl.broadcast_to(top * -self.b.factor, s.shape)))

    def taken(self, top: TileValue) -> TileValue:
        """The rows' maxima, as scores are taken less them: 0 for a row that has seen no key (-inf less -inf is no number)."""
        return dsl.where(top > float("-inf"), top, 0.0) if self.b.p.blind else top

    def begin(self, i: Any) -> tuple[TileValue, TileValue, TileValue]:
        """(weights, total, top) of the group's first step."""
        b = self.b
        stage, phase = _next(i, b.c.stages)
        b.full_k.wait(stage, phase)
        self.take_turn()
        s = tile.wgmma(tile.uninitialized((64, b.c.keys)), self.queries, b.ring_k[stage].T, accumulate=False)
        tile.wgmma_commit()
        self.pass_turn()
        change = self.scored(i)
        s = tile.wgmma_wait(s)
        b.empty_k.arrive(stage)
        s = self.seen(s, i, change, True)
        top = dsl.max(s, 1, keepdims=True)
        p = self.exponentials(s, self.taken(top))
        total = _sums(p)
        return p.to(b.ring_v.dtype), total, top

    def step(self, i: Any, begun: Any, out: TileValue, weights: TileValue, total: TileValue, top: TileValue, edge: bool = False) -> Any:
        """(out, weights, total, top) after step ``i``: the scores of its keys, while the values of the last ones are weighted."""
        b = self.b
        stage, phase = _next(i, b.c.stages)
        before, phase_before = _next(i - 1, b.c.stages)
        b.full_k.wait(stage, phase)
        self.take_turn()
        s = tile.wgmma(tile.uninitialized((64, b.c.keys)), self.queries, b.ring_k[stage].T, accumulate=False)
        tile.wgmma_commit()
        b.full_v.wait(before, phase_before)
        out = tile.wgmma(out, weights, b.ring_v[before], accumulate=i > begun + 1)
        tile.wgmma_commit()
        self.pass_turn()
        change = self.scored(i)
        s = tile.wgmma_wait(s, pending=1)  # the scores are there; the values are still being weighted
        b.empty_k.arrive(stage)
        s = self.seen(s, i, change, edge)
        higher = dsl.maximum(top, dsl.max(s, 1, keepdims=True))
        taken = self.taken(higher)
        decay = dsl.exp2_approx((top - taken) * b.factor)
        p = self.exponentials(s, taken)
        total = total * decay + _sums(p)
        b.here.wait(0, 0)  # over for good (the stage is released: its barrier may be phases on): it keeps the assembler from moving the
        # wait below above the exponentials
        out, p = tile.wgmma_wait(out, p)
        b.empty_v.arrive(before)
        return out * decay, p.to(b.ring_v.dtype), total, higher

    def finish(self, g: Any, out: TileValue, total: TileValue, top: TileValue) -> None:
        """Divide by the sums, and store."""
        b, p = self.b, self.b.p
        sums = dsl.sum(total, 1, keepdims=True)
        inverse = dsl.reciprocal_approx(sums)
        out = out * (dsl.where(sums > 0.0, inverse, 0.0) if p.blind else inverse)
        if p.sums is not None:
            value = (dsl.log2_approx(sums) + top * b.factor) * (1.0 / LOG2_E)
            dsl.store(b.buffers[p.sums], (b.head, self.row), dsl.reshape(value, (64,)), check=(1,))
        if p.output is None:
            assert p.epilogue is not None
            p.epilogue(out, self.row, b.loops, b.buffers)
            return
        self.queries.store(out.to(p.dtype))
        tile.fence_async()
        tile.barrier_sync(g + (TURN + b.c.groups), 128)
        tile.tma_store(b.buffers[p.output.buffer], b.at(p.output, self.row), self.queries)
        tile.tma_commit()
        tile.tma_wait()


@tile_function
def _copy(b: _Block) -> None:
    """One thread's part: the queries, then keys and values as stages become free."""
    p, c = b.p, b.c
    b.here.expect(0, b.mine.nbytes)
    tile.tma_load(b.mine, b.buffers[p.query.buffer], b.at(p.query, b.first), b.here[0])
    for i in dsl.range(0, b.blocks):
        stage, phase = _next(i, c.stages)
        at = (b.last - i) * c.keys
        for ring, h, full, empty in ((b.ring_k, p.key, b.full_k, b.empty_k), (b.ring_v, p.value, b.full_v, b.empty_v)):
            empty.wait(stage, phase ^ 1)
            full.expect(stage, ring[0].nbytes)
            tile.tma_load(ring[stage], b.buffers[h.buffer], b.at(h, at), full[stage])


@tile_function
def _let_pass(m: _Group, begun: Any) -> None:
    """The keys of the steps before the group's first."""
    b = m.b
    for i in dsl.range(0, begun):
        stage, phase = _next(i, b.c.stages)
        for full, empty in ((b.full_k, b.empty_k), (b.full_v, b.empty_v)):
            full.wait(stage, phase)
            empty.arrive(stage)
        m.take_turn()
        m.pass_turn()


@tile_function
def _multiply(b: _Block, g: Any) -> None:
    """One warp group's part."""
    m = _Group(b, g)
    if b.c.groups > 1 and g == b.c.groups - 1:
        tile.barrier_arrive(TURN, 256)  # the first turn is the first group's
    b.here.wait(0, 0)
    begun = m.begun()
    if m.late:
        _let_pass(m, begun)
    weights, total, top = m.begin(begun)
    out = tile.uninitialized((64, b.p.width))
    inner = begun + 1
    if b.p.causal and b.p.offset != 0:  # the diagonal may cross a second block of keys
        inner = dsl.minimum(begun + 2, b.blocks)
        for i in dsl.range(begun + 1, inner):
            out, weights, total, top = m.step(i, begun, out, weights, total, top, True)
    for i in dsl.range(inner, b.blocks):
        out, weights, total, top = m.step(i, begun, out, weights, total, top)
    final, phase = _next(b.last, b.c.stages)
    b.full_v.wait(final, phase)
    out = tile.wgmma(out, weights, b.ring_v[final], accumulate=b.blocks > begun + 1)
    tile.wgmma_commit()
    out = tile.wgmma_wait(out)
    m.finish(g, out, total, top)


def _attention(*given: Any) -> None:
    *buffers, p, c = given
    b = _Block(p, c, buffers)
    few, many = c.registers
    with tile.role(registers=few, threads=1):
        _copy(b)
    with tile.role(groups=c.groups, registers=many) as g:
        _multiply(b, g)


__all__ = ["Config", "Heads", "Problem", "attention_program", "program"]
