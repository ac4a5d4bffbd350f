"""What the grammar of Tile IR asks of an op: how many operands and results, and of which kind."""

from __future__ import annotations

from typing import Any

from ..types.dtypes import DType
from .core import BufferType, Op, ScalarType, TileType, Type, Value
from .graph import require


def plain(t: Type) -> Type:
    """The type without a layout."""
    return TileType(t.dtype, t.shape) if isinstance(t, TileType) and t.layout is not None else t


def expect_scalar(op: Op, v: Value, what: str, dtype: DType | None = None) -> None:
    require(isinstance(v.type, ScalarType) and (dtype is None or v.type.dtype is dtype), op,
            f"{what} is {'a scalar' if dtype is None else f'a scalar of type {dtype}'}, not {v.type}")


def expect_buffer(op: Op, index: int = 0) -> BufferType:
    require(len(op.operands) > index, op, f"operand {index} (a buffer) is missing")
    t = op.operands[index].type
    require(isinstance(t, BufferType), op, f"operand {index} is a buffer, not {t}")
    return t  # type: ignore[no-any-return]


def expect_tile(op: Op, index: int = 0) -> TileType:
    require(len(op.operands) > index, op, f"operand {index} (a tile) is missing")
    t = op.operands[index].type
    require(isinstance(t, TileType), op, f"operand {index} is a tile, not {t}")
    return t  # type: ignore[no-any-return]


def only_result(op: Op) -> Any:
    require(len(op.results) == 1, op, f"has one result, not {len(op.results)}")
    return op.results[0].type


def expect_counts(op: Op, operands: int, results: int) -> None:
    require(len(op.operands) == operands, op, f"takes {operands} operands, got {len(op.operands)}")
    require(len(op.results) == results, op, f"has {results} results, got {len(op.results)}")


def expect_result(op: Op, expected: Type) -> None:
    got = only_result(op)
    require(plain(got) == expected, op,
            f"the result is {expected}, not {got}")


__all__ = ["expect_buffer", "expect_counts", "expect_result", "expect_scalar", "expect_tile", "only_result", "plain"]
