"""Matrices of many heads as tiles: how an operand of a template lies in memory, and pieces of it.

Most operands are, for each head, rows a fixed distance apart whose elements are neighbours: ``[B, H, S, D]``, ``[B, S, H, D]``, a part
of a packed projection.  Such a buffer is seen as ``[outer, rows, pitch]``: ends of rows and columns are then what an access itself
checks, so that accesses stay vectors and copies can run ahead.  Anything else is read element by element (``fused.load``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Op
from ...scheduling.templates import Loop, affine, flat_index
from ...tiling import dsl as tile
from ...tiling.dsl import Buffer, TileValue
from ...tiling.values import as_value
from ...types.dims import Dim, DimLike, floordiv, product, substitute


@dataclass(frozen=True)
class Rows:
    """A buffer as ``[outer, rows, pitch]``: a head's matrix begins at ``[block, 0, column]``.

    Attributes:
        width: columns of the matrix; ``dense``: the rows hold nothing else.
    """

    shape: tuple[DimLike, DimLike, DimLike]
    block: DimLike
    column: DimLike
    width: int

    @property
    def dense(self) -> bool:
        return self.shape[2] == self.width

    @staticmethod
    def of(t: BufferType, index: Sequence[DimLike], row: Loop, column: Loop, batch: Sequence[Loop]) -> Rows | None:
        """How the loops ``row`` and ``column`` walk through a buffer; None where its rows are no neighbours' rows."""
        width, rows = column[1], row[1]
        form = affine(flat_index(index, t.shape), [row[0], column[0]])
        if form is None or not isinstance(width, int):
            return None
        base, strides = form
        pitch = strides[row[0]] if rows != 1 else width
        if 0 in (pitch, rows, width) or (width != 1 and strides[column[0]] != 1):
            return None
        outer = _quotient(product(t.shape), rows * pitch)
        if outer is None:
            return None
        block, first = _split(base, rows * pitch)
        last = substitute(first, {n: extent - 1 for n, extent in batch}) if isinstance(first, Dim) else first
        room = pitch - width - last
        if not isinstance(room, int) or room < 0 or (isinstance(first, int) and first < 0):
            return None
        return Rows((outer, rows, pitch), block, first, width)

    # -- pieces --------------------------------------------------------------------------------------------------------------
    def load(self, buffer: Buffer, env: Mapping[str, Any], at: tuple[Any, Any], shape: tuple[int, int]) -> TileValue:
        """Rows and columns from ``at`` on; zeros beyond the matrix."""
        return self.reader(buffer, env, at, shape)()

    def reader(self, buffer: Buffer, env: Mapping[str, Any], at: tuple[Any, Any], shape: tuple[int, int]) -> Callable[[], TileValue]:
        """What loads that tile when it is called: each product then takes it in a layout of its own, when it needs it, from one place."""
        seen, checks, beyond = self._where(buffer, at, shape)
        offsets = self._offsets(env, at)

        def load() -> TileValue:
            got = tile.load(seen, offsets, shape, axes=(1, 2), check=checks)
            if beyond and not self.dense:  # what follows in memory belongs to others
                inside = tile.iota((1, shape[1]), 1) + at[1] < self.width
                got = tile.where(tile.broadcast_to(inside, shape), got, tile.zeros(shape, got.dtype))
            return got

        return load

    def store(self, buffer: Buffer, env: Mapping[str, Any], at: tuple[Any, Any], value: TileValue, turned: bool = False) -> None:
        """The inverse of :meth:`load`; nothing is written beyond the matrix.  ``turned``: columns come first in the tile."""
        row, column = (1, 0) if turned else (0, 1)
        seen, checks, beyond = self._where(buffer, at, (value.shape[row], value.shape[column]))
        inside = None
        if beyond and not self.dense:
            count = tile.iota(tuple(n if k == column else 1 for k, n in enumerate(value.shape)), column)
            inside = tile.broadcast_to(count + at[1] < self.width, value.shape)
        tile.store(seen, self._offsets(env, at), value, axes=(2, 1) if turned else (1, 2), check=checks, mask=inside)

    def _where(self, buffer: Buffer, at: tuple[Any, Any], shape: tuple[int, int]) -> tuple[Buffer, tuple[int, ...], bool]:
        rows = self.shape[1]
        beyond = at[1] + shape[1] > self.width if isinstance(at[1], int) else self.width % shape[1] != 0
        ragged = not isinstance(rows, int) or rows % shape[0] != 0
        return tile.view(buffer, self.shape), (*((1,) if ragged else ()), *((2,) if beyond else ())), beyond

    def _offsets(self, env: Mapping[str, Any], at: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        first = tile.evaluate(self.column, dict(env))
        column = first if isinstance(at[1], int) and at[1] == 0 else at[1] + first
        return as_value(tile.evaluate(self.block, dict(env))), at[0], as_value(column)


def _quotient(a: DimLike, b: DimLike) -> DimLike | None:
    q = floordiv(a, b)
    return q if q * b == a else None


def _split(offset: DimLike, unit: DimLike) -> tuple[DimLike, DimLike]:
    """(quotient, rest): each term of the offset goes to one or the other."""
    whole: DimLike = 0
    rest: DimLike = 0
    for mono, coefficient in offset.terms if isinstance(offset, Dim) else (((), offset),):
        term: DimLike = Dim(((mono, coefficient),)) if mono else coefficient
        q = _quotient(term, unit)
        whole, rest = (whole + q, rest) if q is not None else (whole, rest + term)
    return whole, rest


def untouched(op: Op) -> set[int]:
    """Operands that no block reads or writes, so that they may be seen under other shapes."""
    used = {b.args.index(v) for b in op.blocks for o in b.walk() for v in o.operands if v in b.args}
    return set(range(len(op.operands))) - used


__all__ = ["Rows", "untouched"]
