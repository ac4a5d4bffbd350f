"""What values of Tile IR are in one thread's program."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import CompileError
from ...ir.core import BufferType, TileType
from ...tiling.divisors import dim_divisor, divisor
from ...tiling.layouts import Layout
from ...types.dims import DimLike
from ...types.dtypes import DType

EXCHANGE = "exchange"  # the part of shared memory through which threads pass elements


@dataclass
class Regs:
    """A tile: the LLVM values of the thread's registers.  Elements beyond the tile's extents hold anything."""

    dtype: DType
    shape: tuple[int, ...]
    layout: Layout
    names: list[str]


@dataclass(frozen=True)
class Memory:
    """A buffer: a pointer in an LLVM address space."""

    pointer: str
    space: int
    type: BufferType


def strides(shape: tuple[DimLike, ...]) -> list[DimLike]:
    """Row-major strides of a dense buffer, in elements."""
    out: list[DimLike] = [1]
    for d in reversed(shape[1:]):
        out.append(out[-1] * d)
    return out[::-1] if shape else []


def layout_of(t: TileType) -> Layout:
    """The layout that a tile type carries.

    Raises:
        CompileError: it carries none.
    """
    if t.layout is None:
        raise CompileError(f"{t} has no layout: tiling.assign gives every tile one")
    return Layout.parse(t.layout, t.shape)


__all__ = ["EXCHANGE", "Memory", "Regs", "dim_divisor", "divisor", "layout_of", "strides"]
