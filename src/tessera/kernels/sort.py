"""Sorting along an axis: a bitonic network, in place in the result.

Keys become integers whose order is the wanted one (NaN last; -0 equal to 0 where positions are asked for, else just below
it, and put right in the end), so that a step of the network is a minimum and a maximum of two tiles.  Positions travel
in the low half of a 64-bit key, which also makes the order stable.  All comparators point upwards (the first step of
each merge pairs elements mirrored), so a row of any length sorts as if it were filled up with the largest key, and
nothing outside it is read or written.

Steps between neighbours within a tile happen in registers; steps over less than :data:`CHUNK` run chunk by chunk, in
the first cache.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..machine.simt import SimtMachine
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import Dim, DimLike
from ..types.dtypes import DType, bool_, int8, int16, int32, int64, uint8
from .programs import around, blocks, chunk, open_program, per_block

CHUNK = 4096
_SIGNED = {8: int8, 16: int16, 32: int32, 64: int64}


def key_dtype(dtype: DType, positions: bool) -> DType:
    """The integers that stand for ``dtype`` in the network; with positions in them, they take 64 bits."""
    if positions:
        return int64
    return uint8 if dtype is bool_ else dtype if dtype.is_integer else _SIGNED[8 * dtype.itemsize]


def _order(x: tile.TileValue, stable: bool) -> tile.TileValue:
    """Integers in the order of ``x``; ``stable``: equal values (0 and -0) become equal."""
    if x.dtype is bool_:
        return x.to(uint8)
    if not x.dtype.is_float:
        return x
    signed = _SIGNED[8 * x.dtype.itemsize]
    bits = tile.bitcast(x, signed)
    low = tile.bitwise_and(tile.shift_right(bits, 8 * x.dtype.itemsize - 1), signed.max)
    key = tile.bitwise_xor(bits, low)
    if stable:
        key = tile.where(x == 0, 0, key)
    return tile.where(tile.isnan(x), signed.max, key)


def _value(key: tile.TileValue, dtype: DType) -> tile.TileValue:
    """The inverse of :func:`_order`."""
    if dtype is bool_:
        return tile.ne(key, 0)
    if not dtype.is_float:
        return key
    low = tile.bitwise_and(tile.shift_right(key, 8 * dtype.itemsize - 1), key.dtype.max)
    back = tile.bitcast(tile.bitwise_xor(key, low), dtype)
    return tile.where(key == key.dtype.max, float("nan"), back)


def pack(x: tile.TileValue, position: tile.TileValue, descending: bool) -> tile.TileValue:
    """Key and position in one int64: 32 bits each."""
    key = _order(x, True)
    key = key.to(int64)
    if x.dtype.kind == "uint" and x.dtype.bits == 32:
        key = key - 2 ** 31
    if descending:
        key = tile.bitwise_not(key)
    return tile.bitwise_or(tile.shift_left(key, 32), position)


# -- the network -------------------------------------------------------------------------------------------------------
class Row:
    """The keys of one row: element i of the row is element ``base + i*stride`` of a flat buffer."""

    def __init__(self, memory: tile.Buffer, base: Any, stride: Any, n: Any, key: DType):
        self.memory, self.base, self.stride, self.n, self.key = memory, base, stride, n, key

    def _at(self, first: Any, lanes: int, step: int) -> tile.TileValue:
        at: tile.TileValue = self.base + (first + tile.iota((lanes,)) * step) * self.stride
        return at

    def inside(self, first: Any, lanes: int, step: int) -> tile.TileValue:
        inside: tile.TileValue = first + tile.iota((lanes,)) * step < self.n
        return inside

    def get(self, first: Any, lanes: int, step: int = 1) -> tile.TileValue:
        """Keys first, first + step, …; beyond the row, the largest."""
        inside = self.inside(first, lanes, step)
        if step == 1 and isinstance(self.stride, int) and self.stride == 1:
            got = tile.load(self.memory, (self.base + first,), (lanes,), mask=inside)
        else:
            got = tile.gather(self.memory, self._at(first, lanes, step), mask=inside)
        if got.dtype is not self.key:
            got = got.to(self.key) if got.dtype is bool_ else tile.bitcast(got, self.key)
        return tile.where(inside, got, self.key.max)

    def put(self, first: Any, keys: tile.TileValue, step: int = 1) -> None:
        lanes = keys.shape[0]
        inside = self.inside(first, lanes, step)
        if self.memory.dtype is not keys.dtype:
            keys = keys != 0 if self.memory.dtype is bool_ else tile.bitcast(keys, self.memory.dtype)
        if step == 1 and isinstance(self.stride, int) and self.stride == 1:
            tile.store(self.memory, (self.base + first,), keys, mask=inside)
        else:
            tile.scatter(self.memory, self._at(first, lanes, step), keys, mask=inside)


def _compare(x: tile.TileValue, mask: int) -> tile.TileValue:
    """Lanes i and i ^ mask in order."""
    other = tile.exchange(x, mask)
    top = 1 << mask.bit_length() - 1
    upper = tile.bitwise_and(tile.iota(x.shape), top) != 0
    return tile.where(upper, tile.maximum(x, other), tile.minimum(x, other))


def sort_tile(x: tile.TileValue) -> tile.TileValue:
    """A tile (a power of two of lanes) in order."""
    size = 2
    while size <= x.shape[0]:
        x = _compare(x, size - 1)
        x = merge_tile(x, size // 2)
        size *= 2
    return x


def merge_tile(x: tile.TileValue, size: int) -> tile.TileValue:
    """Steps size/2 … 1: each run of ``size`` lanes, bitonic, in order."""
    size //= 2
    while size:
        x = _compare(x, size)
        size //= 2
    return x


@tile.tile_function
def _step(row: Row, lo: Any, hi: Any, half: Any, mirrored: bool, lanes: int) -> None:
    """One comparator step over [lo, hi): blocks of 2*half keys; partners are ``half`` apart, or mirrored."""
    for block in tile.range(lo, hi, half * 2):
        if mirrored:
            # Partner of block + t is block + 2*half - 1 - t; those beyond the row need nothing.
            start = tile.maximum(block + half * 2 - row.n, 0) // lanes * lanes
            for t in tile.range(start, half, lanes):
                a = row.get(block + t, lanes)
                b = row.get(block + half * 2 - 1 - t, lanes, -1)
                row.put(block + t, tile.minimum(a, b))
                row.put(block + half * 2 - 1 - t, tile.maximum(a, b), -1)
        else:
            for t in tile.range(0, tile.minimum(half, row.n - block - half), lanes):
                a = row.get(block + t, lanes)
                b = row.get(block + half + t, lanes)
                row.put(block + t, tile.minimum(a, b))
                row.put(block + half + t, tile.maximum(a, b))


def _halving(first: Any, least: int, step: Any) -> None:
    """``step(h)`` for h = first, first/2, … as long as h >= least."""
    def body(h: Any) -> Any:
        step(h)
        return h // 2

    tile.while_loop(lambda h: h >= least, body, tile.constant(first, int64) if isinstance(first, int) else first)


def _doubling(first: int, limit: Any, step: Any) -> None:
    """``step(h)`` for h = first, 2*first, … as long as h < limit."""
    def body(h: Any) -> Any:
        step(h)
        return h * 2

    tile.while_loop(lambda h: h < limit, body, tile.constant(first, int64))


@tile.tile_function
def _finish(row: Row, lo: Any, hi: Any, half: Any, lanes: int) -> None:
    """Steps half, half/2 … 1 over [lo, hi)."""
    _halving(half, lanes, lambda h: _step(row, lo, hi, h, False, lanes))
    for t in tile.range(lo, hi, lanes):
        row.put(t, merge_tile(row.get(t, lanes), lanes))


@tile.tile_function
def sort_row(row: Row, lanes: int) -> None:
    """The keys of a row in order, in place."""
    for t in tile.range(0, row.n, lanes):
        row.put(t, sort_tile(row.get(t, lanes)))
    if isinstance(row.n, int) and row.n <= lanes:
        return
    for lo in tile.range(0, row.n, CHUNK):
        hi = tile.minimum(lo + CHUNK, row.n)
        _doubling(lanes, tile.minimum(hi - lo, CHUNK), lambda h, lo=lo, hi=hi: _merge(row, lo, hi, h, lanes))
    if not (isinstance(row.n, int) and row.n <= CHUNK):
        _doubling(CHUNK, row.n, lambda h: _merge_chunks(row, h, lanes))


def _merge(row: Row, lo: Any, hi: Any, half: Any, lanes: int) -> None:
    """Runs of ``half`` keys into runs of 2*half, within a chunk."""
    _step(row, lo, hi, half, True, lanes)
    _finish(row, lo, hi, half // 2, lanes)


@tile.tile_function
def _merge_chunks(row: Row, half: Any, lanes: int) -> None:
    """Runs of ``half`` keys into runs of 2*half: the far steps over the whole row, the near ones chunk by chunk."""
    _step(row, 0, row.n, half, True, lanes)
    _halving(half // 2, CHUNK, lambda h: _step(row, 0, row.n, h, False, lanes))
    for lo in tile.range(0, row.n, CHUNK):
        _finish(row, lo, tile.minimum(lo + CHUNK, row.n), CHUNK // 2, lanes)


# -- templates ---------------------------------------------------------------------------------------------------------
def _lanes(machine: Any, key: DType, n: DimLike) -> int:
    """Four registers of keys, fewer for short rows."""
    lanes = 4 * machine.vector_lanes(key)
    while isinstance(n, int) and lanes > 4 and lanes >= 2 * n:
        lanes //= 2
    return int(lanes)


@register("sort")
def sort(op: Op, machine: Any, name: str) -> Function:
    """Operands: x, values (sort) or positions (argsort) or both; attributes ``axis``, ``descending``."""
    dtype = op.operands[0].type.dtype
    before, n, after = around(op.operands[0].type.shape, op.attrs.get("axis", -1))
    descending = bool(op.attrs.get("descending", False))
    outs = [i for i, v in enumerate(op.operands) if i > 0]
    position = outs[-1] if len(outs) > 1 or op.attrs.get("op") == "argsort" else None
    values = next((i for i in outs if i != position), None)
    total = before * n * after
    rows = per_block(n, 8192, before * after)
    program = open_program(op, name, (blocks(before * after, rows),), [(total,) for _ in op.operands])
    assert position is None or dtype.itemsize <= 4, "a key and its position share 64 bits: ops/sorting.py halves wider keys"
    key = key_dtype(dtype, position is not None)
    zeros = dtype.is_float and not isinstance(machine, SimtMachine)

    def body(*buffers: tile.Buffer) -> None:
        first, last = chunk(0, rows, before * after)

        def each(r: Any, _: Any) -> tuple[()]:
            base = r * n if after == 1 else r // after * (n * after) + r % after
            lanes = _lanes(machine, key, n)
            whole = tile.size(n) if isinstance(n, Dim) else n
            stride = 1 if after == 1 else tile.size(after)
            if position is None:
                assert values is not None
                _sort_values(buffers[0], Row(buffers[values], base, stride, whole, key), lanes, descending, zeros)
            else:
                _sort_positions(buffers[0], Row(buffers[position], base, stride, whole, key), lanes, descending)
            if position is not None and values is not None:
                _take(buffers[0], buffers[position], buffers[values], base, stride, whole, lanes)
            return ()

        tile.for_loop((first, last, 1), (), each)

    return tile.build(program, body)


@tile.tile_function
def _sort_values(x: tile.Buffer, row: Row, lanes: int, descending: bool, zeros: bool) -> None:
    """``zeros``: those of both signs are left in the order in which they came.  SIMT programs have -0 before 0: there the loops for it
    take OpenCL's compiler ten times as long as the rest."""
    source = Row(x, row.base, row.stride, row.n, x.dtype)

    def enter(t: Any, negative: Any) -> Any:
        keys = _order(raw(source, t, lanes), False)
        row.put(t, _flipped(keys, x.dtype) if descending else keys)
        return tile.logical_or(negative, keys == -1) if zeros else negative

    negative = tile.for_loop((0, row.n, lanes), tile.full((lanes,), False, bool_) if zeros else (), enter)
    sort_row(row, lanes)
    for t in tile.range(0, row.n, lanes):
        keys = row.get(t, lanes)
        put_raw(row, t, _value(_flipped(keys, x.dtype) if descending else keys, x.dtype))
    if zeros:
        tile.cond(tile.any(negative), lambda: _zeros_as_given(source, row, descending), lambda: None)


