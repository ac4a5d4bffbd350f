"""Cholesky and LU factorisations and triangular solves: one matrix (or some of its columns) a block.

All three walk along rows, which are contiguous: Cholesky by dot products of rows, LU and the solves by adding multiples of
rows.  The order of the sums depends on the size and the target alone.
"""

from __future__ import annotations

from typing import Any

from ..ir.core import Function, Op
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import DimLike, product
from ..types.dtypes import DType, int64
from .programs import blocks, open_program

_ROWS = 4  # rows that share the loads of another row


def _lanes(machine: Any, dtype: DType, n: DimLike, vectors: int) -> int:
    lanes = vectors * machine.vector_lanes(dtype)
    while isinstance(n, int) and lanes > 1 and lanes >= 2 * n:
        lanes //= 2
    return int(lanes)


# -- Cholesky ------------------------------------------------------------------------------------------------------------
@register("cholesky")
def cholesky(op: Op, machine: Any, name: str) -> Function:
    """Operands: x [..., n, n], of which the lower triangle is read, and L; attribute ``site``, the number of the check of the
    pivots (absent: a matrix that is not positive definite gives NaN only)."""
    shape, dtype = op.operands[0].type.shape, op.operands[0].type.dtype
    batch, n = product(shape[:-2]), shape[-1]
    program = open_program(op, name, (batch,), [(batch, n, n)] * 2)
    return tile.build(program, _cholesky, n, _lanes(machine, dtype, n, 2), op.attrs.get("site"))


@tile.tile_function
def _cholesky(x: tile.Buffer, out: tile.Buffer, n: DimLike, lanes: int, site: int | None) -> None:
    at = tile.program_id(0)
    bad = tile.constant(0, int64)  # the order of the first leading minor that is not positive
    for j in tile.range(n):
        (square,) = _dots(out, at, [j], j, lanes)
        pivot = tile.load(x, (at, j, j)) - square
        bad = tile.where(tile.logical_or(bad > 0, pivot > 0), bad, j + 1)
        diagonal = tile.sqrt(pivot)
        tile.store(out, (at, j, j), diagonal)
        for col in tile.range(j + 1, n, lanes):
            inside = tile.iota((lanes,)) < tile.size(n) - col
            tile.store(out, (at, j, col), tile.full((lanes,), 0, x.dtype), mask=inside)
        for i in tile.range(j + 1, n, _ROWS):
            last = tile.size(n) - 1
            rows = [tile.minimum(i + r, last) for r in range(_ROWS)]  # past the end: the last row again
            for row, dot in zip(rows, _dots(out, at, rows, j, lanes), strict=True):
                tile.store(out, (at, row, j), (tile.load(x, (at, row, j)) - dot) / diagonal)
    if site is not None:
        tile.check(bad == 0, bad, site)
    if bad > 0:
        for row in tile.range(n):
            for col in tile.range(0, n, lanes):
                inside = tile.iota((lanes,)) < tile.size(n) - col
                tile.store(out, (at, row, col), tile.full((lanes,), float("nan"), x.dtype), mask=inside)


def _dots(low: tile.Buffer, at: Any, rows: list[Any], j: Any, lanes: int) -> list[tile.TileValue]:
    """The products of ``rows`` with row ``j``, over the columns before ``j``."""
    def step(k: Any, sums: list[tile.TileValue]) -> list[tile.TileValue]:
        inside = tile.iota((lanes,)) < j - k
        mine = tile.load(low, (at, j, k), (lanes,), mask=inside)
        return [tile.fma(tile.load(low, (at, r, k), (lanes,), mask=inside), mine, s) for r, s in zip(rows, sums, strict=True)]

    zero = tile.full((lanes,), 0, low.dtype)
    return [tile.sum(s) for s in tile.for_loop((0, j, lanes), [zero] * len(rows), step)]


# -- triangular solves ---------------------------------------------------------------------------------------------------
@register("triangular_solve")
def triangular_solve(op: Op, machine: Any, name: str) -> Function:
    """Operands: a [..., n, n], b [..., n, k], x; attributes ``lower``, ``transpose``, ``unit``."""
    shape, dtype = op.operands[1].type.shape, op.operands[1].type.dtype
    batch, n, k = product(shape[:-2]), shape[-2], shape[-1]
    lanes = _lanes(machine, dtype, k, 4)
    program = open_program(op, name, (batch, blocks(k, lanes)), [(batch, n, n), (batch, n, k), (batch, n, k)])
    a = op.attrs
    return tile.build(program, _solve, n, k, lanes, bool(a.get("lower", True)), bool(a.get("transpose", False)),
                      bool(a.get("unit", False)))


