"""Attention on SIMT machines: how its work is cut, and heads as pieces whose widths are powers of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...ir.core import Op
from ...machine.simt import SimtMachine
from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue
from ...tiling.layouts import log2_up
from ...types.dims import DimLike
from ...types.dtypes import DType, f32
from ..attention import LOG2_E, Operands, power_of_two, static_width
from ..fused import Lanes
from .operands import Rows

PIECE = 64     # the widest piece of a head
NARROWEST = 16  # the narrowest: matrix instructions take no less
RESIDENT = 128  # the widest head whose queries stay in registers while keys stream past, where shared memory holds wider ones
SUMS = 16       # scores of a thread where products are chains of fma


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        rows: queries of a block.
        keys: of a step: a numeric parameter, which does not depend on how many keys there are.
        threads: of a block.
        piece: the widest piece of a head.
        sums: partial sums of a row, which are added up at the end; as many as threads hold apart.
        unit: a matrix instruction forms the products, from operands as they are in memory.
    """

    rows: int
    keys: int
    threads: int
    piece: int
    sums: int
    unit: bool

    @staticmethod
    def of(machine: SimtMachine, dtype: DType, compute: DType, q: DimLike, width: int, asked: int | None = None) -> Cut:
        """For heads of ``width`` elements of ``dtype``; ``asked``: about so many queries a block."""
        unit = machine.tile_instruction(dtype, dtype, compute, 64, 64, 64) if dtype.itemsize == 2 and compute is f32 else None
        if unit is not None:
            warps = max(1, machine.block_threads // machine.lanes)
            cells = width * unit.m  # results of a warp: more keys would leave them no registers
            keys = max(16, unit.n, 64 if cells <= 2048 else 32 if cells <= 3072 else 16)
            while machine.has_async_copies and keys > 16 and 4 * keys * width * dtype.itemsize > machine.shared_bytes // 2:
                keys //= 2  # two stages of keys and values
            rows = _rows(q, unit.m * warps, unit.m, asked)
            return Cut(rows, keys, rows // unit.m * machine.lanes, PIECE, unit.n, True)
        scores = log2_up(machine.block_threads * (SUMS if compute.itemsize <= 4 else SUMS // 4))
        rows, keys = 1 << scores // 2, 1 << scores - scores // 2
        return Cut(_rows(q, rows, 1, asked), keys, machine.block_threads, keys, keys // 4, False)

    @staticmethod
    def backward(machine: SimtMachine, dtype: DType, compute: DType, own: DimLike, width: int) -> Cut:
        """For the reverse pass of blocks that own rows of two operands (``own`` of them) and sum into as many results; ``width``: of
        both operands together.  The results of wide heads are shared out among twice as many threads."""
        cut = Cut.of(machine, dtype, compute, own, width)
        wide = 2 if width > 2 * RESIDENT and cut.unit and machine.lanes < 64 else 1
        return replace(cut, keys=min(cut.keys, 32), threads=min(wide * cut.threads, machine.max_threads))

    @staticmethod
    def in_lanes(machine: SimtMachine, compute: DType) -> Cut:
        """Where threads are the lanes of a CPU's vectors: a query each (``attention_lanes.py``)."""
        return Cut(machine.lanes, 64 // compute.itemsize, machine.lanes, NARROWEST, 1, False)

    def pieces(self, width: int) -> tuple[tuple[int, int], ...]:
        """(first column, width) of the pieces of a head; the last may reach beyond it."""
        out, at = [], 0
        while at < width:
            n = min(self.piece, 1 << (width - at).bit_length() - 1)
            n = n if n >= NARROWEST or n == width - at >= NARROWEST else NARROWEST
            out.append((at, n))
            at += n
        return tuple(out)


def _rows(q: DimLike, most: int, least: int, asked: int | None) -> int:
    """Rows of a block: no more than there are, as asked, a power of two."""
    wanted = min(q, asked or most) if isinstance(q, int) else asked or most
    return max(least, min(most, 1 << log2_up(max(1, wanted))))


class Pieces(Operands):
    """What the programs of attention see: where operands lie, pieces of them, and powers of two."""

    def __init__(self, op: Op, buffers: Sequence[Buffer], cut: Cut, places: Mapping[str, Rows | None]):
        super().__init__(op, buffers)
        self.cut, self.places = cut, places
        self.folded = self.score is None and self.accumulate is self.compute and self.scale > 0
        self.factor = self.scale * LOG2_E
        self.depths, self.widths = cut.pieces(static_width(self.d, "d")), cut.pieces(static_width(self.e, "e"))

    # -- operands --------------------------------------------------------------------------------------------------------------
    def piece(self, role: str, row: Any, rows: int, at: Any, width: int) -> TileValue:
        """Columns at … at + width - 1 of rows of an operand, as products take them: zeros where there are none."""
        return self.reader(role, row, rows, at, width)()

    def reader(self, role: str, row: Any, rows: int, at: Any, width: int) -> Callable[[], TileValue]:
        """What loads a :meth:`piece`."""
        place = self.places[role]
        if place is not None:
            load = place.reader(self.maps[role][0], self.env, (row, at), (rows, width))
        else:
            name, extent = self.row(role)
            assert isinstance(extent, int)
            lanes = self.queries(row, rows, True) if role in ("query", "cotangent") else self.keys(row, rows, True)
            ragged = at + width > extent if isinstance(at, int) else extent % width != 0
            columns = Lanes(name, at, width, extent, ragged, aligned=not isinstance(at, int) or at % width == 0)
            load = partial(self.operand, role, lanes, columns)
        return load if self.cut.unit else lambda: load().to(self.compute)

    def pieces_of(self, role: str) -> tuple[tuple[int, int], ...]:
        return self.depths if role in ("query", "key") else self.widths

    def against(self, left: Kept, right: Sequence[Callable[[], TileValue]]) -> TileValue:
        """``left @ right.T``, piece by piece."""
        acc = tile.zeros((self.cut.rows, self.cut.keys), self.compute)
        for a, load in zip(left.now(self), right, strict=True):
            acc = tile.dot(a, tile.transpose(load()), acc)
        return acc

    @staticmethod
    def partly(extent: DimLike, step: int) -> bool:
        return not isinstance(extent, int) or extent % step != 0

    def base(self, top: TileValue) -> TileValue:
        return top * -self.factor if self.folded else super().base(top)

    def exponent(self, score: TileValue, base: TileValue) -> TileValue:
        return tile.fma(score, self.factor, base) if self.folded else super().exponent(score, base)

    def power(self, x: TileValue) -> TileValue:
        """2^x: to the last bits of f32 or f64, or by the machine's own unit where the weights are rounded to 16 bits anyway."""
        made: TileValue = tile.exp2_approx(x) if self.cut.unit else power_of_two(x)
        return made


class Kept:
    """A block's rows of an operand that are multiplied again and again: in registers, in shared memory, or loaded anew each time.

    Args:
        columns: of all operands of that kind that the block keeps.
    """

    def __init__(self, p: Pieces, role: str, row: Any, machine: SimtMachine, columns: int):
        dtype, rows, unit = p.maps[role][0].dtype, p.cut.rows, p.cut.unit
        self.role, self.row = role, row
        self.registers: list[TileValue] = []
        self.shared: list[Buffer] = []
        if unit and (columns <= RESIDENT or 2 * rows * columns * dtype.itemsize > machine.shared_bytes):
            self.registers = [p.piece(role, row, rows, at, n) for at, n in p.pieces_of(role)]
        elif unit:
            for at, n in p.pieces_of(role):
                self.shared.append(tile.alloc((rows, n), dtype, "shared"))
                tile.store(self.shared[-1], (0, 0), p.piece(role, row, rows, at, n))

    def now(self, p: Pieces) -> Sequence[TileValue]:
        """The pieces, as the left operands of products."""
        if self.shared:
            return [tile.load(b, (0, 0), (b.shape[0], b.shape[1])) for b in self.shared]
        return self.registers or [p.piece(self.role, self.row, p.cut.rows, at, n) for at, n in p.pieces_of(self.role)]


__all__ = ["NARROWEST", "Cut", "Kept", "Pieces"]
