"""Copies into shared memory that run beside the program: passes over Tile IR.

* :func:`synchronous` for machines whose threads copy by loading and storing: each copy happens where it is started.
* :func:`by_copy_engine` makes ``copy_async`` of loads whose values are stored in shared memory and marked ``async``.
* :func:`pipelined` fetches the operands of the products of a loop ahead of their use, through a ring of stages in shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ir.core import INDEX, Block, BufferType, Copier, Function, Op, ScalarType, TileType, Value, rewrite, uses
from ..ir.tile import POINTWISE, WRITES, root, tile_axes, written
from ..ir.tile_explicit import BLOCK_OPS
from ..types.dtypes import bool_
from .assign import unit_of
from .divisors import divisor

CHUNK = 16
"""Bytes that one asynchronous copy of a thread moves."""
STAGES = 4
"""The most stages that a loop's operands are fetched ahead."""


# -- without asynchrony --------------------------------------------------------------------------------------------------------
def synchronous(fn: Function) -> Function:
    """``fn`` with every copy done where it is started; ``fn`` itself where there is none."""
    if not any(op.name in BLOCK_OPS or op.attrs.get("async") for op in fn.walk()):
        return fn
    return rewrite(fn, _at_once)


def _at_once(c: Copier, op: Op) -> list[Value] | None:
    b = c.builder
    if op.name in ("copy_commit", "copy_wait"):
        return []
    if op.name == "store" and op.attrs.get("async"):
        b.op("store", c.operands(op), (), {k: v for k, v in op.attrs.items() if k != "async"}, (), op.loc)
        return []
    if op.name != "copy_async":
        return None
    operands, rank = c.operands(op), op.operands[0].type.rank
    shared = operands[1 + rank]
    to = shared.type.rank
    box = TileType(shared.type.dtype, op.attrs["box"])
    axes = (rank - 2, rank - 1)
    got = b.value("load", operands[:1 + rank], box, {"axes": axes, "check": axes, "fill": 0}, (), op.loc)
    b.op("store", [*operands[1 + rank:], got], (), {"axes": (to - 2, to - 1)}, (), op.loc)
    return []


# -- copies of loads -----------------------------------------------------------------------------------------------------------
def by_copy_engine(fn: Function, machine: Any) -> Function:
    """``fn`` with ``copy_async`` in place of loads that are only stored in shared memory, by stores marked ``async``.

    What no copy of whole chunks of 16 bytes does (masks, other fills, odd rows) stays a load and a store.  Shared memory that copies
    fill or that the matrix unit's operands come from is swizzled.
    """
    if not any(op.name == "alloc" and op.result.type.space == "shared" for op in fn.walk()):
        return fn
    users, loops = _users(fn), _loops(fn)
    taken = {op for b in _blocks(fn.body) for op in b.ops if op.name == "store" and op.attrs.get("async") and _is_copy(op, b, users, loops)}
    loads = {_stored(op).op for op in taken}
    memories = {root(op.operands[0]).op for op in taken}
    memories |= {root(op.operands[0]).op for op in fn.walk() if op.name == "load" and _multiplied(op, users, machine)}

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if op in loads:
            return [op.result]  # nobody uses it
        if op in taken:
            load = _stored(op).op
            assert load is not None
            source, target = (op_.operands[0].type.rank for op_ in (load, op))
            c.builder.op("copy_async", [c[v] for v in (*load.operands[:1 + source], *op.operands[:1 + target])], (),
                         {"box": load.result.type.shape}, (), op.loc)
            return []
        if op.name == "store" and op.attrs.get("async"):
            return _at_once(c, op)
        if op in memories and _plain_accesses(op.result, users):
            made = c.builder.op("alloc", (), [op.result.type], {**op.attrs, "swizzle": swizzle_of(op.result.type)}, (), op.loc)
            return [made.result]
        return None

    return rewrite(fn, rule)


def _users(fn: Function) -> dict[Value, list[Op]]:
    return {v: [op for op, _ in found] for v, found in uses(fn.body).items()}


def _stored(op: Op) -> Value:
    value: Value = op.operands[1 + op.operands[0].type.rank]
    return value


def _multiplied(load: Op, users: Mapping[Value, Sequence[Op]], machine: Any) -> bool:
    """Whether the matrix unit takes what is loaded from shared memory."""
    following = list(users.get(load.result, ()))
    following += [u for t in following if t.name == "transpose" for u in users.get(t.result, ())]
    where = load.operands[0]
    return (where.type.space == "shared" and where.type.rank >= 2 and root(where) is where
            and int(where.type.shape[-1]) * where.type.dtype.itemsize % CHUNK == 0
            and any(u.name == "dot" and unit_of(u, machine) is not None for u in following))


def _blocks(block: Block) -> Iterable[Block]:
    yield block
    for op in block.ops:
        for b in op.blocks:
            yield from _blocks(b)


def _loops(fn: Function) -> dict[Value, Op]:
    return {op.blocks[0].args[0]: op for op in fn.walk() if op.name == "for"}


