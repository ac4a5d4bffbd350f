"""Attention forward with everything said: ``softmax(scale * Q K^T) V`` for one block of queries, keys and values streaming past.

One thread feeds two rings, of keys and of values, through the copy engine.  Each warp group keeps 64 queries.  It starts the scores of
the next keys *before* the values of the last ones are weighted, so that the matrix unit works while the exponentials are made; and
the groups take turns (named barriers), so that one group's exponentials run beside another's products.

Scores never leave registers: an accumulator of the first product, rounded to 16 bits, is the left operand of the second as it lies.

Source: J. Shah et al., "FlashAttention-3" (2024), for the overlap and the turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Function
from ...tiling import dsl
from ...tiling import explicit as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...tiling.values import as_value
from ...types.dims import Dim, DimLike, ceildiv
from ...types.dtypes import DType, bf16, f32, int32

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
    def of(width: int) -> Config:
        """Narrow heads leave registers for a third group: the exponentials of two run beside the products of one."""
        return Config(groups=3 if width <= 64 else 2)

    @property
    def registers(self) -> tuple[int, int]:
        """Of the copying thread's group, and of the others' threads."""
        return {1: (56, 256), 2: (24, 240), 3: (32, 160)}[self.groups]


def attention_program(heads: DimLike, queries: DimLike, keys: DimLike, width: int, *, dtype: DType = bf16, scale: float | None = None,
                      causal: bool = False, shared_by: int = 1, statistics: bool = True, config: Config | None = None,
                      name: str = "attention") -> Function:
    """The tile program.

    Args:
        heads: batch times heads; keys and values have ``heads / shared_by``.
        width: of a head, a multiple of 64 up to 256.
        scale: of the scores (default: 1 / sqrt(width)).
        causal: a query sees keys up to its own position (queries and keys are then equally many).
        statistics: also write the log-sum-exp of each row, which the reverse pass needs.

    The buffers are q, k, v, o (``[heads, length, width]``) and, with ``statistics``, lse (f32, ``[heads, queries]``).
    """
    c = config or Config.of(width)
    shared = heads if shared_by == 1 else heads // shared_by
    buffers = [("q", BufferType(dtype, (heads, queries, width))), ("k", BufferType(dtype, (shared, keys, width))),
               ("v", BufferType(dtype, (shared, keys, width))), ("o", BufferType(dtype, (heads, queries, width)))]
    if statistics:
        buffers.append(("lse", BufferType(f32, (heads, queries))))
    sizes: dict[str, None] = {}
    for d in (heads, queries, keys):
        if isinstance(d, Dim):
            sizes.update(dict.fromkeys(sorted(d.names)))
    program = dsl.TileProgram(name, buffers, tuple(sizes), grid=(heads, ceildiv(queries, c.queries)))
    factor = (1.0 / math.sqrt(width) if scale is None else scale) * LOG2_E
    return dsl.build(program, _attention, c, factor, causal, shared_by)


def _next(i: Any, stages: int) -> tuple[Any, Any]:
    """(stage, phase) of the i-th use of a ring."""
    return i & (stages - 1), i >> (stages.bit_length() - 1) & 1


def _exponentials(s: TileValue, top: TileValue, factor: float) -> TileValue:
    """``2 ** (factor * (s - top))``, one fma and one exponential an element."""
    return dsl.exp2_approx(dsl.fma(s, factor, dsl.broadcast_to(top * -factor, s.shape)))


def _sums(p: TileValue) -> TileValue:
    """Eight sums a row, within each thread; they are added up across threads once, at the end."""
    return dsl.sum(dsl.reshape(p, (64, p.shape[1] // 8, 8)), 1)


def _visible(s: TileValue, row: Any, key: Any, keys: DimLike, causal: bool) -> TileValue:
    """The scores with -inf where there is no key, or a later one than a causal query sees."""
    column = (dsl.iota(s.shape, 1) + key).to(int32)
    seen = column < as_value(keys).to(int32) if not causal else column <= (dsl.iota(s.shape, 0) + row).to(int32)
    return dsl.where(seen, s, float("-inf"))


class _Steps:
    """One step of a warp group: the scores of the next keys, while the values of the last ones are weighted."""

    def __init__(self, config: Config, *parts: Any):
        self.config = config
        (self.queries, self.ring_k, self.ring_v, self.full_k, self.empty_k, self.full_v, self.empty_v, self.turn, self.following,
         self.factor) = parts

    def one(self, i: Any, begun: Any, out: TileValue, weights: TileValue, total: TileValue, top: TileValue) -> Any:
        """(out, weights, total, top) after step ``i``; step ``begun`` was the group's first."""
        c, factor = self.config, self.factor
        stage, phase = _next(i, c.stages)
        before, phase_before = _next(i - 1, c.stages)
        self.full_k.wait(stage, phase)
        if c.groups > 1:
            tile.barrier_sync(self.turn, 256)
        s = tile.wgmma(tile.uninitialized((64, c.keys)), self.queries, self.ring_k[stage].T, accumulate=False)
        tile.wgmma_commit()
        self.full_v.wait(before, phase_before)
        out = tile.wgmma(out, weights, self.ring_v[before], accumulate=i > begun + 1)
        tile.wgmma_commit()
        if c.groups > 1:
            tile.barrier_arrive(self.following, 256)
        s = tile.wgmma_wait(s, pending=1)  # the scores are there; the values are still being weighted
        self.empty_k.arrive(stage)
        higher = dsl.maximum(top, dsl.max(s, 1, keepdims=True))
        decay = dsl.exp2_approx((top - higher) * factor)
        p = _exponentials(s, higher, factor)
        total = total * decay + _sums(p)
        self.full_k.wait(stage, phase)  # complete already: it keeps the assembler from moving the wait below above the exponentials
        out, p = tile.wgmma_wait(out, p)
        self.empty_v.arrive(before)
        return out * decay, p.to(self.ring_v.dtype), total, higher