@tile.tile_function
def _solve(a: tile.Buffer, b: tile.Buffer, x: tile.Buffer, n: DimLike, k: DimLike, lanes: int, lower: bool, transpose: bool,
           unit: bool) -> None:
    at, col = tile.program_id(0), tile.program_id(1) * lanes
    inside = tile.iota((lanes,)) < tile.size(k) - col
    forward = lower != transpose
    for step in tile.range(n):
        i = step if forward else tile.size(n) - 1 - step
        row = tile.load(b, (at, i, col), (lanes,), mask=inside)
        for before in tile.range(step):
            j = before if forward else tile.size(n) - 1 - before
            factor = tile.load(a, (at, j, i) if transpose else (at, i, j))
            row = tile.fma(tile.splat(-factor, (lanes,)), tile.load(x, (at, j, col), (lanes,), mask=inside), row)
        if not unit:
            row = row / tile.splat(tile.load(a, (at, i, i)), (lanes,))
        tile.store(x, (at, i, col), row, mask=inside)


# -- LU --------------------------------------------------------------------------------------------------------------------
@register("lu")
def lu(op: Op, machine: Any, name: str) -> Function:
    """Operands: x [..., n, n]; L and U packed, row numbers (int64 [..., n]), the permutation's sign [...]."""
    shape, dtype = op.operands[0].type.shape, op.operands[0].type.dtype
    batch, n = product(shape[:-2]), shape[-1]
    program = open_program(op, name, (batch,), [(batch, n, n), (batch, n, n), (batch, n), (batch,)])
    return tile.build(program, _lu, n, _lanes(machine, dtype, n, 2))


@tile.tile_function
def _lu(x: tile.Buffer, out: tile.Buffer, order: tile.Buffer, sign: tile.Buffer, n: DimLike, lanes: int) -> None:
    at = tile.program_id(0)
    for row in tile.range(n):
        tile.store(order, (at, row), row)
        for col in tile.range(0, n, lanes):
            inside = tile.iota((lanes,)) < tile.size(n) - col
            tile.store(out, (at, row, col), tile.load(x, (at, row, col), (lanes,), mask=inside), mask=inside)
    parity = tile.constant(1.0, x.dtype)
    for k in tile.range(n):
        pivot = _pivot(out, at, k, n)
        if pivot != k:
            parity = -parity
            _swap(out, order, at, k, pivot, n, lanes)
        diagonal = tile.load(out, (at, k, k))
        for i in tile.range(k + 1, n):
            factor = tile.load(out, (at, i, k))
            factor = tile.where(diagonal != 0, factor / diagonal, factor)
            tile.store(out, (at, i, k), factor)
            for col in tile.range(k + 1, n, lanes):
                inside = tile.iota((lanes,)) < tile.size(n) - col
                mine = tile.load(out, (at, i, col), (lanes,), mask=inside)
                other = tile.load(out, (at, k, col), (lanes,), mask=inside)
                tile.store(out, (at, i, col), tile.fma(tile.splat(-factor, (lanes,)), other, mine), mask=inside)
    tile.store(sign, (at,), parity)


@tile.tile_function
def _pivot(m: tile.Buffer, at: Any, k: Any, n: DimLike) -> tile.TileValue:
    """The first row from ``k`` on with the greatest magnitude in column ``k``; NaN counts as infinite."""
    best, where = tile.constant(-1.0, m.dtype), tile.constant(0, int64)
    for i in tile.range(k, n):
        size = tile.abs(tile.load(m, (at, i, k)))
        size = tile.where(tile.isnan(size), float("inf"), size)
        greater = size > best
        best, where = tile.where(greater, size, best), tile.where(greater, i, where)
    return where


@tile.tile_function
def _swap(m: tile.Buffer, order: tile.Buffer, at: Any, k: Any, pivot: Any, n: DimLike, lanes: int) -> None:
    for col in tile.range(0, n, lanes):
        inside = tile.iota((lanes,)) < tile.size(n) - col
        a = tile.load(m, (at, k, col), (lanes,), mask=inside)
        b = tile.load(m, (at, pivot, col), (lanes,), mask=inside)
        tile.store(m, (at, k, col), b, mask=inside)
        tile.store(m, (at, pivot, col), a, mask=inside)
    a, b = tile.load(order, (at, k)), tile.load(order, (at, pivot))
    tile.store(order, (at, k), b)
    tile.store(order, (at, pivot), a)
