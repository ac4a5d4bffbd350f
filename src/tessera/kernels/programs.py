"""What the templates of this room share: opening a tile program over an op's buffers, and cutting work into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.core import BufferType, Op
from ..tiling import dsl as tile
from ..tiling.lower_cost import at_least_one
from ..types.dims import Dim, DimLike, ceildiv, product
from ..types.dtypes import DType, bf16, f16, f32
from ..types.shapes import Shape


def open_program(op: Op, name: str, grid: Sequence[DimLike], shapes: Sequence[Shape | None] | None = None) -> tile.TileProgram:
    """A program whose buffers are the operands of ``op``; ``shapes`` gives other dense shapes of the same memory."""
    types = []
    for i, v in enumerate(op.operands):
        t = v.type
        seen = shapes[i] if shapes is not None else None
        types.append((v.name or f"b{i}", BufferType(t.dtype, tuple(seen) if seen is not None else t.shape)))
    sizes: dict[str, None] = {}
    for d in [*(d for v in op.operands for d in v.type.shape), *(d for _, t in types for d in t.shape), *grid]:
        if isinstance(d, Dim):
            sizes.update(dict.fromkeys(sorted(d.names)))
    names = [n for n, _ in types]
    unique = [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names)]
    return tile.TileProgram(name, [(n, t) for n, (_, t) in zip(unique, types, strict=True)], tuple(sizes),
                            grid=tuple(grid), loc=op.loc)


def around(shape: Shape, axis: int) -> tuple[DimLike, DimLike, DimLike]:
    """``(before, n, after)``: the extent of ``axis`` and the products of those on either side."""
    axis %= max(1, len(shape))
    return product(shape[:axis]), shape[axis], product(shape[axis + 1:])


def per_block(work: DimLike, budget: int = 16384, most: DimLike | None = None) -> DimLike:
    """How many units of ``work`` elements make a block of about ``budget`` elements."""
    n = at_least_one(budget, work)
    if most is not None and isinstance(n, int) and isinstance(most, int):
        return max(1, min(n, most))
    return n


def blocks(total: DimLike, size: DimLike) -> DimLike:
    return ceildiv(total, size)


def chunk(axis: int, size: DimLike, total: DimLike) -> tuple[Any, Any]:
    """[low, high) of this block, when ``total`` units are cut into chunks of ``size`` along grid axis ``axis``."""
    if isinstance(size, int) and isinstance(total, int) and size >= total:
        return 0, total
    lo = tile.program_id(axis) * size
    return lo, tile.minimum(lo + size, tile.size(total))


def in_bands(t: Any, rows: Any, columns: Any, height: int) -> tuple[Any, Any]:
    """(row, column) of the ``t``-th tile in an order that walks ``height`` rows of tiles column by column, then the next ones: tiles
    at work together share rows and columns of the operands."""
    band = t // (columns * height)
    first = band * height
    inside = tile.minimum(rows - first, height)
    rest = t - band * (columns * height)
    column = rest // inside
    return first + (rest - column * inside), column


def working(dtype: DType) -> DType:
    """The dtype in which arithmetic on ``dtype`` is done."""
    return f32 if dtype in (f16, bf16) or dtype.is_small_float else dtype


def lowest(dtype: DType) -> Any:
    """What every value of ``dtype`` exceeds or equals (NaN aside)."""
    return dtype.min


def highest(dtype: DType) -> Any:
    return dtype.max
