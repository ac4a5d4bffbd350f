"""Moving elements between tiles: reshape, transpose, slice, concat, broadcast.

Each is a map from the result's elements to those of its sources, known when the program is emitted.  Maps compose, whole
pieces are reused where they lie right, and a transposition inside a square of pieces is a butterfly of two-input
shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .emit_tiles import Geometry, Tile, ceil_power, geometry
from .emit_writer import Writer, representation, vector


class Move:
    """Where each element of a tile comes from: ``sources[which[i]]``, element ``index[i]`` (both flat, row-major)."""

    __slots__ = ("composes", "index", "sources", "which")

    def __init__(self, sources: Sequence[Tile], which: np.ndarray[Any, Any] | None, index: np.ndarray[Any, Any],
                 composes: bool = True):
        self.sources, self.which, self.index = tuple(sources), which, index
        self.composes = composes  # False: what is made from this is made from its pieces, which have a quick way


def move(w: Writer, geo: Geometry, sources: Sequence[Tile], which: np.ndarray[Any, Any] | None,
         index: np.ndarray[Any, Any]) -> Tile:
    """The tile whose element i is element ``index[i]`` of ``sources[which[i]]`` (``which`` None: the only source)."""
    index = index.reshape(-1)
    inner = sources[0].origin
    if len(sources) == 1 and isinstance(inner, Move) and inner.composes and sources[0].untouched:
        return move(w, geo, inner.sources, None if inner.which is None else inner.which[index], inner.index[index])
    dtype = sources[0].dtype
    plan = Move(sources, which, index)

    def make(i: int) -> str:
        piece = geo.piece(i)
        start = i // len(geo.pieces) * geo.last + piece.start
        lanes: list[tuple[Tile, int, int] | None] = []
        for flat in range(start, start + piece.valid):
            source = plan.sources[0 if which is None else int(which[flat])]
            lanes.append((source, *source.geo.locate(int(index[flat]))))
        lanes += [None] * (piece.width - piece.valid)
        return assemble(w, representation(dtype), lanes)

    element = None
    if all(s.element is not None for s in sources):
        def element(i: int) -> str:
            get = plan.sources[0 if which is None else int(which[i])].element
            assert get is not None
            return get(int(index[i]))

    return Tile(dtype, geo, make, element=element, origin=plan)


def assemble(w: Writer, rep: str, lanes: Sequence[tuple[Tile, int, int] | None]) -> str:
    """One vector from lanes of pieces: (tile, piece number, lane), None where the lane does not matter."""
    width = len(lanes)
    used: dict[tuple[int, int], tuple[Tile, int]] = {}
    for lane in lanes:
        if lane is not None:
            used.setdefault((id(lane[0]), lane[1]), (lane[0], lane[1]))
    parts: list[tuple[str, int, list[int]]] = []  # name, width, for each result lane its lane there or -1
    for key, (tile, number) in used.items():
        where = [lane[2] if lane is not None and (id(lane[0]), lane[1]) == key else -1 for lane in lanes]
        parts.append((tile.piece(number), tile.geo.piece(number).width, where))
    if len(parts) == 1:
        return _shuffle_one(w, rep, width, parts[0])
    if all(p[1] == 1 for p in parts):
        return _insert(w, rep, width, parts)
    # The parts differ in width or count: bring each to the result's width, then blend in pairs.
    placed = [(_shuffle_one(w, rep, width, p), [x >= 0 for x in p[2]]) for p in _pair_up(w, rep, width, parts)]
    while len(placed) > 1:
        placed = [_blend(w, rep, width, placed[i], placed[i + 1]) if i + 1 < len(placed) else placed[i]
                  for i in range(0, len(placed), 2)]
    return placed[0][0]


def _pair_up(w: Writer, rep: str, width: int, parts: list[tuple[str, int, list[int]]]) -> list[tuple[str, int, list[int]]]:
    """Merge parts of equal width two by two with one shuffle each."""
    out: list[tuple[str, int, list[int]]] = []
    waiting: dict[int, tuple[str, int, list[int]]] = {}
    for p in parts:
        other = waiting.pop(p[1], None) if p[1] > 1 else None
        if other is None:
            if p[1] > 1:
                waiting[p[1]] = p
            else:
                out.append(p)
            continue
        mask = [x if x >= 0 else p[1] + y if y >= 0 else -1 for x, y in zip(other[2], p[2], strict=True)]
        name = _shuffle(w, rep, p[1], other[0], p[0], mask)
        out.append((name, width, [i if m >= 0 else -1 for i, m in enumerate(mask)]))
    return out + list(waiting.values())


def _shuffle_one(w: Writer, rep: str, width: int, part: tuple[str, int, list[int]]) -> str:
    name, source_width, where = part
    if source_width == 1:
        return _insert(w, rep, width, [part]) if where.count(0) < width else w.splat(rep, width, name)
    if width == 1:
        return w.extract(rep, source_width, name, where[0])
    if source_width == width and all(x in (-1, i) for i, x in enumerate(where)):
        return name
    first = next(x for x in where if x >= 0)
    if all(x in (-1, first) for x in where) and first != 0 and source_width > 1:
        where = [first] * width
    return _shuffle(w, rep, source_width, name, "poison", where)


def _shuffle(w: Writer, rep: str, source_width: int, a: str, b: str, mask: Sequence[int]) -> str:
    t = vector(rep, source_width)
    lanes = ", ".join("i32 poison" if m < 0 else f"i32 {m}" for m in mask)
    return w.let(f"shufflevector {t} {a}, {t} {b}, <{len(mask)} x i32> <{lanes}>")


def _insert(w: Writer, rep: str, width: int, parts: list[tuple[str, int, list[int]]]) -> str:
    if width == 1:
        return parts[0][0]
    t, value = vector(rep, width), "poison"
    for name, _, where in parts:
        for lane, x in enumerate(where):
            if x >= 0:
                value = w.let(f"insertelement {t} {value}, {rep} {name}, i32 {lane}")
    return value


def _blend(w: Writer, rep: str, width: int, a: tuple[str, list[bool]], b: tuple[str, list[bool]]) -> tuple[str, list[bool]]:
    if width == 1:
        return a if a[1][0] else b
    mask = [i if a[1][i] else width + i if b[1][i] else -1 for i in range(width)]
    return _shuffle(w, rep, width, a[0], b[0], mask), [x or y for x, y in zip(a[1], b[1], strict=True)]


# -- the ops -----------------------------------------------------------------------------------------------------------
def numbers(shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Row-major element numbers in the given shape."""
    n = 1
    for d in shape:
        n *= d
    return np.arange(n).reshape(tuple(shape))


