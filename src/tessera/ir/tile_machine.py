"""The numpy machine that runs one block of a Tile program after another (see :mod:`tessera.ir.interpret_tile`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import TesseraError
from ..types.dims import evaluate
from ..types.dtypes import DType, f32
from .core import Block, Function, Op, TileType, Value
from .pointwise_numpy import convert, fma, pointwise
from .tile import POINTWISE, shape_of, tile_axes

Array = np.ndarray[Any, np.dtype[Any]]
Watch = Callable[[Op, str, Array, Array], None]


class TileError(TesseraError, RuntimeError):
    """A program did what Tile IR forbids at run time; the message names the op and its line."""

    title, code = "Tile program error", "E_TILE"


@dataclass
class Memory:
    """A buffer while a program runs.  Scratch knows what was written; parameters know who touched each element."""

    data: Array
    name: str
    written: Array | None = None  # scratch: bool, one an element
    writer: Array | None = None  # a written parameter: the block that wrote it last, or -1
    reader: Array | None = None  # a written parameter: the block that read it, -1 nobody, -2 several
    track: Any = None  # shared memory of a program with roles: who wrote and read each element (interpret_explicit)


@dataclass
class CheckFailure:
    """The first lane of a ``check`` that did not hold."""

    site: int
    value: Any
    op: Op


@dataclass
class Result:
    """What a run reports besides the buffers it changed: ``failure`` is the first failed check in block order, or None."""

    failure: CheckFailure | None = None
    blocks: int = 0


@dataclass
class Run:
    fn: Function
    sizes: Mapping[str, int]
    grid: tuple[int, ...]
    races: bool
    watch: Watch | None = None
    env: dict[Value, Any] = field(default_factory=dict)
    at: tuple[int, ...] = ()
    number: int = 0
    failures: dict[int, CheckFailure] = field(default_factory=dict)


def _literal(value: Any, dtype: DType) -> Array:
    """An attribute value as an element of ``dtype``, rounded once."""
    if dtype.is_float and dtype.bits < 32:
        return np.asarray(np.float32(value)).astype(dtype.np)
    if dtype.bits == 4:
        return np.asarray(np.int8(value)).astype(dtype.np)
    return np.asarray(value, dtype.np)


class Machine:
    """Executes the ops of one block of the grid after another."""

    def __init__(self, state: Run, limit: int):
        self.s, self.limit = state, limit
        self.env = state.env
        self.rules: dict[str, Callable[[Op, list[Any]], Any]] = {
            n[3:]: getattr(self, n) for n in dir(self) if n.startswith("op_")}

    def fail(self, op: Op, message: str, hints: Sequence[str] = ()) -> TileError:
        where = f" ({op.loc})" if op.loc else ""
        return TileError(f"{self.s.fn.name}: {op.name}: {message}, in block {self.s.at}{where}", loc=op.loc, hints=hints)

    def block(self, b: Block) -> list[Any]:
        """Run a block; the operands of its terminator."""
        env = self.env
        for op in b.ops:
            operands = [env[v] for v in op.operands]
            if op.name in ("yield", "return"):
                return operands
            if op.name in POINTWISE:
                env[op.results[0]] = pointwise(op.name, operands, op.results[0].type.dtype)
                continue
            out = self.rules[op.name](op, operands)
            if op.blocks:
                env.update(zip(op.results, out, strict=True))
            elif op.results:
                env[op.results[0]] = out
        return []

    # structure
    def op_program_id(self, op: Op, _: list[Any]) -> Array:
        return np.array(self.s.at[op.attrs["axis"]], np.int64)

    def op_size(self, op: Op, _: list[Any]) -> Array:
        return np.array(evaluate(op.attrs["value"], self.s.sizes), np.int64)

    def op_for(self, op: Op, operands: list[Any]) -> list[Any]:
        lo, hi, step = (int(x) for x in operands[:3])
        if step <= 0:
            raise self.fail(op, f"the step is {step}; it must be positive")
        carried, body = operands[3:], op.blocks[0]
        for i in range(lo, hi, step):
            self.env[body.args[0]] = np.array(i, np.int64)
            self.env.update(zip(body.args[1:], carried, strict=True))
            carried = self.block(body)
        return carried

    def op_while(self, op: Op, carried: list[Any]) -> list[Any]:
        head, body = op.blocks
        for _ in range(self.limit):
            self.env.update(zip(head.args, carried, strict=True))
            go, *carried = self.block(head)
            if not go:
                return carried
            self.env.update(zip(body.args, carried, strict=True))
            carried = self.block(body)
        raise self.fail(op, f"does not end within {self.limit} iterations")

    def op_if(self, op: Op, operands: list[Any]) -> list[Any]:
        return self.block(op.blocks[0] if operands[0] else op.blocks[1])

    def op_alloc(self, op: Op, _: list[Any]) -> Memory:
        t = op.results[0].type
        return Memory(np.zeros(t.shape, t.dtype.np), f"%{op.results[0].name or 'alloc'}", np.zeros(t.shape, bool))

    def op_view(self, op: Op, operands: list[Any]) -> Memory:
        memory = operands[0]
        shape = tuple(evaluate(d, self.s.sizes) for d in op.results[0].type.shape)
        count = math.prod(shape)
        if count > memory.data.size:
            raise self.fail(op, f"{list(shape)} does not fit the {memory.data.size} elements of {memory.name}")
        parts = (memory.data, memory.written, memory.writer, memory.reader)
        seen = [None if a is None else a.reshape(-1)[:count].reshape(shape) for a in parts]
        assert seen[0] is not None
        return Memory(seen[0], memory.name, seen[1], seen[2], seen[3], memory.track)

    # memory
    def places(self, op: Op, memory: Memory, offsets: Sequence[Any], mask: Any, shape: tuple[int, ...]) -> tuple[Any, Array]:
        """Row-major element numbers of every lane, and which lanes are active."""
        axes, checked = tile_axes(op), op.attrs.get("check", ())
        active = np.ones(shape, bool) if mask is None else np.asarray(mask)
        index = []
        for axis, (o, n) in enumerate(zip(offsets, memory.data.shape, strict=True)):
            at = np.asarray(o)
            if axis in axes:
                k = axes.index(axis)
                at = at + np.arange(shape[k]).reshape([-1 if d == k else 1 for d in range(len(shape))])
            inside = (at >= 0) & (at < n)
            if axis in checked:
                active = active & inside
            elif not np.all(inside | ~active):
                bad = np.broadcast_to(at, shape)[np.broadcast_to(~inside, shape) & active]
                raise self.fail(op, f"index {int(np.ravel(bad)[0])} is outside axis {axis} of {memory.name}, which has {n} elements")
            index.append(np.broadcast_to(at, shape))
        flat = np.zeros(shape, np.int64)
        for at, n in zip(index, memory.data.shape, strict=True):
            flat = flat * n + at
        return np.where(active, flat, 0), active

    def read(self, op: Op, memory: Memory, flat: Array, active: Array, fill: Any) -> Array:
        d = op.results[0].type.dtype
        if self.s.watch is not None:
            self.s.watch(op, memory.name, flat, active)
        if not active.any():
            return np.broadcast_to(_literal(fill, d), flat.shape).copy()
        touched = flat[active]
        if memory.written is not None and not memory.written.reshape(-1)[touched].all():
            raise self.fail(op, f"reads {memory.name} before it is written")
        self.note_read(op, memory, touched)
        got = memory.data.reshape(-1)[flat]
        return got if active.all() else np.where(active, got, _literal(fill, d)).astype(d.np, copy=False)

    def write(self, op: Op, memory: Memory, flat: Array, active: Array, value: Array) -> None:
        if self.s.watch is not None:
            self.s.watch(op, memory.name, flat, active)
        touched, new = flat[active], np.asarray(value)[active]
        self.note_write(op, memory, touched, new)
        memory.data.reshape(-1)[touched] = new  # of equal places the last wins
        if memory.written is not None:
            memory.written.reshape(-1)[touched] = True

    def note_read(self, op: Op, memory: Memory, touched: Array) -> None:
        if memory.writer is None or memory.reader is None:
            return
        writer = memory.writer.reshape(-1)[touched]
        if np.any((writer >= 0) & (writer != self.s.number) | (writer == _BY_ATOMICS)):
            raise self.fail(op, f"race: reads an element of {memory.name} that another block writes")
        reader = memory.reader.reshape(-1)
        seen = reader[touched]
        reader[touched] = np.where((seen == -1) | (seen == self.s.number), self.s.number, -2)

    def note_write(self, op: Op, memory: Memory, touched: Array, new: Array) -> None:
        if memory.writer is None or memory.reader is None:
            return
        number = self.s.number
        reader = memory.reader.reshape(-1)[touched]
        if np.any((reader != -1) & (reader != number)):
            raise self.fail(op, f"race: writes an element of {memory.name} that another block reads")
        writer = memory.writer.reshape(-1)
        if np.any(writer[touched] == _BY_ATOMICS):
            raise self.fail(op, f"race: writes an element of {memory.name} that blocks combine into")
        other = (writer[touched] >= 0) & (writer[touched] != number)
        if other.any():
            old = memory.data.reshape(-1)[touched][other]
            if old.tobytes() != new[other].tobytes():  # the same bits from two blocks are harmless
                raise self.fail(op, f"race: two blocks write different values to an element of {memory.name}")
        writer[touched] = number

    def note_atomic(self, op: Op, memory: Memory, touched: Array) -> None:
        """Atomics of several blocks meet without harm; a plain access of another block does not."""
        if memory.writer is None or memory.reader is None:
            return
        reader, writer = memory.reader.reshape(-1)[touched], memory.writer.reshape(-1)
        plain = (reader != -1) & (reader != self.s.number) | (writer[touched] >= 0) & (writer[touched] != self.s.number)
        if plain.any():
            raise self.fail(op, f"race: combines into an element of {memory.name} that another block reads or writes")
        writer[touched] = _BY_ATOMICS

    def op_prefetch(self, op: Op, operands: list[Any]) -> None:
        """Means nothing."""

    def op_load(self, op: Op, operands: list[Any]) -> Array:
        memory, rank = operands[0], operands[0].data.ndim
        mask = operands[1 + rank] if op.attrs.get("masked") else None
        flat, active = self.places(op, memory, operands[1:1 + rank], mask, shape_of(op.results[0].type))
        return self.read(op, memory, flat, active, op.attrs.get("fill", 0))

    def op_store(self, op: Op, operands: list[Any]) -> None:
        memory, rank = operands[0], operands[0].data.ndim
        value = operands[1 + rank]
        mask = operands[2 + rank] if op.attrs.get("masked") else None
        flat, active = self.places(op, memory, operands[1:1 + rank], mask, np.shape(value))
        self.write(op, memory, flat, active, value)

    def flat(self, op: Op, memory: Memory, where: Array, mask: Any) -> tuple[Array, Array]:
        active = np.ones(where.shape, bool) if mask is None else np.asarray(mask)
        bad = active & ((where < 0) | (where >= memory.data.size))
        if bad.any():
            raise self.fail(op, f"element {int(where[bad][0])} is outside {memory.name}, which has {memory.data.size} elements")
        return np.where(active, where, 0), active

    def op_gather(self, op: Op, operands: list[Any]) -> Array:
        memory, where = operands[:2]
        flat, active = self.flat(op, memory, where, operands[2] if op.attrs.get("masked") else None)
        return self.read(op, memory, flat, active, op.attrs.get("fill", 0))

    def op_scatter(self, op: Op, operands: list[Any]) -> None:
        memory, where, value = operands[:3]
        flat, active = self.flat(op, memory, where, operands[3] if op.attrs.get("masked") else None)
        self.write(op, memory, flat, active, value)

    def op_atomic(self, op: Op, operands: list[Any]) -> None:
        memory, where, value = operands
        flat, _ = self.flat(op, memory, where, None)
        if memory.written is not None and not memory.written.reshape(-1)[flat.reshape(-1)].all():
            raise self.fail(op, f"combines into {memory.name} before it is written")
        self.note_atomic(op, memory, flat.reshape(-1))
        _ATOMICS[op.attrs["combine"]].at(memory.data.reshape(-1), flat.reshape(-1), np.reshape(value, -1))

    # tiles
    def op_constant(self, op: Op, _: list[Any]) -> Array:
        return _literal(op.attrs["value"], op.results[0].type.dtype)

    def op_full(self, op: Op, _: list[Any]) -> Array:
        t: TileType = op.results[0].type
        return np.broadcast_to(_literal(op.attrs["value"], t.dtype), t.shape).copy()

    def op_splat(self, op: Op, operands: list[Any]) -> Array:
        return np.broadcast_to(operands[0], op.results[0].type.shape)

    op_broadcast = op_splat

    def op_iota(self, op: Op, _: list[Any]) -> Array:
        shape, axis = op.results[0].type.shape, op.attrs.get("axis", 0)
        line = np.arange(shape[axis], dtype=np.int64).reshape([-1 if d == axis else 1 for d in range(len(shape))])
        return np.broadcast_to(line, shape)

    def op_reshape(self, op: Op, operands: list[Any]) -> Array:
        return np.asarray(operands[0]).reshape(op.results[0].type.shape)

    def op_relayout(self, op: Op, operands: list[Any]) -> Array:
        return np.asarray(operands[0])

    def op_transpose(self, op: Op, operands: list[Any]) -> Array:
        return np.transpose(operands[0], op.attrs["perm"])

    def op_slice(self, op: Op, operands: list[Any]) -> Array:
        return np.asarray(operands[0][tuple(slice(a, b) for a, b in zip(op.attrs["starts"], op.attrs["limits"], strict=True))])

    def op_concat(self, op: Op, operands: list[Any]) -> Array:
        return np.concatenate(operands, axis=op.attrs.get("axis", 0))

    def op_exchange(self, op: Op, operands: list[Any]) -> Array:
        x, axis = operands[0], op.attrs.get("axis", 0)
        return np.asarray(np.take(x, np.arange(x.shape[axis]) ^ op.attrs["mask"], axis))

    def op_extract(self, op: Op, operands: list[Any]) -> Array:
        return np.asarray(operands[0][op.attrs["index"]])

    def op_reduce(self, op: Op, operands: list[Any]) -> Array:
        return reduce_tree(operands[0], op.attrs["axis"], op.attrs["combine"], op.results[0].type.dtype)

    def op_dot(self, op: Op, operands: list[Any]) -> Array:
        if op.attrs.get("unit") == "amx_bf16":
            return dot_in_pairs(*operands)
        if op.attrs.get("unit") == "dpbf16":
            return dot_pair_by_pair(*operands)
        return dot_chain(operands[0], operands[1], operands[2], op.results[0].type.dtype)

    def op_check(self, op: Op, operands: list[Any]) -> None:
        ok, value = (np.asarray(x) for x in operands)
        if not ok.all():
            bad = value.reshape(-1)[~ok.reshape(-1)][0].item()
            self.s.failures.setdefault(self.s.number, CheckFailure(op.attrs.get("site", 0), bad, op))


_BY_ATOMICS = -2
_ATOMICS = {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}


def reduce_tree(x: Any, axis: int, combine: str, dtype: DType) -> Array:
    """The halving tree of ``reduce``: with h the largest power of two below n, element l takes in element h + l."""
    x = np.moveaxis(np.asarray(x), axis, 0)
    n = x.shape[0]
    while n > 1:
        h = 1 << ((n - 1).bit_length() - 1)
        head = pointwise(_COMBINE[combine], [x[:n - h], x[h:n]], dtype)
        x = np.concatenate([head, x[n - h:h]])
        n = h
    return np.asarray(x[0])


def _flushed(x: Array) -> Array:
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def dot_in_pairs(a: Any, b: Any, acc: Any) -> Array:
    """The matrix unit's order: of every 32 k, the even and the odd ones have a sum each, by fma from zero; acc + (even + odd)."""
    x, y, acc = _flushed(convert(a, f32)), _flushed(convert(b, f32)), _flushed(np.asarray(acc))
    for k0 in range(0, x.shape[1], 32):
        sums = []
        for odd in (0, 1):
            total = np.zeros_like(acc)
            for k in range(k0 + odd, k0 + 32, 2):
                total = _flushed(_fma_of(x, y, k, total))
            sums.append(total)
        acc = _flushed(acc + _flushed(sums[0] + sums[1]))
    return np.asarray(acc)


