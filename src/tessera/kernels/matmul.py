"""The matrix product: ``acc[b…, m, n] = sum over k of lhs[b…, m, k] * rhs[b…, k, n]``, then the epilogue.

Every element of the result is one chain of ``fma`` over ascending k, so its bits do not depend on blocks, on threads, or on
which of the two forms below computed it (products through matrix instructions have the order that the instruction has).

*blocked*   A block of the result is ``rows x columns``.  For each ``depth`` of k, the part of ``rhs`` is copied to panels
            ``[depth, nr]`` that stay in L2, and each strip of ``mr`` rows of ``lhs`` to a strip in L1; then every
            ``mr x nr`` tile of the result lives in registers while k runs.  Between depths the partial sums rest in the
            result itself, where it has the accumulator's dtype and the epilogue does not read it, else in scratch.
            A few strips would not pay for the panels: then ``rhs`` is read where it lies, if its rows are contiguous.
*streaming* For a few rows, ``rhs`` is used once, so it is read in place, in the order in which it lies in memory.

Where m is a symbol the program holds guarded variants and chooses when it runs: streaming for 1 row and for 2 to 4, blocks
whose register tile has the height of 8 rows for 5 to 8, and tall blocks for more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..ir.core import Function, Op
from ..scheduling.templates import affine, block, flat_index, is_plain_store
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue, tile_function
from ..tiling.templates import register
from ..types.dims import DimLike
from ..types.dtypes import DType
from .fused import BlockRunner, Lanes, Point, load, store
from .plan import Plan, plan_product, register_tile, resting_store
from .programs import open_program

STREAMED_ROWS = 4  # so many rows of lhs, or fewer, do not pay for a copy of rhs
LOW_ROWS = 8  # up to so many, a register tile of their own height wastes less than the tall one


class Operand:
    """``lhs`` or ``rhs``: an index map over the loops, or a prologue that yields the element."""

    def __init__(self, op: Op, role: str, buffers: list[Buffer]):
        self.block = block(op, role)
        if self.block is None:
            self.buffer = buffers[0 if role == "lhs" else 1]
            self.index: tuple[DimLike, ...] = op.attrs[role]
            self.dtype: DType = self.buffer.dtype
        else:
            self.runner = BlockRunner(self.block, buffers)
            self.dtype = self.block.terminator.operands[0].type.dtype

    def step(self, loop: str) -> DimLike | None:
        """How far apart in memory consecutive iterations of ``loop`` lie (of the first load, for a prologue)."""
        if self.block is None:
            index, shape = self.index, self.buffer.shape
        else:
            first = next((o for o in self.block.walk() if o.name == "load"), None)
            if first is None:
                return None
            index, shape = first.attrs["index"], first.operands[0].type.shape
        form = affine(flat_index(index, shape), [loop])
        return None if form is None else form[1][loop]

    def tile(self, point: Point) -> TileValue:
        """The elements at a point, of the point's full shape."""
        got = load(self.buffer, self.index, point) if self.block is None else self.runner.run(point)[0]
        return tile.broadcast_to(got, point.shape)


class Product:
    """One ``matmul`` template op: its loops, operands and epilogue, in terms of tiles."""

    def __init__(self, op: Op, buffers: list[Buffer], machine: Any = None):
        self.op, self.buffers, self.machine = op, buffers, machine
        self.batch: tuple[tuple[str, DimLike], ...] = op.attrs["batch"]
        (self.m_name, self.m), (self.n_name, self.n), (self.k_name, self.k) = (op.attrs[x] for x in "mnk")
        self.accumulate: DType = op.attrs["accumulate"]
        self.lhs, self.rhs = Operand(op, "lhs", buffers), Operand(op, "rhs", buffers)
        epilogue = block(op, "epilogue")
        assert epilogue is not None
        self.epilogue = BlockRunner(epilogue, buffers)
        self.env: dict[str, Any] = {}

    def bind_batch(self) -> None:
        """The batch loops' values of this block, from the leading grid axes."""
        self.env = {name: tile.program_id(i) if extent != 1 else 0 for i, (name, extent) in enumerate(self.batch)}

    def resting_place(self) -> tuple[Buffer, tuple[DimLike, ...]] | None:
        """Where partial sums may rest between depths: the result, or None."""
        target = resting_store(self.op)
        return None if target is None else (self.epilogue.buffers[target.operands[0]], target.attrs["index"])

    def rows(self, at: Any, extent: int, ragged: bool) -> Lanes:
        return Lanes(self.m_name, at, extent, self.m, ragged)

    def columns(self, at: Any, extent: int, ragged: bool) -> Lanes:
        return Lanes(self.n_name, at, extent, self.n, ragged, aligned=True)

    def depth(self, at: Any, extent: int, ragged: bool) -> Lanes:
        return Lanes(self.k_name, at, extent, self.k, ragged)

    def point(self, *lanes: Lanes) -> Point:
        return Point(self.env, lanes)


