"""Tiles under construction: what the emitter holds for a tile value.

The last axis lies along vector lanes in pieces of at most ``lanes`` elements; all other axes are unrolled.  A piece has
a power of two of lanes; those beyond the tile's extent hold anything.

Pieces are made when they are first asked for.  So a chain of pointwise ops runs through all its ops for one piece
before it touches the next, which keeps live values few; a tile that only feeds the left side of a ``dot`` is never put
into vectors at all; and moves compose.  Whatever is still unmade is made before control flow begins, and loads are made
before a store that might reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...types.dtypes import DType


@dataclass(frozen=True)
class Piece:
    """Lanes ``start .. start + valid`` of a tile's last axis, held in ``width`` lanes."""

    start: int
    width: int
    valid: int


@dataclass(frozen=True)
class Geometry:
    """How a shape lies in pieces: ``rows`` rows, each in ``pieces``."""

    shape: tuple[int, ...]
    rows: int
    last: int
    pieces: tuple[Piece, ...]

    @property
    def count(self) -> int:
        return self.rows * len(self.pieces)

    def piece(self, i: int) -> Piece:
        return self.pieces[i % len(self.pieces)]

    def locate(self, flat: int) -> tuple[int, int]:
        """(piece number, lane) of the element with row-major number ``flat``."""
        row, column = divmod(flat, self.last)
        p = column // self.pieces[0].width if len(self.pieces) > 1 else 0
        return row * len(self.pieces) + p, column - self.pieces[p].start


def ceil_power(n: int) -> int:
    return 1 << (n - 1).bit_length()


@lru_cache(maxsize=4096)
def geometry(shape: tuple[int, ...], lanes: int) -> Geometry:
    """The pieces of a tile of ``shape`` on a machine with ``lanes`` lanes a piece."""
    last = shape[-1] if shape else 1
    rows = 1
    for d in shape[:-1]:
        rows *= d
    pieces = []
    for start in range(0, last, lanes):
        valid = min(lanes, last - start)
        pieces.append(Piece(start, ceil_power(valid), valid))
    return Geometry(shape, rows, last, tuple(pieces))


class Tile:
    """One tile value.

    Attributes:
        make: makes piece ``i`` (an LLVM value name) from operands that may be asked for theirs.
        parts: tiles of the same geometry whose piece ``i`` must exist before piece ``i`` of this one is made.
        element: the scalar with row-major number ``i`` straight from memory or a constant; None where there is none.
    """

    __slots__ = ("dtype", "element", "geo", "make", "origin", "parts", "pieces")

    def __init__(self, dtype: DType, geo: Geometry, make: Callable[[int], str], parts: Sequence[Tile] = (),
                 element: Callable[[int], str] | None = None, origin: object = None):
        self.dtype, self.geo, self.make, self.parts, self.element, self.origin = dtype, geo, make, parts, element, origin
        self.pieces: list[str | None] = [None] * geo.count

    @property
    def shape(self) -> tuple[int, ...]:
        return self.geo.shape

    def piece(self, i: int) -> str:
        """The LLVM value of piece ``i``.  Chains are followed with a list, not by recursion: they may be long."""
        got = self.pieces[i]
        if got is not None:
            return got
        stack = [self]
        while stack:
            t = stack[-1]
            if t.pieces[i] is None:
                missing = [p for p in t.parts if p.pieces[i] is None]
                if missing:
                    stack.extend(reversed(missing))
                    continue
                t.pieces[i] = t.make(i)
            stack.pop()
        made = self.pieces[i]
        assert made is not None
        return made

    @property
    def complete(self) -> bool:
        return None not in self.pieces

    @property
    def untouched(self) -> bool:
        return all(p is None for p in self.pieces)

    def force(self) -> None:
        for i in range(len(self.pieces)):
            self.piece(i)


def made_tile(dtype: DType, geo: Geometry, pieces: Sequence[str]) -> Tile:
    """A tile whose pieces exist."""

    def never(i: int) -> str:
        raise AssertionError("the pieces of this tile exist")

    t = Tile(dtype, geo, never)
    t.pieces = list(pieces)
    return t
