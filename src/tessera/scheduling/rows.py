"""Composites over the last axis as ``template`` ops, where the machine takes rows whole (``row_programs``)."""

from __future__ import annotations

from typing import Any

from ..ir.core import Op
from .program import BlockScheduler, launches

ROW_OPS = frozenset({"softmax", "layer_norm", "rms_norm"})


def is_row(op: Op) -> bool:
    """True for a composite that a ``row`` program computes: along the last axis, of real floats of at most 32 bits."""
    if op.name not in ROW_OPS:
        return False
    t: Any = op.operands[0].type
    axis = op.attrs.get("axis", -1)
    same = all(v.type.dtype is t.dtype and v.type.rank == 1 for v in op.operands[1:])
    return t.rank > 0 and axis in (-1, t.rank - 1) and t.dtype.is_float and t.dtype.bits in (16, 32) and same


@launches(*sorted(ROW_OPS))
def row(bs: BlockScheduler, op: Op) -> None:
    """One launch, a row for each block."""
    bs.plain(op, "template", {"template": "row", "op": op.name, "name": bs.program.label(op.name)})