@register("matmul")
def matmul(op: Op, machine: Any, name: str) -> Function:
    """The tile program of a ``matmul`` template op (attributes and blocks: ``scheduling/templates.py``)."""
    m, n, k = (op.attrs[x][1] for x in "mnk")
    batch = tuple(extent for _, extent in op.attrs["batch"])
    plan = plan_product(op, machine, m, n, k, batch)
    program = open_program(op, name, (*batch, plan.grid_m, plan.grid_n))
    with program:
        product_ = Product(op, program.buffers, machine)
        product_.bind_batch()
        axis = len(batch)
        i, j = tile.program_id(axis) * plan.rows, tile.program_id(axis + 1) * plan.columns
        _dispatch(product_, plan, i, j)
    return program.finish()


def _dispatch(p: Product, plan: Plan, i: Any, j: Any) -> None:
    """Choose the form: at build time where m is static, else when the kernel runs."""
    if isinstance(p.m, int):
        if p.m <= STREAMED_ROWS and plan.unit is None:
            streaming(p, plan, p.m, j)
        else:
            blocked(p, plan, i, j)
        return
    m = tile.size(p.m)
    low = plan_of_low_rows(p, plan)

    def more() -> None:
        if low is None:
            blocked(p, plan, i, j)
        else:
            tile.cond(m <= LOW_ROWS, lambda: blocked(p, low, i, j), lambda: blocked(p, plan, i, j))

    def stream(rows: int, ragged: bool) -> None:
        """All rows are the first block's: the others must not store them again, where the epilogue works in place."""
        tile.cond(tile.eq(i, 0), lambda: streaming(p, plan, rows, j, ragged), lambda: None)

    def few() -> None:
        tile.cond(m <= STREAMED_ROWS, lambda: stream(STREAMED_ROWS, True), more)

    tile.cond(tile.eq(m, 1), lambda: stream(1, False), few)


def plan_of_low_rows(p: Product, plan: Plan) -> Plan | None:
    """``plan`` with a register tile of ``LOW_ROWS`` rows in the same blocks; None where a matrix unit multiplies, whose tile
    has one height.  A block of the plan is higher, so that all rows lie in the first and the others are empty."""
    if plan.unit is not None or plan.mr <= LOW_ROWS:
        return None
    _, nr = register_tile(p.machine, p.accumulate, LOW_ROWS, p.n)
    nr = nr if plan.columns % nr == 0 else plan.nr
    return dataclasses.replace(plan, mr=LOW_ROWS, nr=nr, whole_columns=isinstance(p.n, int) and p.n % nr == 0)


