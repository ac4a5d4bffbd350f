"""Numbers that divide index arithmetic whatever the sizes are: what vector accesses and copies of whole chunks may count on."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from ..ir.core import Op, Value
from ..types.dims import DimLike


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


__all__ = ["dim_divisor", "divisor"]
