"""A tile function over a batch: one more grid axis, and one more axis of the buffers that carry the batch."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.core import INDEX, Block, BufferType, Builder, Copier, Function, Op, TileType, Value
from ..types.dims import Dim, DimLike

_PLACED = {"load": 1, "store": 1, "prefetch": 1}  # ops on a buffer with an offset for each axis, which start at this operand


def batch_kernel(fn: Function, mapped: Sequence[bool], size: DimLike) -> Function | None:
    """``fn`` with a first grid axis over ``size`` examples; the ``mapped`` buffers have a first axis of that size.

    None where a program reads a mapped buffer under another shape (``view``).
    """
    buffers = [a for a in fn.args if isinstance(a.type, BufferType)]
    carried = {a for a, m in zip(buffers, mapped, strict=True) if m}
    if any(op.name == "view" and op.operands[0] in carried for op in fn.walk()):
        return None
    sizes = tuple(fn.attrs["sizes"])
    more = tuple(sorted(n for n in (size.names if isinstance(size, Dim) else ()) if n not in sizes))
    types = [BufferType(a.type.dtype, (size, *a.type.shape), a.type.space) if a in carried else a.type for a in buffers]
    names = [*[a.name for a in buffers], *sizes, *more]
    new = Function(f"{fn.name}_batched", "tile", Block([*types, *[INDEX] * (len(sizes) + len(more))], names),
                   {**fn.attrs, "grid": (size, *fn.attrs["grid"]), "sizes": (*sizes, *more)}, dict(fn.functions))
    b = Builder(new.body)
    example = b.value("program_id", (), INDEX, {"axis": 0})

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if op.name == "program_id":
            return [c.builder.value("program_id", (), INDEX, {"axis": op.attrs["axis"] + 1}, (), op.loc)]
        if not op.operands or op.operands[0] not in carried:
            return None
        xs = c.operands(op)
        if op.name in _PLACED:
            shifted = {k: tuple(a + 1 for a in op.attrs[k]) for k in ("axes", "check") if op.attrs.get(k)}
            made = c.builder.op(op.name, [xs[0], example, *xs[1:]], [r.type for r in op.results], {**op.attrs, **shifted}, (), op.loc)
            return made.results
        if op.name in ("gather", "scatter"):
            per = c.builder.value("size", (), INDEX, {"value": op.operands[0].type.size}, (), op.loc)
            start = c.builder.value("mul", (example, per), INDEX, None, (), op.loc)
            at = xs[1]
            if isinstance(at.type, TileType):
                start = c.builder.value("splat", (start,), at.type, None, (), op.loc)
            at = c.builder.value("add", (at, start), at.type, None, (), op.loc)
            return c.builder.op(op.name, [xs[0], at, *xs[2:]], [r.type for r in op.results], op.attrs, (), op.loc).results
        return None

    c = Copier(b, rule)
    c.map.update(zip(fn.args, new.args, strict=False))
    c.run(fn.body.ops)
    return new


__all__ = ["batch_kernel"]
