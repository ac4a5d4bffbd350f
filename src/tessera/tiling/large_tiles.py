"""Tiles too large for registers, in memory: the step between a kernel as it was written and a target that unrolls tiles.

The result computes the same bits.  A large tile becomes scratch memory; each op on it becomes loops over small pieces:

* elementwise chains are evaluated piece by piece where they are consumed, without memory for what lies between;
* a product runs over blocks of its result and keeps the order of its sum (k ascending);
* a reduction takes whole lines at a time, so its tree is the one that Tile IR defines;
* loads, stores, gathers, scatters and checks go in row-major order;
* carried values of loops keep their place in memory.

Programs without large tiles are returned as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..ir.core import Block, BufferType, Function, Op, TileType, Value
from ..ir.tile import POINTWISE, element, tile_axes
from . import dsl
from .values import Buffer, TileProgram, TileValue, index_value, typed

LIMIT = 256  # elements of a tile that stays in registers
PIECE = 128  # elements of a piece of a larger one
WORK = 16384  # multiplications of a product that is unrolled
_CHEAP = frozenset({
    "add", "sub", "mul", "neg", "abs", "fma", "floor", "ceil", "round", "trunc", "minimum", "maximum", "eq", "ne", "lt",
    "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or",
    "bitwise_xor", "bitwise_not", "shift_left", "shift_right", "isnan", "isinf", "isfinite", "sign", "copysign",
    "select", "convert", "bitcast",
})
_MADE = frozenset({"full", "splat", "iota"})
_MOVES = frozenset({"broadcast", "slice", "transpose"})


def fit_registers(fn: Function, limit: int = LIMIT, unrolled: bool = True) -> Function:
    """``fn`` with every tile of more than ``limit`` elements in memory; ``fn`` itself where there is none.

    Args:
        unrolled: the target writes products of tiles out, so that long ones are no better.
    """
    heavy = unrolled and any(_heavy(op) for op in fn.walk())
    if not heavy and not any(_large(v, limit) for op in fn.walk() for v in op.results):
        return fn
    return _Fitter(fn, limit).run()


def _large(v: Value, limit: int) -> bool:
    return isinstance(v.type, TileType) and v.type.size > limit


def _heavy(op: Op) -> bool:
    """A product of small tiles whose unrolled form would still be long."""
    if op.name != "dot":
        return False
    a, b = op.operands[0].type.shape, op.operands[1].type.shape
    return bool(a[0] * a[1] * b[1] > WORK)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` up to ``most``; ``n`` itself where only tiny ones exist and ``n`` is moderate."""
    best = next(d for d in range(min(n, most), 0, -1) if n % d == 0)
    return n if best * 4 < min(n, most) and n <= 512 else best