@tile.tile_function
def _zeros_as_given(source: Row, row: Row, descending: bool) -> None:
    """In a sorted row of floats the zeros of both signs in the order of ``source``: they are equal, and the sort is stable."""
    def at(i: Any) -> Any:
        return source.base + i * source.stride

    def ahead(i: Any, count: Any) -> Any:
        x = tile.load(source.memory, (at(i),))
        return count + (tile.logical_or(x > 0, tile.isnan(x)) if descending else x < 0).to(int64)

    def place(i: Any, to: Any) -> Any:
        x = tile.load(source.memory, (at(i),))

        def put() -> Any:
            tile.store(row.memory, (at(to),), x)
            return to + 1

        return tile.cond(x == 0, put, lambda: to)

    tile.for_loop((0, row.n, 1), tile.for_loop((0, row.n, 1), tile.constant(0, int64), ahead), place)


def _flipped(keys: tile.TileValue, dtype: DType) -> tile.TileValue:
    """Keys in the opposite order."""
    return tile.bitwise_xor(keys, 1) if dtype is bool_ else tile.bitwise_not(keys)


def raw(row: Row, first: Any, lanes: int) -> tile.TileValue:
    """Elements as they are; anything beyond the row."""
    inside = row.inside(first, lanes, 1)
    if isinstance(row.stride, int) and row.stride == 1:
        return tile.load(row.memory, (row.base + first,), (lanes,), mask=inside)
    return tile.gather(row.memory, row._at(first, lanes, 1), mask=inside)


