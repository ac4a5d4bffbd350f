"""Attention forward for a block of threads: ``softmax(scale * Q K^T) V`` of one block of queries, keys and values streaming past.

The queries' scores against a block of keys are made, exponentiated and used at once.  For every row a running maximum ``top`` and sum
``total`` are kept; where a block raises the maximum, what was summed so far is scaled down:

    scores = queries @ keys.T
    higher = max(top, rows' maxima of scores)
    weights, decay = exp(scores - higher), exp(top - higher)
    total = total * decay + rows' sums of weights
    out = out * decay + weights @ values

Everything stays in registers; ``dot`` is the machine's matrix instruction where it has one for the operands' dtype, else a chain of fma.
Heads of any width are taken as pieces whose widths are powers of two.  A causal block of queries stops at the diagonal.

Source: T. Dao, "FlashAttention-2" (2023), for warps that share out queries alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.core import Function, Op
from ...machine.simt import SimtMachine
from ...scheduling.templates import block, is_plain_store
from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...types.dims import ceildiv, product
from ...types.dtypes import f32, int32
from ..attention import LOWEST, larger, static_width
from ..fused import Lanes, Point
from ..programs import open_program
from . import attention_lanes
from .operands import Rows, untouched
from .pieces import Cut, Kept, Pieces


class Attention(Pieces):
    """One ``attention`` template op on a SIMT machine: what is done to scores, values and results."""

    def __init__(self, op: Op, buffers: Sequence[Buffer], cut: Cut, places: Mapping[str, Rows | None]):
        super().__init__(op, buffers, cut, places)
        self.target = op.attrs["outs"][-1]
        self.out = buffers[self.target]

    # -- scores ----------------------------------------------------------------------------------------------------------------
    def scores(self, queries: Kept, q0: Any, t0: Any) -> TileValue:
        """Scores of the block's queries against keys t0 …; -inf for keys that do not exist or are not seen."""
        c = self.cut
        acc = self.against(queries, [self.reader("key", t0, c.keys, at, n) for at, n in self.depths])
        if not self.folded:
            acc = self.held(acc * tile.constant(self.scale, self.compute))
        if self.score is not None:
            rows, keys = self.queries(q0, c.rows, self.partly(self.q, c.rows)), self.keys(t0, c.keys, self.partly(self.t, c.keys))
            point = Point(self.env, (rows, keys))
            acc = tile.broadcast_to(self.score.run(point, acc)[0], acc.shape)
        return self.seen_alone(acc, q0, t0)

    def seen_alone(self, acc: TileValue, q0: Any, t0: Any) -> TileValue:
        """The scores with -inf where there is no key, or where a causal query does not see it."""
        if not self.causal and not self.partly(self.t, self.cut.keys):
            return acc
        last = t0 + self.cut.keys
        inside = last <= tile.size(self.t)
        if self.causal:
            inside = inside & (last - 1 <= q0 + tile.size(self.offset))
        changed: TileValue = tile.cond(inside, lambda: acc, lambda: self._at_edge(acc, q0, t0))
        return changed

    def _at_edge(self, acc: TileValue, q0: Any, t0: Any) -> TileValue:
        shape = acc.shape
        column = tile.iota((1, shape[1]), 1).to(int32)
        left = tile.convert(tile.minimum(tile.maximum(tile.size(self.t) - t0, 0), shape[1]), int32)
        seen = tile.broadcast_to(column < left, shape)
        if self.causal:
            ahead = tile.convert(tile.minimum(tile.maximum(q0 - t0 + tile.size(self.offset), -shape[0]), shape[1]), int32)
            seen = seen & (column <= tile.iota((shape[0], 1), 0).to(int32) + ahead)
        return tile.where(seen, acc, tile.constant(LOWEST, self.compute))

    # -- values ----------------------------------------------------------------------------------------------------------------
    def weigh(self, out: Sequence[TileValue], decay: TileValue, weights: TileValue, t0: Any) -> tuple[TileValue, ...]:
        """out * decay + weights @ values t0 …, piece by piece."""
        c, dtype = self.cut, self.maps["value"][0].dtype
        left = weights.to(dtype) if c.unit else weights
        return tuple(self.held(tile.dot(left, self.piece("value", t0, c.keys, at, n), acc * decay))
                     for acc, (at, n) in zip(out, self.widths, strict=True))

    def finish(self, out: Sequence[TileValue], total: TileValue, q0: Any) -> None:
        """Divide by the sums (a row that saw nothing gives 0) and hand the results to the epilogue."""
        c, place = self.cut, self.places["out"]
        share = tile.where(tile.eq(total, 0.0), 1.0, total)
        for acc, (at, n) in zip(out, self.widths, strict=True):
            value = acc / share
            if place is not None:
                place.store(self.out, self.env, (q0, at), value.to(self.out.dtype))
                continue
            assert self.epilogue is not None and isinstance(self.e, int)
            columns = Lanes(self.e_name, at, n, self.e, at + n > self.e, aligned=at % n == 0)
            self.epilogue.run(Point(self.env, (self.queries(q0, c.rows, self.partly(self.q, c.rows)), columns)), value)