def _fma_of(x: Array, y: Array, k: int, total: Array) -> Array:
    """``total[m, n] + x[m, k] * y[k, n]`` rounded once."""
    a, b = np.broadcast_arrays(x[:, k, None], y[None, k, :])
    return fma(a, b, total)


def dot_pair_by_pair(a: Any, b: Any, acc: Any) -> Array:
    """AVX-512's order: pair after pair, of each the odd k first, by fma, with subnormals flushed."""
    x, y, acc = _flushed(convert(a, f32)), _flushed(convert(b, f32)), _flushed(np.asarray(acc))
    for k in range(0, x.shape[1], 2):
        for j in (k + 1, k):
            acc = _flushed(_fma_of(x, y, j, acc))
    return np.asarray(acc)


def dot_chain(a: Any, b: Any, acc: Any, dtype: DType) -> Array:
    """``acc[m, n] = fma(a[m, k], b[k, n], acc[m, n])``, k ascending, in the accumulator's dtype."""
    a, b, acc = convert(a, dtype), convert(b, dtype), np.asarray(acc)
    plain = dtype.is_float and dtype.bits >= 32
    for k in range(a.shape[1]):
        x, y = np.broadcast_arrays(a[:, k, None], b[None, k, :])
        acc = fma(x, y, acc) if plain else pointwise("fma", [x, y, acc], dtype)
    return np.asarray(acc)
