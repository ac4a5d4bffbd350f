"""Which launches of a schedule become programs of the explicit level, where the machine has warp groups."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...ir.core import Block, BufferType, Function, Op
from ...scheduling.templates import affine, block, flat_index, is_plain_store
from ...tiling import dsl
from ...tiling.dsl import Buffer, TileValue
from ...types.dims import Dim, DimLike, evaluate, floordiv, product
from ...types.dims import name as dim_name
from ...types.dtypes import bf16, f16, f32
from ..fused import BlockRunner, Lanes, Point, edge_mask, gather_offsets, load, place
from . import approximate, attention, matmul

SPREAD = 8
"""In how many pieces a tile of a product is stored beside the products of the next (+1 to 2 % on an H200), if it is stored as it is."""


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


class _InPlace(BlockRunner):
    """A block on tiles that lie as the matrix unit's results do."""

    def _load(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        """What is the same along rows or columns is loaded by each thread for its own elements, not passed between them."""
        buffer, index = self.buffers[op.operands[0]], op.attrs["index"]
        at = place(buffer, index, point)
        if at is not None and None not in at.axes:
            return load(buffer, index, point)
        return dsl.gather(buffer, gather_offsets(buffer, index, point), mask=edge_mask(_only(point, index)))


def _only(point: Point, index: Sequence[DimLike]) -> Point:
    """The point whose edges are those of the loops that an index contains: what lies beyond others is never used."""
    named = {n for d in index if isinstance(d, Dim) for n in d.names}
    return replace(point, lanes=tuple(a if a.loop in named else replace(a, ragged=False) for a in point.lanes))


class _Epilogue(_InPlace):
    """An epilogue whose value is wanted, not stored: the copy engine does that.  For 16 bits, functions are approximated."""

    def _store(self, op: Op, values: dict[Any, Any], point: Point) -> None:
        self.value = values[op.operands[1]]

    def _pointwise(self, op: Op, values: dict[Any, Any]) -> TileValue:
        rough = approximate.FUNCTIONS.get(op.name)
        if rough is None or op.result.type.dtype is not f32 or not self.narrow:
            return super()._pointwise(op, values)
        return rough(values[op.operands[0]])

    @property
    def narrow(self) -> bool:
        return all(o.operands[0].type.dtype.bits <= 16 for o in self.block.ops if o.name == "store")


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
    if depth % 8 or (columns % 8 and rhs == straight) or rows < 64 or columns < 64 or depth < 64:
        return None
    blocks = machine.units // 2 * 2
    counted = all(isinstance(d[1], int) for d in (m, n, k))  # places of symbolic sizes take registers that tiles in waiting need
    direct = columns * out.bits % 128 != 0
    if direct and not counted:
        return None
    blocks = min(blocks, 128) if rows * columns >= 1 << 22 else blocks
    more = rows * columns > blocks * matmul.Config.n * 128  # than one tile for each block
    spread = more and is_plain_store(op) and counted and out.bits == 16 and depth >= 64 * SPREAD and not direct
    config = matmul.Config(blocks=blocks, spread=SPREAD if spread else 0, direct=direct)
    extra = tuple((f"x{i}", v.type) for i, v in enumerate(op.operands) if i not in (0, 1, stored[0]))
    return matmul.matmul_program(m[1], n[1], k[1], dtype=dtype, out=out, transposed=rhs != straight, epilogue=_epilogue_of(op),
                                 extra=extra, before=stored[0] - 2, config=config)


class _Scores(_InPlace):
    """What becomes of scores; it is loaded before they are there."""

    def ready(self, point: Point) -> dict[Any, Any]:
        """What the block's loads give at the point."""
        return {o.result: super(_Scores, self)._load(o, {}, point) for o in self.block.ops if o.name == "load"}

    def changed(self, point: Point, loaded: dict[Any, Any], s: TileValue) -> TileValue:
        (value,) = self._ops(self.block, {self.scalars[0]: s, "loaded": loaded}, point)
        return dsl.broadcast_to(value, s.shape)

    def _load(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        found: TileValue = values["loaded"][op.result]
        return found


def _attention(op: Op, machine: Any, env: Mapping[str, int]) -> Function | None:
    a = op.attrs
    width = int(evaluate(a["d"][1], dict(env)))
    dtype = op.operands[0].type.dtype
    if "accumulate" in a or dtype not in (bf16, f16) or any(v.type.dtype is not dtype for v in op.operands[:3]):
        return None
    if not 0 < width <= 256 or width % 32 or int(evaluate(a["e"][1], dict(env))) != width or 1 in (a["q"][1], a["t"][1]):
        return None
    d, e = (a["d"][0], width), (a["e"][0], width)
    found = [_heads(op, i, _read(op, role, i), rows, along, env) for i, (role, rows, along) in
             enumerate((("query", a["q"], d), ("key", a["t"], d), ("value", a["t"], e))) if role in a]
    query, key, value = found if len(found) == 3 else [None] * 3
    scored, epilogue = block(op, "score"), block(op, "epilogue")
    if query is None or key is None or value is None or epilogue is None:
        return None
    if not _is_simple(epilogue) or (scored is not None and not _is_simple(scored)):
        return None
    stored = _stored(op)
    output = _heads(op, *stored, a["q"], e, env) if stored is not None and op.operands[stored[0]].type.dtype is dtype else None
    if output is None and _reads_what_it_writes(op, epilogue):
        return None
    problem = attention.Problem(
        a["batch"], a["q"][1], a["t"][1], width, dtype, a["scale"], query, key, value, output, causal=a["causal"],
        offset=a.get("causal_offset", 0), sums=a.get("sums"), score=None if scored is None else _scores_of(op, scored),
        epilogue=None if output is not None else _results_of(op, epilogue))
    lying: dict[int, tuple[DimLike, ...]] = {h.buffer: h.shape for h in (query, key, value, output) if h is not None}
    if "sums" in a:
        lying[a["sums"]] = (product(extent for _, extent in a["batch"]), a["q"][1])
    return attention.program(problem, [(f"x{i}", BufferType(v.type.dtype, lying.get(i, v.type.shape))) for i, v in enumerate(op.operands)])


def _is_simple(body: Block) -> bool:
    """True for loads, elementwise ops and stores that depend on nothing loaded."""
    return not any(o.name in ("check", "guard") or o.blocks or o.attrs.get("dyn") for o in body.ops)


def _reads_what_it_writes(op: Op, epilogue: Block) -> bool:
    written = {op.operands[i] for i in op.attrs["outs"]}
    return any(o.name == "load" and op.operands[epilogue.args.index(o.operands[0])] in written for o in epilogue.ops)


def _heads(op: Op, operand: int, offset: DimLike, rows: tuple[str, DimLike], along: tuple[str, int],
           env: Mapping[str, int]) -> attention.Heads | None:
    """How the matrices of heads lie in an operand: dense along ``along``, in rows of whole 16 bytes, a number of times ``rows`` of them;
    None: not so."""
    form = affine(offset, (rows[0], along[0]))
    if form is None or form[1].get(along[0]) != 1 or 0 in (size := op.operands[operand].type.size, form[1].get(rows[0], 0)):
        return None
    columns = form[1][rows[0]]
    matrix = columns * rows[1]
    outer: DimLike = 0
    column: DimLike = 0
    for mono, coefficient in form[0].terms if isinstance(form[0], Dim) else (((), form[0]),):
        term = Dim(((mono, coefficient),)) if mono else coefficient
        whole = floordiv(term, matrix)
        if whole * matrix == term:
            outer = outer + whole
        else:
            column = column + term
    sizes = dict(env)
    widest = int(evaluate(column, {**sizes, **{n: int(evaluate(x, sizes)) - 1 for n, x in op.attrs["batch"]}}))
    every, one, row = (int(evaluate(x, sizes)) for x in (size, matrix, columns))
    if one <= 0 or every % one or row % 8 or widest < 0 or widest + along[1] > row or _falls(column):
        return None
    return attention.Heads(operand, floordiv(size, matrix), rows[1], columns, (outer, column))


def _falls(d: DimLike) -> bool:
    return isinstance(d, Dim) and any(coefficient < 0 for _, coefficient in d.terms)


def _scores_of(op: Op, body: Block) -> attention.Scores:
    (q, rows), (t, keys) = op.attrs["q"], op.attrs["t"]

    def scores(row: Any, key: Any, count: int, loops: Mapping[str, Any], buffers: Sequence[Buffer]) -> Any:
        runner = _Scores(body, buffers)
        point = _Whole(loops, (Lanes(q, row, 64, rows, True), Lanes(t, key, count, keys, True, aligned=True)))
        return functools.partial(runner.changed, point, runner.ready(point))

    return scores


def _results_of(op: Op, body: Block) -> attention.Results:
    (q, rows), (e, width) = op.attrs["q"], op.attrs["e"]

    def results(values: TileValue, row: Any, loops: Mapping[str, Any], buffers: Sequence[Buffer]) -> None:
        _InPlace(body, buffers).run(_Whole(loops, (Lanes(q, row, 64, rows, True), Lanes(e, 0, values.shape[1], width))), values)

    return results


__all__ = ["explicit_program"]
