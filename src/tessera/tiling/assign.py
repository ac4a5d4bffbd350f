"""Layouts for a tile program: a pass for targets whose blocks have many threads.

Tiles that ops combine element by element (operands and results of pointwise ops, a value and its mask, what a loop carries)
form a *class*; a class has one layout, so nothing moves inside it.  A class that a ``dot`` accumulates into has its threads
in a grid; a class that is the result of a ``reduce`` has the layout of the reduced tile without that axis; any other has the
layout of memory access.  Where an op's result lies otherwise than its class does, a ``relayout`` follows it.

Constants, ``splat``, ``iota`` and ``broadcast`` cost nothing to make again: each user gets its own, in its own layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ..ir.core import Block, BufferType, Builder, Copier, Function, Op, TileType, Value
from ..ir.tile import POINTWISE, root
from ..ir.tile_explicit import GROUP, is_explicit_program
from ..types.dtypes import f32
from .divisors import dim_divisor
from .layouts import (
    Layout,
    axis_bits,
    blocked,
    factors_of,
    fragment,
    grid_of_threads,
    log2_up,
    of_fragments,
    squares,
    warps_of_product,
)

FREE = frozenset({"constant", "full", "splat", "iota", "broadcast", "uninitialized"})
"""Ops that are made again for each layout that is asked of them."""
UNROLLED = 16
"""The most steps of k of a product by fma whose operands threads take from memory straight into registers."""
SUMS = 64
"""Elements of a product's result that one thread sums into in registers."""


def assign_layouts(fn: Function, machine: Any) -> Function:
    """A copy of a tile function in which every tile has a layout, with the attributes ``threads`` (of a block) and ``lanes``.

    Args:
        machine: the target's description: ``lanes``, ``block_threads`` and ``max_threads``.  An attribute ``threads`` of the
            function decides itself.
    """
    classes = _Classes(fn, machine)
    new = Function(fn.name, fn.level, Block([a.type for a in fn.args], [a.name for a in fn.args]), dict(fn.attrs), dict(fn.functions))
    new.attrs |= {"threads": classes.threads, "lanes": classes.lanes}
    copier = _Assigner(Builder(new.body), classes)
    copier.map.update(zip(fn.args, new.args, strict=True))
    copier.run(fn.body.ops[:-1])
    copier.builder.op("return")
    return new


