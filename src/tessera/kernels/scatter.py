"""Scatter: rows of updates put into, or combined with, rows of a copy of ``x``, in the order of the updates.

A block owns a strip of columns and goes through all updates, so two updates of one row never meet in two blocks and the
order of additions is that of the program.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import DimLike, product
from ..types.dtypes import int64
from .programs import blocks, open_program, working

COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum"}
_STRIP = 4  # tiles of columns that a block owns


@register("scatter")
def scatter(op: Op, machine: Any, name: str) -> Function:
    """Operands: x [N, …], index [M], updates [M, …], out [N, …]; attributes ``mode`` (set add mul max min) and ``site``,
    the number of the check of the indices (absent: they are clamped only)."""
    x, index, _, _ = (v.type for v in op.operands)
    n, m, columns = x.shape[0], index.shape[0], product(x.shape[1:])
    dtype, mode = x.dtype, op.attrs["mode"]
    lanes = 4 * machine.vector_lanes(working(dtype))
    while isinstance(columns, int) and lanes > 1 and lanes >= 2 * columns:
        lanes //= 2
    strip = lanes * _STRIP
    program = open_program(op, name, (blocks(columns, strip),), [(n, columns), (m,), (m, columns), (n, columns)])
    once = working(dtype) is not dtype and mode in ("add", "mul")
    body = _accumulate_once if once else _in_order
    site = op.attrs.get("site") if op.attrs.get("checked", True) else None
    return tile.build(program, body, n, m, columns, lanes, strip, mode, site)


def row_of(index: tile.TileValue, n: DimLike) -> tile.TileValue:
    """The rows that indices name: negative numbers count from the end; clamped."""
    i = index.to(int64)
    if index.dtype.kind == "int":
        i = tile.where(i < 0, i + tile.size(n), i)
    row: tile.TileValue = tile.minimum(tile.maximum(i, 0), tile.size(n) - 1)
    return row


def _row(index: tile.Buffer, at: Any, n: DimLike) -> tile.TileValue:
    """The row that update ``at`` names."""
    return row_of(tile.load(index, (at,)), n)


@tile.tile_function
def check_all(index: tile.Buffer, n: DimLike, m: DimLike, site: int, here: Any) -> None:
    """One block (where ``here`` holds) looks at every index."""
    if here:
        for at in tile.range(m):
            i = tile.load(index, (at,)).to(int64)
            low = 0 - tile.size(n) if index.dtype.kind == "int" else tile.constant(0, int64)
            tile.check(tile.logical_and(i >= low, i < n), i, site)


@tile.tile_function
def _copy(x: tile.Buffer, out: tile.Buffer, n: DimLike, columns: DimLike, lanes: int, first: Any, last: Any) -> None:
    for row in tile.range(n):
        for col in tile.range(first, last, lanes):
            inside = tile.iota((lanes,)) < tile.size(columns) - col
            tile.store(out, (row, col), tile.load(x, (row, col), (lanes,), mask=inside), mask=inside)


@tile.tile_function
def _in_order(x: tile.Buffer, index: tile.Buffer, updates: tile.Buffer, out: tile.Buffer, n: DimLike, m: DimLike,
              columns: DimLike, lanes: int, strip: int, mode: str, site: int | None) -> None:
    first = tile.program_id(0) * strip
    last = tile.minimum(first + strip, tile.size(columns))
    if site is not None:
        check_all(index, n, m, site, tile.program_id(0) == 0)
    _copy(x, out, n, columns, lanes, first, last)
    for at in tile.range(m):
        row = _row(index, at, n)
        for col in tile.range(first, last, lanes):
            inside = tile.iota((lanes,)) < tile.size(columns) - col
            new = tile.load(updates, (at, col), (lanes,), mask=inside)
            if mode != "set":
                new = getattr(tile, COMBINE[mode])(tile.load(out, (row, col), (lanes,), mask=inside), new)
            tile.store(out, (row, col), new, mask=inside)


@tile.tile_function
def _accumulate_once(x: tile.Buffer, index: tile.Buffer, updates: tile.Buffer, out: tile.Buffer, n: DimLike, m: DimLike,
                     columns: DimLike, lanes: int, strip: int, mode: str, site: int | None) -> None:
    """For elements that are narrower than their arithmetic: the first update of a row takes in all later ones of that
    row and rounds once."""
    first = tile.program_id(0) * strip
    last = tile.minimum(first + strip, tile.size(columns))
    wide = working(x.dtype)
    fold = getattr(tile, COMBINE[mode])
    if site is not None:
        check_all(index, n, m, site, tile.program_id(0) == 0)
    _copy(x, out, n, columns, lanes, first, last)
    for at in tile.range(m):
        row = _row(index, at, n)
        met = tile.constant(0, int64)
        for earlier in tile.range(at):
            met = met + (_row(index, earlier, n) == row).to(int64)
        if met == 0:
            for col in tile.range(first, last, lanes):
                inside = tile.iota((lanes,)) < tile.size(columns) - col
                acc = tile.load(x, (row, col), (lanes,), mask=inside).to(wide)
                for later in tile.range(at, m):
                    if _row(index, later, n) == row:
                        acc = fold(acc, tile.load(updates, (later, col), (lanes,), mask=inside).to(wide))
                tile.store(out, (row, col), acc.to(x.dtype), mask=inside)


__all__ = ["COMBINE", "check_all", "row_of"]
