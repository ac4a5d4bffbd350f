"""Attention's reverse pass for a block of threads: probabilities are made again from the log-sum-exp of each row, block by block.

``p = exp(scale * query key^T - lse)``, ``ds = p * (cotangent value^T - delta)``; then ``dv = p^T cotangent``,
``dk = scale * ds^T query`` and ``dq = scale * ds key``.

Two kernels are one program.  A block *owns* rows of two operands, and the rows of two others stream past:

    ====  ====================  ====================  ============================================
    cut   owned                 streaming             sums
    ====  ====================  ====================  ============================================
    q     query, cotangent      key, value            dq += ds @ key
    t     key, value            query, cotangent      dk += ds @ query, dv += p @ cotangent
    ====  ====================  ====================  ============================================

with p and ds as [owned, streaming] tiles either way, so that they are left operands where they were made.

Source: T. Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.core import Function, Op
from ...machine.simt import SimtMachine
from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...types.dims import DimLike, ceildiv, product
from ...types.dtypes import DType, f32, int32
from ..attention import LOG2_E, LOWEST, Operands, static_width
from ..attention_backward import SharedHeads
from ..fused import Lanes, Point
from ..programs import open_program
from . import attention_backward_lanes
from .operands import Rows, untouched
from .pieces import Cut, Kept, Pieces

ROLES = ("query", "key", "value", "cotangent")


class Gradient(SharedHeads, Pieces):
    """One ``attention_backward`` template op: who owns what."""

    def __init__(self, op: Op, buffers: Sequence[Buffer], cut: Cut, places: Mapping[str, Rows | None]):
        super().__init__(op, buffers, cut, places)
        self.bind(op, buffers)
        self.of_queries = op.attrs["cut"] == "q"
        self.owned, self.streaming = (("query", "cotangent"), ("key", "value")) if self.of_queries else (
            ("key", "value"), ("query", "cotangent"))

    @property
    def extents(self) -> tuple[DimLike, DimLike]:
        """How many rows are owned, over all blocks, and how many stream past."""
        return (self.q, self.t) if self.of_queries else (self.t, self.q)

    @property
    def owner(self) -> Gradient:
        """Whose rows the block owns: those of a query head, or of the keys that several share."""
        return self if self.of_queries else self.member(0)

    def stretch(self, first: Any) -> tuple[Any, Any]:
        """[begin, end) of the streaming rows that the owned rows from ``first`` on have to do with."""
        c = self.cut
        if self.of_queries:
            return 0, self.seen(first, c.rows)
        if not self.causal:
            return 0, tile.size(self.q)
        begin = tile.maximum(first - tile.size(self.offset), 0)
        return begin // c.keys * c.keys, tile.size(self.q)

    # -- probabilities -----------------------------------------------------------------------------------------------------------
    def lanes(self, own: Any, stream: Any, owned: int, streamed: int) -> tuple[Lanes, Lanes]:
        """The axes of a tile of scores: (owned, streaming)."""
        if self.of_queries:
            return self.queries(own, owned, self.partly(self.q, owned)), self.keys(stream, streamed, self.partly(self.t, streamed))
        return self.keys(own, owned, self.partly(self.t, owned)), self.queries(stream, streamed, self.partly(self.q, streamed))

    def probabilities(self, acc: TileValue, point: Point, lse: TileValue, key: TileValue, query: TileValue | None) -> TileValue:
        """``exp(scores - lse)`` of products ``acc``: 0 for keys that do not exist, and for those that ``query`` does not see.

        Args:
            key, query: their numbers, as tiles of the whole shape.
        """
        if not self.folded:
            acc = acc * tile.constant(self.scale, self.compute)
        if self.score is not None:
            acc = tile.broadcast_to(self.score.run(point, acc)[0], acc.shape)
        lse = tile.where(tile.eq(lse, LOWEST), 0.0, lse)  # a row that sees no key: its scores are all -inf
        exponent = tile.fma(acc, self.factor, lse * -LOG2_E) if self.folded else self.exponent(acc, Operands.base(self, lse))
        seen = key < self.bound(self.t)
        if query is not None:
            seen = seen & (key <= query + self.bound(self.offset))
        return tile.where(seen, self.power(exponent), tile.zeros(acc.shape, self.compute))

    @staticmethod
    def bound(n: DimLike) -> TileValue:
        return tile.convert(tile.size(n), int32)


def attention_backward_program(op: Op, machine: SimtMachine, name: str) -> Function | None:
    """The tile program of an ``attention_backward`` template op (attributes: ``scheduling/templates.py``); None where one launch makes
    all three cotangents.

    Raises:
        UnsupportedError: the width of a head is not known when the program is compiled.
    """
    a = op.attrs
    if a["cut"] is None:
        return None
    (q, t, d, e), compute = (a[x][1] for x in "qtde"), a["compute"]
    width = static_width(d, "d") + static_width(e, "e")
    in_lanes = machine.access_elements(f32) == 1
    own = q if a["cut"] == "q" else t
    cut = Cut.in_lanes(machine, compute) if in_lanes else Cut.backward(machine, _dtype(op), compute, own, width)
    batch = tuple(extent for _, extent in a["batch"])
    lead = product(batch[:-1])
    heads = lead * a["key_heads"]
    grid = batch if a["cut"] == "q" else (*batch[:-1], *((a["key_heads"],) if batch else ()))
    shapes: list[Any] = [None] * len(op.operands)
    shapes[4] = shapes[5] = (product(batch), q)
    for i, role in enumerate(a["writes"]):
        shapes[6 + i] = {"dq": (product(batch), q, d), "dk": (heads, t, d), "dv": (heads, t, e)}[role]
    places = {role: Rows.of(op.operands[i].type, a[role], a["q" if role in ("query", "cotangent") else "t"],
                            a["d" if role in ("query", "key") else "e"], a["batch"]) for i, role in enumerate(ROLES)}
    free = untouched(op)
    for i, role in enumerate(ROLES):
        place = places[role]
        if place is not None and i in free:
            shapes[i] = place.shape
    program = open_program(op, name, (*grid, ceildiv(own, cut.rows)), shapes)
    program.fn.attrs |= {"threads": cut.threads, "warps": "rows"}
    with program:
        p = Gradient(op, program.buffers, cut, places)
        first = tile.program_id(len(grid)) * cut.rows
        if in_lanes:
            attention_backward_lanes.differentiate(p, first)
        else:
            differentiate(p, machine, first)
    return program.finish()


def _dtype(op: Op) -> DType:
    """The dtype of the four operands, or of the computation where they have several."""
    dtypes = {v.type.dtype for v in op.operands[:4]}
    compute: DType = op.attrs["compute"]
    return dtypes.pop() if len(dtypes) == 1 else compute


@tile_function
def differentiate(p: Gradient, machine: SimtMachine, first: Any) -> None:
    """The cotangents of the owned rows first …"""
    c = p.cut
    one = tuple(tile.zeros((c.rows, n), p.compute) for _, n in p.depths)
    other = () if p.of_queries else tuple(tile.zeros((c.rows, n), p.compute) for _, n in p.widths)
    width = sum(n for _, n in (*p.depths, *p.widths))
    held = [Kept(p.owner, role, first, machine, width) for role in p.owned]
    begin, end = p.stretch(first)
    if p.of_queries:
        lse, delta = row_values(p, first)
        for t0 in tile.range(begin, end, c.keys):
            one, other = step(p, held, first, t0, (lse, delta), one, other)
    else:
        for g in tile.range(0, p.group):
            for q0 in tile.range(begin, end, c.keys):
                one, other = step(p.member(g), held, first, q0, None, one, other)
    store(p, one, other, first)


def row_values(p: Gradient, q0: Any) -> tuple[TileValue, TileValue]:
    """The log-sum-exp and delta of the owned queries, as columns."""
    rows = p.cut.rows
    lse, delta = (tile.reshape(tile.load(b, (p.head, q0), (rows,), check=(1,)), (rows, 1)) for b in (p.lse, p.delta))
    return lse, delta


def column_values(p: Gradient, q0: Any) -> tuple[TileValue, TileValue]:
    """The same of streaming queries, as rows."""
    n = p.cut.keys
    lse, delta = (tile.reshape(tile.load(b, (p.head, q0), (n,), check=(1,)), (1, n)) for b in (p.lse, p.delta))
    return lse, delta


def step(p: Gradient, held: Sequence[Kept], own: Any, stream: Any, known: tuple[TileValue, TileValue] | None,
         one: Sequence[TileValue], other: Sequence[TileValue]) -> tuple[tuple[TileValue, ...], tuple[TileValue, ...]]:
    """The sums after the streaming rows stream …"""
    c, (role1, role2) = p.cut, p.streaming
    first, second = ([p.reader(role, stream, c.keys, at, n) for at, n in p.pieces_of(role)] for role in (role1, role2))
    lse, delta = known if known is not None else column_values(p, stream)
    point = Point(p.env, p.lanes(own, stream, c.rows, c.keys))
    shape = (c.rows, c.keys)
    down, along = (tile.iota(shape, axis).to(int32) + tile.convert(at, int32) for axis, at in ((0, own), (1, stream)))
    key, query = (along, down) if p.of_queries else (down, along)
    weights = p.probabilities(p.against(held[0], first), point, lse, key, query if p.causal else None)
    slopes = weights * (p.against(held[1], second) - delta)
    narrow = p.maps[role1][0].dtype if c.unit else p.compute
    one = tuple(tile.dot(slopes.to(narrow), load(), acc) for acc, load in zip(one, first, strict=True))
    if other:
        other = tuple(tile.dot(weights.to(narrow), load(), acc) for acc, load in zip(other, second, strict=True))
    return one, tuple(other)


def store(p: Gradient, one: Sequence[TileValue], other: Sequence[TileValue], first: Any) -> None:
    head = p.head if p.of_queries else p.key_head
    results = [("dq" if p.of_queries else "dk", one, p.depths), *([("dv", other, p.widths)] if other else [])]
    for role, values, pieces in results:
        for value, (at, _) in zip(values, pieces, strict=True):
            scaled = value if role == "dv" else value * tile.constant(p.scale, p.compute)
            tile.store(p.writes[role], (head, first, at), scaled, check=(1, 2))


__all__ = ["Gradient", "attention_backward_program", "differentiate"]