def reshape(w: Writer, t: Tile, shape: tuple[int, ...]) -> Tile:
    geo = geometry(shape, w.lanes)
    if geo.last == t.geo.last and geo.rows == t.geo.rows:  # the pieces lie the same way
        return Tile(t.dtype, geo, t.piece, parts=(t,), element=t.element, origin=_identity(t, geo))
    return move(w, geo, [t], None, numbers(t.shape))


def _identity(t: Tile, geo: Geometry) -> object:
    if isinstance(t.origin, Move) and t.untouched:
        return t.origin
    return Move([t], None, np.arange(geo.rows * geo.last))


def slice_tile(w: Writer, t: Tile, starts: Sequence[int], limits: Sequence[int], shape: tuple[int, ...]) -> Tile:
    window = tuple(slice(a, b) for a, b in zip(starts, limits, strict=True))
    return move(w, geometry(shape, w.lanes), [t], None, numbers(t.shape)[window])


def concat(w: Writer, tiles: Sequence[Tile], axis: int, shape: tuple[int, ...]) -> Tile:
    which = np.concatenate([np.full(t.shape, i) for i, t in enumerate(tiles)], axis).reshape(-1)
    index = np.concatenate([numbers(t.shape) for t in tiles], axis)
    return move(w, geometry(shape, w.lanes), tiles, which, index)


