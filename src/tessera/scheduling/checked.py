"""Plain templates that also know the number of their run-time check: scatter of its indices, Cholesky of its pivots."""

from __future__ import annotations

from typing import Any

from ..ir.core import Op
from ..types.dims import format_dim
from .program import BlockScheduler, launches


@launches("scatter")
def scatter(bs: BlockScheduler, op: Op) -> None:
    """As every op without blocks, with ``site`` where the indices are checked."""
    attrs: dict[str, Any] = {"template": "scatter", "op": "scatter", "name": bs.program.label("scatter")}
    if op.attrs.get("checked", True):
        extent = format_dim(op.operands[0].type.shape[0])
        attrs["site"] = bs.program.site(op, f"index {{value}} is out of bounds for axis 0 with size {extent}")
    bs.plain(op, "template", attrs)


@launches("cholesky")
def cholesky(bs: BlockScheduler, op: Op) -> None:
    """As every op without blocks, with ``site`` where the pivots are checked."""
    attrs: dict[str, Any] = {"template": "cholesky", "op": "cholesky", "name": bs.program.label("cholesky")}
    if op.attrs.get("checked", True):
        attrs["site"] = bs.program.site(
            op, "cholesky takes positive definite matrices; the leading minor of order {value} is not positive (or NaN)")
    bs.plain(op, "template", attrs)