def put_raw(row: Row, first: Any, values: tile.TileValue) -> None:
    lanes = values.shape[0]
    inside = row.inside(first, lanes, 1)
    if isinstance(row.stride, int) and row.stride == 1:
        tile.store(row.memory, (row.base + first,), values, mask=inside)
    else:
        tile.scatter(row.memory, row._at(first, lanes, 1), values, mask=inside)


@tile.tile_function
def _sort_positions(x: tile.Buffer, row: Row, lanes: int, descending: bool) -> None:
    source = Row(x, row.base, row.stride, row.n, x.dtype)
    for t in tile.range(0, row.n, lanes):
        row.put(t, pack(raw(source, t, lanes), tile.iota((lanes,)) + t, descending))
    sort_row(row, lanes)
    for t in tile.range(0, row.n, lanes):
        put_raw(row, t, tile.bitwise_and(row.get(t, lanes), 2 ** 32 - 1))


@tile.tile_function
def _take(x: tile.Buffer, positions: tile.Buffer, values: tile.Buffer, base: Any, stride: Any, n: Any, lanes: int) -> None:
    """values[i] = x[positions[i]]"""
    source = Row(positions, base, stride, n, int64)
    target = Row(values, base, stride, n, x.dtype)
    for t in tile.range(0, n, lanes):
        where = raw(source, t, lanes)
        put_raw(target, t, tile.gather(x, base + where * stride, mask=source.inside(t, lanes, 1)))
