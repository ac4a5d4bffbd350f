"""Sums with compensation, and Welford's statistics, along contiguous rows.

The lanes of a tile are so many independent running sums; at the end they are joined two and two.  The order depends on the shape
and the target alone.  A row is the work of one thread.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import DimLike
from .programs import around, blocks, chunk, open_program, per_block


@register("compensated_sum")
def compensated_sum(op: Op, machine: Any, name: str) -> Function:
    """Operands: x [..., n], out [...]: each row's sum, with the rounding errors of every addition summed beside it."""
    return _over_rows(op, machine, name, _compensated, 1)


@register("welford")
def welford(op: Op, machine: Any, name: str) -> Function:
    """Operands: x [..., n], mean [...], squares [...]: each row's mean and sum of squared deviations, in one pass."""
    return _over_rows(op, machine, name, _welford, 2)


def _over_rows(op: Op, machine: Any, name: str, body: Any, results: int) -> Function:
    t = op.operands[0].type
    before, n, _ = around(t.shape, len(t.shape) - 1)
    rows = per_block(n, most=before)
    program = open_program(op, name, (blocks(before, rows),), [(before, n), *[(before,)] * results])
    return tile.build(program, body, before, n, rows, 4 * machine.vector_lanes(t.dtype))


def two_sum(a: tile.TileValue, b: tile.TileValue) -> tuple[tile.TileValue, tile.TileValue]:
    """a + b rounded, and what the rounding lost, exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _taken_in(sums: tile.TileValue, here: tile.TileValue, lost: tile.TileValue) -> tuple[tile.TileValue, tile.TileValue]:
    """``sums + lost + here`` as a new (sums, lost): what is lost comes back as soon as it counts, so that it stays exact too.

    A sum that is infinite, or no number, has lost nothing that could be told.
    """
    plain, error = two_sum(sums, here)
    s, lost = two_sum(plain, lost + error)
    fine = tile.isfinite(s)
    return tile.where(fine, s, plain), tile.where(fine, lost, 0.0)


@tile.tile_function
def _compensated(x: tile.Buffer, out: tile.Buffer, total: DimLike, n: DimLike, rows: DimLike, lanes: int) -> None:
    first, last = chunk(0, rows, total)
    for row in tile.range(first, last):
        sums, lost = tile.zeros((lanes,), x.dtype), tile.zeros((lanes,), x.dtype)
        for k in tile.range(tile.cdiv(n, lanes)):
            at = k * lanes
            here = tile.load(x, (row, at), (lanes,), mask=tile.iota((lanes,)) < tile.size(n) - at)
            sums, lost = _taken_in(sums, here, lost)
        tile.store(out, (row,), _joined(sums, lost))


def _joined(sums: tile.TileValue, lost: tile.TileValue) -> tile.TileValue:
    half = sums.shape[0] // 2
    while half:
        sums, lost = _taken_in(sums[:half], sums[half:], lost[:half] + lost[half:])
        half = half // 2
    return sums + lost


@tile.tile_function
def _welford(x: tile.Buffer, out: tile.Buffer, squares: tile.Buffer, total: DimLike, n: DimLike, rows: DimLike, lanes: int) -> None:
    dtype = x.dtype
    first, last = chunk(0, rows, total)
    for row in tile.range(first, last):
        # Deviations from the row's first element: numbers that lie close together differ exactly.
        shift = tile.load(x, (row, 0), (1,))
        mean, m2, count = tile.zeros((lanes,), dtype), tile.zeros((lanes,), dtype), tile.zeros((lanes,), dtype)
        for k in tile.range(tile.cdiv(n, lanes)):
            at = k * lanes
            inside = tile.iota((lanes,)) < tile.size(n) - at
            here = tile.load(x, (row, at), (lanes,), mask=inside) - tile.broadcast_to(shift, (lanes,))
            count = count + tile.where(inside, 1.0, 0.0).to(dtype)
            step = tile.where(inside, here - mean, 0.0)
            mean = mean + step / tile.maximum(count, 1.0)
            m2 = m2 + step * tile.where(inside, here - mean, 0.0)
        mean, m2 = _merged(mean, m2, count)
        tile.store(out, (row,), tile.reshape(shift + mean, ()))
        tile.store(squares, (row,), tile.reshape(m2, ()))


def _merged(mean: tile.TileValue, m2: tile.TileValue, count: tile.TileValue) -> tuple[tile.TileValue, tile.TileValue]:
    """The statistics of all lanes, joined by the formula of Chan, Golub and LeVeque."""
    half = mean.shape[0] // 2
    while half:
        a, b = count[:half], count[half:]
        both = a + b
        share = b / tile.maximum(both, 1.0)
        apart = mean[half:] - mean[:half]
        m2 = m2[:half] + m2[half:] + apart * apart * a * share
        mean, count, half = mean[:half] + apart * share, both, half // 2
    return mean, m2
