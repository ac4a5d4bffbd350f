"""The positions of the k least (greatest) elements along an axis, without sorting the rest.

Keys and positions share a word as in ``sort.py``, so that no two are equal and ties fall as a stable sort has them.  A row is read once:
what is below the threshold, the k-th least so far, is collected; when the collection is full it is sorted and cut back to k, which
lowers the threshold.  Of a row in random order about k log(n/k) elements are collected, and most tiles cost one comparison.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import Dim
from ..types.dtypes import int64
from .programs import around, blocks, chunk, open_program, per_block
from .scan import scan_tile
from .sort import Row, pack, put_raw, raw, sort_row

Pair = tuple[Any, Any]


@register("topk")
def topk(op: Op, machine: Any, name: str) -> Function:
    """Operands: x, positions (k along ``axis``); attributes ``axis``, ``k``, ``largest``."""
    before, n, after = around(op.operands[0].type.shape, op.attrs["axis"])
    k, largest = op.attrs["k"], bool(op.attrs["largest"])
    assert op.operands[0].type.dtype.itemsize <= 4, "a key and its position share 64 bits"
    rows = per_block(n, 16384, before * after)
    program = open_program(op, name, (blocks(before * after, rows),), [(before * n * after,), (before * k * after,)])
    lanes = 4 * machine.vector_lanes(int64)

    def body(x: tile.Buffer, out: tile.Buffer) -> None:
        first, last = chunk(0, rows, before * after)
        found = _Least(k, lanes, largest)

        def each(r: Any, _: Any) -> tuple[()]:
            outer, inner = (r, 0) if after == 1 else (r // after, r % after)
            stride = 1 if after == 1 else tile.size(after)
            whole = tile.size(n) if isinstance(n, Dim) else n
            source = Row(x, outer * n * after + inner, stride, whole, x.dtype)
            found.write(found.collect(source), Row(out, outer * k * after + inner, stride, k, int64))
            return ()

        tile.for_loop((first, last, 1), (), each)

    return tile.build(program, body)


class _Least:
    """The least keys of a row so far, in memory of their own."""

    def __init__(self, k: int, lanes: int, largest: bool):
        self.k, self.lanes, self.largest = k, lanes, largest
        self.room = max(2 * k, 4 * lanes)
        self.keys = tile.alloc((self.room + lanes,), int64)

    def collect(self, source: Row) -> Any:
        """Reads a row; returns how many keys are left, all of the k least among them."""
        start = (tile.constant(0, int64), tile.constant(int64.max, int64))
        count, _ = tile.for_loop((0, source.n, self.lanes), start, lambda t, carry: self._take(source, t, *carry))
        return count

    def _take(self, source: Row, t: Any, count: Any, threshold: Any) -> Pair:
        position = tile.iota((self.lanes,)) + t
        keys = pack(raw(source, t, self.lanes), position, self.largest)
        wanted = tile.logical_and(position < source.n, keys < threshold)
        now: Pair = tile.cond(tile.any(wanted), lambda: self._kept(keys, wanted, count, threshold), lambda: (count, threshold))
        return now

    def _kept(self, keys: Any, wanted: Any, count: Any, threshold: Any) -> Pair:
        ends = scan_tile(wanted.to(int64), "add")
        tile.scatter(self.keys, count + ends - 1, keys, mask=wanted)
        count = count + tile.extract(ends, self.lanes - 1)
        now: Pair = tile.cond(count > self.room, lambda: self._cut(count), lambda: (count, threshold))
        return now

    def _cut(self, count: Any) -> Pair:
        self._sort(count)
        return tile.constant(self.k, int64), tile.load(self.keys, (self.k - 1,))

    def _sort(self, count: Any) -> None:
        sort_row(Row(self.keys, 0, 1, count, int64), self.lanes)

    def write(self, count: Any, out: Row) -> None:
        """The positions of the k least, in order."""
        self._sort(count)
        _positions(self.keys, out, self.lanes)


@tile.tile_function
def _positions(keys: tile.Buffer, out: Row, lanes: int) -> None:
    for t in tile.range(0, out.n, lanes):
        put_raw(out, t, tile.bitwise_and(tile.load(keys, (t,), (lanes,)), 2 ** 32 - 1))
