"""Scatter on machines of many blocks: a block owns a strip of columns of every ``groups``-th row, copies those of ``x``, and goes through
all updates in order, taking those of its rows.

So the order of additions is that of the program, as in the general form, and rows that are hit often (the first words of a vocabulary) lie
in different blocks.  Indices are read a tile at a time; a reduction finds the next one that is the block's own.
"""

from __future__ import annotations

from typing import Any

from ...ir.core import Function, Op
from ...machine.simt import SimtMachine
from ...tiling import dsl as tile
from ...types.dims import DimLike, product
from ...types.dtypes import int64
from ..programs import blocks, open_program, working
from ..scatter import COMBINE, check_all, row_of

_AHEAD = 8  # rows of a copy that are under way together


def scatter_program(op: Op, machine: SimtMachine, name: str) -> Function | None:
    """The program of a ``scatter`` template; None for sums of narrow floats, which round once for each row."""
    x, index, _, _ = (v.type for v in op.operands)
    mode = op.attrs["mode"]
    if working(x.dtype) is not x.dtype and mode in ("add", "mul"):
        return None
    n, m, columns = x.shape[0], index.shape[0], product(x.shape[1:])
    lanes = machine.block_threads
    while isinstance(columns, int) and lanes > machine.lanes and lanes >= 2 * columns:
        lanes //= 2
    strips = blocks(columns, lanes)
    groups = 1
    while groups * (strips if isinstance(strips, int) else 1) < 8 * machine.units and (not isinstance(n, int) or groups < n):
        groups *= 2
    program = open_program(op, name, (strips, groups), [(n, columns), (m,), (m, columns), (n, columns)])
    site = op.attrs.get("site") if op.attrs.get("checked", True) else None
    return tile.build(program, _scatter, n, m, columns, lanes, groups, mode, site)


@tile.tile_function
def _copy(x: tile.Buffer, out: tile.Buffer, n: DimLike, columns: DimLike, lanes: int, groups: int, col: Any, group: Any) -> None:
    inside = tile.iota((lanes,)) < tile.size(columns) - col
    for first in tile.range(group, tile.size(n), groups * _AHEAD):
        rows = [first + k * groups for k in tile.static_range(_AHEAD)]
        masks = [tile.logical_and(inside, row < tile.size(n)) for row in rows]
        loaded = [tile.load(x, (row, col), (lanes,), mask=mask) for row, mask in zip(rows, masks, strict=True)]
        for row, mask, value in zip(rows, masks, loaded, strict=True):
            tile.store(out, (row, col), value, mask=mask)


@tile.tile_function
def _scatter(x: tile.Buffer, index: tile.Buffer, updates: tile.Buffer, out: tile.Buffer, n: DimLike, m: DimLike, columns: DimLike,
             lanes: int, groups: int, mode: str, site: int | None) -> None:
    col, group = tile.program_id(0) * lanes, tile.program_id(1)
    if site is not None:
        check_all(index, n, m, site, tile.logical_and(tile.program_id(0) == 0, group == 0))
    _copy(x, out, n, columns, lanes, groups, col, group)
    inside, lane = tile.iota((lanes,)) < tile.size(columns) - col, tile.iota((lanes,))
    for first in tile.range(0, tile.size(m), lanes):
        there = lane < tile.size(m) - first
        rows = row_of(tile.load(index, (first,), (lanes,), mask=there), n)
        mine = tile.logical_and(there, tile.bitwise_and(rows, groups - 1) == group)
        for _ in tile.range(tile.sum(mine.to(int64))):
            at = tile.min(tile.where(mine, lane, lanes))
            row = row_of(tile.load(index, (first + at,)), n)
            new = tile.load(updates, (first + at, col), (lanes,), mask=inside)
            if mode != "set":
                new = getattr(tile, COMBINE[mode])(tile.load(out, (row, col), (lanes,), mask=inside), new)
            tile.store(out, (row, col), new, mask=inside)
            mine = tile.logical_and(mine, lane != at)


__all__ = ["scatter_program"]