def _is_copy(op: Op, block: Block, users: Mapping[Value, Sequence[Op]], loops: Mapping[Value, Op]) -> bool:
    """Whether a store and the load of its value, between which nobody writes parameters, are one copy of a box."""
    load, target = _stored(op).op, op.operands[0].type
    if load is None or load.name != "load" or users[load.result] != [op] or load not in block.ops:
        return False
    between = block.ops[block.ops.index(load):block.ops.index(op)]
    return (not op.attrs.get("masked") and not op.attrs.get("check") and tile_axes(op) == (target.rank - 2, target.rank - 1)
            and root(op.operands[0]) is op.operands[0] and fetchable(load, loops) and not any(map(_writes_parameters, between)))


def _writes_parameters(op: Op) -> bool:
    return any(o.name in WRITES and root(written(o)).op is None for o in op.walk())


def _plain_accesses(memory: Value, users: Mapping[Value, Sequence[Op]]) -> bool:
    """Whether only loads, stores and copies use a memory, so that its elements may lie in another order."""
    return all(op.name in ("load", "store") and not op.attrs.get("masked") and not op.attrs.get("check")
               and isinstance((op.result if op.results else _stored(op)).type, TileType) for op in users.get(memory, ()))


def fetchable(load: Op, loops: Mapping[Value, Op]) -> bool:
    """Whether a load is what ``copy_async`` does: a box of whole chunks along the last axes of a parameter, or of a view of one, with
    zeros outside."""
    source, out = load.operands[0].type, load.result.type
    if not isinstance(out, TileType) or root(load.operands[0]).op is not None or load.attrs.get("masked") or load.attrs.get("fill", 0):
        return False
    rank = source.rank
    trailing = rank >= 2 and tile_axes(load) == (rank - 2, rank - 1)
    inside = all(a >= rank - 2 for a in load.attrs.get("check", ()))
    if not trailing or not inside or source.dtype.kind == "bool" or out.dtype.itemsize > CHUNK // 2:
        return False
    each = CHUNK // out.dtype.itemsize
    return bool(out.shape[1] % each == 0 and divisor(load.operands[rank], loops) % each == 0)


def swizzle_of(t: BufferType) -> int:
    """The widest swizzle (128, 64, 32 bytes, or 0) whose panels divide a matrix's rows."""
    row = int(t.shape[-1]) * t.dtype.itemsize
    return next((s for s in (128, 64, 32) if row % s == 0), 0)


# -- products of a loop --------------------------------------------------------------------------------------------------------
def pipelined(fn: Function, machine: Any) -> Function:
    """``fn`` with the operands of its loops' products fetched ahead.

    In a loop over a contraction, loads that only feed ``dot`` ops which the machine's matrix unit forms become copies into stages of
    shared memory, up to three iterations early; a product then reads its operands from there in the unit's own layout.  Values and
    their order of summation are as before.  Programs that copy asynchronously themselves are returned as they are.

    Args:
        machine: its matrix instructions and shared memory decide; a block's stages take half of the memory at most.
    """
    if any(op.name in BLOCK_OPS for op in fn.walk()):
        return fn
    users, loops = _users(fn), _loops(fn)

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if op.name != "for" or any(map(_writes_parameters, op.blocks[0].ops)):
            return None
        body = op.blocks[0]
        loads = [o for o in body.ops if o.name == "load" and fetchable(o, loops) and _feeds_products(o, body, users, machine)
                 and _foreseeable(o, body)]
        stages = _stages(loads, machine)
        return _Pipeline(c, op, loads, stages).build() if stages >= 2 else None

    return rewrite(fn, rule)


def _feeds_products(load: Op, body: Block, users: Mapping[Value, Sequence[Op]], machine: Any) -> bool:
    value = load.result
    following = users.get(value, ())
    if len(following) == 1 and following[0].name == "transpose":
        value = following[0].result
        following = users.get(value, ())
    return bool(following) and all(u.name == "dot" and u in body.ops and value is not u.operands[2] and unit_of(u, machine) is not None
                                   for u in following)


def _needed(values: Iterable[Value], body: Block) -> list[Op] | None:
    """The ops of a loop's body that compute scalars from its counter, in order; None where they need more than that."""
    wanted: set[Op] = set()
    stack, inside = list(values), set(body.ops)
    while stack:
        v = stack.pop()
        if v in body.args[1:]:
            return None
        if v.op is None or v.op not in inside:
            continue
        if v.op.name not in POINTWISE and v.op.name not in ("constant", "size"):
            return None
        wanted.add(v.op)
        stack += v.op.operands
    return [op for op in body.ops if op in wanted]


def _foreseeable(load: Op, body: Block) -> bool:
    """Whether the place of a load is known iterations early, and moves along the axes whose ends a copy checks."""
    rank = load.operands[0].type.rank
    where = load.operands[1:1 + rank]
    if _needed(where, body) is None:
        return False
    return not _moves(where[:-2], body) and _moves(where[-2:], body)


def _moves(values: Sequence[Value], body: Block) -> bool:
    """Whether scalars depend on a loop's counter."""
    needed = _needed(values, body) or []
    return body.args[0] in values or any(body.args[0] in op.operands for op in needed)


