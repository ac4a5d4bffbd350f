"""The matrix product on SIMT machines: ``acc[b…, m, n] = sum over k of lhs[b…, m, k] * rhs[b…, k, n]``, then the epilogue.

A block of threads holds a tile of the result in registers and walks along k, a slice of both operands at a time.

*by a matrix instruction*, where the machine has one for the operands' dtypes: each slice goes to the instruction's fragments through
swizzled shared memory.  Machines with asynchronous copies fetch slices ahead into a ring of stages (``tiling/copies.py`` finds the
loop and does so); on others the next slice is on its way to registers while this one is multiplied.

*by fma*, else: slices lie in shared memory in the accumulator's dtype, and every thread takes a few rows of one and a few columns of
the other for each k, in ascending order.  Where threads are the lanes of a CPU's vectors, whose registers are few, a block
computes several tiles, one below the other, from one copy of rhs, and the sums rest in between.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...ir.core import Function, Op
from ...machine.simt import SimtMachine
from ...scheduling.templates import is_plain_store
from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...types.dims import DimLike, ceildiv
from ..matmul import Operand, Product
from ..programs import in_bands, open_program
from .plan import Plan, plan_product

BAND = 8
"""Rows of tiles that are at work together."""


def product_program(op: Op, machine: SimtMachine, name: str) -> Function | None:
    """The program of a ``matmul`` template op; None for few rows or columns and for numbers that no fma sums."""
    plan = plan_product(op, machine)
    if plan is None:
        return None
    m, n = (op.attrs[x][1] for x in "mn")
    batch = tuple(extent for _, extent in op.attrs["batch"])
    down, across = ceildiv(m, plan.block_rows), ceildiv(n, plan.columns)
    program = open_program(op, name, (*batch, down * across))
    with program:
        p = Product(op, program.buffers, machine)
        p.bind_batch()
        row, column = in_bands(tile.program_id(len(batch)), tile.size(down), tile.size(across), BAND)
        form = by_instruction if plan.unit is not None else in_strips if plan.strips > 1 else by_fma
        form(Slices(p, plan, row * plan.block_rows, column * plan.columns))
    fn = program.finish()
    fn.attrs["threads"] = plan.threads
    return fn


class Slices:
    """What a block of the product sees: its place (``i``, ``j``) in the result, and slices of the operands along k."""

    def __init__(self, p: Product, plan: Plan, i: Any, j: Any):
        self.p, self.plan, self.i, self.j = p, plan, i, j

    def lhs(self, k: Any, *, rows: int | None = None, depth: int | None = None, down: Any = 0, ragged: bool = True) -> TileValue:
        """``lhs[i + down :, k :]``, [rows, depth]; zeros beyond its ends, where there may be some (``ragged``)."""
        p, plan = self.p, self.plan
        lanes = (p.rows(self.i + down, rows or plan.rows, ragged and _ragged(p.m, plan.block_rows)),
                 p.depth(k, depth or plan.depth, ragged and _ragged(p.k, plan.depth)))
        return _as_it_lies(p.lhs, p, lanes, plan.lhs_along_k)

    def rhs(self, k: Any, *, columns: int | None = None, depth: int | None = None, across: Any = 0, ragged: bool = True) -> TileValue:
        """``rhs[k :, j + across :]``, [depth, columns]."""
        p, plan = self.p, self.plan
        lanes = (p.depth(k, depth or plan.depth, ragged and _ragged(p.k, plan.depth)),
                 p.columns(self.j + across, columns or plan.columns, ragged and _ragged(p.n, plan.columns)))
        return _as_it_lies(p.rhs, p, lanes, not plan.rhs_along_k)

    def finish(self, acc: TileValue, down: Any = 0) -> None:
        """The epilogue of the tile whose first row is ``i + down``."""
        p, plan = self.p, self.plan
        p.epilogue.run(p.point(p.rows(self.i + down, acc.shape[0], _ragged(p.m, plan.block_rows)),
                               p.columns(self.j, plan.columns, _ragged(p.n, plan.columns))), acc)

    def finish_in_parts(self, acc: TileValue) -> None:
        """The epilogue of the block's tile; one that computes takes a part at a time, so that its code is short and its operands few."""
        p, plan = self.p, self.plan
        rows, columns = plan.part
        count = plan.rows // rows * (plan.columns // columns)
        if count == 1 or is_plain_store(p.op):
            self.finish(acc)
            return
        across = plan.columns // columns
        corners = [(x // across * rows, x % across * columns) for x in range(count)]

        def part(which: Any, number: int) -> TileValue:
            """Part ``which``, one of the first ``number + 1``; what threads hold of it are registers of their own."""
            at = corners[number]
            here = partial(tile.slice, acc, at, (at[0] + rows, at[1] + columns))
            got: TileValue = tile.cond(tile.eq(which, number), here, partial(part, which, number - 1)) if number else here()
            return got

        def run(which: Any, _: Any) -> tuple[()]:
            y, x = self.i + which // across * rows, self.j + which % across * columns
            p.epilogue.run(p.point(p.rows(y, rows, _ragged(p.m, plan.rows)), p.columns(x, columns, _ragged(p.n, plan.columns))),
                           part(which, count - 1))
            return ()

        tile.for_loop((0, count, 1), (), run)

    def zeros(self) -> TileValue:
        return tile.zeros((self.plan.rows, self.plan.columns), self.p.accumulate)

    def after(self, k: Any) -> Any:
        """Where the slice after the one at ``k`` begins; of the last one, a place that may be read."""
        following, end = k + self.plan.depth, self.p.k
        return following if _ragged(end, self.plan.depth) else tile.minimum(following, tile.size(end) - self.plan.depth)

    def has_edges(self) -> bool:
        """Whether tiles may reach beyond the result."""
        return _ragged(self.p.m, self.plan.block_rows) or _ragged(self.p.n, self.plan.columns)

    def inside(self, k: Any) -> Any:
        """Whether the whole block lies inside the operands in the slice at ``k``; None: always."""
        p, plan, tests = self.p, self.plan, []
        for at, extent, end in ((self.i, plan.block_rows, p.m), (self.j, plan.columns, p.n), (k, plan.depth, p.k)):
            if _ragged(end, extent):
                tests.append(at + extent <= tile.size(end))
        found = None
        for t in tests:
            found = t if found is None else found & t
        return found


def _ragged(n: DimLike, extent: int) -> bool:
    """Whether steps of ``extent`` may lead beyond ``n``."""
    return not isinstance(n, int) or n % extent != 0


def _as_it_lies(operand: Operand, p: Product, lanes: Any, straight: bool) -> TileValue:
    """A slice whose loads walk along memory; ``straight``: its second axis does."""
    if straight:
        return operand.tile(p.point(*lanes))
    return tile.transpose(operand.tile(p.point(*reversed(lanes))), (1, 0))


# -- by a matrix instruction ---------------------------------------------------------------------------------------------
@tile_function
def by_instruction(s: Slices) -> None:
    """Slices in the instruction's own dtypes."""
    plan, end = s.plan, tile.size(s.p.k)
    acc = s.zeros()
    if plan.asynchronous:
        for k in tile.range(0, end, plan.depth):
            acc = tile.dot(s.lhs(k), s.rhs(k), acc)
    else:
        a, b = s.lhs(0), s.rhs(0)
        for k in tile.range(0, end, plan.depth):
            following = s.lhs(s.after(k)), s.rhs(s.after(k))
            acc = tile.dot(a, b, acc)
            a, b = following
    s.finish_in_parts(acc)


# -- by fma --------------------------------------------------------------------------------------------------------------
@tile_function
def by_fma(s: Slices) -> None:
    """One tile a block; lhs is turned on its way, so that a thread's rows are neighbours in shared memory too."""
    p, plan, end = s.p, s.plan, tile.size(s.p.k)
    left = tile.alloc((plan.depth, plan.rows), p.accumulate, "shared")
    right = tile.alloc((plan.depth, plan.columns), p.accumulate, "shared")
    acc = s.zeros()
    a, b = s.lhs(0).to(p.accumulate), s.rhs(0).to(p.accumulate)
    for k in tile.range(0, end, plan.depth):
        tile.store(left, (0, 0), a, axes=(1, 0))
        tile.store(right, (0, 0), b)
        a, b = s.lhs(s.after(k)).to(p.accumulate), s.rhs(s.after(k)).to(p.accumulate)
        acc = multiply(s, left, right, 0, k, acc)
    s.finish_in_parts(acc)


@tile_function
def multiply(s: Slices, left: Buffer, right: Buffer, down: Any, k: Any, acc: TileValue) -> TileValue:
    """acc + the slices at ``k``, some steps at a time and the last ones singly: nothing but the operands' own numbers is added."""
    plan = s.plan
    depth: Any = plan.depth if not _ragged(s.p.k, plan.depth) else tile.minimum(plan.depth, tile.size(s.p.k) - k)
    whole = depth - depth % plan.step
    for at in tile.range(0, whole, plan.step):
        acc = _step(s, left, right, down, at, plan.step, acc)
    if _ragged(s.p.k, plan.step):
        for at in tile.range(whole, depth):
            acc = _step(s, left, right, down, at, 1, acc)
    return acc


def _step(s: Slices, left: Buffer, right: Buffer, down: Any, at: Any, step: int, acc: TileValue) -> TileValue:
    plan = s.plan
    if plan.left_along_k:
        a = tile.load(left, (down, at), (plan.rows, step))
    else:
        a = tile.load(left, (at, down), (plan.rows, step), axes=(1, 0))
    return tile.dot(a, tile.load(right, (at, 0), (step, plan.columns)), acc)


@tile_function
def in_strips(s: Slices) -> None:
    """Several tiles, one below the other."""
    p, plan = s.p, s.plan
    rows, end = plan.block_rows, tile.size(p.k)
    left = tile.alloc((rows, plan.depth) if plan.left_along_k else (plan.depth, rows), p.accumulate, "shared")
    right = tile.alloc((plan.depth, plan.columns), p.accumulate, "shared")
    sums = tile.alloc((rows, plan.columns), p.accumulate, "shared")
    for down in tile.range(0, rows, plan.rows):
        tile.store(sums, (down, 0), s.zeros())
    for k in tile.range(0, end, plan.depth):
        inside = s.inside(k)
        if inside is None:
            copy_slices(s, left, right, k, False)
        else:
            tile.cond(inside, partial(copy_slices, s, left, right, k, False), partial(copy_slices, s, left, right, k, True))
        for down in tile.range(0, rows, plan.rows):
            acc = tile.load(sums, (down, 0), (plan.rows, plan.columns))
            tile.store(sums, (down, 0), multiply(s, left, right, down, k, acc))
    step = 1 if s.has_edges() else plan.rows
    for down in tile.range(0, rows, step):
        s.finish(tile.load(sums, (down, 0), (step, plan.columns)), down)


@tile_function
def copy_slices(s: Slices, left: Buffer, right: Buffer, k: Any, ragged: bool) -> None:
    """Both slices to shared memory, a few vectors at a time, along memory (at the edges one, for whose tests the code is dear)."""
    plan, dtype = s.plan, s.p.accumulate
    held = 1 if ragged else plan.held
    rows, depth = plan.left_piece(held)
    for down in tile.range(0, plan.block_rows, rows):
        for at in tile.range(0, plan.depth, depth):
            a = s.lhs(k + at, rows=rows, depth=depth, down=down, ragged=ragged).to(dtype)
            if plan.left_along_k:
                tile.store(left, (down, at), a)
            else:
                tile.store(left, (at, down), a, axes=(1, 0))
    depth, columns = plan.right_piece(held)
    for at in tile.range(0, plan.depth, depth):
        for across in tile.range(0, plan.columns, columns):
            tile.store(right, (at, across), s.rhs(k + at, columns=columns, depth=depth, across=across, ragged=ragged).to(dtype))


__all__ = ["Slices", "product_program"]
