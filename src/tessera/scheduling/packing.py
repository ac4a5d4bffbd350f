"""Operands that a loop multiplies by in every step are laid out once, before it.

A product of few rows reads its right operand where it lies, if its rows are contiguous.  In a loop the same operand is read again
in every step, so it pays to put it so first: a transposed one above all, but one that lies right too, since the copy starts on a
cache line and its rows do not lie a power of two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..ir.core import Block, BufferType, Op, ScalarType, Value
from ..types.dims import DimLike
from ..types.dims import name as dim_name
from .program import base_of
from .templates import affine

FEW_ROWS = 48      # a product of more rows copies its right operand to panels, whatever its layout
STEPS = 16         # loops of fewer steps do not pay for the copy
LINE = 64


def pack_operands(block: Block, length: DimLike, alloc: Callable[[BufferType], Value], label: Callable[[str], str],
                  changing: Collection[Value]) -> list[Op]:
    """Let products of few rows in a loop's body read copies of what does not change; the ops that make the copies.

    Args:
        alloc: makes a temporary.
        label: makes a kernel's name.
        changing: buffers, without views, that the loop writes.
    """
    if isinstance(length, int) and length < STEPS:
        return []
    written = {_root(op.operands[i]) for op in block.walk() if "outs" in op.attrs for i in op.attrs["outs"]} | set(changing)
    made: dict[tuple[Value, DimLike, DimLike], Value] = {}
    before: list[Op] = []
    for op in block.ops:
        found = _right_operand(op)
        if found is None:
            continue
        source, (k_step, n_step), (k, n) = found
        base = base_of(source)
        if base is None or _root(base) in written or base.op in block.ops or base.type.size != k * n:
            continue
        per_line = LINE // source.type.dtype.itemsize
        width = (-(-n // per_line) + 1) * per_line
        key = (base, k_step, n_step)
        if key not in made:
            made[key] = alloc(BufferType(source.type.dtype, (k * width,)))
            before += _copy(base, source.type, made[key], (k_step, n_step), (k, n, width), label("pack"))
        op.operands[1] = made[key]
        for b in op.blocks:
            b.args[1].type = made[key].type
        op.attrs["rhs"] = (dim_name(op.attrs["k"][0]) * width + dim_name(op.attrs["n"][0]),)
    return before


def _right_operand(op: Op) -> tuple[Value, tuple[int, int], tuple[int, int]] | None:
    """(buffer, its steps along k and n, their extents) of a product whose right operand is worth a copy."""
    if op.name != "template" or op.attrs["template"] != "matmul" or "rhs" not in op.attrs or op.attrs["batch"]:
        return None
    (_, m), (n_name, n), (k_name, k) = (op.attrs[x] for x in "mnk")
    source = op.operands[1]
    if not all(isinstance(x, int) for x in (m, n, k)) or not 4 < m <= FEW_ROWS or len(source.type.shape) != 1:
        return None
    if source.type.dtype is not op.attrs["accumulate"] or any(b.args[1] in o.operands for b in op.blocks for o in b.walk()):
        return None
    form = affine(op.attrs["rhs"][0], [k_name, n_name])
    if form is None or form[0] != 0:
        return None
    k_step, n_step = form[1][k_name], form[1][n_name]
    return (source, (k_step, n_step), (k, n)) if isinstance(k_step, int) and isinstance(n_step, int) else None


def _copy(base: Value, flat: Any, target: Value, steps: tuple[int, int], extents: tuple[int, int, int], name: str) -> list[Op]:
    """``target[k, n] = source[k, n]``, with rows of ``width``."""
    (k_step, n_step), (k, n, width) = steps, extents
    view = Op("view", (base,), (flat,), {"offset": 0})
    body = Block([flat, target.type])
    i, j = dim_name("i0"), dim_name("i1")
    load = Op("load", (body.args[0],), (ScalarType(flat.dtype),), {"index": (i * k_step + j * n_step,)})
    store = Op("store", (body.args[1], load.results[0]), (), {"index": (i * width + j,)})
    body.ops += [load, store, Op("yield")]
    rows = max(1, 16384 // max(n, 1))
    kernel = Op("kernel", (view.results[0], target), (), {
        "name": name, "grid": (("i0", k), ("i1", n)), "outs": (1,), "lane": "i1", "tile": (min(rows, k), n)}, (body,))
    return [view, kernel]


def _root(v: Value) -> Value:
    while v.op is not None and v.op.name == "view":
        v = v.op.operands[0]
    return v


__all__ = ["pack_operands"]