def _stages(loads: Sequence[Op], machine: Any) -> int:
    """How many iterations' operands half of the shared memory holds."""
    each = sum(-(-load.result.type.size * load.result.type.dtype.itemsize // 1024) * 1024 for load in _distinct(loads))
    return int(min(STAGES, machine.shared_bytes // 2 // each)) if each else 0


def _place(load: Op) -> tuple[Any, ...]:
    return (*load.operands, load.result.type.shape)


def _distinct(loads: Sequence[Op]) -> list[Op]:
    """Without loads of what another loads: products that take it in two ways load it twice and have it fetched once."""
    return list({_place(load): load for load in reversed(loads)}.values())[::-1]


class _Pipeline:
    """One loop whose loads are fetched ahead: the ring's position is carried beside the loop's own values."""

    def __init__(self, c: Copier, op: Op, loads: Sequence[Op], stages: int):
        self.c, self.op, self.loads, self.stages = c, op, loads, stages
        self.b, self.body = c.builder, op.blocks[0]
        self.needed = _needed([v for load in loads for v in load.operands[1:1 + load.operands[0].type.rank]], self.body) or []
        self.memory: dict[tuple[Any, ...], Value] = {}

    def build(self) -> list[Value]:
        b, op, loc = self.b, self.op, self.op.loc
        lo, hi, step, *carried = self.c.operands(op)
        for load in _distinct(self.loads):
            t = load.result.type
            kept = BufferType(t.dtype, (self.stages, *t.shape), "shared")
            swizzle = 0 if t.dtype.itemsize == 1 and self._by_columns(load) else swizzle_of(kept)
            self.memory[_place(load)] = b.value("alloc", (), kept, {"swizzle": swizzle}, (), load.loc)
        at = lo
        for stage in range(self.stages - 1):
            self._fetch(at, self._number(stage))
            at = b.value("add", (at, step), INDEX, None, (), loc)
        ahead = b.value("sub", (at, lo), INDEX, None, (), loc)
        new = Block([a.type for a in self.body.args] + [INDEX], [*(a.name for a in self.body.args), "stage"])
        self.c.map.update(zip(self.body.args, new.args, strict=False))
        with b.at(new):
            self._iteration(new.args[0], new.args[-1], ahead)
        made = b.op("for", (lo, hi, step, *carried, self._number(0)), [a.type for a in new.args[1:]], op.attrs, (new,), loc)
        b.op("copy_wait", (), (), {"pending": 0}, (), loc)
        for old, fresh in zip(op.results, made.results, strict=False):
            fresh.name = old.name
        return made.results[:-1]

    def _by_columns(self, load: Op) -> bool:
        """Whether a product contracts along the rows of memory, so that lanes pick single elements of bytes: best at fixed distances."""
        turned = next((op.result for op in self.body.ops if op.name == "transpose" and op.operands[0] is load.result), None)
        side = 1 if turned is None else 0
        return any(op.name == "dot" and op.operands[side] is (turned or load.result) for op in self.body.ops)

    def _iteration(self, i: Value, stage: Value, ahead: Value) -> None:
        b, loc = self.b, self.op.loc
        b.op("copy_wait", (), (), {"pending": self.stages - 2}, (), loc)
        first = b.value("eq", (stage, self._number(0)), ScalarType(bool_), None, (), loc)
        before = b.value("sub", (stage, self._number(1)), INDEX, None, (), loc)
        free = b.value("select", (first, self._number(self.stages - 1), before), INDEX, None, (), loc)
        self._fetch(b.value("add", (i, ahead), INDEX, None, (), loc), free)
        zero = self._number(0)
        for o in self.body.ops[:-1]:
            if o not in self.loads:
                self.c.run([o])
                continue
            memory = self.memory[_place(o)]
            self.c.map[o.result] = b.value("load", (memory, stage, zero, zero), o.result.type, {"axes": (1, 2)}, (), o.loc)
        last = b.value("eq", (stage, self._number(self.stages - 1)), ScalarType(bool_), None, (), loc)
        after = b.value("add", (stage, self._number(1)), INDEX, None, (), loc)
        following = b.value("select", (last, zero, after), INDEX, None, (), loc)
        b.op("yield", [*self.c.operands(self.body.terminator), following], (), None, (), loc)

    def _fetch(self, i: Value, stage: Value) -> None:
        """Start the copies of iteration ``i`` into a stage, as one group."""
        saved = dict(self.c.map)
        self.c.map[self.body.args[0]] = i
        self.c.run(self.needed)
        zero = self._number(0)
        for load in _distinct(self.loads):
            memory = self.memory[_place(load)]
            operands = self.c.operands(load)[:1 + load.operands[0].type.rank]
            self.b.op("copy_async", (*operands, memory, stage, zero, zero), (), {"box": load.result.type.shape}, (), load.loc)
        self.b.op("copy_commit", (), (), None, (), self.op.loc)
        self.c.map.clear()
        self.c.map.update(saved)

    def _number(self, n: int) -> Value:
        return self.b.value("constant", (), INDEX, {"value": n}, (), self.op.loc)


__all__ = ["by_copy_engine", "pipelined", "swizzle_of", "synchronous"]
