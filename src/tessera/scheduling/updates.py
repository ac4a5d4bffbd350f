"""Updates in place: a piece written into a tensor that nobody else reads costs only the piece (KV caches, states)."""

from __future__ import annotations

from typing import Any

from ..ir.core import Op, Value
from ..types import dtypes as dt
from ..types.dims import DimLike, format_dim
from .elements import Tracer
from .fusion import Materialise, Plan
from .program import BlockScheduler


def update_slice(bs: BlockScheduler, op: Op) -> bool:
    """``dynamic_update_slice`` into its operand's own memory; False where somebody else still needs the operand."""
    x, u = op.operands[:2]
    if set(bs.users.get(x, ())) != {op} or (op.results[0] in bs.homes and x.op is not None and bs.ready(x)):
        return False
    if x.op is None:
        if x not in bs.donated:
            return False
    elif x.op not in bs.order or x.op.name in ("reshape", "constant"):
        return False
    if u.type.size == 0:
        return False
    if x.op is not None and op.results[0] in bs.homes and not bs.ready(x):
        bs.homes.setdefault(x, bs.homes[op.results[0]])
    target = bs.demand(x)
    plan = _plan(bs, u)
    extra = [bs.demand(v) for v in op.operands[2:]]
    del extra
    sizes = u.type.shape

    def place(tracer: Tracer, at: tuple[DimLike, ...]) -> tuple[Value, tuple[DimLike, ...]]:
        return target, tuple(b + i for b, i in zip(_begin(tracer, op, sizes), at, strict=True))

    kernel = bs.builder().build(plan, {}, bs.program.label("update"), place)
    bs.append(kernel, op.results, (target,))
    bs.done.add(op)
    return True


def _plan(bs: BlockScheduler, u: Value) -> Plan:
    """A kernel over the update's elements that stores nothing but them."""
    while True:
        try:
            plan = bs.fusion.plan([u])
        except Materialise as m:
            bs.demand(m.value)
            continue
        if not plan.rows and not plan.side:
            return plan
        bs.demand(u)


def _begin(tracer: Tracer, op: Op, sizes: tuple[DimLike, ...]) -> list[DimLike]:
    out: list[DimLike] = []
    rest = iter(op.operands[2:])
    for axis, (n, size, start) in enumerate(zip(op.operands[0].type.shape, sizes, op.attrs["starts"], strict=True)):
        if start is not None:
            out.append(start)
            continue
        v = tracer.value(next(rest), ())
        at = v if v.type.dtype is dt.int64 else tracer.emit("convert", (v,), dt.int64, {})
        if op.attrs.get("checked", True):
            ok = tracer.emit("logical_and", (tracer.emit("ge", (at, tracer.const(0, dt.int64)), dt.bool_, {}),
                                             tracer.emit("le", (at, tracer.index(n - size)), dt.bool_, {})), dt.bool_, {})
            tracer.check(op, ok, at, f"a slice of {format_dim(size)} at {{value}} leaves axis {axis} with size {format_dim(n)}")
        out.append(tracer.dynamic(at, n - size + 1))
    return out


IN_PLACE: dict[str, Any] = {"dynamic_update_slice": update_slice}
