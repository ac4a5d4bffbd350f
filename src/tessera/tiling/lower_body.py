"""The scalar body of a sched kernel, evaluated on lanes.

Loop variables are bound either to scalars (sequential loops, or the point of the grid) or to the *axes* of a tile (the
lanes).  A value that depends on no lane stays a scalar; every other value is a tile of the shape of the lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..ir.core import INDEX, Block, BufferType, Op, ScalarType, TileType, Value
from ..types.dims import Dim, DimLike, atom, mod
from ..types.dtypes import bool_, int64
from .lower_analysis import Kernel, dynamic_operands
from .lower_emit import Emit, Int, scalar_of

AHEAD = 4096  # bytes between a load and what is asked for with it


@dataclass(frozen=True)
class Axis:
    """A loop whose iterations ``base, base + 1, …`` are the lanes along one axis of the tiles."""

    name: str
    base: Int
    extent: int


@dataclass(frozen=True)
class Context:
    """Where in the loops evaluation stands.

    Attributes:
        env: scalar loop variables.
        axes: the lanes; empty means that everything is scalar.
        tail: lanes beyond the loop's end are False; None: all lanes are inside.
        guard: lanes where the enclosing guards hold; None: no guard that depends on lanes.
    """

    env: Mapping[str, Int]
    axes: tuple[Axis, ...] = ()
    tail: Value | None = None
    guard: Value | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a.extent for a in self.axes)

    def bind(self, **names: Int) -> Context:
        return replace(self, env={**self.env, **names})

    def with_env(self, names: Mapping[str, Int]) -> Context:
        return replace(self, env={**self.env, **names})


class Body:
    """Evaluates the ops of a kernel; loops over lanes are opened by :class:`tessera.tiling.lower_loops.Loops`."""

    def __init__(self, kernel: Kernel, emit: Emit, buffers: Mapping[Value, Value]):
        self.k, self.e, self.buffers = kernel, emit, buffers
        self._values: list[dict[Value, Value]] = [{}]
        self.streaming = False
        self._fetched: set[Value] = set()  # buffers that finished streams asked for
        self._asked: set[tuple[Value, Int]] = set()  # (buffer, offset) of the loads that came with a request

    # -- values ----------------------------------------------------------------------------------------------------------
    def value(self, v: Value) -> Value:
        for scope in reversed(self._values):
            if v in scope:
                return scope[v]
        raise KeyError(f"{v!r} is used before it is computed")

    def has(self, v: Value) -> bool:
        return any(v in scope for scope in self._values)

    def define(self, old: Value, new: Value) -> None:
        self._values[-1][old] = new

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Values defined inside are forgotten afterwards: their block is left."""
        self._values.append({})
        yield
        self._values.pop()

    # -- blocks ----------------------------------------------------------------------------------------------------------
    def run(self, ops: Sequence[Op], ctx: Context) -> list[Value]:
        """Evaluate ops in order, those already hoisted excepted; the values of the ``yield``."""
        for op in ops:
            if op.name == "yield":
                return [self.value(v) for v in op.operands]
            if not op.results or not self.has(op.results[0]):
                self.evaluate(op, ctx)
        return []

    def hoist(self, ops: Sequence[Op], bound: frozenset[str], ctx: Context) -> None:
        """Evaluate before a loop what does not depend on its variables ``bound``, nor on those of loops inside it."""
        bound = bound | (self.k.ranges.keys() - ctx.env.keys() - {a.name for a in ctx.axes})
        for op in ops:
            if op.name in ("store", "check", "yield", "guard"):
                continue
            if op.name == "for" or (op.name == "reduce" and (stores(op) or not bound.isdisjoint(self.k.depends(op)))):
                self.hoist(op.blocks[0].ops, bound | {loop.name for loop in self.k.loops[op]}, ctx)
            elif bound.isdisjoint(self.k.depends(op)) and all(self.has(v) for v in op.operands if v.op is not None) \
                    and not self.has(op.results[0]) and not self.reads_written(op):
                self.evaluate(op, ctx)

    def reads_written(self, op: Op) -> bool:
        """Loads of what the kernel stores keep their place."""
        return any(o.name == "load" and o.operands[0] in self.k.written for o in op.walk())

    # -- ops -------------------------------------------------------------------------------------------------------------
    def evaluate(self, op: Op, ctx: Context) -> None:
        rule = getattr(self, f"_{op.name}", None)
        values = rule(op, ctx) if rule is not None else [self._pointwise(op)]
        for old, new in zip(op.results, values, strict=True):
            self.define(old, new)

    def _pointwise(self, op: Op) -> Value:
        return self.e.pointwise(op.name, *map(self.value, op.operands), dtype=scalar_of(op.results[0].type),
                                attrs=op.attrs or None)

    def _constant(self, op: Op, ctx: Context) -> list[Value]:
        return [self.e.const(op.attrs["value"], scalar_of(op.results[0].type))]

    def _index(self, op: Op, ctx: Context) -> list[Value]:
        uniform, moving, env = self._split(op, ctx)
        return [self.e.index(self._vector(self.e.scalar(uniform, env), moving, env, ctx))]

    def _check(self, op: Op, ctx: Context) -> list[Value]:
        ok, seen = map(self.value, op.operands)
        mask = self.e.both(ctx.tail, ctx.guard)
        if mask is not None:
            ok = self.e.pointwise("logical_or", ok, self.e.pointwise("logical_not", mask, dtype=bool_), dtype=bool_)
        shape: tuple[int, ...] = next((v.type.shape for v in (ok, seen) if isinstance(v.type, TileType)), ())
        self.e.effect("check", [self.e.splat(ok, shape), self.e.splat(seen, shape)], op.attrs)
        return []

    def _guard(self, op: Op, ctx: Context) -> list[Value]:
        p = self.value(op.operands[0])
        block, other = op.blocks[0], op.attrs.get("other", 0)
        dtypes = [scalar_of(r.type) for r in op.results]
        others = other if isinstance(other, tuple) else (other,) * len(dtypes)
        if isinstance(p.type, TileType):
            with self.scope():
                inner = self.run(block.ops, replace(ctx, guard=self.e.both(ctx.guard, p)))
            return [self.e.pointwise("select", p, v, self.e.const(x, d), dtype=d)
                    for v, x, d in zip(inner, others, dtypes, strict=True)]
        varies = ctx.guard is not None or any(self._varies(v, ctx) for v in block.terminator.operands)  # masked loads are tiles
        shape = ctx.shape if varies else ()
        types = [TileType(d, shape) if shape else ScalarType(d) for d in dtypes]

        def then() -> list[Value]:
            with self.scope():
                return [self.e.splat(v, shape) for v in self.run(block.ops, ctx)]

        return self.e.when(p, types, then, lambda: [self.e.const(x, d, shape) for x, d in zip(others, dtypes, strict=True)])

    def _varies(self, v: Value, ctx: Context) -> bool:
        """Whether a value not yet computed depends on lanes."""
        names = {a.name for a in ctx.axes}
        if not names or v.op is None:
            return False
        return not names.isdisjoint(self.k.depends(v.op)) or any(
            self.has(w) and isinstance(self.value(w).type, TileType) for o in v.op.walk() for w in o.operands)

    # -- memory ----------------------------------------------------------------------------------------------------------
    def _load(self, op: Op, ctx: Context) -> list[Value]:
        buf = self.buffers[op.operands[0]]
        t = buf.type
        assert isinstance(t, BufferType)
        pure = op.operands[0] not in self.k.written
        uniform, moving, env = self._split(op, ctx)
        base = self.e.scalar(uniform, env)
        if not moving and ctx.guard is None:
            return [self.e.op("load", (buf, self.e.index(base)), ScalarType(t.dtype), None, pure)]
        if ctx.guard is None and len(ctx.axes) == 2:
            return [self._load_plane(buf, base, moving, env, ctx, pure)]
        mask = self.e.both(ctx.tail, ctx.guard)
        masked = {"masked": True} if mask is not None else None
        extra = [mask] if mask is not None else []
        result = TileType(t.dtype, ctx.shape)
        if len(ctx.axes) == 1 and moving == {ctx.axes[0].name: 1}:
            at = self.e.add(base, ctx.axes[0].base)
            if mask is None and pure:
                self._fetch_ahead(buf, at, result)
            return [self.e.op("load", (buf, self.e.index(at), *extra), result, masked, pure)]
        step, part = self._short_stride(t.shape[0], uniform, moving, ctx)
        if step:
            at = self.e.add(self.e.sub(base, part), self.e.mul(ctx.axes[0].base, step))
            return [self._load_strided(buf, at, step, part, mask, ctx, pure)]
        flat = self.e.splat(self.e.index(self._vector(base, moving, env, ctx)), ctx.shape)
        return [self.e.op("gather", (buf, flat, *extra), result, masked, pure)]

    def _fetch_ahead(self, buf: Value, at: Int, t: TileType) -> None:
        """In a pass that streams through memory, ask for the lines that a later iteration reads; later passes over the
        same row find it in the cache."""
        if not self.streaming or buf in self._fetched or (buf, at) in self._asked:
            return
        self._asked.add((buf, at))
        line = max(1, 64 // t.dtype.itemsize)
        for k in range(0, t.size, line):
            self.e.effect("prefetch", [buf, self.e.index(self.e.add(at, AHEAD // t.dtype.itemsize + k))])

    @contextmanager
    def stream(self, on: bool) -> Iterator[None]:
        """Contiguous loads inside are the first touch of their memory, if no stream before read the same buffer."""
        saved, self.streaming = self.streaming, on
        yield
        self.streaming = saved
        if not saved:
            self._fetched |= {buf for buf, _ in self._asked}

    def _short_stride(self, size: DimLike, uniform: DimLike, moving: Mapping[Any, DimLike], ctx: Context) -> tuple[int, int]:
        """(stride, remainder) of an access that takes every 2nd to 4th element, and whole groups of them lie in the
        buffer: its size and all else in the offset are multiples of the stride.  (0, 0) otherwise."""
        if len(ctx.axes) != 1 or list(moving) != [ctx.axes[0].name]:
            return 0, 0
        step = moving[ctx.axes[0].name]
        rest = next((c for m, c in uniform.terms if m == ()), 0) if isinstance(uniform, Dim) else uniform
        if not isinstance(step, int) or not 2 <= step <= 4 or mod(uniform - rest, step) != 0 or mod(size, step) != 0:
            return 0, 0
        return step, rest % step

    def _load_strided(self, buf: Value, at: Int, step: int, part: int, mask: Value | None, ctx: Context, pure: bool) -> Value:
        """Every ``step``-th element: a contiguous load of all, and one column of it."""
        e = self.e
        assert isinstance(buf.type, BufferType)
        dtype, extra = buf.type.dtype, []
        n = ctx.shape[0]
        if mask is not None:
            extra = [self._repeat(mask, step)]
        wide = e.op("load", (buf, e.index(at), *extra), TileType(dtype, (n * step,)), {"masked": True} if extra else None, pure)
        groups = e.op("reshape", (wide,), TileType(dtype, (n, step)))
        column = e.op("slice", (groups,), TileType(dtype, (n, 1)), {"starts": (0, part), "limits": (n, part + 1)})
        return e.op("reshape", (column,), TileType(dtype, (n,)))

    def _repeat(self, mask: Value, times: int) -> Value:
        """Each lane of a mask, ``times`` times."""
        assert isinstance(mask.type, TileType)
        (n,) = mask.type.shape
        thin = self.e.op("reshape", (mask,), TileType(bool_, (n, 1)))
        both = self.e.op("broadcast", (thin,), TileType(bool_, (n, times)))
        return self.e.op("reshape", (both,), TileType(bool_, (n * times,)))

    def _load_plane(self, buf: Value, base: Int, moving: Any, env: Any, ctx: Context, pure: bool) -> Value:
        """A load on two axes of lanes: lines along the axis that is contiguous in memory, transposed where needed."""
        e = self.e
        assert isinstance(buf.type, BufferType)
        dtype = buf.type.dtype
        row, col = ctx.axes
        steps = self._steps(moving, ctx)
        if steps is None:
            flat = e.splat(e.index(self._vector(base, moving, env, ctx)), ctx.shape)
            return e.op("gather", (buf, flat), TileType(dtype, ctx.shape), None, pure)
        along = 1 if isinstance(steps[1], int) and steps[1] == 1 else 0
        lane, other = ctx.axes[along], ctx.axes[1 - along]
        start = e.add(base, lane.base)
        line = TileType(dtype, (lane.extent,))
        stride = steps[1 - along]
        if isinstance(stride, int) and stride == 0:
            flat_line = e.op("load", (buf, e.index(start)), line, None, pure)
            thin = e.op("reshape", (flat_line,), TileType(dtype, (1, lane.extent) if along else (lane.extent, 1)))
            return e.op("broadcast", (thin,), TileType(dtype, ctx.shape))
        step = e.scalar(stride, env)
        start = e.add(start, e.mul(other.base, step))
        lines = []
        for r in range(other.extent):
            at = e.add(start, e.mul(r, step))
            one = e.op("load", (buf, e.index(at)), line, None, pure)
            lines.append(e.op("reshape", (one,), TileType(dtype, (1, lane.extent))))
        whole = e.op("concat", lines, TileType(dtype, (other.extent, lane.extent)), {"axis": 0})
        return whole if along else e.op("transpose", (whole,), TileType(dtype, (row.extent, col.extent)),
                                        {"perm": (1, 0)})

    def _steps(self, moving: Mapping[Any, DimLike], ctx: Context) -> tuple[DimLike, DimLike] | None:
        """Strides along both axes, where they are uniform and one of them is 1."""
        names = [a.name for a in ctx.axes]
        if not moving.keys() <= set(names):
            return None
        steps = tuple(moving.get(n, 0) for n in names)
        return (steps[0], steps[1]) if any(isinstance(s, int) and s == 1 for s in steps) else None

    def _store(self, op: Op, ctx: Context) -> list[Value]:
        if op.attrs.get("parts") == 2:
            self._store_pair(op, ctx)
        else:
            self._store_one(op, self.value(op.operands[1]), 0, ctx)
        return []

    def _store_pair(self, op: Op, ctx: Context) -> None:
        """Both parts of complex numbers: interleaved where the numbers are neighbours."""
        parts = [self.value(v) for v in op.operands[1:3]]
        uniform, moving, env = self._split(op, ctx)
        if len(ctx.axes) != 1 or moving != {ctx.axes[0].name: 2}:
            for i, v in enumerate(parts):
                self._store_one(op, v, i, ctx)
            return
        e, (n,), dtype = self.e, ctx.shape, scalar_of(parts[0].type)
        columns = [e.op("reshape", (e.splat(v, ctx.shape),), TileType(dtype, (n, 1))) for v in parts]
        both = e.op("concat", columns, TileType(dtype, (n, 2)), {"axis": 1})
        at = e.add(e.scalar(uniform, env), e.mul(ctx.axes[0].base, 2))
        mask = e.both(ctx.tail, ctx.guard)
        extra = [self._repeat(mask, 2)] if mask is not None else []
        flat = e.op("reshape", (both,), TileType(dtype, (2 * n,)))
        e.effect("store", [self.buffers[op.operands[0]], e.index(at), flat, *extra], {"masked": True} if extra else {})

    def _store_one(self, op: Op, value: Value, part: int, ctx: Context) -> None:
        buf = self.buffers[op.operands[0]]
        uniform, moving, env = self._split(op, ctx)
        uniform = uniform + part
        base = self.e.scalar(uniform, env)
        if not ctx.axes:
            self.e.effect("store", [buf, self.e.index(base), value])
            return
        value = self.e.splat(value, ctx.shape)
        mask = self.e.both(ctx.tail, ctx.guard)
        attrs = {"masked": True} if mask is not None else {}
        extra = [mask] if mask is not None else []
        if len(ctx.axes) == 1 and moving == {ctx.axes[0].name: 1}:
            at = self.e.add(base, ctx.axes[0].base)
            self.e.effect("store", [buf, self.e.index(at), value, *extra], attrs)
        elif len(ctx.axes) == 2 and mask is None and self._steps(moving, ctx) is not None:
            self._store_plane(buf, base, moving, env, value, ctx)
        else:
            flat = self.e.splat(self.e.index(self._vector(base, moving, env, ctx)), ctx.shape)
            self.e.effect("scatter", [buf, flat, value, *extra], attrs)

    def _store_plane(self, buf: Value, base: Int, moving: Any, env: Any, value: Value, ctx: Context) -> None:
        e = self.e
        dtype = scalar_of(value.type)
        steps = self._steps(moving, ctx)
        assert steps is not None
        along = 1 if isinstance(steps[1], int) and steps[1] == 1 else 0
        lane, other = ctx.axes[along], ctx.axes[1 - along]
        if not along:
            value = e.op("transpose", (value,), TileType(dtype, (other.extent, lane.extent)), {"perm": (1, 0)})
        step = e.scalar(steps[1 - along], env)
        start = e.add(e.add(base, lane.base), e.mul(other.base, step))
        for r in range(other.extent):
            one = e.op("slice", (value,), TileType(dtype, (1, lane.extent)),
                       {"starts": (r, 0), "limits": (r + 1, lane.extent)})
            one = e.op("reshape", (one,), TileType(dtype, (lane.extent,)))
            e.effect("store", [buf, e.index(e.add(start, e.mul(r, step))), one])

    # -- indices ---------------------------------------------------------------------------------------------------------
    def _split(self, op: Op, ctx: Context) -> tuple[DimLike, dict[Any, DimLike], dict[str, Any]]:
        dynamic = {n: self.value(v) for n, v in dynamic_operands(op).items()}
        return self.split(self.k.expr[op], dynamic, ctx)

    def split(self, d: DimLike, dynamic: Mapping[str, Value], ctx: Context) -> tuple[DimLike, dict[Any, DimLike], dict[str, Any]]:
        """``d`` as a scalar part and a part that differs between lanes: {product of moving atoms: scalar coefficient}.

        A single atom to the first power stands for itself in the keys, so that a lane's name is its own key.
        """
        lanes = {a.name for a in ctx.axes} | {n for n, v in dynamic.items() if isinstance(v.type, TileType)}
        env: dict[str, Any] = {**ctx.env, **dynamic}
        uniform: DimLike = 0
        moving: dict[Any, DimLike] = {}
        for m, c in d.terms if isinstance(d, Dim) else (((), d),):
            key = tuple((a, p) for a, p in m if _touches(a, lanes))
            rest: DimLike = c
            for a, p in m:
                if not _touches(a, lanes):
                    rest = rest * atom(a) ** p
            if not key:
                uniform = uniform + rest
                continue
            short: Any = key[0][0] if len(key) == 1 and key[0][1] == 1 else key
            moving[short] = moving.get(short, 0) + rest
        return uniform, {a: c for a, c in moving.items() if c != 0}, env

    def offsets(self, d: DimLike, dynamic: Mapping[str, Value], ctx: Context) -> Int:
        """The value of an index expression: an int, a scalar, or a tile where it differs between lanes."""
        uniform, moving, env = self.split(d, dynamic, ctx)
        value: Int = self._vector(self.e.scalar(uniform, env), moving, env, ctx)
        return value

    def _vector(self, base: Int, moving: Mapping[Any, DimLike], env: Mapping[str, Any], ctx: Context) -> Any:
        e = self.e
        total: Value | None = None
        lanes = {a.name: (i, a) for i, a in enumerate(ctx.axes)}
        for key, coefficient in moving.items():
            scale = e.scalar(coefficient, env)
            if isinstance(key, str) and key in lanes:  # keep the lane's base in scalars
                i, axis = lanes[key]
                base = e.add(base, e.mul(axis.base, scale))
                term = e.iota(ctx.shape, i)
            else:
                term = self._product(key, env, ctx)
            if e.known(scale) != 1:
                term = e.pointwise("mul", term, e.index(scale))
            total = term if total is None else e.pointwise("add", total, term)
        if total is None:
            return base
        return total if isinstance(base, int) and base == 0 else e.pointwise("add", total, e.index(base))

    def _product(self, key: Any, env: Mapping[str, Any], ctx: Context) -> Value:
        factors = [key] if isinstance(key, str) or isinstance(key[0], str) else [a for a, p in key for _ in range(p)]
        out: Value | None = None
        for a in factors:
            f = self._moving_atom(a, env, ctx)
            out = f if out is None else self.e.pointwise("mul", out, f)
        assert out is not None
        return out

    def _moving_atom(self, a: Any, env: Mapping[str, Any], ctx: Context) -> Value:
        e = self.e
        if isinstance(a, str):
            for i, axis in enumerate(ctx.axes):
                if axis.name == a:
                    return e.pointwise("add", e.iota(ctx.shape, i), e.index(axis.base))
            return e.splat(env[a], ctx.shape)
        dynamic = {n: v for n, v in env.items() if isinstance(v, Value) and isinstance(v.type, TileType)}
        x, y = (self.offsets(d, dynamic, _with_scalars(ctx, env)) for d in a[1:])
        if a[0] in ("max", "min"):
            return e.pointwise("maximum" if a[0] == "max" else "minimum", e.index(x), e.index(y))
        x = e.splat(e.index(x), ctx.shape)
        if isinstance(y, Value) and isinstance(y.type, TileType):
            return e.pointwise("floor_div" if a[0] == "floordiv" else "mod", x, y)
        return e.quotient(x, y) if a[0] == "floordiv" else e.remainder(x, y)


def stores(op: Op) -> bool:
    """True when an op writes memory."""
    return any(o.name == "store" for o in op.walk())


def _with_scalars(ctx: Context, env: Mapping[str, Any]) -> Context:
    return ctx.with_env({n: v for n, v in env.items() if not (isinstance(v, Value) and isinstance(v.type, TileType))})


def _touches(a: Any, names: set[str]) -> bool:
    if isinstance(a, str):
        return a in names
    return any(isinstance(d, Dim) and not names.isdisjoint(d.names) for d in a[1:])


__all__ = ["INDEX", "Axis", "Block", "Body", "Context", "int64"]
