"""What values of Tile IR are in one thread's program, and facts about index arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from ...ir.core import BufferType, Op, Value
from ...tiling.layouts import Layout
from ...types.dims import DimLike
from ...types.dtypes import DType


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


def dim_divisor(d: DimLike) -> int:
    """A number that divides a size expression for all values of its names; 0 for zero."""
    if isinstance(d, int):
        return abs(d)
    n = 0
    for _, coefficient in d.terms:
        n = gcd(n, abs(int(coefficient)))
    return n


def divisor(v: Value, loops: Mapping[Value, Op], depth: int = 12) -> int:
    """A number that divides an int64 scalar, for all inputs: what vector accesses may count on; 0 for zero."""
    if depth == 0:
        return 1
    op = v.op
    if op is None:
        loop = loops.get(v)
        if loop is None:
            return 1
        return gcd(divisor(loop.operands[0], loops, depth - 1), divisor(loop.operands[2], loops, depth - 1))
    if op.name == "constant":
        return abs(int(op.attrs["value"]))
    if op.name == "size":
        return dim_divisor(op.attrs["value"])
    parts = [divisor(x, loops, depth - 1) for x in op.operands] if op.name in _ARITHMETIC else []
    if op.name == "mul":
        return parts[0] * parts[1]
    if op.name in ("add", "sub", "minimum", "maximum"):
        return gcd(parts[0], parts[1])
    if op.name == "neg":
        return parts[0]
    if op.name == "select":
        return gcd(parts[1], parts[2])
    return 1


_ARITHMETIC = frozenset({"mul", "add", "sub", "minimum", "maximum", "neg", "select"})


def strides(shape: tuple[DimLike, ...]) -> list[DimLike]:
    """Row-major strides of a dense buffer, in elements."""
    out: list[DimLike] = [1]
    for d in reversed(shape[1:]):
        out.append(out[-1] * d)
    return out[::-1] if shape else []


__all__ = ["Memory", "Regs", "dim_divisor", "divisor", "strides"]
