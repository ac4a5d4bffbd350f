"""How much work a kernel is, in element operations: what decides whether a launch is worth sharing out.

An estimate: a loop whose trip count is no size expression counts as a fixed number of rounds.
"""

from __future__ import annotations

from ...ir.core import Block, BufferType, Function, Op, TileType, Value
from ...types.dims import DimLike, ceildiv, dim_max, product

UNKNOWN_TRIPS = 64
_FREE = frozenset({"constant", "program_id", "size", "yield", "return", "alloc", "reshape", "broadcast", "splat", "full"})


def tile_work(fn: Function) -> DimLike:
    """Element operations of the whole launch: blocks in the grid times the work of one."""
    return product(fn.attrs["grid"]) * dim_max(_block_work(fn.body), 1)


def _block_work(block: Block) -> DimLike:
    total: DimLike = 0
    for op in block.ops:
        total = total + _op_work(op)
    return total


def _op_work(op: Op) -> DimLike:
    if op.name in _FREE:
        return 0
    if op.name == "for":
        return _trips(op) * _block_work(op.blocks[0])
    if op.name == "while":
        return UNKNOWN_TRIPS * sum((_block_work(b) for b in op.blocks), 0)
    if op.blocks:
        return sum((_block_work(b) for b in op.blocks), 0)
    if op.name == "dot":
        a, b = op.operands[0].type, op.operands[1].type
        return a.shape[0] * a.shape[1] * b.shape[1]  # type: ignore[no-any-return]
    return max([_elements(v) for v in (*op.operands, *op.results)], default=1)


def _elements(v: Value) -> int:
    if isinstance(v.type, TileType):
        return v.type.size
    return 0 if isinstance(v.type, BufferType) else 1


def _trips(op: Op) -> DimLike:
    low, high, step = (_size_of(v) for v in op.operands[:3])
    if low is None or high is None or not isinstance(step, int) or step < 1:
        return UNKNOWN_TRIPS
    return ceildiv(high - low, step)


def _size_of(v: Value) -> DimLike | None:
    if v.op is not None and v.op.name in ("constant", "size"):
        value: DimLike = v.op.attrs["value"]
        return value
    return None