def threads_of(fn: Function, machine: Any) -> int:
    """Threads of a block: as many as the largest tile keeps busy, a warp at least; more where a product's sums would fill registers."""
    given = fn.attrs.get("threads")
    if given is not None:
        return int(given)
    largest = max([r.type.size for op in fn.walk() for r in op.results if isinstance(r.type, TileType)], default=1)
    sums = max([op.result.type.size for op in fn.walk() if op.name == "dot" and unit_of(op, machine) is not None], default=0)
    most = max(int(machine.block_threads), min(256, int(machine.max_threads), sums // SUMS))
    return max(int(machine.lanes), min(most, 1 << log2_up(largest)))


class _Classes:
    """Which values share a layout, and which layout that is."""

    def __init__(self, fn: Function, machine: Any):
        self.fn, self.machine = fn, machine
        self.lanes = int(machine.lanes)
        self.groups = is_explicit_program(fn)
        self.threads = GROUP if self.groups else threads_of(fn, machine)
        self.rows_first = rows_first(fn)
        self.nest = {op: b for b in _blocks(fn.body) for op in b.ops}
        self.vector = self._vector_elements(fn) if machine.access_elements(f32) > 1 else 1
        self.parent: dict[Value, Value] = {}
        self.members: dict[Value, list[Value]] = {}
        self.found: dict[Value, Layout] = {}
        self.asked: set[Value] = set()
        self.wanted: dict[Value, Layout] = {}  # what memory of the block holds for products or stores -> what threads take of it
        self.read_down: dict[Value, int] = {}  # operands of matrix instructions that lie along rows -> neighbours down a column of one lane
        for op in fn.walk():
            self._relate(op)
        for v in list(self.parent):
            self.members.setdefault(self.root(v), []).append(v)

    @staticmethod
    def _vector_elements(fn: Function) -> int:
        """Elements of one 16-byte access of the widest type that tiles are loaded or stored in."""
        sizes = [op.operands[0].type.dtype.itemsize for op in fn.walk()
                 if op.name in ("load", "store") and any(isinstance(v.type, TileType) for v in (*op.operands, *op.results))]
        return max(1, 16 // max(sizes, default=4))

    # -- classes ---------------------------------------------------------------------------------------------------------
    def root(self, v: Value) -> Value:
        up = self.parent.setdefault(v, v)
        while up is not v:
            self.parent[v] = self.parent.setdefault(up, up)
            v, up = up, self.parent[up]
        return v

    def _join(self, values: Sequence[Value]) -> None:
        tiles = [v for v in values if isinstance(v.type, TileType) and not is_free(v)]
        for v in tiles:
            self.root(v)
        for a, b in pairwise(tiles):
            self.parent[self.root(a)] = self.root(b)

    def _relate(self, op: Op) -> None:
        if op.name in POINTWISE or op.name in ("check", "exchange"):
            self._join([*op.operands, *op.results])
        elif op.name in ("load", "store"):
            rank = op.operands[0].type.rank
            self._join([*op.operands[1 + rank:], *op.results])
            if self.groups and op.name == "store":
                self._passes(op)
        elif op.name in ("gather", "scatter", "atomic"):
            self._join([*op.operands[1:], *op.results])
        elif op.name == "dot":
            self._join([op.operands[2], op.results[0]])
            self._fragments(op)
        elif op.name == "mma_async":
            self._join([op.operands[0], op.results[0]])
        elif op.name == "mma_wait":
            for pair in zip(op.operands, op.results, strict=True):
                self._join(pair)
        elif op.name == "for":
            body = op.blocks[0]
            for group in zip(op.operands[3:], body.args[1:], body.terminator.operands, op.results, strict=True):
                self._carry(group)
        elif op.name == "while":
            head, body = op.blocks
            for group in zip(op.operands, head.args, head.terminator.operands[1:], body.args, body.terminator.operands, op.results,
                             strict=True):
                self._carry(group)
        elif op.name == "if":
            for group in zip(*(b.terminator.operands for b in op.blocks), op.results, strict=True):
                self._carry(group)
        else:
            self._join(op.results)

    def _passes(self, store: Op) -> None:
        """What programs of warp groups load from shared memory to store it elsewhere lies as rows of the target want it: neighbours in
        lanes side by side, as many elements each as rows keep aligned."""
        to: BufferType = store.operands[0].type
        value = store.operands[1 + to.rank]
        if _from_scratch(value, "shared") and to.space == "global":
            width = dim_divisor(to.shape[-1]) & -dim_divisor(to.shape[-1])
            vector = max(1, min(width, 16 // to.dtype.itemsize))
            self.wanted[value] = blocked(value.type.shape, vector, self.lanes, self.threads // self.lanes)

    def _fragments(self, op: Op) -> None:
        """Operands of a product that are loaded from memory of the block come in the layout that the product takes."""
        unit = unit_of(op, self.machine)
        (m, k), n = op.operands[0].type.shape, op.operands[1].type.shape[1]
        sources = [_untransposed(v) for v in op.operands[:2]]
        if unit is None:
            if k <= UNROLLED and powers((m, k, n)) and all(_from_scratch(v) for v in sources):
                layouts = factors_of(product_layout(op, self.machine, self.lanes, max(1, self.threads // self.lanes)), k)
                self._want(op, sources, layouts)
            return
        self._want(op, [v if _from_scratch(v, "shared") or self._once(v, op) else None for v in sources],
                   operand_layouts(unit, self.machine, max(1, self.threads // self.lanes), (m, k, n), self.rows_first)[:2])
        fragments = self.machine.fragments_of(unit)
        for v, source, steps in zip(op.operands, sources, (fragments.lhs[0], fragments.rhs[0]), strict=False):
            contracted = (1 if v is op.operands[0] else 0) if source is v else (0 if v is op.operands[0] else 1)
            if contracted == 0:
                axis = 1 if v is op.operands[0] else 0
                self.read_down[source] = 1 << sum(s[axis] == 1 << i for i, s in enumerate(steps))

    def _want(self, op: Op, sources: Sequence[Value | None], layouts: Sequence[Layout]) -> None:
        for v, source, layout in zip(op.operands, sources, layouts, strict=False):
            if source is not None:
                self.wanted.setdefault(source, layout if source is v else layout.permuted((1, 0)))

    def _once(self, operand: Value, product: Op) -> bool:
        """Whether an operand is loaded before the loop in which it is multiplied: then it is not moved in every turn."""
        load = operand.op
        return load is not None and load.name == "load" and self.nest[load] is not self.nest[product]

    def _carry(self, group: Sequence[Value]) -> None:
        self._join(group)

    # -- layouts ---------------------------------------------------------------------------------------------------------
    def layout(self, v: Value) -> Layout:
        """The layout of a value's class."""
        root = self.root(v)
        if root not in self.found:
            self.asked.add(root)
            made = self._decide(self.members.get(root, [v]))
            self.asked.discard(root)
            self.found[root] = made
        return self.found[root]

    def default(self, shape: tuple[int, ...], vector: int = 0) -> Layout:
        """The layout for memory access; in programs of warp groups, whose matrices have 64 rows, that of accumulators."""
        if self.groups and shape[0] == 64 and len(shape) <= 2:
            if len(shape) == 1:
                return fragment((64, 8)).without(1).compact()
            if shape[1] % 8 == 0:
                return fragment(shape)
        return blocked(shape, self.vector if self.vector == 1 or not vector else vector, self.lanes, max(1, self.threads // self.lanes))

    def _decide(self, members: Sequence[Value]) -> Layout:
        shape = members[0].type.shape
        makers = {m.op.name: m.op for m in members if m.op is not None}
        if "mma_async" in makers:
            return fragment(shape)
        for v in members:
            if v in self.wanted and len(members) == 1:
                return self.wanted[v]
        for v in members:
            if v in self.read_down and len(shape) == 2 and "transpose" not in makers:
                each = max(1, 16 // v.type.dtype.itemsize)
                return squares(shape, each, self.read_down[v], self.lanes, max(1, self.threads // self.lanes))
        if "dot" in makers:
            return product_layout(makers["dot"], self.machine, self.lanes, max(1, self.threads // self.lanes), self.rows_first)
        if "load" in makers and makers.keys() <= {"load", "for", "if"}:  # nothing of another dtype shares the layout
            return self.default(shape, max(1, 16 // max(m.type.dtype.itemsize for m in members)))
        for name in ("reduce", "reshape", "transpose"):
            op = makers.get(name)
            if op is None or (name != "reduce" and ("load" in makers or "gather" in makers)):
                continue
            source = op.operands[0]
            if is_free(source) or self.root(source) in self.asked:
                continue
            got = produced(op, self.layout(source))
            if got is not None:
                return got
        return self.default(shape)


def rows_first(fn: Function) -> bool:
    """Whether the warps of a block share out the rows of products alone (the attribute ``warps`` of the function is ``"rows"``)."""
    return fn.attrs.get("warps") == "rows"


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for op in block.ops:
        for b in op.blocks:
            yield from _blocks(b)


def product_layout(op: Op, machine: Any, lanes: int, warps: int, by_rows: bool = False) -> Layout:
    """The layout of a product's result: that of the machine's matrix instruction where there is one for it, else threads in a grid."""
    unit = unit_of(op, machine)
    m, n = op.operands[2].type.shape
    if unit is None:
        return grid_of_threads((m, n), lanes, warps, machine.access_elements(op.operands[2].type.dtype))
    return operand_layouts(unit, machine, warps, (m, op.operands[0].type.shape[1], n), by_rows)[2]


def _untransposed(v: Value) -> Value:
    return v.op.operands[0] if v.op is not None and v.op.name == "transpose" else v


def _from_scratch(v: Value, space: str = "") -> bool:
    """Whether a value is loaded from memory of the block (in ``space``)."""
    if v.op is None or v.op.name != "load":
        return False
    made = root(v.op.operands[0]).op
    return made is not None and made.name == "alloc" and space in ("", v.op.operands[0].type.space)


def unit_of(op: Op, machine: Any) -> Any:
    """The matrix instruction that forms a ``dot``; None: it is formed by fma."""
    a, b, acc = (v.type for v in op.operands)
    (m, k), n = a.shape, b.shape[1]
    fits = powers((m, n, k)) and op.attrs.get("unit") is None
    return machine.tile_instruction(a.dtype, b.dtype, acc.dtype, m, n, k) if fits else None


def operand_layouts(unit: Any, machine: Any, warps: int, shape: tuple[int, int, int], by_rows: bool = False) -> tuple[
        Layout, Layout, Layout]:
    """The layouts of lhs [m, k], rhs [k, n] and the result [m, n] of a product by a matrix instruction; ``shape`` is (m, k, n)."""
    m, k, n = shape
    fragments = machine.fragments_of(unit)
    taken = warps_of_product(m, n, (unit.m, unit.n), warps, by_rows)
    rows = [s if s[0] else (0, 0) for s in taken]
    columns = [s if s[1] else (0, 0) for s in taken]
    return (of_fragments((m, k), (unit.m, unit.k), fragments.lhs, rows), of_fragments((k, n), (unit.k, unit.n), fragments.rhs, columns),
            of_fragments((m, n), (unit.m, unit.n), fragments.result, taken))


def powers(shape: Sequence[int]) -> bool:
    """True when every extent is a power of two."""
    return all(n & (n - 1) == 0 for n in shape)


def is_free(v: Value) -> bool:
    """Whether a value is made again for each of its users."""
    return v.op is not None and v.op.name in FREE


def same_numbers(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether elements keep their numbers when a tile of shape ``a`` takes the shape ``b``: only axes of extent 1 come or
    go, or all extents are powers of two."""
    return [n for n in a if n != 1] == [n for n in b if n != 1] or all(n & (n - 1) == 0 for n in (*a, *b))


def sliced(layout: Layout, shape: Sequence[int], starts: Sequence[int], limits: Sequence[int]) -> tuple[Layout, tuple[int, ...]] | None:
    """The layout of a slice that is a choice of registers: (layout, the source's register for each of the slice's).

    None where the slice is not aligned to a power of two, or its bits lie in lanes or warps.
    """
    extents = [b - a for a, b in zip(starts, limits, strict=True)]
    gone: dict[int, int] = {}  # dropped bits of element numbers -> their value
    for axis, (start, n) in enumerate(zip(starts, extents, strict=True)):
        if n == shape[axis]:
            continue
        keep = log2_up(n)
        if n & (n - 1) or start % n:
            return None
        for bit in range(keep, layout.bits[axis]):
            gone[1 << (layout.shift(axis) + bit)] = start >> bit & 1
    bases = layout.bases("reg")
    if any(c in gone for p in ("lane", "warp") for c in layout.bases(p)) or not layout.plain or not set(gone) <= set(bases):
        return None
    fixed = sum(1 << i for i, c in enumerate(bases) if gone.get(c, 0))
    kept = [i for i, c in enumerate(bases) if c not in gone]
    registers = tuple(fixed | sum(1 << i for j, i in enumerate(kept) if r >> j & 1) for r in range(1 << len(kept)))
    thin = Layout(layout.bits, tuple((n, tuple(bases[i] for i in kept) if n == "reg" else cs) for n, cs in layout.places))
    return thin.clipped(axis_bits(extents)), registers


def produced(op: Op, source: Layout) -> Layout | None:
    """The layout that a move or reduction of a tile in ``source`` gives without moving anything; None: it moves data."""
    src, out = op.operands[0].type, op.results[0].type
    if op.name == "reduce":
        return source.without(op.attrs["axis"]).compact() if isinstance(out, TileType) else None
    if op.name == "reshape":
        return source.reshaped(axis_bits(out.shape)) if same_numbers(src.shape, out.shape) else None
    if op.name == "transpose":
        return source.permuted(op.attrs["perm"])
    if op.name == "slice":
        got = sliced(source, src.shape, op.attrs["starts"], op.attrs["limits"])
        return None if got is None else got[0]
    return None


class _Assigner(Copier):
    """Copies the program with layouts on."""

    def __init__(self, builder: Builder, classes: _Classes):
        super().__init__(builder)
        self.classes = classes
        self.free: dict[Value, Op] = {}
        self.made: list[dict[tuple[Value, str], Value]] = [{}]

    def run(self, ops: Any) -> None:
        for op in ops:
            if op.results and is_free(op.results[0]) and isinstance(op.results[0].type, TileType):
                continue
            if op.blocks:
                self._nested(op)
            else:
                self._one(op)

    # -- operands --------------------------------------------------------------------------------------------------------
    def at(self, v: Value, layout: Layout) -> Value:
        """A tile in ``layout``."""
        key = (v, str(layout))
        for scope in reversed(self.made):
            if key in scope:
                return scope[key]
        made = self._free(v, layout) if is_free(v) else self._relayout(self[v], layout)
        self.made[-1][key] = made
        return made

    def _relayout(self, v: Value, layout: Layout, loc: Any = None) -> Value:
        t = v.type
        if t.layout == str(layout):
            return v
        return self.builder.value("relayout", (v,), TileType(t.dtype, t.shape, str(layout)), None, (), loc)

    def _free(self, v: Value, layout: Layout) -> Value:
        op = v.op
        assert op is not None
        operands: list[Value] = []
        if op.name == "broadcast":
            src = op.operands[0].type
            bits = tuple(0 if a == 1 else b for a, b in zip(src.shape, layout.bits, strict=True))
            operands = [self.at(op.operands[0], layout.clipped(bits).compact())]
        elif op.name == "splat":
            operands = [self[op.operands[0]]]
        return self.builder.value(op.name, operands, TileType(v.type.dtype, v.type.shape, str(layout)), op.attrs, (), op.loc)

    def natural(self, v: Value) -> Layout:
        """The layout in which a tile is at hand."""
        return self.classes.default(v.type.shape) if is_free(v) else self.classes.layout(v)

    def operand(self, v: Value, layout: Layout | None = None) -> Value:
        if not isinstance(v.type, TileType):
            return self[v]
        return self.at(v, layout if layout is not None else self.natural(v))

    # -- ops -------------------------------------------------------------------------------------------------------------
    def _one(self, op: Op) -> None:
        shared = self._shared_layout(op)
        operands = [self.operand(v, shared) for v in op.operands]
        if op.name == "dot":
            operands[2] = self.operand(op.operands[2], self.classes.layout(op.results[0]))
        types: list[Any] = []
        for r in op.results:
            if not isinstance(r.type, TileType):
                types.append(r.type)
                continue
            here = self._result_layout(op, operands, r)
            types.append(TileType(r.type.dtype, r.type.shape, str(here)))
        new = self.builder.op(op.name, operands, types, op.attrs, (), op.loc)
        for old, fresh in zip(op.results, new.results, strict=True):
            fresh.name = old.name
            self.map[old] = fresh
            if isinstance(old.type, TileType):
                self.map[old] = self._relayout(fresh, self.classes.layout(old), op.loc)

    def _shared_layout(self, op: Op) -> Layout | None:
        """The layout that all tile operands of an op have; None: each has its own."""
        if op.name in ("dot", "reduce", "reshape", "transpose", "slice", "concat", "extract", "mma_async", "mma_wait"):
            return None
        for v in (*op.results, *op.operands):
            if isinstance(v.type, TileType) and not is_free(v):
                return self.classes.layout(v)
        tiles = [v for v in op.operands if isinstance(v.type, TileType)]
        return self.classes.default(tiles[0].type.shape) if tiles else None

    def _result_layout(self, op: Op, operands: Sequence[Value], r: Value) -> Layout:
        if op.name in ("reduce", "reshape", "transpose", "slice"):
            t = operands[0].type
            got = produced(op, Layout.parse(t.layout, t.shape))
            if got is not None:
                return got
        return self.classes.layout(r)

    def _nested(self, op: Op) -> None:
        carried_from = {"for": 3, "while": 0, "if": 1, "roles": 0}[op.name]
        operands = [self[v] for v in op.operands[:carried_from]]
        operands += [self.operand(v, self._of_class(r)) for v, r in zip(op.operands[carried_from:], op.results, strict=False)]
        blocks = [self._block(b, op) for b in op.blocks]
        new = self.builder.op(op.name, operands, [self._typed(r) for r in op.results], op.attrs, blocks, op.loc)
        for old, fresh in zip(op.results, new.results, strict=True):
            fresh.name = old.name
            self.map[old] = fresh

    def _of_class(self, v: Value) -> Layout | None:
        return self.classes.layout(v) if isinstance(v.type, TileType) else None

    def _typed(self, v: Value) -> Any:
        t = v.type
        return TileType(t.dtype, t.shape, str(self.classes.layout(v))) if isinstance(t, TileType) else t

    def _block(self, block: Block, owner: Op) -> Block:
        new = Block([self._typed(a) for a in block.args], [a.name for a in block.args])
        self.map.update(zip(block.args, new.args, strict=True))
        self.made.append({})
        with self.builder.at(new):
            self.run(block.ops[:-1])
            end = block.terminator
            skip = 1 if owner.name == "while" and block is owner.blocks[0] else 0
            values = [self[v] for v in end.operands[:skip]]
            values += [self.operand(v, self._of_class(r)) for v, r in zip(end.operands[skip:], owner.results, strict=True)]
            self.builder.op("yield", values, (), end.attrs, (), end.loc)
        self.made.pop()
        return new


__all__ = ["assign_layouts", "operand_layouts", "powers", "produced", "rows_first", "same_numbers", "sliced", "threads_of", "unit_of"]
