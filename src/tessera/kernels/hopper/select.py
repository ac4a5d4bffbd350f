"""Which launches of a schedule become programs of the explicit level, where the machine has warp groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...ir.core import Function, Op
from ...scheduling.templates import block, flat_index, is_plain_store
from ...tiling import dsl
from ...tiling.dsl import Buffer, TileValue
from ...types.dims import DimLike, evaluate
from ...types.dims import name as dim_name
from ...types.dtypes import bf16, f16, f32
from ..fused import BlockRunner, Lanes, Point, edge_mask, gather_offsets, load, place
from . import attention, matmul


def explicit_program(op: Op, machine: Any, env: Mapping[str, int]) -> Function | None:
    """The program for a ``template`` op, or None where its general form has to do.

    Args:
        env: the sizes; they decide (the copy engine wants rows of whole 16 bytes), and the program is for all sizes that decide alike.
    """
    if op.name != "template" or not machine.has_warp_groups:
        return None
    rule = {"matmul": _matmul, "attention": _attention}.get(op.attrs["template"])
    return rule(op, machine, env) if rule is not None else None


def _at(loop: tuple[str, DimLike]) -> DimLike:
    return 0 if loop[1] == 1 else dim_name(loop[0])


def _dense(*loops: tuple[str, DimLike]) -> DimLike:
    """The offset of an element of a dense array whose axes are these loops."""
    return flat_index([_at(x) for x in loops], [extent for _, extent in loops])


def _read(op: Op, role: str, operand: int) -> DimLike:
    """The offset at which a template reads an operand's element."""
    return flat_index(op.attrs[role], op.operands[operand].type.shape)


def _stored(op: Op) -> tuple[int, DimLike] | None:
    """(operand, offset) of the only store of a plain epilogue."""
    return _only_store(op) if is_plain_store(op) else None


def _only_store(op: Op) -> tuple[int, DimLike] | None:
    """(operand, offset) of the only store of an epilogue that is made of loads, elementwise ops and it."""
    epilogue = block(op, "epilogue")
    if epilogue is None or any(o.name in ("check", "guard") or o.blocks or o.attrs.get("dyn") for o in epilogue.ops):
        return None
    stores = [o for o in epilogue.ops if o.name == "store"]
    if len(stores) != 1 or stores[0].operands[0] not in epilogue.args:
        return None
    at = epilogue.args.index(stores[0].operands[0])
    return at, flat_index(stores[0].attrs["index"], op.operands[at].type.shape)



def _reads_elsewhere(op: Op, target: int, offset: DimLike) -> bool:
    """True when the epilogue reads its result's memory at other places than it stores to: pieces are stored in no fixed order."""
    epilogue = block(op, "epilogue")
    assert epilogue is not None
    return any(o.name == "load" and op.operands[epilogue.args.index(o.operands[0])] is op.operands[target]
               and flat_index(o.attrs["index"], o.operands[0].type.shape) != offset for o in epilogue.ops)


class _Whole(Point):
    """A point whose numbers have the tile's whole shape: each thread then has those of its own elements."""

    def number(self, loop: str) -> TileValue:
        i = self.names()[loop]
        counted: TileValue = dsl.iota(self.shape, i) + self.lanes[i].base
        return counted


class _Epilogue(BlockRunner):
    """An epilogue whose value is wanted, not stored: the copy engine does that."""

    def _load(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        """What is the same along rows or columns is loaded by each thread for its own elements, not passed between them."""
        buffer, index = self.buffers[op.operands[0]], op.attrs["index"]
        at = place(buffer, index, point)
        if at is not None and None not in at.axes:
            return load(buffer, index, point)
        return dsl.gather(buffer, gather_offsets(buffer, index, point), mask=edge_mask(point))

    def _store(self, op: Op, values: dict[Any, Any], point: Point) -> None:
        self.value = values[op.operands[1]]


def _epilogue_of(op: Op) -> matmul.Epilogue | None:
    """The epilogue of a product as a function of a piece of C; None: C is stored as it is."""
    if is_plain_store(op):
        return None
    (m, rows), (n, columns) = op.attrs["m"], op.attrs["n"]
    body = block(op, "epilogue")
    assert body is not None

    def epilogue(values: TileValue, y: Any, x: Any, *buffers: Buffer) -> TileValue:
        runner = _Epilogue(body, buffers)
        height, width = values.shape
        runner.run(_Whole({}, (Lanes(m, y, height, rows, True), Lanes(n, x, width, columns, True, aligned=True))), values)
        return dsl.broadcast_to(runner.value, values.shape)

    return epilogue


def _matmul(op: Op, machine: Any, env: Mapping[str, int]) -> Function | None:
    a = op.attrs
    m, n, k = a["m"], a["n"], a["k"]
    if a.get("batch") or "lhs" not in a or "rhs" not in a or a["accumulate"] is not f32:
        return None
    stored = _only_store(op)
    if stored is None or stored[0] < 2 or stored[1] != _dense(m, n) or _reads_elsewhere(op, *stored):
        return None
    dtype, out = op.operands[0].type.dtype, op.operands[stored[0]].type.dtype
    straight, turned, rhs = _dense(k, n), _dense(n, k), _read(op, "rhs", 1)
    if dtype not in (bf16, f16) or op.operands[1].type.dtype is not dtype or out not in (bf16, f16, f32) or \
            _read(op, "lhs", 0) != _dense(m, k) or rhs not in (straight, turned):
        return None
    rows, columns, depth = (int(evaluate(d[1], dict(env))) for d in (m, n, k))
    if columns % 8 or depth % 8 or rows < 64 or columns < 64 or depth < 64:
        return None
    blocks = machine.units // 2 * 2
    config = matmul.Config(blocks=min(blocks, 128) if rows * columns >= 1 << 22 else blocks)
    extra = tuple((f"x{i}", v.type) for i, v in enumerate(op.operands) if i not in (0, 1, stored[0]))
    return matmul.matmul_program(m[1], n[1], k[1], dtype=dtype, out=out, transposed=rhs != straight, epilogue=_epilogue_of(op),
                                 extra=extra, before=stored[0] - 2, config=config)


def _attention(op: Op, machine: Any, env: Mapping[str, int]) -> Function | None:
    a = op.attrs
    width = int(evaluate(a["d"][1], dict(env)))
    dtype = op.operands[0].type.dtype
    if a["blocks"] != ("epilogue",) or "sums" in a or "accumulate" in a or dtype not in (bf16, f16) or len(op.operands) != 4:
        return None
    if width not in (64, 128) or int(evaluate(a["e"][1], dict(env))) != width:
        return None
    if any(v.type.dtype is not dtype for v in op.operands) or not all(role in a for role in ("query", "key", "value")):
        return None
    batch, q, t, d, e = a["batch"], a["q"], a["t"], a["d"], a["e"]
    stored = _stored(op)
    if stored is None or stored[1] != _dense(*batch, q, e) or _read(op, "query", 0) != _dense(*batch, q, d) or \
            _read(op, "key", 1) != _dense(*batch, t, d) or _read(op, "value", 2) != _dense(*batch, t, e):
        return None
    if a["causal"] and int(evaluate(a.get("causal_offset", 0), dict(env))) != 0:
        return None
    heads: DimLike = 1
    for _, extent in batch:
        heads = heads * extent
    return attention.attention_program(heads, q[1], t[1], width, dtype=dtype, scale=a["scale"], causal=a["causal"],
                                       statistics=False)


__all__ = ["explicit_program"]