def exchange(w: Writer, t: Tile, axis: int, mask: int) -> Tile:
    index = np.take(numbers(t.shape), np.arange(t.shape[axis]) ^ mask, axis)
    return move(w, geometry(t.shape, w.lanes), [t], None, index)


def broadcast(w: Writer, t: Tile, shape: tuple[int, ...]) -> Tile:
    index = np.broadcast_to(numbers(t.shape), shape)
    return move(w, geometry(shape, w.lanes), [t], None, np.ascontiguousarray(index))


def transpose(w: Writer, t: Tile, perm: Sequence[int], shape: tuple[int, ...]) -> Tile:
    index = numbers(t.shape).transpose(tuple(perm))
    moved = move(w, geometry(shape, w.lanes), [t], None, np.ascontiguousarray(index))
    if perm[-1] == len(perm) - 1 or shape[-1] == 1 or t.shape[-1] == 1:
        return moved
    return _Transposition(w, t, tuple(perm), moved).tile


class _Transposition:
    """A transposition that moves the last axis: blocks of at most lanes x lanes elements, each by a butterfly."""

    def __init__(self, w: Writer, source: Tile, perm: tuple[int, ...], moved: Tile):
        self.w, self.source, self.perm = w, source, perm
        self.geo = moved.geo
        self.blocks: dict[tuple[int, ...], list[str]] = {}
        self.rows = numbers(moved.shape[:-1]) if len(moved.shape) > 1 else numbers((1,))
        plan = moved.origin
        assert isinstance(plan, Move)
        self.tile = Tile(moved.dtype, moved.geo, self.make, element=moved.element,
                         origin=Move(plan.sources, plan.which, plan.index, composes=False))

    def make(self, i: int) -> str:
        """Result row (…, l at the place of the source's last axis, …), piece c of the axis that is now last."""
        row, c = divmod(i, len(self.geo.pieces))
        leading = list(np.unravel_index(row, self.geo.shape[:-1]))
        place = self.perm.index(len(self.perm) - 1)
        lane = int(leading[place])
        block, within = divmod(lane, self.w.lanes)
        key = (*(int(x) if a != place else block for a, x in enumerate(leading)), c)
        if key not in self.blocks:
            self.blocks[key] = self._butterfly(leading, place, block, c)
        return self.blocks[key][within]

    def _butterfly(self, leading: list[Any], place: int, block: int, c: int) -> list[str]:
        w, piece, source = self.w, self.geo.pieces[c], self.source
        rep = representation(source.dtype)
        columns = source.geo.pieces[block]
        side = max(piece.width, columns.width)
        rows = []
        for r in range(piece.valid):
            at = list(leading)
            at[place] = block * w.lanes
            index = [0] * len(self.perm)
            for axis, p in enumerate(self.perm):
                index[p] = piece.start + r if axis == len(self.perm) - 1 else int(at[axis])
            number, _ = source.geo.locate(int(np.ravel_multi_index(index, source.shape)))
            rows.append(_shuffle_one(w, rep, side, (source.piece(number), columns.width,
                                                    [x if x < columns.width else -1 for x in range(side)])))
        rows += ["poison"] * (side - len(rows))
        step = side // 2
        while step:
            rows = self._stage(rep, rows, side, step)
            step //= 2
        return [_shuffle_one(w, rep, piece.width, (r, side, list(range(piece.width)))) for r in rows[:columns.valid]]

    def _stage(self, rep: str, rows: list[str], side: int, step: int) -> list[str]:
        """Exchange the off-diagonal step x step blocks of each pair of rows that are ``step`` apart."""
        out = list(rows)
        for i in range(side):
            if i & step:
                continue
            a, b = rows[i], rows[i + step]
            if a == b == "poison":
                continue
            out[i] = _shuffle(self.w, rep, side, a, b, [j if not j & step else side + j - step for j in range(side)])
            out[i + step] = _shuffle(self.w, rep, side, a, b, [j + step if not j & step else side + j for j in range(side)])
        return out


__all__ = ["Move", "assemble", "broadcast", "ceil_power", "concat", "exchange", "move", "numbers", "reshape", "slice_tile", "transpose"]