# -- blocked -------------------------------------------------------------------------------------------------------------
@tile_function
def blocked(p: Product, plan: Plan, i0: Any, j0: Any) -> None:
    """The block of the result whose first element is (i0, j0)."""
    mr, nr = plan.mr, plan.nr
    i_end = tile.minimum(i0 + plan.rows, tile.size(p.m))
    j_end = tile.minimum(j0 + plan.columns, tile.size(p.n))
    panels = (j_end - j0 + (nr - 1)) // nr
    right = None if plan.in_place else tile.alloc((plan.columns // nr, *plan.panel), plan.dtype)
    left = tile.alloc(plan.strip, plan.dtype)
    sums = Sums(p, plan, i0, j0)
    for k0 in tile.range(0, _end_of_depths(p, i0), plan.depth):
        depth = tile.minimum(k0 + plan.depth, tile.size(p.k)) - k0
        if right is not None:
            copy_panels(p, plan, right, k0, depth, j0, panels)
        for i in tile.range(i0, i_end, mr):
            copy_strip(p, plan, left, k0, depth, i)
            for t in tile.range(0, panels):
                j = j0 + t * nr
                acc = sums.start(k0, i, j)
                acc = _multiply(p, plan, left, right, k0, depth, j, t, acc)
                sums.finish(acc, k0, i, j)


def _multiply(p: Product, plan: Plan, left: Buffer, right: Buffer | None, k0: Any, depth: Any, j: Any, t: Any, acc: TileValue) -> TileValue:
    """acc + strip @ panel t, or the columns from j on where rhs is read in place."""
    if right is None:
        def in_place(ragged: bool) -> TileValue:
            return _multiply_in_place(p, plan, left, k0, depth, j, ragged, acc)
        return in_place(False) if plan.whole_columns else tile.cond(
            j + plan.nr <= tile.size(p.n), lambda: in_place(False), lambda: in_place(True))
    return _multiply_copied(plan, left, right, depth, t, acc)


@tile_function
def _multiply_copied(plan: Plan, left: Buffer, right: Buffer, depth: Any, t: Any, acc: TileValue) -> TileValue:
    for k in tile.range(0, depth, plan.step):
        acc = plan.multiply(left, right, t, k, acc)
    return acc


@tile_function
def _multiply_in_place(p: Product, plan: Plan, left: Buffer, k0: Any, depth: Any, j: Any, ragged: bool, acc: TileValue) -> TileValue:
    for k in tile.range(0, depth):
        acc = plan.multiply_in_place(p, left, k0, k, j, ragged, acc)
    return acc


def _end_of_depths(p: Product, i0: Any) -> Any:
    """k, but one round where k is 0 (the sums are then 0) and none where the block is empty."""
    end = max(p.k, 1) if isinstance(p.k, int) else tile.where(tile.eq(tile.size(p.k), 0), 1, tile.size(p.k))
    return end if isinstance(p.m, int) else tile.where(i0 < tile.size(p.m), end, 0)


@tile_function
def copy_panels(p: Product, plan: Plan, right: Buffer, k0: Any, depth: Any, j0: Any, panels: Any) -> None:
    """rhs[k0 : k0 + depth, j0 : …] to panels of ``nr`` columns, in the order in which it lies in memory.

    Columns beyond n and, for a matrix unit, rows up to a multiple of its depth are zeros.
    """
    full = panels if plan.whole_columns else tile.minimum(panels, (tile.size(p.n) - j0) // plan.nr)
    if plan.rhs_along_k:
        for t in tile.range(0, full):
            _copy_depth(p, plan, right, k0, depth, j0, t, t + 1, False)
        if not plan.whole_columns:
            for t in tile.range(full, panels):
                _copy_depth(p, plan, right, k0, depth, j0, t, t + 1, True)
    else:
        _copy_depth(p, plan, right, k0, depth, j0, 0, full, False)
        if not plan.whole_columns:
            _copy_depth(p, plan, right, k0, depth, j0, full, panels, True)


@tile_function
def _copy_depth(p: Product, plan: Plan, right: Buffer, k0: Any, depth: Any, j0: Any, first: Any, last: Any, ragged: bool) -> None:
    """All rows of the panels first … last - 1, some rows at a time (few at the edge, which is rare, so that its code is small)."""
    step = plan.rhs_step if not ragged else plan.group
    whole = depth - depth % step
    for k in tile.range(0, whole, step):
        for t in tile.range(first, last):
            _copy_rows(p, plan, right, k0, k, step, j0, t, False, ragged)
    if plan.ragged_depth(plan.step if plan.unit else step):
        rest, end = (step, _whole_steps(depth, plan.step)) if plan.unit else (1, depth)
        for k in tile.range(whole, end, rest):
            for t in tile.range(first, last):
                _copy_rows(p, plan, right, k0, k, rest, j0, t, rest > 1, ragged)


def _copy_rows(p: Product, plan: Plan, right: Buffer, k0: Any, k: Any, rows: int, j0: Any, t: Any, ragged_rows: bool, ragged: bool) -> None:
    point = p.point(p.depth(k0 + k, rows, ragged_rows), p.columns(j0 + t * plan.nr, plan.nr, ragged))
    plan.store_panel(right, t, k, p.rhs.tile(point).to(plan.dtype))


def _whole_steps(depth: Any, step: int) -> Any:
    return (depth + (step - 1)) // step * step


@tile_function
def copy_strip(p: Product, plan: Plan, left: Buffer, k0: Any, depth: Any, i: Any) -> None:
    """lhs[i : i + mr, k0 : k0 + depth] to the strip; rows beyond m hold zeros."""
    if plan.whole_rows or i + plan.mr <= tile.size(p.m):
        _strip(p, plan, left, k0, depth, i, False)
    else:
        _strip(p, plan, left, k0, depth, i, True)


@tile_function
def _strip(p: Product, plan: Plan, left: Buffer, k0: Any, depth: Any, i: Any, ragged: bool) -> None:
    step = plan.lhs_step
    whole = depth - depth % step
    for k in tile.range(0, whole, step):
        plan.store_strip(left, k, p.lhs.tile(plan.strip_point(p, i, k0 + k, step, ragged)).to(plan.dtype))
    if plan.ragged_depth(plan.step if plan.unit else step):
        rest, end = (step, _whole_steps(depth, plan.step)) if plan.unit else (1, depth)
        for k in tile.range(whole, end, rest):
            plan.store_strip(left, k, p.lhs.tile(plan.strip_point(p, i, k0 + k, rest, ragged, rest > 1)).to(plan.dtype))


class Sums:
    """The accumulators' life outside the inner loop: where they start, where they rest, and the epilogue."""

    def __init__(self, p: Product, plan: Plan, i0: Any, j0: Any):
        self.p, self.plan, self.i0, self.j0 = p, plan, i0, j0
        self.place = p.resting_place() if not plan.single_depth and plan.unit is None else None
        self.scratch: Buffer | None = None
        if not plan.single_depth and self.place is None:
            self.scratch = tile.alloc((plan.rows_padded, plan.columns + 16), p.accumulate)
        self.plain = is_plain_store(p.op) and plan.unit is None
        self.converts = any(o.name == "convert" for o in p.epilogue.block.ops)
        self.stage = None if self.plain else tile.alloc((plan.mr, plan.nr), p.accumulate)

    def _point(self, i: Any, j: Any, ragged: bool) -> Point:
        p, plan = self.p, self.plan
        return p.point(p.rows(i, plan.mr, ragged and not plan.whole_rows), p.columns(j, plan.nr, ragged and not plan.whole_columns))

    def _inside(self, i: Any, j: Any) -> Any:
        """Whether the whole register tile lies in the result."""
        tests = []
        if not self.plan.whole_rows:
            tests.append(i + self.plan.mr <= tile.size(self.p.m))
        if not self.plan.whole_columns:
            tests.append(j + self.plan.nr <= tile.size(self.p.n))
        return None if not tests else tests[0] if len(tests) == 1 else tests[0] & tests[1]

    def _either(self, i: Any, j: Any, do: Any) -> Any:
        """``do(ragged)``, without edge tests where the tile lies inside."""
        inside = self._inside(i, j)
        return do(False) if inside is None else tile.cond(inside, lambda: do(False), lambda: do(True))

    def start(self, k0: Any, i: Any, j: Any) -> TileValue:
        plan = self.plan
        zero = tile.zeros((plan.mr, plan.nr), self.p.accumulate)
        if plan.single_depth:
            return zero
        return tile.cond(tile.eq(k0, 0), lambda: zero, lambda: self._resume(i, j))  # type: ignore[no-any-return]

    def _resume(self, i: Any, j: Any) -> TileValue:
        plan = self.plan
        if self.scratch is not None:
            return tile.load(self.scratch, (i - self.i0, j - self.j0), (plan.mr, plan.nr))
        assert self.place is not None
        buffer, index = self.place
        shape = (plan.mr, plan.nr)
        return self._either(i, j, lambda ragged: tile.broadcast_to(load(buffer, index, self._point(i, j, ragged)), shape))  # type: ignore[no-any-return]

    def finish(self, acc: TileValue, k0: Any, i: Any, j: Any) -> None:
        if self.plan.single_depth or (self.plain and self.place is not None and not self.converts):
            self._epilogue(acc, i, j)                    # it stores the sum as it is: the same for every depth
            return
        tile.cond(k0 + self.plan.depth >= tile.size(self.p.k), lambda: self._epilogue(acc, i, j), lambda: self._rest(acc, i, j))

    def _rest(self, acc: TileValue, i: Any, j: Any) -> None:
        if self.scratch is not None:
            tile.store(self.scratch, (i - self.i0, j - self.j0), acc)
            return
        assert self.place is not None
        buffer, index = self.place
        self._either(i, j, lambda ragged: store(buffer, index, acc, self._point(i, j, ragged)))

    def _epilogue(self, acc: TileValue, i: Any, j: Any) -> None:
        if self.plain:
            self._either(i, j, lambda ragged: self.p.epilogue.run(self._point(i, j, ragged), acc))
            return
        assert self.stage is not None
        tile.store(self.stage, (0, 0), acc)
        self._either(i, j, lambda ragged: epilogue_rows(self.p, self.plan, self.stage, i, j, ragged))


@tile_function
def epilogue_rows(p: Product, plan: Plan, stage: Buffer, i: Any, j: Any, ragged: bool) -> None:
    """The epilogue over a finished register tile, a few rows at a time so that its code stays small."""
    step = plan.epilogue_rows
    last = tile.minimum(plan.mr, tile.size(p.m) - i) if ragged and not plan.whole_rows else plan.mr
    for r in tile.range(0, last, step):
        acc = tile.load(stage, (r, 0), (step, plan.nr))
        p.epilogue.run(p.point(p.rows(i + r, step, ragged and step > 1), p.columns(j, plan.nr, ragged)), acc)


# -- streaming -----------------------------------------------------------------------------------------------------------
def streaming(p: Product, plan: Plan, rows: int, j0: Any, ragged: bool = False) -> None:
    """All rows (``rows`` of them; ``ragged``: at most so many) of the columns from j0 on, reading rhs in place."""
    if plan.rhs_along_k:
        stream_columns(p, plan, p.rows(0, rows, ragged), j0)
    else:
        stream_rows(p, plan, p.rows(0, rows, ragged), j0)


@tile_function
def stream_rows(p: Product, plan: Plan, rows: Lanes, j0: Any) -> None:
    """rhs lies along n: whole rows of it pass by, a few at a time, and the sums of all columns stay in L1."""
    width, step = plan.stream_width, plan.stream_step
    j_end = tile.minimum(j0 + plan.columns, tile.size(p.n))
    sums = tile.alloc((rows.extent, plan.columns + width), p.accumulate)
    for j in tile.range(0, j_end - j0, width):
        tile.store(sums, (0, j), tile.zeros((rows.extent, width), p.accumulate))
    whole = tile.size(p.k) - tile.size(p.k) % step
    for k in tile.range(0, whole, step):
        _stream(p, plan, sums, rows, k, step, j0, j_end)
    for k in tile.range(whole, tile.size(p.k)):
        _stream(p, plan, sums, rows, k, 1, j0, j_end)
    for j in tile.range(j0, j_end, width):
        acc = tile.load(sums, (0, j - j0), (rows.extent, width))
        p.epilogue.run(p.point(rows, p.columns(j, width, True)), acc)


@tile_function
def _stream(p: Product, plan: Plan, sums: Buffer, rows: Lanes, k: Any, step: int, j0: Any, j_end: Any) -> None:
    width = plan.stream_width
    inner = (j_end - j0) - (j_end - j0) % width
    for j in tile.range(0, inner, width):
        _stream_tile(p, sums, rows, k, step, j0, j, width, False)
    for j in tile.range(inner, j_end - j0, width):
        _stream_tile(p, sums, rows, k, step, j0, j, width, True)


def _stream_tile(p: Product, sums: Buffer, rows: Lanes, k: Any, step: int, j0: Any, j: Any, width: int, ragged: bool) -> None:
    a = p.lhs.tile(p.point(rows, p.depth(k, step, False))).to(p.accumulate)
    b = p.rhs.tile(p.point(p.depth(k, step, False), p.columns(j0 + j, width, ragged))).to(p.accumulate)
    tile.store(sums, (0, j), tile.dot(a, b, tile.load(sums, (0, j), (rows.extent, width))))


@tile_function
def stream_columns(p: Product, plan: Plan, rows: Lanes, j0: Any) -> None:
    """rhs lies along k: squares of it are transposed in registers; each group of columns runs through all of k."""
    width = plan.vector
    j_end = tile.minimum(j0 + plan.columns, tile.size(p.n))
    whole = tile.size(p.k) - tile.size(p.k) % width
    for j in tile.range(j0, j_end, width):
        if j + width <= j_end:
            _stream_column(p, rows, j, width, whole, False)
        else:
            _stream_column(p, rows, j, width, whole, True)


@tile_function
def _stream_column(p: Product, rows: Lanes, j: Any, width: int, whole: Any, ragged: bool) -> None:
    acc = tile.zeros((rows.extent, width), p.accumulate)
    for k in tile.range(0, whole, width):
        acc = _stream_square(p, rows, j, k, width, width, ragged, acc)
    for k in tile.range(whole, tile.size(p.k)):
        acc = _stream_square(p, rows, j, k, 1, width, ragged, acc)
    p.epilogue.run(p.point(rows, p.columns(j, width, ragged)), acc)


def _stream_square(p: Product, rows: Lanes, j: Any, k: Any, step: int, width: int, ragged: bool, acc: TileValue) -> TileValue:
    a = p.lhs.tile(p.point(rows, p.depth(k, step, False))).to(p.accumulate)
    b = p.rhs.tile(p.point(p.depth(k, step, False), p.columns(j, width, ragged))).to(p.accumulate)
    return tile.dot(a, b, acc)


__all__ = ["Operand", "Product", "blocked", "matmul", "streaming"]