def attention_program(op: Op, machine: SimtMachine, name: str) -> Function:
    """The tile program of an ``attention`` template op (attributes and blocks: ``scheduling/templates.py``).

    Raises:
        UnsupportedError: the width of a head is not known when the program is compiled.
    """
    a = op.attrs
    (q, d, e), compute = (a[x][1] for x in "qde"), a.get("compute", f32)
    widest = max(static_width(d, "d"), static_width(e, "e"))
    dtypes = {v.type.dtype for v in op.operands[:3]}
    dtype = dtypes.pop() if len(dtypes) == 1 else compute
    asked = dict(a.get("schedule", ())).get("tile_m")
    in_lanes = machine.access_elements(f32) == 1
    cut = Cut.in_lanes(machine, compute) if in_lanes else Cut.of(machine, dtype, compute, q, widest, asked)
    places = _places(op)
    batch = tuple(extent for _, extent in a["batch"])
    shapes: list[Any] = [None] * len(op.operands)
    if "sums" in a:
        shapes[a["sums"]] = (product(batch), q)
    free = untouched(op)
    for i, role in ((0, "query"), (1, "key"), (2, "value"), (a["outs"][-1], "out")):
        place = places[role]
        if place is not None and (i in free or role == "out"):
            shapes[i] = place.shape
    program = open_program(op, name, (*batch, ceildiv(q, cut.rows)), shapes)
    program.fn.attrs |= {"threads": cut.threads, "warps": "rows"}
    with program:
        p = Attention(op, program.buffers, cut, places)
        number = tile.program_id(len(batch))
        if p.causal:  # the last queries have most to do: they start first
            number = tile.size(ceildiv(q, cut.rows)) - 1 - number
        if in_lanes:
            attention_lanes.attend(p, number * cut.rows)
        else:
            attend(p, machine, number * cut.rows)
    return program.finish()


def _places(op: Op) -> dict[str, Rows | None]:
    """Where the operands lie, and the result, if it is stored as it is."""
    a = op.attrs
    found = {role: Rows.of(op.operands[i].type, a[role], rows, columns, a["batch"])
             for i, (role, rows, columns) in enumerate((("query", a["q"], a["d"]), ("key", a["t"], a["d"]), ("value", a["t"], a["e"])))}
    found["out"] = None
    epilogue = block(op, "epilogue")
    if epilogue is not None and is_plain_store(op):
        stores = [o for o in epilogue.ops if o.name == "store"]
        once = len(stores) == 1 and sum(o.name == "convert" for o in epilogue.ops) <= 1 and not stores[0].attrs.get("dyn")
        if once and epilogue.args.index(stores[0].operands[0]) == a["outs"][-1]:
            found["out"] = Rows.of(stores[0].operands[0].type, stores[0].attrs["index"], a["q"], a["e"], a["batch"])
    return found


@tile_function
def attend(p: Attention, machine: SimtMachine, q0: Any) -> None:
    """The queries q0 … q0 + rows - 1 of one head."""
    c = p.cut
    queries = Kept(p, "query", q0, machine, sum(n for _, n in p.depths))
    top = tile.full((c.rows, 1), LOWEST, p.compute)
    total = tile.zeros((c.rows, c.sums), p.compute)
    out = tuple(tile.zeros((c.rows, n), p.compute) for _, n in p.widths)
    for t0 in tile.range(0, p.seen(q0, c.rows), c.keys):
        scores = p.scores(queries, q0, t0)
        higher = larger(tile.max(scores, 1, keepdims=True), top)
        base = p.base(tile.where(tile.eq(higher, LOWEST), 0.0, higher))  # a row that sees nothing yet: 2^(-inf + 0) = 0
        weights, decay = p.power(p.exponent(scores, base)), p.power(p.exponent(top, base))
        total = total * decay + partial_sums(weights, c)
        out = p.weigh(out, decay, weights, t0)
        top = higher
    whole = tile.sum(total, 1, keepdims=True)
    if p.sums is not None:
        scaled = top * p.scale if p.folded else top
        tile.store(p.sums, (p.head, q0), tile.reshape(tile.log(whole) + scaled, (c.rows,)), check=(1,))
    p.finish(out, whole, q0)


def partial_sums(weights: TileValue, c: Cut) -> TileValue:
    """Sums of each row that a thread forms from what it holds itself: of neighbours where products are chains of fma, else of columns
    a whole instruction apart."""
    rows, keys = weights.shape
    if c.unit:
        return tile.sum(tile.reshape(weights, (rows, keys // c.sums, c.sums)), 1)
    return tile.sum(tile.reshape(weights, (rows, c.sums, keys // c.sums)), 2)


__all__ = ["Attention", "attend", "attention_program", "partial_sums"]
