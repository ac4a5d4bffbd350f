"""Running sums, products and extrema along an axis.

Along contiguous memory a tile is scanned by doubling strides (its lanes in log2 steps) and takes in the running value of
the tiles before it; along any other axis the lanes are neighbouring columns and each runs down its own.  Either order
depends on the shape and the target alone, never on the number of threads.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import DimLike
from ..types.dtypes import DType
from .programs import around, blocks, chunk, highest, lowest, open_program, per_block, working

COMBINE = {"cumsum": "add", "cumprod": "mul", "cummax": "maximum", "cummin": "minimum"}


def combine_of(op: Op) -> str:
    """The pointwise op of a scan template: of the Graph op ``op.attrs["op"]``."""
    return COMBINE[op.attrs["op"]]


def neutral(combine: str, dtype: DType) -> Any:
    return {"add": 0, "mul": 1, "maximum": lowest(dtype), "minimum": highest(dtype)}[combine]


@register("scan")
def scan(op: Op, machine: Any, name: str) -> Function:
    """Operands: x, out (one shape); attributes ``op`` (cumsum cumprod cummax cummin), ``axis``, ``reverse``."""
    shape, dtype = op.operands[0].type.shape, op.operands[0].type.dtype
    before, n, after = around(shape, op.attrs["axis"])
    reverse = bool(op.attrs.get("reverse", False))
    combine = combine_of(op)
    lanes = machine.vector_lanes(working(dtype))
    if after == 1:
        rows = per_block(n, most=before)
        program = open_program(op, name, (blocks(before, rows),), [(before, n), (before, n)])
        return tile.build(program, _along_rows, before, n, rows, lanes, combine, reverse)
    width = 4 * lanes
    program = open_program(op, name, (before, blocks(after, width)), [(before, n, after)] * 2)
    return tile.build(program, _down_columns, n, after, width, combine, reverse)


@tile.tile_function
def _along_rows(x: tile.Buffer, out: tile.Buffer, total: DimLike, n: DimLike, rows: DimLike, lanes: int, combine: str,
                reverse: bool) -> None:
    dtype = working(x.dtype)
    start = tile.constant(neutral(combine, dtype), dtype)
    fold = getattr(tile, combine)
    first, last = chunk(0, rows, total)
    steps = tile.cdiv(n, lanes)
    for row in tile.range(first, last):
        running = start
        for k in tile.range(steps):
            at = (steps - 1 - k if reverse else k) * lanes
            inside = tile.iota((lanes,)) < tile.size(n) - at
            here = tile.load(x, (row, at), (lanes,), mask=inside, fill=neutral(combine, x.dtype)).to(dtype)
            here = fold(scan_tile(here, combine, reverse), running)
            running = tile.extract(here, 0 if reverse else lanes - 1)
            tile.store(out, (row, at), here.to(x.dtype), mask=inside)


def scan_tile(x: tile.TileValue, combine: str, reverse: bool = False) -> tile.TileValue:
    """The inclusive scan of a 1-D tile, in log2 steps."""
    n, step, fold = x.shape[0], 1, getattr(tile, combine)
    while step < n:
        fill = tile.full((step,), neutral(combine, x.dtype), x.dtype)
        moved = tile.concat([x[step:], fill]) if reverse else tile.concat([fill, x[:n - step]])
        x = fold(moved, x)
        step *= 2
    return x


@tile.tile_function
def _down_columns(x: tile.Buffer, out: tile.Buffer, n: DimLike, after: DimLike, width: int, combine: str, reverse: bool) -> None:
    dtype = working(x.dtype)
    fold = getattr(tile, combine)
    outer, col = tile.program_id(0), tile.program_id(1) * width
    inside = tile.iota((width,)) < tile.size(after) - col
    running = tile.full((width,), neutral(combine, dtype), dtype)
    for k in tile.range(n):
        at = tile.size(n) - 1 - k if reverse else k
        here = tile.load(x, (outer, at, col), (width,), mask=inside).to(dtype)
        running = fold(running, here)
        tile.store(out, (outer, at, col), running.to(x.dtype), mask=inside)
