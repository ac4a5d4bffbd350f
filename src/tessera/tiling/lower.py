"""Schedule to Tile: one sched ``kernel`` becomes the program of one block.

The parallel loops are cut into blocks; inside a block one loop runs along the lanes of tiles.  Which loop that is
decides the form of the program:

*map*    a loop of the grid: every point of the grid is a lane; inner reductions run sequentially for all lanes at once
*plane*  two loops of the grid, when what is contiguous for one access is strided for another: square tiles, transposed
*rows*   the innermost loop of each inner ``reduce`` and ``for``: a point of the grid is a row, and all lanes work on it

Buffers are flat in the tile program (the same memory with one axis), since loops are merged across axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import INDEX, Block, BufferType, Function, Op, Value
from ..types.dims import Dim, DimLike, ceildiv, dim_max, product
from .lower_analysis import Kernel, Loop, analyse, coefficient
from .lower_body import Axis, Context
from .lower_cost import at_least_one, best_lane, extent_guess, lane_cost, op_weight, widest
from .lower_emit import Emit, Int
from .lower_loops import Loops

_PLANE = 128  # rows and columns of a block of the plane form


def lower_kernel(op: Op, machine: Any, name: str, sizes: Sequence[str]) -> Function:
    """The tile program of a sched ``kernel`` op.

    Args:
        op: the kernel.
        machine: the target's description.
        name: of the function made.
        sizes: the symbolic sizes of the program, in order; those that occur become parameters.

    Raises:
        ValueError: the op is not a kernel.
    """
    k = analyse(op)
    used = [s for s in sizes if s in _names(op)]
    types = [_flat(b.type) for b in k.body.args]
    fn = Function(name, "tile", Block([*types, *[INDEX] * len(used)], [*(b.name for b in k.body.args), *used]))
    fn.attrs = {"grid": (), "sizes": tuple(used),
                "writes": tuple(i for i, b in enumerate(k.body.args) if b in k.written)}
    emit = Emit(fn, dict(zip(used, fn.args[len(types):], strict=True)))
    lowering = Lowering(k, emit, dict(zip(k.body.args, fn.args, strict=False)))
    lowering.machine = machine
    lowering.build()
    emit.effect("return", ())
    return fn


def _flat(t: Any) -> BufferType:
    return BufferType(t.dtype, (product(t.shape),), t.space)


def _names(op: Op) -> set[str]:
    out: set[str] = set()

    def visit(v: Any) -> None:
        if isinstance(v, Dim):
            out.update(v.names)
        elif isinstance(v, tuple):
            for x in v:
                visit(x)

    for o in op.walk():
        for v in o.attrs.values():
            visit(v)
    for b in op.blocks[0].args:
        visit(b.type.shape)
    return out


class Lowering(Loops):
    """Chooses the form and writes the program."""

    def build(self) -> None:
        k = self.k
        if any(isinstance(x.extent, int) and x.extent == 0 for x in k.grid):
            self.e.fn.attrs["grid"] = (0,)
            return
        form, lane = self.choose()
        if form == "rows":
            self.rows()
            return
        assert lane is not None
        other = self.plane_axis(lane)
        if other is None:
            self.map(lane)
        else:
            self.plane(other, lane)

    # -- decisions -------------------------------------------------------------------------------------------------------
    def choose(self) -> tuple[str, Loop | None]:
        """The form, by the cost of the accesses; an attribute ``lane`` decides a loop of the grid."""
        k = self.k
        wanted = k.op.attrs.get("lane")
        for loop in k.grid:
            if loop.name == wanted:
                return "map", loop
        phases = [op for op in k.body.ops if op.name in ("reduce", "for") and k.loops[op]]
        if not k.grid or (wanted is not None and phases):
            return "rows", None
        lane, cost = best_lane(k, k.body.ops, k.grid, self.machine)
        if not phases:
            return "map", lane
        along = sum(3 * lane_cost(k, op.blocks[0].ops, self._phase_lane(op), self.machine) for op in phases)
        along += sum(0.25 for op in k.body.ops if op.name in ("load", "store"))
        return ("rows", None) if along <= cost else ("map", lane)

    def _phase_lane(self, op: Op) -> Loop:
        loops = self.k.loops[op]
        return loops[-1] if op.name == "reduce" else best_lane(self.k, op.blocks[0].ops, loops, self.machine)[0]

    def plane_axis(self, lane: Loop) -> Loop | None:
        """A second loop for lanes: one that a strided access of a pure map is contiguous in."""
        k = self.k
        if k.loops or _extent(lane) < 8:
            return None
        for op, e in k.expr.items():
            if op.name == "index" or coefficient(e, lane.name) in (0, 1, None):
                continue
            for loop in k.grid:
                if loop is not lane and coefficient(e, loop.name) == 1 and _extent(loop) >= 8:
                    return loop
        return None

    def work(self, ops: Sequence[Op]) -> float:
        """Roughly how many vector instructions one point of the grid costs."""
        total = 0.0
        for op in ops:
            total += op_weight(op)
            for b in op.blocks:
                n = 1.0
                for loop in self.k.loops.get(op, ()):
                    n *= extent_guess(loop.extent)
                total += n * self.work(b.ops)
        return total

    def block_points(self) -> int:
        """Points of the grid in one block: enough work to hide what starting a block costs, few enough to share out."""
        given = self.k.op.attrs.get("tile")
        if isinstance(given, int):
            return max(1, given)
        if isinstance(given, tuple) and given and all(isinstance(x, int) for x in given):
            return max(1, int(product(given)))
        points = max(1, min(65536, int(self.machine.block_work / max(1.0, self.work(self.k.body.ops)))))
        total = product(x.extent for x in self.k.grid)
        if isinstance(total, int) and total < 16 * points:
            least = max(1, int(self.machine.block_work / 16 / max(1.0, self.work(self.k.body.ops))))
            points = max(least, -(-total // 16))
        return points

    # -- blocks ----------------------------------------------------------------------------------------------------------
    def grid(self, *extents: DimLike) -> None:
        self.e.fn.attrs["grid"] = tuple(extents) or (1,)

    def program_id(self, axis: int) -> Value:
        return self.e.op("program_id", (), INDEX, {"axis": axis})

    def chunk(self, axis: int, size: Int, total: DimLike) -> tuple[Int, Int]:
        """[low, high) of block ``program_id(axis)`` in ``total`` iterations cut into chunks of ``size``."""
        e = self.e
        if isinstance(size, int) and isinstance(total, int) and size >= total:
            return 0, total
        lo = e.mul(self.program_id(axis), size)
        if isinstance(size, int) and isinstance(total, int) and total % size == 0:
            return lo, e.add(lo, size)
        return lo, e.minimum(e.add(lo, size), e.size(total))

    def points(self, loops: Sequence[Loop], lo: Int, hi: Int, body: Callable[[Context], Any]) -> None:
        """``body`` for the points lo … hi-1 of the row-major linearised loops.  Only the first point is found by
        division; the others by counting on."""
        e = self.e
        ctx = Context({})
        if not loops:
            body(ctx)
            return
        extents = [e.size(x.extent) for x in loops]

        def divide(at: Int) -> list[Int]:
            out: list[Int] = []
            for n in reversed(extents[1:]):
                out.append(e.mod(at, n))
                at = e.floordiv(at, n)
            return [at, *reversed(out)]

        def step(i: Value, carried: list[Value]) -> Sequence[Value]:
            here = [e.known(i)] if len(loops) == 1 else list(carried)
            with self.scope():
                body(ctx.with_env({x.name: v for x, v in zip(loops, here, strict=True)}))
            return self._count_on(carried, extents)

        start = [e.index(v) for v in divide(lo)] if len(loops) > 1 else []
        e.loop(lo, hi, 1, start, step)

    def _count_on(self, at: Sequence[Value], extents: Sequence[Int]) -> list[Value]:
        e = self.e
        out: list[Value] = []
        carry: Value | None = None
        for i in range(len(at) - 1, -1, -1):
            up = e.index(e.add(at[i], 1))
            following = up if carry is None else e.pointwise("select", carry, up, at[i], dtype=INDEX.dtype)
            if i == 0:
                out.append(following)
                break
            full = e.compare("eq", following, e.index(extents[i]))
            out.append(e.pointwise("select", full, e.index(0), following, dtype=INDEX.dtype))
            carry = full
        return out[::-1]

    def hoist_all(self) -> None:
        """Evaluate first what no loop of the grid changes."""
        self.hoist(self.k.body.ops, frozenset(x.name for x in self.k.grid), Context({}))

    # -- forms -----------------------------------------------------------------------------------------------------------
    def rows(self) -> None:
        """Each point of the grid is a row that all lanes work on."""
        loops, ops = self.k.grid, self.k.body.ops
        total = product(x.extent for x in loops)
        per_block: DimLike = self.rows_per_block()
        if isinstance(total, int) and isinstance(per_block, int):
            per_block = min(per_block, total)
        self.grid(ceildiv(total, per_block))
        lo, hi = self.chunk(0, self.e.size(per_block), total)
        self.hoist_all()
        self.points(loops, lo, hi, lambda ctx: self.run(ops, ctx))

    def rows_per_block(self) -> DimLike:
        given = self.k.op.attrs.get("tile")
        inner = [product(x.extent for x in self.k.loops[op]) for op in self.k.body.ops if op in self.k.loops]
        if given is not None or all(isinstance(n, int) for n in inner):
            return self.block_points()
        heaviest = max(self.work(op.blocks[0].ops) for op in self.k.body.ops if op in self.k.loops)
        budget = max(1024, int(self.machine.block_work / max(1.0, heaviest * len(inner))))
        longest: DimLike = 0
        for n in inner:
            longest = dim_max(longest, n)
        return at_least_one(budget, longest)

    def map(self, lane: Loop) -> None:
        """Every point of the grid is a lane of a tile along ``lane``."""
        k, e, ops = self.k, self.e, self.k.body.ops
        outer = [x for x in k.grid if x is not lane]
        rows = product(x.extent for x in outer)
        width = self.map_width(lane)
        tail = min(width, self.machine.vector_lanes(widest(k.op)))
        points = max(width, self.block_points() // width * width)
        cut: DimLike = points if not isinstance(lane.extent, int) or lane.extent > points else lane.extent
        self.hoist_all()
        if not outer:
            self.grid(ceildiv(lane.extent, cut))
            lo, hi = self.chunk(0, e.size(cut), lane.extent)
            self.lanes(lane, lo, hi, width, tail, ops, Context({}), (), self._run_body, unit=self.unit(lane.extent, tail))
            return
        per_block = at_least_one(points, lane.extent)
        if isinstance(per_block, int) and isinstance(rows, int):
            per_block = min(per_block, rows)
        self.grid(ceildiv(rows, per_block), ceildiv(lane.extent, cut))
        row_lo, row_hi = self.chunk(0, e.size(per_block), rows)
        lo, hi = self.chunk(1, e.size(cut), lane.extent)
        self.points(outer, row_lo, row_hi, lambda ctx: self.lanes(
            lane, lo, hi, width, tail, ops, ctx, (), self._run_body, unit=self.unit(lane.extent, tail)))

    def _run_body(self, ctx: Context, _: list[Value]) -> Sequence[Value]:
        self.run(self.k.body.ops, ctx)
        return ()

    def map_width(self, lane: Loop) -> int:
        """Lanes of a map; wide when inner loops walk down columns, since each step touches another line of memory."""
        width = self.width(self.k.op, lane)
        if self.k.loops and self.work(self.k.body.ops) > 64:
            full = self.machine.vector_lanes(widest(self.k.op))
            width = max(full, min(4 * full, _extent(lane) // full * full))
        return width

    def plane(self, row: Loop, col: Loop) -> None:
        """Square tiles over two loops of the grid; what does not fill a tile is done along ``col``, masked."""
        k, e, ops = self.k, self.e, self.k.body.ops
        side = max(4, 64 // max(4, widest(k.op).itemsize))
        outer = [x for x in k.grid if x is not row and x is not col]
        full = self.machine.vector_lanes(widest(k.op))
        cuts = [x.extent if isinstance(x.extent, int) and x.extent <= _PLANE else _PLANE for x in (row, col)]
        self.grid(product(x.extent for x in outer), ceildiv(row.extent, cuts[0]), ceildiv(col.extent, cuts[1]))
        self.hoist_all()
        (row_lo, row_hi), (lo, hi) = (self.chunk(i + 1, cut, x.extent) for i, (cut, x) in enumerate(zip(cuts, (row, col), strict=True)))
        row_whole = e.add(row_lo, e.round_down(e.sub(row_hi, row_lo), side))
        whole = e.add(lo, e.round_down(e.sub(hi, lo), side))

        def point(ctx: Context) -> None:
            def square(i: Value, _: list[Value]) -> Sequence[Value]:
                def inner(j: Value, _: list[Value]) -> Sequence[Value]:
                    axes = (Axis(row.name, e.known(i), side), Axis(col.name, e.known(j), side))
                    with self.scope():
                        self.run(ops, Context(ctx.env, axes))
                    return ()
                e.loop(lo, whole, side, (), inner)
                return ()

            def strip(first: Int, last: Int) -> Callable[[Value, list[Value]], Sequence[Value]]:
                def line(i: Value, _: list[Value]) -> Sequence[Value]:
                    with self.scope():
                        self.lanes(col, first, last, full, full, ops, ctx.bind(**{row.name: e.known(i)}), (), self._run_body)
                    return ()
                return line

            e.loop(row_lo, row_whole, side, (), square)
            if not (isinstance(whole, int) and whole == hi):
                e.loop(row_lo, row_whole, 1, (), strip(whole, hi))
            e.loop(row_whole, row_hi, 1, (), strip(lo, hi))

        at = self.program_id(0)
        self.points(outer, at, e.add(at, 1), point)


def _extent(loop: Loop) -> int:
    return extent_guess(loop.extent)


__all__ = ["Kernel", "Lowering", "lower_kernel"]
