"""One element of a Graph value as scalar ops of Schedule IR.

A :class:`Tracer` fills the body of one kernel.  Asked for a Graph value at an index, it loads the value's buffer, or, where
the value has none, follows the op's ``element`` rule to the operands: that is all that fusion is.  Every scalar is placed as
far out in the nest of loops as its index allows, and never computed twice in one place, so a reduction whose index
depends on the grid alone ends up beside the loops that use it: softmax and the norms come out as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import CompileError
from ..ir.core import INDEX, Block, BufferType, Op, ScalarType, Value
from ..ops.table import OPS
from ..types.dims import Dim, DimLike, bounds, known_less, known_nonnegative
from ..types.dims import name as dim_name
from ..types.dtypes import DType, bool_, int64
from .indexing import Index, Names, divides, names_of, ravel, same_offset, simplify
from .summary import Lanes

Key = tuple[Any, ...]


class Stop(Exception):
    """The value cannot be had here: the planner chose a fusion that the indices do not allow."""


class Scope:
    """One level of the nest: a block under construction and what is known there."""

    __slots__ = ("block", "guard", "memo", "names")

    def __init__(self, block: Block, guard: bool = False, names: Sequence[str] = ()):
        self.block, self.guard = block, guard
        self.names = tuple(names)
        self.memo: dict[Key, Any] = {}


class Stored:
    """A value that this kernel itself writes: where, and whether its loop has ended (then it may be read back)."""

    __slots__ = ("buffer", "done", "scope")

    def __init__(self, buffer: Value):
        self.buffer = buffer
        self.scope: Scope | None = None
        self.done = False


class Tracer:
    """Builds the scalar body of a kernel.

    Args:
        block: the kernel's block; its arguments are added as buffers are met.
        names: where fresh loop names come from.
        ranges: the grid's loops.
        buffer: the Schedule buffer of a Graph value, or None where it has to be computed here.
        lanes: the numeric parameter of a reduction.
        site: the number of a run-time check.
    """

    def __init__(self, block: Block, names: Names, ranges: Mapping[str, DimLike],
                 buffer: Callable[[Value], Value | None], lanes: Lanes, site: Callable[[Op, str], int]):
        self.names, self.buffer, self.lanes, self.site = names, buffer, lanes, site
        self.ranges: dict[str, DimLike] = dict(ranges)
        self.root = Scope(block, names=tuple(ranges))
        self.stack = [self.root]
        self.depth_of: dict[Value, int] = {}
        self.depth_of_name = dict.fromkeys(ranges, 0)
        self.dynamic_value: dict[str, Value] = {}
        self.operands: dict[Value, Value] = {}  # outer buffer -> block argument
        self.stored: dict[Value, Stored] = {}
        self.seeds: dict[Value, tuple[Index, Value]] = {}
        self.flat: Callable[[Value], Value] | None = None  # a buffer with one axis
        self.always_flat = False  # templates see all buffers so
        self.loc: Any = None

    # -- placing -----------------------------------------------------------------------------------------------------
    @property
    def floor(self) -> int:
        """Loads may not leave the innermost guard."""
        return next((d for d in range(len(self.stack) - 1, 0, -1) if self.stack[d].guard), 0)

    def depth(self, index: Sequence[DimLike]) -> int:
        deepest = 0
        for e in index:
            if isinstance(e, Dim):
                for n in names_of(e):
                    deepest = max(deepest, self.depth_of_name.get(n, 0))
        return deepest

    @contextmanager
    def at(self, depth: int) -> Iterator[None]:
        saved, self.stack = self.stack, self.stack[:depth + 1]
        try:
            yield
        finally:
            self.stack = saved

    def recall(self, key: Key, depth: int) -> Any:
        for scope in self.stack[:depth + 1]:
            if key in scope.memo:
                return scope.memo[key]
        return None

    def put(self, name: str, operands: Sequence[Value], type: Any, attrs: dict[str, Any], depth: int,
            blocks: Sequence[Block] = ()) -> Op:
        op = Op(name, operands, (type,) if type is not None else (), attrs, blocks, self.loc)
        self.stack[depth].block.ops.append(op)
        for r in op.results:
            self.depth_of[r] = depth
        return op

    # -- scalars -----------------------------------------------------------------------------------------------------
    def const(self, value: Any, dtype: DType) -> Value:
        key = ("const", repr(value), dtype)
        got = self.recall(key, 0)
        if got is None:
            got = self.root.memo[key] = self.put("constant", (), ScalarType(dtype), {"value": value}, 0).results[0]
        return got  # type: ignore[no-any-return]

    def emit(self, name: str, values: Sequence[Value], dtype: DType, attrs: Mapping[str, Any]) -> Value:
        depth = max((self.depth_of[v] for v in values), default=0)
        key = ("emit", name, tuple(values), dtype, tuple(sorted(attrs.items(), key=lambda t: t[0])))
        got = self.recall(key, depth)
        if got is None:
            got = self.put(name, values, ScalarType(dtype), dict(attrs), depth).results[0]
            self.stack[depth].memo[key] = got
        return got  # type: ignore[no-any-return]

    def dynamics(self, index: Sequence[DimLike]) -> tuple[list[Value], dict[str, Any]]:
        used = sorted({n for e in index if isinstance(e, Dim) for n in names_of(e) if n in self.dynamic_value})
        return [self.dynamic_value[n] for n in used], ({"dyn": tuple(used)} if used else {})

    def index(self, expr: DimLike) -> Value:
        expr = simplify(expr, self.ranges)
        if isinstance(expr, int):
            return self.const(expr, int64)
        if expr.is_name and str(expr) in self.dynamic_value:
            return self.dynamic_value[str(expr)]
        depth = self.depth((expr,))
        key = ("index", expr)
        got = self.recall(key, depth)
        if got is None:
            values, attrs = self.dynamics((expr,))
            got = self.put("index", values, INDEX, {"value": expr, **attrs}, depth).results[0]
            self.stack[depth].memo[key] = got
        return got  # type: ignore[no-any-return]

    def dynamic(self, value: Value, extent: DimLike) -> DimLike:
        key = ("dynamic", value, extent)
        got = self.recall(key, self.depth_of[value])
        if got is not None:
            return got  # type: ignore[no-any-return]
        if extent == 1:
            return 0
        as_index = value if value.type.dtype is int64 else self.emit("convert", (value,), int64, {})
        last = self.index(extent - 1)
        low = self.emit("maximum", (as_index, self.const(0, int64)), int64, {})
        clamped = self.emit("minimum", (low, last), int64, {})
        name = self.names.fresh("g")
        self.ranges[name] = extent
        self.dynamic_value[name] = clamped
        self.depth_of_name[name] = self.depth_of[clamped]
        made = dim_name(name)
        self.stack[self.depth_of[clamped]].memo[key] = made
        return made

    def inside(self, expr: DimLike, low: DimLike, high: DimLike) -> Value | None:
        expr = simplify(expr, self.ranges)
        least, _ = bounds(expr - low, self.ranges)
        tests: list[Value] = []
        if least is None or not known_nonnegative(least):
            tests.append(self.emit("ge", (self.index(expr), self.index(low)), bool_, {}))
        if not known_less(expr, high, self.ranges):
            tests.append(self.emit("lt", (self.index(expr), self.index(high)), bool_, {}))
        if not tests:
            return None
        return tests[0] if len(tests) == 1 else self.emit("logical_and", tests, bool_, {})

    def guarded(self, predicate: Value, make: Callable[[], Value], other: Any) -> Value:
        body = Block()
        scope = Scope(body, guard=True)
        self.stack.append(scope)
        try:
            value = make()
            body.ops.append(Op("yield", (value,)))
        finally:
            self.stack.pop()
        depth = len(self.stack) - 1
        type_ = ScalarType(value.type.dtype)
        return self.put("guard", (predicate,), type_, {"other": other}, depth, (body,)).results[0]

    def reduce(self, combine: str, extents: Sequence[DimLike], make: Callable[[Sequence[DimLike]], Value],
               lanes: int) -> Value:
        loops = tuple((self.names.fresh("r"), e) for e in extents)
        with self.nested(loops) as body:
            made = make([dim_name(n) for n, _ in loops])
            values: tuple[Value, ...] = (made,)
            if combine in ("argmax", "argmin"):
                values = (values[0], self.index(ravel([dim_name(n) for n, _ in loops], [e for _, e in loops])))
            body.ops.append(Op("yield", values))
        attrs = {"over": loops, "combine": combine, "lanes": lanes}
        types = [ScalarType(v.type.dtype) for v in values]
        op = Op("reduce", (), types, attrs, (body,), self.loc)
        self.stack[-1].block.ops.append(op)
        for r in op.results:
            self.depth_of[r] = len(self.stack) - 1
        return op.results[-1]  # argmax, argmin: the index

    @contextmanager
    def nested(self, loops: Sequence[tuple[str, DimLike]]) -> Iterator[Block]:
        """A block inside ``loops``; what is stored in it may be read back once it ends."""
        body = Block()
        scope = Scope(body, names=tuple(n for n, _ in loops))
        self.stack.append(scope)
        for n, e in loops:
            self.ranges[n] = e
            self.depth_of_name[n] = len(self.stack) - 1
        yield body
        self.stack.pop()
        for kept in self.stored.values():
            if kept.scope is scope:
                kept.done = True

    def check(self, op: Op, ok: Value, value: Value, message: str) -> None:
        depth = max(self.depth_of[ok], self.depth_of[value], self.floor)
        key = ("check", ok, value, message)
        if self.recall(key, depth) is None:
            self.put("check", (ok, value), None, {"site": self.site(op, message)}, depth)
            self.stack[depth].memo[key] = True

    # -- memory ------------------------------------------------------------------------------------------------------
    def argument(self, buffer: Value) -> Value:
        """The block argument that stands for ``buffer``."""
        if buffer not in self.operands:
            self.operands[buffer] = self.root.block.add_arg(buffer.type, buffer.name)
        return self.operands[buffer]

    def place(self, buffer: Value, index: Sequence[DimLike]) -> tuple[Value, Index]:
        """The buffer and index as the body addresses them."""
        index = tuple(simplify(e, self.ranges) for e in index)
        if self.flat is None or not (self.always_flat or any(divides(e) for e in index)):
            return buffer, index
        offset = simplify(ravel(index, buffer.type.shape), self.ranges)
        if divides(offset) and not self.always_flat:
            return buffer, index
        return self.flat(buffer), (offset,)

    def load(self, buffer: Value, index: Sequence[DimLike]) -> Value:
        buffer, index = self.place(buffer, index)
        depth = max(self.depth(index), self.floor)
        key = ("load", buffer, index)
        got = self.recall(key, depth)
        if got is None:
            values, attrs = self.dynamics(index)
            type_ = ScalarType(buffer.type.dtype)
            got = self.put("load", (self.argument(buffer), *values), type_, {"index": index, **attrs}, depth).results[0]
            self.stack[depth].memo[key] = got
        return got  # type: ignore[no-any-return]

    def store(self, buffer: Value, index: Sequence[DimLike], value: Value) -> None:
        buffer, index = self.place(buffer, index)
        values, attrs = self.dynamics(index)
        self.put("store", (self.argument(buffer), value, *values), None, {"index": index, **attrs}, len(self.stack) - 1)

    # -- Graph values ------------------------------------------------------------------------------------------------
    def value(self, v: Value, index: Sequence[DimLike]) -> Value:
        """The scalar of Graph value ``v`` at ``index``.

        Raises:
            Stop: ``v`` stands for a template's result and is wanted at another index than the template gives.
        """
        index = tuple(simplify(e, self.ranges) for e in index)
        if v in self.seeds:
            at, scalar = self.seeds[v]
            if not same_offset(at, index, v.type.shape, self.ranges):
                raise Stop(v)
            return scalar
        kept = self.stored.get(v)
        if kept is not None and kept.done:
            return self.load(kept.buffer, index)
        source = self.buffer(v)
        if source is not None and kept is None:
            return self.load(source, index)
        if v.op is None:
            raise CompileError("a parameter without a buffer")
        depth = max(self.depth(index), self.floor)
        key = ("value", v, index)
        got = self.recall(key, len(self.stack) - 1)
        if got is None:
            with self.at(max(depth, self.floor)):
                got = self._compute(v, index)
                self.stack[-1].memo[key] = got
            if kept is not None and kept.scope is None:
                self._keep(kept, v, index, depth, got)
        return got  # type: ignore[no-any-return]

    def _compute(self, v: Value, index: Index) -> Value:
        op = v.op
        assert op is not None
        saved, self.loc = self.loc, op.loc
        try:
            return element_of(self, op, index, v.index)
        finally:
            self.loc = saved

    def _keep(self, kept: Stored, v: Value, index: Index, depth: int, scalar: Value) -> None:
        """Store ``v`` here if the loops around this place visit each of its elements exactly once."""
        if self.floor:
            return
        names = [n for s in self.stack[:depth + 1] for n in s.names]
        with self.at(depth):
            if covers(index, v.type.shape, [(n, self.ranges[n]) for n in names]):
                self.store(kept.buffer, index, scalar)
                kept.scope = self.stack[depth]


def covers(index: Sequence[DimLike], shape: Sequence[DimLike], loops: Sequence[tuple[str, DimLike]]) -> bool:
    """True when running ``loops`` makes ``index`` meet every element of ``shape`` exactly once."""
    left = dict(loops)
    for e, extent in zip(index, shape, strict=True):
        if extent == 1 and e == 0:
            continue
        if not isinstance(e, Dim) or not e.is_name or left.get(str(e)) != extent:
            return False
        del left[str(e)]
    return all(extent == 1 for extent in left.values())


class Element:
    """The :class:`~tessera.ops.table.ElementBuilder` that one op's rule sees."""

    __slots__ = ("op", "tracer")

    def __init__(self, tracer: Tracer, op: Op):
        self.tracer, self.op = tracer, op

    def operand(self, i: int, index: Sequence[DimLike]) -> Value:
        return self.tracer.value(self.op.operands[i], index)

    def emit(self, name: str, *values: Value, dtype: DType, **attrs: Any) -> Value:
        return self.tracer.emit(name, values, dtype, attrs)

    def const(self, value: Any, dtype: DType) -> Value:
        return self.tracer.const(value.item() if isinstance(value, np.generic) else value, dtype)

    def index(self, expr: DimLike) -> Value:
        return self.tracer.index(expr)

    def dynamic(self, value: Value, extent: DimLike) -> DimLike:
        return self.tracer.dynamic(value, extent)

    def inside(self, expr: DimLike, low: DimLike, high: DimLike) -> Value | None:
        return self.tracer.inside(expr, low, high)

    def guarded(self, predicate: Value, make: Callable[[], Value], other: Any) -> Value:
        return self.tracer.guarded(predicate, make, other)

    def reduce(self, combine: str, extents: Sequence[DimLike], make: Callable[[Sequence[DimLike]], Value]) -> Any:
        return self.tracer.reduce(combine, extents, make, self.tracer.lanes(self.op, extents))

    def check(self, ok: Value, value: Value, message: str) -> None:
        self.tracer.check(self.op, ok, value, message)


def element_of(tracer: Tracer, op: Op, index: Index, result: int) -> Value:
    """Element ``index`` of result ``result`` of ``op``.

    Raises:
        CompileError: the op has no element rule.
    """
    rule = OPS[op.name]
    builder = Element(tracer, op)
    if rule.element is not None:
        return rule.element(builder, op, index, result)
    if not rule.pointwise:
        raise CompileError(f"{op.name!r} has no element rule", loc=op.loc)
    values = [builder.operand(i, index) for i in range(len(op.operands))]
    dtype = op.results[result].type.dtype
    if op.name in ("floor_div", "mod") and dtype.is_integer and op.attrs.get("checked", True):
        nonzero = builder.emit("ne", values[1], builder.const(0, dtype), dtype=bool_)
        builder.check(nonzero, values[1], f"integer {op.name} by zero")
    attrs = {k: v for k, v in op.attrs.items() if k not in ("dtype", "checked")}
    return builder.emit(op.name, *values, dtype=dtype, **attrs)


def buffer_of(t: Any) -> BufferType:
    """The buffer type that holds a Graph tensor."""
    return BufferType(t.dtype, t.shape)


__all__ = ["Element", "Scope", "Stop", "Stored", "Tracer", "buffer_of", "covers", "element_of"]