@tile_function
def _attention(q: Buffer, k: Buffer, v: Buffer, o: Buffer, *rest: Any) -> None:
    *lse, cfg, factor, causal, shared_by = rest
    groups, keys, stages, width = cfg.groups, cfg.keys, cfg.stages, int(q.shape[2])
    mine = tile.alloc_tiles(cfg.queries, width, dtype=q.dtype)
    ring_k = tile.alloc_tiles(stages, keys, width, dtype=k.dtype)
    ring_v = tile.alloc_tiles(stages, keys, width, dtype=v.dtype)
    here = tile.mbarriers(1)
    full_k, empty_k = tile.mbarriers(stages), tile.mbarriers(stages, arrivals=groups)
    full_v, empty_v = tile.mbarriers(stages), tile.mbarriers(stages, arrivals=groups)
    head = dsl.program_id(0)
    length = k.shape[1]
    if causal:  # the last queries have most to do: they start first
        number = dsl.size(ceildiv(q.shape[1], cfg.queries)) - 1 - dsl.program_id(1)
        first = number * cfg.queries
        blocks = dsl.minimum(dsl.cdiv(first + cfg.queries, keys), dsl.size(ceildiv(length, keys)))
    else:
        first = dsl.program_id(1) * cfg.queries
        blocks = as_value(ceildiv(length, keys))
    last = blocks - 1
    few, many = cfg.registers

    with tile.role(registers=few, threads=1):
        here.expect(0, mine.nbytes)
        tile.tma_load(mine, q, (head, first, 0), here[0])
        for i in dsl.range(0, blocks):
            stage, phase = _next(i, stages)
            at = (last - i) * keys
            for ring, source, full, empty in ((ring_k, k, full_k, empty_k), (ring_v, v, full_v, empty_v)):
                empty.wait(stage, phase ^ 1)
                full.expect(stage, ring[0].nbytes)
                tile.tma_load(ring[stage], source, (head // shared_by, at, 0), full[stage])

    with tile.role(groups=groups, registers=many) as g:
        queries = mine[g * 64:g * 64 + 64]
        row = first + g * 64
        turn, following = g + TURN, TURN if groups == 1 else dsl.where(g == groups - 1, TURN, g + (TURN + 1))
        if groups > 1 and g == groups - 1:
            tile.barrier_arrive(TURN, 256)  # the first turn is the first group's

        here.wait(0, 0)
        begun: Any = 0
        if causal and keys % cfg.queries:  # the last keys may be seen by later groups alone: this one lets them pass, turns and all
            begun = last - dsl.minimum(row // keys, last)
            for i in dsl.range(0, begun):
                stage, phase = _next(i, stages)
                for full, empty in ((full_k, empty_k), (full_v, empty_v)):
                    full.wait(stage, phase)
                    empty.arrive(stage)
                tile.barrier_sync(turn, 256)
                tile.barrier_arrive(following, 256)
        stage, phase = _next(begun, stages)
        full_k.wait(stage, phase)
        if groups > 1:
            tile.barrier_sync(turn, 256)
        s = tile.wgmma(tile.uninitialized((64, keys)), queries, ring_k[stage].T, accumulate=False)
        tile.wgmma_commit()
        if groups > 1:
            tile.barrier_arrive(following, 256)
        s = tile.wgmma_wait(s)
        empty_k.arrive(stage)
        s = _visible(s, row, (last - begun) * keys, length, causal)  # the only keys that a group sees in part
        top = dsl.max(s, 1, keepdims=True)
        p = _exponentials(s, top, factor)
        total = _sums(p)
        weights = p.to(v.dtype)
        out = tile.uninitialized((64, width))
        steps = _Steps(cfg, queries, ring_k, ring_v, full_k, empty_k, full_v, empty_v, turn, following, factor)
        for i in dsl.range(begun + 1, blocks):
            out, weights, total, top = steps.one(i, begun, out, weights, total, top)
        final, phase = _next(last, stages)
        full_v.wait(final, phase)
        out = tile.wgmma(out, weights, ring_v[final], accumulate=blocks > begun + 1)
        tile.wgmma_commit()
        out = tile.wgmma_wait(out)
        sums = dsl.sum(total, 1, keepdims=True)
        out = out * dsl.reciprocal_approx(sums)
        if lse:
            value = (dsl.log2_approx(sums) + top * factor) * (1.0 / LOG2_E)
            dsl.store(lse[0], (head, row), dsl.reshape(value, (64,)), check=(1,))
        queries.store(out.to(q.dtype))
        tile.fence_async()
        tile.barrier_sync(g + (TURN + groups), 128)
        tile.tma_store(o, (head, row, 0), queries)
        tile.tma_commit()
        tile.tma_wait()


__all__ = ["Config", "attention_program"]
