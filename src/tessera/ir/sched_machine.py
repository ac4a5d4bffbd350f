"""The numpy machine that runs Schedule IR (see :mod:`tessera.ir.interpret_sched`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..types.dims import Dim, DimLike, evaluate
from ..types.dtypes import DType
from .core import Block, Function, Op, Value
from .interpret_graph import REFERENCES
from .pointwise_numpy import pointwise

Array = np.ndarray[Any, Any]
POINTS = 1 << 20  # points of a grid evaluated at once
Template = Callable[["Interpreter", Op, list[Array]], None]
"""The meaning of a template with blocks; others mean what their attribute ``op`` does."""


class Frame:
    """The loops around a place: name -> index array (or int), how many axes there are, and where lanes are off."""

    __slots__ = ("axes", "env", "mask", "values")

    def __init__(self, env: dict[str, Any], axes: int, values: dict[Value, Any], mask: Any = None):
        self.env, self.axes, self.values, self.mask = env, axes, values, mask


class Interpreter:
    """Evaluates one program; templates use it for their blocks."""

    def __init__(self, fn: Function, sizes: dict[str, int], templates: Mapping[str, Template]):
        self.fn, self.sizes, self.templates = fn, sizes, templates
        self.failures: list[tuple[int, Any]] = []
        self.buffers: dict[Value, Array] = {}
        self.loops: dict[str, int] = {}
        self.arena: Array = np.empty(0, np.uint8)

    def message(self, site: int) -> str:
        sites = self.fn.attrs.get("sites", ())
        return str(sites[site]) if site < len(sites) else f"check {site} failed on {{value}}"

    def size(self, d: DimLike) -> int:
        return evaluate(d, {**self.sizes, **self.loops})

    def shape(self, dims: Sequence[DimLike]) -> tuple[int, ...]:
        return tuple(self.size(d) for d in dims)

    # -- the sequence of launches --------------------------------------------------------------------------------------
    def run_function(self, fn: Function, arrays: list[Array], arena: Array | None = None) -> None:
        if len(arrays) != len(fn.args):
            raise ValueError(f"{fn.name} takes {len(fn.args)} buffers, not {len(arrays)}")
        saved = self.fn, self.buffers, self.arena
        self.fn, self.buffers = fn, {}
        for a, x in zip(fn.args, arrays, strict=True):
            if tuple(x.shape) != self.shape(a.type.shape):
                raise ValueError(f"%{a.name} of {fn.name} is {a.type}, not an array of shape {x.shape}")
            self.buffers[a] = x
        if arena is None and "arena" in fn.attrs:
            arena = np.full(self.size(fn.attrs["arena"]), 0xFF, np.uint8)
        self.arena = arena if arena is not None else np.empty(0, np.uint8)
        self.run_block(fn.body)
        failures = self.failures
        self.fn, self.buffers, self.arena = saved
        self.failures = failures

    def run_block(self, block: Block) -> list[Value]:
        for op in block.ops:
            if op.name in ("return", "yield"):
                return op.operands
            getattr(self, f"do_{op.name}")(op)
        return []

    def do_alloc(self, op: Op) -> None:
        t = op.result.type
        shape = self.shape(t.shape)
        count = int(np.prod(shape, dtype=np.int64))
        if "offset" in op.attrs:
            start = self.size(op.attrs["offset"])
            data = self.arena[start:start + count * t.dtype.itemsize]
        else:
            data = np.full(count * t.dtype.itemsize, 0xFF, np.uint8)
        self.buffers[op.result] = data.view(t.dtype.np).reshape(shape)

    def do_constant(self, op: Op) -> None:
        self.buffers[op.result] = np.asarray(op.attrs["value"])

    def do_view(self, op: Op) -> None:
        shape = self.shape(op.result.type.shape)
        start = self.size(op.attrs["offset"])
        count = int(np.prod(shape, dtype=np.int64))
        flat = self.buffers[op.operands[0]].reshape(-1).view(op.result.type.dtype.np)
        self.buffers[op.result] = flat[start:start + count].reshape(shape)

    def do_kernel(self, op: Op) -> None:
        self.run_grid(op.attrs["grid"], op.blocks[0], [self.buffers[v] for v in op.operands], [])

    def do_template(self, op: Op) -> None:
        arrays = [self.buffers[v] for v in op.operands]
        special = self.templates.get(op.attrs["template"])
        if special is not None and "blocks" in op.attrs:
            special(self, op, arrays)
        else:
            self._by_reference(op, arrays)

    def do_external(self, op: Op) -> None:
        self._by_reference(op, [self.buffers[v] for v in op.operands])

    def _by_reference(self, op: Op, arrays: list[Array]) -> None:
        outs = op.attrs["outs"]
        own = ("template", "op", "name", "site", "outs", "function", "tile")
        attrs = {k: self._attr(v) for k, v in op.attrs.items() if k not in own}
        got = REFERENCES[op.attrs["op"]](*[x for i, x in enumerate(arrays) if i not in outs], **attrs)
        for i, x in zip(outs, got if isinstance(got, tuple) else (got,), strict=True):
            arrays[i][...] = x

    def _attr(self, v: Any) -> Any:
        if isinstance(v, Dim):
            return self.size(v)
        return tuple(self._attr(x) for x in v) if isinstance(v, tuple) else v

    def do_launch(self, op: Op) -> None:
        from .interpret_tile import interpret as run_tile
        run_tile(self.fn.functions[op.attrs["callee"]], [self.buffers[v] for v in op.operands], self.sizes)

    def do_call(self, op: Op) -> None:
        callee = self.fn.functions[op.attrs["callee"]]
        arena = None
        if "offset" in op.attrs:
            start = self.size(op.attrs["offset"])
            arena = self.arena[start:start + self.size(callee.attrs.get("arena", 0))]
        self.run_function(callee, [self.buffers[v] for v in op.operands], arena)

    def do_cond(self, op: Op) -> None:
        self.run_block(op.blocks[0 if self.buffers[op.operands[0]][()] else 1])

    def do_while(self, op: Op) -> None:
        while self.buffers[self.run_block(op.blocks[0])[0]][()]:
            self.run_block(op.blocks[1])

    def do_loop(self, op: Op) -> None:
        name, extent = op.attrs["over"]
        for t in range(self.size(extent)):
            self.loops[name] = t
            self.run_block(op.blocks[0])
        self.loops.pop(name, None)

    # -- scalar bodies -------------------------------------------------------------------------------------------------
    def run_grid(self, grid: Sequence[tuple[str, DimLike]], block: Block, arrays: Sequence[Array],
                 scalars: Sequence[Callable[[Frame], Any]]) -> list[Array]:
        """Evaluate a body at every point; extra block arguments are given by functions of the frame.

        Returns what the block yields (as arrays over the grid), where the grid was evaluated in one piece.
        """
        extents = [self.size(e) for _, e in grid]
        if 0 in extents:
            return []
        rest = max(1, int(np.prod(extents[1:], dtype=np.int64)))
        step = max(1, POINTS // rest // 64) if extents else 1
        out: list[Array] = []
        for start in range(0, extents[0] if extents else 1, step):
            env: dict[str, Any] = {**self.sizes, **self.loops}
            for k, (n, _) in enumerate(grid):
                lo, hi = (start, min(start + step, extents[0])) if k == 0 else (0, extents[k])
                env[n] = np.arange(lo, hi).reshape([-1 if i == k else 1 for i in range(len(grid))])
            frame = Frame(env, len(grid), dict(zip(block.args, arrays)))
            for a, give in zip(block.args[len(arrays):], scalars, strict=True):
                frame.values[a] = give(frame)
            out = [np.asarray(frame.values[v]) for v in self.body(block, frame)]
        return out

    def body(self, block: Block, f: Frame) -> list[Value]:
        for op in block.ops:
            if op.name == "yield":
                return op.operands
            handler = getattr(self, f"scalar_{op.name}", None)
            if handler is not None:
                handler(op, f)
            else:
                f.values[op.result] = self._pointwise(op, [self._lift(f.values[v], f) for v in op.operands])
        return []

    @staticmethod
    def _lift(x: Any, f: Frame) -> Any:
        x = np.asarray(x)
        return x.reshape(x.shape + (1,) * (f.axes - x.ndim)) if x.ndim < f.axes else x

    @staticmethod
    def _pointwise(op: Op, values: list[Array]) -> Array:
        dtype: DType = op.result.type.dtype
        return pointwise(op.name, np.broadcast_arrays(*values), dtype)

    def scalar_constant(self, op: Op, f: Frame) -> None:
        f.values[op.result] = np.asarray(op.attrs["value"]).astype(op.result.type.dtype.np)

    def scalar_index(self, op: Op, f: Frame) -> None:
        env = self._dynamic_env(op, f, op.operands)
        f.values[op.result] = np.asarray(size_value(op.attrs["value"], env), np.int64)

    def _dynamic_env(self, op: Op, f: Frame, dynamics: Sequence[Value]) -> dict[str, Any]:
        names = op.attrs.get("dyn", ())
        if not names:
            return f.env
        return {**f.env, **{n: self._lift(f.values[v], f) for n, v in zip(names, dynamics, strict=True)}}

    def _index(self, op: Op, f: Frame, buffer: Array, dynamics: Sequence[Value]) -> tuple[Any, ...]:
        env = self._dynamic_env(op, f, dynamics)
        out: list[Array] = []
        for e, extent in zip(op.attrs["index"], buffer.shape, strict=True):
            i = np.asarray(size_value(e, env))
            bad = (i < 0) | (i >= extent)
            if f.mask is not None:
                bad = bad & f.mask
                i = np.clip(i, 0, max(extent - 1, 0))
            if np.any(bad):
                raise IndexError(f"{op.name} {op.attrs['index']} leaves axis {len(out)} of size {extent}")
            out.append(i)
        return tuple(out)

    def scalar_load(self, op: Op, f: Frame) -> None:
        buffer = f.values[op.operands[0]]
        index = self._index(op, f, buffer, op.operands[1:])
        if buffer.size == 0:
            f.values[op.result] = np.zeros((), buffer.dtype)
        else:
            f.values[op.result] = np.asarray(buffer[index])

    def scalar_store(self, op: Op, f: Frame) -> None:
        buffer, value = f.values[op.operands[0]], self._lift(f.values[op.operands[1]], f)
        index = self._index(op, f, buffer, op.operands[2:])
        if f.mask is None:
            buffer[index] = value
            return
        everything = np.broadcast_arrays(f.mask, value, *index)
        on = everything[0].astype(bool)
        buffer[tuple(i[on] for i in everything[2:])] = everything[1][on]

    def scalar_guard(self, op: Op, f: Frame) -> None:
        p = self._lift(f.values[op.operands[0]], f).astype(bool)
        inner = Frame(f.env, f.axes, f.values, p if f.mask is None else p & f.mask)
        (v,) = self.body(op.blocks[0], inner)
        dtype = op.result.type.dtype.np
        f.values[op.result] = np.where(p, self._lift(f.values[v], f), np.asarray(op.attrs["other"]).astype(dtype)).astype(dtype)

    def scalar_check(self, op: Op, f: Frame) -> None:
        ok, value = (self._lift(f.values[v], f) for v in op.operands)
        parts = np.broadcast_arrays(ok, value, True if f.mask is None else f.mask)
        bad = ~parts[0].astype(bool) & parts[2].astype(bool)
        if bad.any():
            self.failures.append((op.attrs["site"], parts[1][bad].ravel()[0]))

    @contextmanager
    def _inside(self, loops: Sequence[tuple[str, DimLike]], f: Frame) -> Iterator[Frame]:
        axes = f.axes + len(loops)
        env = {n: x.reshape(x.shape + (1,) * len(loops)) if isinstance(x, np.ndarray) else x for n, x in f.env.items()}
        for k, (n, e) in enumerate(loops):
            env[n] = np.arange(self.size(e)).reshape([-1 if i == f.axes + k else 1 for i in range(axes)])
        mask = None if f.mask is None else f.mask.reshape(f.mask.shape + (1,) * len(loops))
        yield Frame(env, axes, f.values, mask)

    def scalar_for(self, op: Op, f: Frame) -> None:
        if 0 in [self.size(e) for _, e in op.attrs["over"]]:
            return
        with self._inside(op.attrs["over"], f) as inner:
            self.body(op.blocks[0], inner)

    def scalar_reduce(self, op: Op, f: Frame) -> None:
        loops, combine, lanes = op.attrs["over"], op.attrs["combine"], op.attrs.get("lanes", 1)
        extents = [self.size(e) for _, e in loops]
        dtype = op.results[0].type.dtype
        if 0 in extents:
            f.values[op.results[0]] = np.asarray(identity(combine, dtype)).astype(dtype.np)
            return
        with self._inside(loops, f) as inner:
            v = self._lift(f.values[self.body(op.blocks[0], inner)[0]], inner)
        v = np.broadcast_to(v, v.shape[:f.axes] + tuple(extents)).reshape((*v.shape[:f.axes], -1))
        if combine in ("argmax", "argmin"):
            wide = v.astype(np.float32) if dtype.is_float and dtype.bits < 32 else v
            at = (np.argmax if combine == "argmax" else np.argmin)(wide, axis=-1)
            f.values[op.results[0]] = np.take_along_axis(v, at[..., None], -1)[..., 0]
            f.values[op.results[1]] = at.astype(np.int64)
        else:
            f.values[op.results[0]] = fold(v, combine, dtype, lanes)


COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum"}


def identity(combine: str, dtype: DType) -> Any:
    """What a reduction over nothing gives, and what its accumulators start from."""
    if combine == "and":
        return True if dtype.kind == "bool" else -1 if dtype.kind == "int" else dtype.max
    return {"add": 0, "mul": 1, "max": dtype.min, "min": dtype.max, "or": 0, "xor": 0}[combine]


def combine_op(combine: str, dtype: DType) -> str:
    """The pointwise op of a reduction."""
    return COMBINE.get(combine) or f"{'logical' if dtype.kind == 'bool' else 'bitwise'}_{combine}"


def fold(v: Array, combine: str, dtype: DType, lanes: int) -> Array:
    """Reduce the last axis in the fixed order: round-robin over ``lanes`` accumulators, then by halving."""
    step = combine_op(combine, dtype)
    acc = np.full((*v.shape[:-1], lanes), identity(combine, dtype)).astype(dtype.np)
    for start in range(0, v.shape[-1], lanes):
        here = v[..., start:start + lanes]
        n = here.shape[-1]
        acc[..., :n] = pointwise(step, (acc[..., :n], here), dtype)
    while lanes > 1:
        lanes //= 2
        acc = pointwise(step, (acc[..., :lanes], acc[..., lanes:2 * lanes]), dtype)
    return np.asarray(acc[..., 0])


def size_value(d: DimLike, env: Mapping[str, Any]) -> Any:
    """A size expression over integers and index arrays."""
    if isinstance(d, int):
        return d
    total: Any = 0
    for mono, c in d.terms:
        t: Any = c
        for a, power in mono:
            if isinstance(a, str):
                v = env[a]
            else:
                x, y = size_value(a[1], env), size_value(a[2], env)
                v = {"floordiv": np.floor_divide, "mod": np.mod, "max": np.maximum, "min": np.minimum}[a[0]](x, y)
            for _ in range(power):
                t = t * v
        total = total + t
    return total