def _pieces(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The shape of the pieces of at most about ``most`` elements in which a tile is walked."""
    if not shape:
        return ()
    last = _divisor(shape[-1], min(64, most))
    rest = [1] * (len(shape) - 1)
    if rest:
        rest[-1] = _divisor(shape[-2], max(1, most // last))
    return (*rest, last)


class _Fitter:
    """Builds the new program beside the old one.

    Attributes:
        ssa: old value -> its new scalar, small tile or buffer.
        memory: old tile -> the scratch memory that holds it.
        needed: small tiles that must (also) be in memory, because pieces of them are read.
    """

    def __init__(self, fn: Function, limit: int):
        self.fn, self.limit, self.most = fn, limit, min(limit, PIECE)
        params = [(a.name or f"b{i}", a.type) for i, a in enumerate(fn.args) if isinstance(a.type, BufferType)]
        self.prog = TileProgram(fn.name, params, fn.attrs["sizes"], fn.attrs["grid"], fn.attrs["writes"])
        self.ssa: dict[Value, Any] = {}
        self.memory: dict[Value, Buffer] = {}
        self.needed: set[Value] = set()
        self.depth: dict[Value, int] = {}
        self.uses: dict[Value, list[tuple[Op, int]]] = {}
        for i, a in enumerate(fn.args):
            self.ssa[a] = self.prog.buffers[i] if i < len(params) else TileValue(self.prog.fn.args[i])

    def run(self) -> Function:
        self.survey(self.fn.body, 0)
        for op in self.fn.walk():
            if self.touches_large(op):
                for v in op.operands:
                    self.demand(v)
        with self.prog:
            self.block(self.fn.body)
        out = self.prog.finish()
        out.attrs.update({k: v for k, v in self.fn.attrs.items() if k not in out.attrs})
        return out

    # -- analysis ------------------------------------------------------------------------------------------------------
    def survey(self, b: Block, depth: int) -> None:
        for a in b.args:
            self.depth[a] = depth
        for op in b.ops:
            for v in op.operands:
                self.uses.setdefault(v, []).append((op, depth))
            for r in op.results:
                self.depth[r] = depth
            for nested in op.blocks:
                self.survey(nested, depth + 1)

    def large(self, v: Value) -> bool:
        return _large(v, self.limit)

    def touches_large(self, op: Op) -> bool:
        return op.name not in ("for", "while", "if", "yield") and (any(map(self.large, [*op.operands, *op.results])) or _heavy(op))

    def lazy(self, v: Value) -> bool:
        """True when pieces of the tile are computed from pieces of its operands, wherever they are needed."""
        op = v.op
        if op is None or not isinstance(v.type, TileType):
            return False
        if op.name in _MADE or op.name in _MOVES or (op.name == "reshape" and _unit_axes(op) is not None):
            return True
        if op.name not in POINTWISE:
            return False
        if not self.large(v):
            return op.name in _CHEAP
        uses = self.uses.get(v, [])
        return len(uses) == 1 and uses[0][1] == self.depth[v]

    def demand(self, v: Value) -> None:
        """Pieces of ``v`` will be read."""
        if not isinstance(v.type, TileType) or v in self.needed:
            return
        if self.lazy(v):
            assert v.op is not None
            for o in v.op.operands:
                self.demand(o)
        else:
            self.needed.add(v)

    # -- pieces --------------------------------------------------------------------------------------------------------
    def over(self, shape: Sequence[int], piece: Sequence[int], body: Callable[[list[Any]], None], at: tuple[Any, ...] = ()) -> None:
        """Loops over the pieces of ``shape``, row-major; ``body`` receives their offsets."""
        k = len(at)
        if k == len(shape):
            body(list(at))
        elif piece[k] == shape[k]:
            self.over(shape, piece, body, (*at, 0))
        else:
            def step(i: TileValue, _: Any) -> tuple[()]:
                self.over(shape, piece, body, (*at, i))
                return ()
            dsl.for_loop((0, shape[k], piece[k]), (), step)

    def alloc(self, t: TileType) -> Buffer:
        with self.prog.before():
            return dsl.alloc(t.shape, t.dtype)

    def piece(self, v: Value, at: Sequence[Any], shape: Sequence[int]) -> TileValue:
        """The part of a tile at offsets ``at``."""
        shape = tuple(shape)
        if not isinstance(v.type, TileType):
            return self.ssa[v]  # type: ignore[no-any-return]
        if v in self.memory:
            return dsl.load(self.memory[v], at, shape)
        if v in self.ssa and shape == v.type.shape:
            return self.ssa[v]  # type: ignore[no-any-return]
        op = v.op
        assert op is not None and self.lazy(v), f"{v!r} is not in memory"
        if op.name in POINTWISE:
            parts = [self.piece(o, at, shape) for o in op.operands]
            return typed(op.name, parts, element(v.type.dtype, shape))
        if op.name == "full":
            return dsl.full(shape, op.attrs["value"], v.type.dtype)
        if op.name == "splat":
            return dsl.broadcast_to(self.ssa[op.operands[0]], shape)
        if op.name == "iota":
            axis = op.attrs.get("axis", 0)
            return dsl.add(dsl.iota(shape, axis), at[axis])
        return self.moved(op, at, shape)

    def moved(self, op: Op, at: Sequence[Any], shape: tuple[int, ...]) -> TileValue:
        """A piece of a tile that only rearranges another."""
        src = op.operands[0]
        before: tuple[int, ...] = src.type.shape
        if op.name == "broadcast":
            ones = [n == 1 for n in before]
            part = self.piece(src, [0 if one else o for one, o in zip(ones, at, strict=True)],
                              [1 if one else n for one, n in zip(ones, shape, strict=True)])
            return dsl.broadcast_to(part, shape)
        if op.name == "slice":
            return self.piece(src, [o + s for o, s in zip(at, op.attrs["starts"], strict=True)], shape)
        if op.name == "transpose":
            perm = op.attrs["perm"]
            where, extent = [0] * len(perm), [1] * len(perm)
            for k, a in enumerate(perm):
                where[a], extent[a] = at[k], shape[k]
            return dsl.transpose(self.piece(src, where, extent), perm)
        axes = _unit_axes(op)
        assert axes is not None
        where = [0 if k is None else at[k] for k in axes]
        return dsl.reshape(self.piece(src, where, [1 if k is None else shape[k] for k in axes]), shape)

    def in_memory(self, v: Value) -> Buffer:
        """Memory that holds the whole tile: its own, or a copy made here."""
        return self.memory[v] if v in self.memory else self.fill(self.alloc(v.type), v)

    def fill(self, to: Buffer, v: Value) -> Buffer:
        """Write a tile to scratch memory."""
        if v in self.ssa and not self.large(v):
            dsl.store(to, None, self.ssa[v])
        else:
            shape = v.type.shape
            piece = _pieces(shape, self.most)
            self.over(shape, piece, lambda at: dsl.store(to, at, self.piece(v, at, piece)))
        return to

    # -- ops -----------------------------------------------------------------------------------------------------------
    def block(self, b: Block) -> None:
        for op in b.ops:
            if op.name in ("yield", "return"):
                return
            self.prog.builder.loc = op.loc
            rule = getattr(self, f"op_{op.name}", None)
            if op.name in ("for", "while", "if"):
                assert rule is not None
                rule(op)
            elif not self.touches_large(op):
                self.copy(op)
            elif rule is not None:
                rule(op)
            elif not self.lazy(op.result):
                self.memory[op.result] = self.fill_new(op)

    def copy(self, op: Op) -> None:
        """A small op as it is; its result also goes to memory where pieces of it are read."""
        prog = self.prog
        made = prog.builder.op(op.name, [self.ssa[v].value for v in op.operands], [r.type for r in op.results], op.attrs, loc=op.loc)
        for r, n in zip(op.results, made.results, strict=True):
            n.name = r.name
            if isinstance(r.type, BufferType):
                self.ssa[r] = Buffer(n)
            else:
                self.define(r, TileValue(n))

    def define(self, v: Value, new: TileValue) -> None:
        self.ssa[v] = new
        if v in self.needed and v not in self.memory:
            self.memory[v] = self.alloc(v.type)
            dsl.store(self.memory[v], None, new)

    def fill_new(self, op: Op) -> Buffer:
        """Evaluate an elementwise op into memory of its own."""
        v = op.result
        to = self.alloc(v.type)
        piece = _pieces(v.type.shape, self.most)

        def body(at: list[Any]) -> None:
            parts = [self.piece(o, at, piece) for o in op.operands]
            dsl.store(to, at, typed(op.name, parts, element(v.type.dtype, piece)))

        self.over(v.type.shape, piece, body)
        return to

    def result(self, v: Value, to: Buffer) -> None:
        """The result of an op was written to memory."""
        self.memory[v] = to
        if not self.large(v):
            self.ssa[v] = dsl.load(to, None, v.type.shape)

    def access(self, op: Op, shape: tuple[int, ...], mask: Value | None, emit: Callable[..., None]) -> None:
        """The pieces of a load or store: ``emit(at, piece, offsets, keywords)``."""
        axes = tile_axes(op)
        buffer = self.ssa[op.operands[0]]
        offsets = [self.ssa[v] for v in op.operands[1:1 + buffer.rank]]
        piece = _pieces(shape, self.most)

        def body(at: list[Any]) -> None:
            moved = list(offsets)
            for a, o in zip(axes, at, strict=True):
                moved[a] = moved[a] + o
            where: dict[str, Any] = {"axes": axes, "check": op.attrs.get("check", ())}
            if mask is not None:
                where["mask"] = self.piece(mask, at, piece)
            emit(at, piece, moved, where)

        self.over(shape, piece, body)

    def op_load(self, op: Op) -> None:
        buffer, to = self.ssa[op.operands[0]], self.alloc(op.result.type)
        mask = op.operands[1 + buffer.rank] if op.attrs.get("masked") else None
        fill = op.attrs.get("fill", 0)
        self.access(op, op.result.type.shape, mask, lambda at, piece, offsets, where: dsl.store(
            to, at, dsl.load(buffer, offsets, piece, fill=fill, **where)))
        self.memory[op.result] = to

    def op_store(self, op: Op) -> None:
        buffer = self.ssa[op.operands[0]]
        value = op.operands[1 + buffer.rank]
        mask = op.operands[2 + buffer.rank] if op.attrs.get("masked") else None
        self.access(op, value.type.shape, mask, lambda at, piece, offsets, where: dsl.store(
            buffer, offsets, self.piece(value, at, piece), **where))

    def op_gather(self, op: Op) -> None:
        buffer, flat = self.ssa[op.operands[0]], op.operands[1]
        mask = op.operands[2] if op.attrs.get("masked") else None
        to, shape = self.alloc(op.result.type), op.result.type.shape
        piece = _pieces(shape, self.most)
        self.over(shape, piece, lambda at: dsl.store(to, at, dsl.gather(
            buffer, self.piece(flat, at, piece), mask=None if mask is None else self.piece(mask, at, piece), fill=op.attrs.get("fill", 0))))
        self.result(op.result, to)

    def op_scatter(self, op: Op) -> None:
        buffer, flat, value = self.ssa[op.operands[0]], op.operands[1], op.operands[2]
        mask = op.operands[3] if op.attrs.get("masked") else None
        shape = flat.type.shape
        piece = (*[1] * (len(shape) - 1), _divisor(shape[-1], min(64, self.most)))  # in row-major order: of equal places the last wins
        self.over(shape, piece, lambda at: dsl.scatter(
            buffer, self.piece(flat, at, piece), self.piece(value, at, piece), mask=None if mask is None else self.piece(mask, at, piece)))

    def op_atomic(self, op: Op) -> None:
        buffer, flat, value = self.ssa[op.operands[0]], op.operands[1], op.operands[2]
        shape = flat.type.shape
        piece = (*[1] * (len(shape) - 1), _divisor(shape[-1], min(64, self.most)))
        self.over(shape, piece, lambda at: dsl.atomic(
            buffer, self.piece(flat, at, piece), self.piece(value, at, piece), op.attrs["combine"]))

    def op_check(self, op: Op) -> None:
        ok, value = op.operands
        shape = ok.type.shape
        piece = (*[1] * (len(shape) - 1), _divisor(shape[-1], min(64, self.most)))
        self.over(shape, piece, lambda at: dsl.check(self.piece(ok, at, piece), self.piece(value, at, piece), op.attrs.get("site", 0)))

    def op_dot(self, op: Op) -> None:
        a, b, acc = op.operands
        (m, k), n = a.type.shape, b.type.shape[1]
        left, right, to = self.in_memory(a), self.in_memory(b), self.alloc(op.result.type)
        block = (_divisor(m, 8), _divisor(n, 32))
        depth = _divisor(k, 8)

        def body(at: list[Any]) -> None:
            def step(i: TileValue, c: Any) -> Any:
                return dsl.dot(dsl.load(left, (at[0], i), (block[0], depth)), dsl.load(right, (i, at[1]), (depth, block[1])), c)
            dsl.store(to, at, dsl.for_loop((0, k, depth), self.piece(acc, at, block), step))

        self.over((m, n), block, body)
        self.result(op.result, to)

    def op_reduce(self, op: Op) -> None:
        x, axis, combine = op.operands[0], op.attrs["axis"], op.attrs["combine"]
        shape = x.type.shape
        if len(shape) == 1:
            self.define(op.result, dsl.reduce(self.piece(x, (0,), shape), 0, combine))
            return
        piece = [1] * len(shape)
        piece[axis] = shape[axis]
        free = len(shape) - 1 if axis != len(shape) - 1 else len(shape) - 2
        piece[free] = _divisor(shape[free], 16 if free == len(shape) - 1 else max(1, 4 * self.most // shape[axis]))
        to = self.alloc(TileType(op.result.type.dtype, op.result.type.shape))
        self.over(shape, piece, lambda at: dsl.store(
            to, [o for i, o in enumerate(at) if i != axis], dsl.reduce(self.piece(x, at, piece), axis, combine)))
        self.result(op.result, to)

    def op_extract(self, op: Op) -> None:
        index = op.attrs["index"]
        one = self.piece(op.operands[0], index, (1,) * len(index))
        self.define(op.result, dsl.extract(one, (0,) * len(index)))

    def op_concat(self, op: Op) -> None:
        axis, start, to = op.attrs.get("axis", 0), 0, self.alloc(op.result.type)
        for v in op.operands:
            piece = _pieces(v.type.shape, self.most)

            def body(at: list[Any], v: Value = v, piece: tuple[int, ...] = piece, start: int = start) -> None:
                dsl.store(to, [o + start if k == axis else o for k, o in enumerate(at)], self.piece(v, at, piece))

            self.over(v.type.shape, piece, body)
            start += v.type.shape[axis]
        self.result(op.result, to)

    def op_reshape(self, op: Op) -> None:
        if self.lazy(op.result):
            return
        source, to = self.in_memory(op.operands[0]), self.alloc(op.result.type)
        shape = op.result.type.shape
        piece = _pieces(shape, self.most)

        def body(at: list[Any]) -> None:
            flat: Any = 0
            for k, n in enumerate(shape):
                flat = flat * n + (dsl.iota(piece, k) + at[k])
            dsl.store(to, at, dsl.gather(source, flat))

        self.over(shape, piece, body)
        self.result(op.result, to)

    def op_slice(self, op: Op) -> None:
        if not self.large(op.result):
            zero = (0,) * op.result.type.rank
            self.define(op.result, self.moved(op, zero, op.result.type.shape))

    # -- structure -----------------------------------------------------------------------------------------------------
    def enter(self, op: Op, operands: Sequence[Value]) -> list[Buffer | None]:
        """Memory for the large carried values, holding what they start with."""
        return [self.fill(self.alloc(v.type), v) if self.large(v) else None for v in operands]

    def open(self, old: Sequence[Value], new: Sequence[Value], places: Sequence[Buffer | None]) -> None:
        """Block arguments: small ones are values, large ones stand in memory."""
        fresh = iter(new)
        for a, place in zip(old, places, strict=True):
            if place is None:
                self.define(a, TileValue(next(fresh)))
            else:
                self.memory[a] = place

    def close(self, yielded: Sequence[Value], places: Sequence[Buffer | None], extra: Sequence[Value] = ()) -> None:
        """Write the large carried values to their places, all read before any is written, and yield the others."""
        copies: list[tuple[Buffer, Value]] = []
        for v, place in zip(yielded, places, strict=True):
            if place is not None and self.memory.get(v) is not place:
                own = v in self.memory and not any(self.memory[v] is p for p in places)
                if not own:
                    self.memory = {**self.memory, v: self.fill(self.alloc(v.type), v)}
                copies.append((place, v))
        for place, v in copies:
            self.fill(place, v)
        small = [self.ssa[v].value for v, place in zip(yielded, places, strict=True) if place is None]
        self.prog.builder.op("yield", [*extra, *small])

    def nested(self, old: Block, lead: Sequence[Any], places: Sequence[Buffer | None], finish: Callable[[], None]) -> Block:
        """The new form of a loop's block; the first arguments (``lead``: their types) are scalars."""
        kept = [a.type for a, p in zip(old.args[len(lead):], places, strict=True) if p is None]
        made = Block([*lead, *kept], [a.name for a in old.args[:len(lead)]])
        saved = dict(self.memory)
        with self.prog.block(made):
            for a, n in zip(old.args, made.args[:len(lead)], strict=False):
                self.ssa[a] = TileValue(n)
            self.open(old.args[len(lead):], made.args[len(lead):], places)
            self.block(old)
            finish()
        self.memory = saved
        return made

    def leave(self, op: Op, name: str, operands: Sequence[Any], blocks: Sequence[Block], places: Sequence[Buffer | None]) -> None:
        kept = [r for r, p in zip(op.results, places, strict=True) if p is None]
        made = self.prog.builder.op(name, [v.value for v in operands], [r.type for r in kept], op.attrs, blocks, op.loc)
        for r, n in zip(kept, made.results, strict=True):
            n.name = r.name
        self.open(op.results, made.results, places)

    def op_for(self, op: Op) -> None:
        carried, body = op.operands[3:], op.blocks[0]
        places = self.enter(op, carried)
        made = self.nested(body, [body.args[0].type], places, lambda: self.close(body.terminator.operands, places))
        small = [self.ssa[v] for v, p in zip(carried, places, strict=True) if p is None]
        self.leave(op, "for", [*(index_value(self.ssa[v]) for v in op.operands[:3]), *small], [made], places)

    def op_while(self, op: Op) -> None:
        head, body = op.blocks
        places = self.enter(op, op.operands)
        first = self.nested(head, [], places, lambda: self.close(
            head.terminator.operands[1:], places, [self.ssa[head.terminator.operands[0]].value]))
        second = self.nested(body, [], places, lambda: self.close(body.terminator.operands, places))
        small = [self.ssa[v] for v, p in zip(op.operands, places, strict=True) if p is None]
        self.leave(op, "while", small, [first, second], places)

    def op_if(self, op: Op) -> None:
        places = [self.alloc(r.type) if self.large(r) else None for r in op.results]

        def branch(b: Block) -> Block:
            made = Block()
            saved = dict(self.memory)
            with self.prog.block(made):
                self.block(b)
                self.close(b.terminator.operands, places)
            self.memory = saved
            return made

        blocks = [branch(b) for b in op.blocks]
        self.leave(op, "if", [self.ssa[op.operands[0]]], blocks, places)


def _unit_axes(op: Op) -> list[int | None] | None:
    """For a reshape that only inserts or removes axes of extent 1: the new axis of each old one (None: extent 1)."""
    before, after = op.operands[0].type.shape, op.results[0].type.shape
    targets: Iterator[int] = (k for k, n in enumerate(after) if n != 1)
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return None
    return [None if n == 1 else next(targets) for n in before]
