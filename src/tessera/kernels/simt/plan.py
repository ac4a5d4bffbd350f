"""How a product is cut up on a SIMT machine: the tile of a block, its threads and the slices along k, from the machine's description.

Nothing here changes the bits of a result that is formed by fma: every element is one chain over k, however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ...ir.core import Op
from ...machine.cpu import MatrixInstruction
from ...machine.simt import SimtMachine
from ...types.dims import product
from ...types.dtypes import DType
from ..plan import along_k, element_dtype, guess

FEW = 4  # so many rows or columns, or fewer, are left to the form that reads the other operand where it lies
MOST_THREADS = 256  # of a block: more do not share operands better than a second block hides latencies
HELD = 2  # vectors that a step of a copy takes where threads are lanes: more cost the compiler more than they save
TOGETHER = 16  # results of one thread that an epilogue takes at a time
EDGES = (16, 32, 64, 128, 256)  # of a tile of the result


@dataclass(frozen=True)
class Plan:
    """The decisions for one product.

    Attributes:
        rows, columns: of the tile of the result that a block's threads hold.
        depth: of a slice along k.
        threads: of a block.
        strips: tiles of a block, one below the other.
        unit: the matrix instruction, or None.
        asynchronous: slices are copied ahead by the machine itself.
        lhs_along_k, rhs_along_k: which loop the operand's contiguous axis is.
        step: how many k are written out.
        lanes: elements of a piece of a slice along memory where a block has several tiles; ``held``: such pieces at a time.
    """

    rows: int
    columns: int
    depth: int
    threads: int
    unit: MatrixInstruction | None = None
    asynchronous: bool = False
    lhs_along_k: bool = True
    rhs_along_k: bool = False
    strips: int = 1
    step: int = 1
    lanes: int = 1
    held: int = 1

    @property
    def block_rows(self) -> int:
        return self.rows * self.strips

    @property
    def part(self) -> tuple[int, int]:
        """Rows and columns of the part of a tile that an epilogue takes at a time: half of it, again and again (the upper bits of places
        are those of registers)."""
        rows, columns = self.rows, self.columns
        while rows * columns > self.threads * TOGETHER:
            rows, columns = (rows // 2, columns) if rows >= columns else (rows, columns // 2)
        return rows, columns

    @property
    def left_along_k(self) -> bool:
        """The copy of lhs lies as lhs does where threads are lanes, which all read the same number; else along m."""
        return self.strips > 1 and self.lhs_along_k

    def left_piece(self, held: int) -> tuple[int, int]:
        """[rows, k] of a piece of lhs: ``held`` vectors."""
        return (min(held, self.block_rows), self.lanes) if self.left_along_k else (self.lanes, held)

    def right_piece(self, held: int) -> tuple[int, int]:
        """[k, columns] of a piece of rhs."""
        return (self.lanes, held) if self.rhs_along_k else (held, self.lanes)


def plan_product(op: Op, machine: SimtMachine) -> Plan | None:
    """Cut ``op`` up for ``machine``; None where a block of threads would have little to share."""
    m, n, k = (op.attrs[x][1] for x in "mnk")
    accumulate: DType = op.attrs["accumulate"]
    if accumulate.kind not in ("float", "int", "uint") or 0 in (m, n, k):
        return None
    if any(isinstance(d, int) and d <= FEW for d in (m, n)):
        return None
    asked = dict(op.attrs.get("schedule", ()))
    lhs, rhs = (element_dtype(op, role) for role in ("lhs", "rhs"))
    extents = (guess(m), guess(n), guess(product(e for _, e in op.attrs["batch"])))
    if machine.tile_instruction(lhs, rhs, accumulate, 128, 128, 128) is not None:
        plan = _by_instruction(machine, lhs, rhs, accumulate, extents, asked)
    elif machine.access_elements(accumulate) == 1:
        plan = _of_vectors(machine, accumulate, extents[0], asked)
    else:
        plan = _by_fma(machine, accumulate, extents, asked)
    return replace(plan, lhs_along_k=along_k(op, "lhs"), rhs_along_k=along_k(op, "rhs"))


def _by_instruction(machine: SimtMachine, lhs: DType, rhs: DType, accumulate: DType, extents: tuple[int, int, int],
                    asked: Mapping[str, int]) -> Plan:
    sums, depth = _room(machine)
    depth //= lhs.itemsize
    depth = _power(asked["tile_k"], 16, 256) if "tile_k" in asked else depth

    def unit(rows: int, columns: int, deep: int = depth) -> MatrixInstruction | None:
        return machine.tile_instruction(lhs, rhs, accumulate, rows, columns, deep)

    while unit(128, 128, depth) is None:
        depth *= 2
    rows, columns = _tile(machine, extents, asked, lambda r, c: r * c <= MOST_THREADS * sums and unit(r, c, depth) is not None)
    room = machine.shared_bytes // (4 if machine.has_async_copies else 2)  # two stages at least, and room for other blocks
    while (rows + columns) * depth * lhs.itemsize > room and unit(rows, columns, depth // 2) is not None:
        depth //= 2
    found = unit(rows, columns, depth)
    assert found is not None
    pieces = (rows // found.m) * (columns // found.n)  # a warp holds one result of the instruction at least
    threads = min(max(machine.block_threads, min(MOST_THREADS, rows * columns // sums)), pieces * machine.lanes, machine.max_threads)
    return Plan(rows, columns, depth, _threads(machine, asked, threads), found, machine.has_async_copies)


def _room(machine: SimtMachine) -> tuple[int, int]:
    """(sums of one thread, bytes along k of a slice): what the registers of a block hold beside slices on their way."""
    registers = machine.register_bytes // 4 // MOST_THREADS
    return min(64, registers // 4), 128 if registers >= 512 else 64


def _by_fma(machine: SimtMachine, accumulate: DType, extents: tuple[int, int, int], asked: Mapping[str, int]) -> Plan:
    """Half of a thread's registers hold sums."""
    threads = _threads(machine, asked, machine.block_threads)
    most = threads * max(1, machine.registers * 2 // accumulate.itemsize)
    rows, columns = _tile(machine, extents, asked, lambda r, c: r * c <= most and r <= c)
    depth = _power(asked.get("tile_k", 64 // accumulate.itemsize), 4, 64)
    threads = max(machine.lanes, min(threads, rows * columns // 4))
    return Plan(rows, columns, depth, threads, step=min(depth, 4))


def _of_vectors(machine: SimtMachine, accumulate: DType, m: int, asked: Mapping[str, int]) -> Plan:
    """Threads are the lanes of vectors: two vectors of columns, as many rows as fill half of the registers."""
    lanes = machine.block_threads
    rows = max(1, machine.registers // accumulate.itemsize)
    depth = _power(asked.get("tile_k", 512 // accumulate.itemsize), lanes, 512)
    block = max(_power(asked.get("tile_m", (16 if m >= 128 * rows else 8) * rows), rows, 128), lanes)  # pieces of lhs are vectors of it
    while (block * depth + 2 * lanes * (block + depth)) * accumulate.itemsize > machine.shared_bytes:
        depth //= 2
    return Plan(rows, 2 * lanes, depth, lanes, strips=block // rows, step=4, lanes=lanes, held=HELD)


def _threads(machine: SimtMachine, asked: Mapping[str, int], otherwise: int) -> int:
    if "warps" not in asked:
        return otherwise
    return min(_power(asked["warps"], 1, 32) * machine.lanes, machine.max_threads)


def _power(n: int, least: int, most: int) -> int:
    """The power of two nearest below ``n``, between two others."""
    return max(least, min(most, 1 << max(0, n.bit_length() - 1)))


def _tile(machine: SimtMachine, extents: tuple[int, int, int], asked: Mapping[str, int],
          fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """Rows and columns that take least time: rounds of blocks over the multiprocessors, each its products and what it loads for them."""
    m, n, others = extents

    def cost(tile: tuple[int, int]) -> tuple[int, int]:
        """Time; of equal ones the larger tile is better."""
        rows, columns = tile
        blocks = -(-m // rows) * -(-n // columns) * others
        return -(-blocks // machine.units) * (rows * columns + 32 * (rows + columns)), -rows * columns

    def nearest(tile: tuple[int, int]) -> tuple[int, int]:
        """How far a tile is from what was asked for, in halves, then time."""
        away = sum((most[x] // extent).bit_length() for x, extent in zip(("tile_m", "tile_n"), tile, strict=True) if x in most)
        return away, cost(tile)[0]

    most = {x: _power(asked[x], 16, 256) for x in ("tile_m", "tile_n") if x in asked}
    found = [(r, c) for r in EDGES for c in EDGES if r <= most.get("tile_m", 128) and c <= most.get("tile_n", 128) and fits(r, c)]
    return min(found, key=nearest if most else cost, default=(EDGES[0], EDGES[0]))


__all__ = ["Plan", "plan_product"]
