"""How a product is cut up: register tile, copies, blocks and grid, from the machine's description and the sizes.

Nothing here changes the bits of a result: every element is one chain over k, however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.core import Op
from ..scheduling.templates import affine, block, flat_index
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue
from ..types.dims import DimLike, ceildiv, dim_max, evaluate, product
from ..types.dtypes import DType, int8
from .fused import Point

AHEAD = 8            # rows of a panel between the one that is multiplied and the one that is fetched
UNKNOWN = 1024      # what a symbolic size is taken to be when blocks are chosen
EMITTED = frozenset({"amx_bf16", "dpbf16", "vnni"})  # matrix instructions that ``targets/cpu`` makes
SCRATCH = 960 << 10  # bytes of block-local scratch that a product may use
UNIT_SCRATCH = 1900 << 10  # the same for a matrix unit, whose sums rest there
IN_PLACE_STRIPS = 4   # so many strips of lhs, or fewer, do not pay for a copy of rhs whose rows are contiguous
TALL = 1036          # rows of a block beyond which its strips of lhs come from far away each time


@dataclass(frozen=True)
class Plan:
    """The decisions for one product.

    Attributes:
        dtype: of the copies of both operands, which is what ``dot`` multiplies.
        vector: elements of the accumulator's dtype in a piece of a tile.
        mr, nr: rows and columns of the register tile.
        rows, columns, depth: of a block; ``rows`` may be a size expression.
        rows_padded: rows that a block has at most, as a number; 0 where nothing needs it.
        grid_m, grid_n: blocks along m and n.
        lhs_along_k, rhs_along_k: which loop the operand's contiguous axis is.
        whole_rows, whole_columns, single_depth: the register tiles cover m (n) exactly; one depth covers k.
        unit: the matrix instruction that multiplies, or None; its panels hold groups of k side by side.
        group: how many k such a group has.
        ahead: rows of a panel between the one that is multiplied and the one that is fetched.
    """

    dtype: DType
    vector: int
    mr: int
    nr: int
    rows: DimLike
    columns: int
    depth: int
    rows_padded: int
    grid_m: DimLike
    grid_n: DimLike
    k: DimLike
    lhs_along_k: bool
    rhs_along_k: bool
    whole_rows: bool
    whole_columns: bool
    single_depth: bool
    unit: str | None = None
    group: int = 1
    ahead: int = AHEAD
    in_place: bool = False

    # -- the strip of lhs: along k as it lies in memory, so that a copy never transposes -------------------------------------
    @property
    def strip(self) -> tuple[int, int]:
        """The strip's shape: [mr, depth] with rows a cache line apart from a power of two, or [depth, mr]."""
        return (self.mr, self.depth + 16 * (1 + (self.unit is not None))) if self.lhs_along_k else (self.depth, max(16, self.mr))

    @property
    def lhs_step(self) -> int:
        """How many k one step of the strip's copy takes."""
        return self.step if self.unit else 16 if self.lhs_along_k else 4

    @property
    def rhs_step(self) -> int:
        """How many k one step of a panel's copy takes."""
        return 16 if self.rhs_along_k else 8 if self.unit else 4

    @property
    def panel(self) -> tuple[int, int]:
        """The shape of a panel of rhs."""
        return (self.depth // self.group, self.group * self.nr) if self.unit else (self.depth, self.nr)

    def store_panel(self, right: Buffer, t: Any, k: Any, value: TileValue) -> None:
        """Rows k … of panel t; a matrix unit finds groups of rows interleaved."""
        (rows, nr), g = value.shape, self.group
        if self.unit:
            groups = tile.transpose(tile.reshape(value, (rows // g, g, nr)), (0, 2, 1))
            tile.store(right, (t, k // g, 0), tile.reshape(groups, (1, rows // g, g * nr)))
        else:
            tile.store(right, (t, k, 0), tile.reshape(value, (1, rows, nr)))

    def multiply_in_place(self, p: Any, left: Buffer, k0: Any, k: Any, j: Any, ragged: bool, acc: TileValue) -> TileValue:
        """acc + left[:, k : k + 1] @ rhs[k0 + k : k0 + k + 1, j : j + nr]."""
        row = p.rhs.tile(p.point(p.depth(k0 + k, 1, False), p.columns(j, self.nr, ragged)))
        return tile.dot(self.column(left, k), row, acc)

    def multiply(self, left: Buffer, right: Buffer, t: Any, k: Any, acc: TileValue) -> TileValue:
        """acc + left[:, k : k + step] @ panel t [k : k + step, :]."""
        if self.unit is None:
            prefetch_row(right, (t, k + self.ahead), self.nr)
            return tile.dot(self.column(left, k), tile.load(right, (t, k, 0), (1, self.nr)), acc)
        g, count = self.group, self.step // self.group
        groups = tile.load(right, (t, k // g, 0), (count, g * self.nr))
        rows = tile.reshape(tile.transpose(tile.reshape(groups, (count, self.nr, g)), (0, 2, 1)), (self.step, self.nr))
        return tile.dot(tile.load(left, (0, k), (self.mr, self.step)), rows, acc, unit=self.unit)

    @property
    def step(self) -> int:
        """How many k one multiplication takes."""
        return 32 if self.unit else 1

    def ragged_depth(self, step: int) -> bool:
        """True when a depth may be no multiple of ``step``."""
        return not isinstance(self.k, int) or self.k % step != 0

    def strip_point(self, p: Any, i: Any, k: Any, step: int, ragged: bool, ragged_depth: bool = False) -> Point:
        rows, depth = p.rows(i, self.mr, ragged), p.depth(k, step, ragged_depth)
        return Point(p.env, (rows, depth) if self.lhs_along_k else (depth, rows))

    def store_strip(self, left: Buffer, k: Any, value: TileValue) -> None:
        tile.store(left, (0, k) if self.lhs_along_k else (k, 0), value)

    def column(self, left: Buffer, k: Any) -> TileValue:
        """Column k of the strip, [mr, 1]."""
        if self.lhs_along_k:
            return tile.load(left, (0, k), (self.mr, 1))
        return tile.load(left, (k, 0), (self.mr, 1), axes=(1, 0))

    @property
    def epilogue_rows(self) -> int:
        return next(r for r in (2, 3, 1) if self.mr % r == 0)

    # -- streaming -----------------------------------------------------------------------------------------------------------
    @property
    def stream_width(self) -> int:
        return 4 * self.vector

    @property
    def stream_step(self) -> int:
        return 8


def prefetch_row(panel: Buffer, at: tuple[Any, ...], columns: int) -> None:
    """Fetch the row of a panel that is multiplied ``AHEAD`` steps from now."""
    for c in range(0, columns, max(1, 64 // panel.dtype.itemsize)):
        tile.prefetch(panel, (*at, c))


def guess(d: DimLike) -> int:
    """A number for a size expression."""
    if isinstance(d, int):
        return d
    return max(1, evaluate(d, dict.fromkeys(d.names, UNKNOWN)))


def register_tile(machine: Any, dtype: DType, m: DimLike, n: DimLike) -> tuple[int, int]:
    """(mr, nr): the tile whose accumulators, one row of rhs and a broadcast fill the registers, with least waste for m x n."""
    most, vectors = machine.product_tile
    lanes = machine.tile_lanes
    per_piece = max(1, lanes // machine.vector_lanes(dtype))       # registers that hold one piece
    budget = most * vectors
    m_, n_ = guess(m), guess(n)
    best, choice = math.inf, (most, lanes)
    for pieces in (1, 2, 3, 4, 6, 8):
        nr, registers = pieces * lanes, pieces * per_piece
        mr = min(budget // registers, most)
        if mr < 1:
            break
        if isinstance(m, int):
            strips = -(-m_ // mr)
            mr = -(-m_ // strips) if strips else mr
        loads = (mr + registers) / 2                              # two loads a cycle, two multiplications a cycle
        cycles = max(mr * registers / 2, loads, 4.0)              # and four cycles until an accumulator is ready again
        tiles = -(-m_ // mr) * -(-n_ // nr)
        cost = tiles * (cycles + 1 + 0.05 * registers)               # the loop itself; and each vector comes from L2
        if cost < best * 0.995:
            best, choice = cost, (mr, nr)
    return choice


def plan_product(op: Op, machine: Any, m: DimLike, n: DimLike, k: DimLike, batch: tuple[DimLike, ...]) -> Plan:
    """Cut ``op`` up for ``machine``."""
    accumulate: DType = op.attrs["accumulate"]
    unit = _matrix_unit(op, machine, m, n)
    in_tiles = unit is not None and machine.matrix_instruction(unit).m > 1
    mr, nr = (32, 32) if in_tiles else register_tile(machine, accumulate, m, n)
    instruction = machine.matrix_instruction(unit) if unit else None
    dtype = instruction.lhs if instruction is not None else accumulate
    size = dtype.itemsize
    scratch = UNIT_SCRATCH if unit else SCRATCH
    asked = dict(op.attrs.get("schedule", ()))
    depth = _depth(k, 512 if unit else min(256, 1024 // accumulate.itemsize))
    if "tile_k" in asked:
        depth = min(_round_up(asked["tile_k"], 32), 1024)
    single = isinstance(k, int) and k <= depth
    resting = single or (not unit and resting_store(op) is not None)
    widest = max(1, scratch // (depth * size) // nr) * nr
    if not resting:
        widest = max(nr, min(widest, (704 if unit else 512) // nr * nr))
    if "tile_n" in asked:
        widest = max(nr, min(widest, asked["tile_n"]) // nr * nr)

    def most_rows(columns: int) -> int:
        room = (scratch - columns * depth * size) // ((columns + 16) * accumulate.itemsize)
        return 1 << 30 if resting else max(mr, room // mr * mr)

    extents = Extents(m, n, k, batch, mr, nr, depth)
    rows, grid_m, columns, grid_n = _cut(extents, min(widest, 1024), most_rows, machine, "tile_n" in asked)
    if "tile_m" in asked:
        rows, grid_m = _rows_as_asked(m, _round_up(asked["tile_m"], mr), max(mr, most_rows(columns) // mr * mr))
    return Plan(
        dtype=dtype, vector=machine.tile_lanes, mr=mr, nr=nr, rows=rows, columns=columns, depth=depth,
        rows_padded=0 if resting else (rows if isinstance(rows, int) else most_rows(columns)), grid_m=grid_m, grid_n=grid_n, k=k,
        lhs_along_k=bool(unit) or along_k(op, "lhs"), rhs_along_k=along_k(op, "rhs"),
        whole_rows=isinstance(m, int) and m % mr == 0, whole_columns=isinstance(n, int) and n % nr == 0, single_depth=single,
        unit=unit, group=1 if instruction is None else 4 if instruction.lhs is int8 else 2, ahead=asked.get("prefetch_distance", AHEAD),
        in_place=unit is None and isinstance(m, int) and m <= IN_PLACE_STRIPS * mr and _lies_in_rows(op, dtype))


def _matrix_unit(op: Op, machine: Any, m: DimLike, n: DimLike) -> str | None:
    """The matrix instruction for the product, where the machine has one and it pays: its rounding is its own, which the
    policy of 16-bit products allows."""
    if (isinstance(m, int) and m < 16) or (isinstance(n, int) and n < 16) or op.attrs["k"][1] == 1:
        return None
    dtypes = [element_dtype(op, role) for role in ("lhs", "rhs")]
    instruction = machine.product_instruction(dtypes[0], dtypes[1], op.attrs["accumulate"], EMITTED)
    return str(instruction.name) if instruction is not None else None


def _lies_in_rows(op: Op, dtype: DType) -> bool:
    """True when rows of rhs are contiguous in memory, in the dtype that is multiplied."""
    index, t = op.attrs.get("rhs"), op.operands[1].type
    form = None if index is None else affine(flat_index(index, t.shape), [op.attrs["n"][0]])
    return form is not None and form[1][op.attrs["n"][0]] == 1 and t.dtype is dtype


def element_dtype(op: Op, role: str) -> DType:
    """The dtype of an operand's elements."""
    body = block(op, role)
    t = op.operands[0 if role == "lhs" else 1].type if body is None else body.terminator.operands[0].type
    return t.dtype  # type: ignore[no-any-return]


def _depth(k: DimLike, most: int) -> int:
    """How much of k one copy of rhs takes: equal parts of at most ``most`` where k is known."""
    if not isinstance(k, int):
        return most
    parts = max(1, -(-k // most))
    return max(64, _round_up(-(-k // parts), 32))


def _round_up(n: int, to: int) -> int:
    return -(-max(n, 1) // to) * to


def resting_store(op: Op) -> Op | None:
    """The store of the epilogue whose place may hold partial sums until the last depth; None where there is none.

    It holds the accumulator's dtype, and the epilogue reads neither that buffer nor one that may be the same memory: a memory
    plan puts a result into the place of an operand of its own type.
    """
    epilogue = block(op, "epilogue")
    assert epilogue is not None
    stores = [o for o in epilogue.walk() if o.name == "store"]
    if len(stores) != 1 or stores[0] not in epilogue.ops or stores[0].attrs.get("dyn"):
        return None
    target = stores[0].operands[0]
    if target.type.dtype is not op.attrs["accumulate"]:
        return None
    for o in epilogue.walk():
        if o.name == "load" and (o.operands[0] is target or _alike(o.operands[0].type, target.type)):
            return None
    return stores[0]


def _alike(a: Any, b: Any) -> bool:
    return bool(a.dtype.itemsize == b.dtype.itemsize and a.size == b.size)


def along_k(op: Op, role: str) -> bool:
    """True when the operand's neighbours in memory are neighbours in k."""
    body = block(op, role)
    k_name, other = op.attrs["k"][0], op.attrs["m" if role == "lhs" else "n"][0]
    if body is None:
        index, shape = op.attrs[role], op.operands[0 if role == "lhs" else 1].type.shape
    else:
        first = next((o for o in body.walk() if o.name == "load"), None)
        if first is None:
            return role == "lhs"
        index, shape = first.attrs["index"], first.operands[0].type.shape
    form = affine(flat_index(index, shape), [k_name, other])
    if form is None:
        return role == "lhs"
    along_k, along_other = (form[1][x] for x in (k_name, other))
    if along_k == 1 and along_other == 1:
        return role == "lhs"
    return along_k == 1 if role == "lhs" else along_k == 1 and along_other != 1


@dataclass(frozen=True)
class Extents:
    """What is cut into blocks: the product's sizes, its register tile, and the depth of one copy of rhs."""

    m: DimLike
    n: DimLike
    k: DimLike
    batch: tuple[DimLike, ...]
    mr: int
    nr: int
    depth: int


def _rows_as_asked(m: DimLike, rows: int, most: int) -> tuple[DimLike, DimLike]:
    rows = min(rows, most)
    return rows, ceildiv(m, rows)


# Cycles of a core with two vector multiplications a cycle, for an element: of rhs or lhs copied, of a sum put to rest and fetched.
COPY_RHS, COPY_LHS, REST = 6 / 16, 4 / 16, 4 / 16


def _cut(e: Extents, widest: int, most_rows: Callable[[int], int], machine: Any, fixed: bool) -> tuple[DimLike, DimLike, int, DimLike]:
    """(rows of a block, blocks along m, columns, blocks along n); ``fixed``: as wide as allowed, in equal parts."""
    if not (isinstance(e.m, int) and isinstance(e.n, int)):
        return _cut_symbolic(e, widest, most_rows, machine)
    candidates = _parts(e.n, e.nr, widest)
    return _cut_known(e, candidates[:1] if fixed else candidates, most_rows, machine)


def _parts(n: int, unit: int, most: int) -> list[int]:
    """Extents of at most ``most`` (or one unit) that cut ``n`` into equal numbers of units, the largest first."""
    units, most = max(1, -(-n // unit)), max(1, most // unit)
    first = -(-units // most)
    return list(dict.fromkeys(-(-units // g) * unit for g in range(first, min(units, first + 63) + 1)))


def _cut_known(e: Extents, candidates: Sequence[int], most_rows: Callable[[int], int], machine: Any) -> tuple[int, int, int, int]:
    """The least time of the thread with most to do."""
    assert isinstance(e.m, int) and isinstance(e.n, int)
    threads, others = max(1, machine.threads), guess(product(e.batch))
    lanes = machine.tile_lanes
    best, choice = math.inf, (e.mr, e.nr)
    for columns in candidates:
        for rows in _parts(e.m, e.mr, most_rows(columns)):
            blocks = -(-e.m // rows) * -(-e.n // columns) * others
            work = rows * columns / (2 * lanes) + columns * COPY_RHS + rows * COPY_LHS + rows * columns * REST / e.depth
            cost = -(-blocks // threads) * (work + (0 if rows <= TALL else columns))
            if cost < best * 0.995:
                best, choice = cost, (rows, columns)
    rows, columns = choice
    return rows, -(-e.m // rows) if e.m else 0, columns, -(-e.n // columns)


def _cut_symbolic(e: Extents, widest: int, most_rows: Callable[[int], int], machine: Any) -> tuple[DimLike, DimLike, int, DimLike]:
    """The same where a size is known only when the product runs: blocks of usual extents, shared out evenly."""
    if isinstance(e.n, int):
        columns = _parts(e.n, e.nr, widest)[0]
    else:
        columns = max(e.nr, min(widest, 512) // e.nr * e.nr)
    grid_n = ceildiv(e.n, columns)
    threads, others, most = max(1, machine.threads), product((*e.batch, grid_n)), most_rows(columns)
    share = threads // math.gcd(threads, others) if isinstance(others, int) else 1
    target = max(e.mr, min(504, most) // e.mr * e.mr)
    count: DimLike = share * dim_max(1, ceildiv(e.m, share * target)) if share > 1 else ceildiv(e.m, target)
    if isinstance(e.m, int):
        assert isinstance(count, int)
        rows = -(-max(1, -(-e.m // e.mr)) // max(1, count)) * e.mr
        return rows, -(-e.m // rows) if e.m else 0, columns, grid_n
    # The last blocks may be empty: their loops then do nothing.
    return e.mr * ceildiv(e.m, e.mr * dim_max(1, count)), count, columns, grid_n


__all__ = ["Plan", "along_k", "element_dtype", "guess", "plan_product", "register_tile"]
