"""What the scheduler folds into a template, on tiles: operands seen through index maps, and prologue and epilogue blocks.

A template works on a few loops at a time: each such loop is an axis of its tiles (``Lanes``), every other loop is bound to
a scalar.  Index maps and the scalar bodies of blocks say what happens at one point; this file does it for a tile of points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import Any

from ..errors import CompileError
from ..ir.core import Block, Op, ScalarType
from ..scheduling.templates import affine, flat_index
from ..tiling import dsl as tile
from ..tiling.dsl import Buffer, TileValue
from ..tiling.values import common, typed
from ..types.dims import Dim, DimLike, floordiv, substitute
from ..types.dims import name as dim_name

Env = Mapping[str, Any]


@dataclass(frozen=True)
class Lanes:
    """One axis of the tiles: iterations ``base …  base + extent - 1`` of a loop.

    ``ragged``: the last ones may lie beyond the loop's ``end``; loads then give zeros there and stores do nothing.
    ``aligned``: ``base`` is a multiple of ``extent``.
    """

    loop: str
    base: Any
    extent: int
    end: DimLike = 0
    ragged: bool = False
    aligned: bool = False


@dataclass(frozen=True)
class Point:
    """Where in the loops a tile stands.

    Attributes:
        env: the loops that are bound to scalars, and names of values loaded in the block (scalars or tiles).
        lanes: the axes of the tile, in order.
        mask: lanes where the enclosing guards hold (a tile or scalar); None: all.
    """

    env: Env
    lanes: tuple[Lanes, ...]
    mask: TileValue | None = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a.extent for a in self.lanes)

    def names(self) -> dict[str, int]:
        return {a.loop: i for i, a in enumerate(self.lanes)}

    def number(self, loop: str) -> TileValue:
        """The iteration number of a lane loop, as a tile with that axis only."""
        i = self.names()[loop]
        shape = tuple(a.extent if k == i else 1 for k, a in enumerate(self.lanes))
        counted: TileValue = tile.iota(shape, i) + self.lanes[i].base
        return counted


def _moving(d: DimLike, point: Point) -> bool:
    """True when a size expression differs between lanes."""
    if isinstance(d, int):
        return False
    lanes = point.names()
    return any(n in lanes or (isinstance(point.env.get(n), TileValue) and point.env[n].rank) for n in d.names)


def number(d: DimLike, point: Point) -> Any:
    """The value of an index expression at a point: a number, a scalar, or an int64 tile where it differs between lanes."""
    if not _moving(d, point):
        return tile.evaluate(d, {n: v for n, v in point.env.items() if not (isinstance(v, TileValue) and v.rank)})
    assert isinstance(d, Dim)
    still: DimLike = 0
    total: Any = None
    for mono, coefficient in d.terms:
        one = Dim(((mono, coefficient),)) if mono else coefficient
        if not _moving(one, point):
            still = still + one
            continue
        term: Any = coefficient
        for atom, power in mono:
            factor = _atom(atom, point)
            for _ in range(power):
                term = factor * term
        total = term if total is None else total + term
    return total + number(still, point)


_APPLY = {"floordiv": "floor_div", "mod": "mod", "max": "maximum", "min": "minimum"}


def _atom(atom: Any, point: Point) -> Any:
    if isinstance(atom, str):
        if atom in point.names():
            return point.number(atom)
        return point.env[atom] if atom in point.env else tile.size(Dim(((((atom, 1),), 1),)))
    a, b = number(atom[1], point), number(atom[2], point)
    from ..tiling.values import binary
    return binary(_APPLY[atom[0]], a, b)


# -- buffers -------------------------------------------------------------------------------------------------------------
@dataclass
class Place:
    """How a tile of points lies in a buffer: the buffer under a shape whose axes the lanes run along.

    ``axes``: for each lane, the axis of ``view`` along which it lies, or None where the element does not depend on it.
    """

    view: Buffer
    offsets: list[Any]
    axes: list[int | None]
    check: list[int]
    mask: TileValue | None


def place(buffer: Buffer, index: Sequence[DimLike], point: Point) -> Place | None:
    """Where the points lie, if each lane walks through memory in one stride and the strides nest; else None."""
    point, offset = _split_lanes(flat_index(index, buffer.shape), point)
    if isinstance(offset, Dim) and any(isinstance(v, TileValue) and v.rank for n in offset.names if (v := point.env.get(n)) is not None):
        return None
    names = {a.loop: i for i, a in enumerate(point.lanes) if a.extent > 1 or a.ragged}
    form = affine(offset, names)
    if form is None:
        return None
    strides = _nested({n: s for n, s in form[1].items() if not (isinstance(s, int) and s == 0)})
    if strides is None:
        return None
    shape, units = _shape(buffer, [s for _, s in strides])
    axes: list[int | None] = [None] * len(point.lanes)
    for k, (n, _) in enumerate(strides):
        axes[names[n]] = k
    parts = _spread(form[0], units)
    outermost = next((a for a in point.lanes if strides and a.loop == strides[0][0]), None)
    if outermost is not None and outermost.ragged:
        ends = _one_of_many(shape[0], parts[0], outermost.end)
        if ends is not None:  # the loop's end is then an axis's
            (many, which), axes = ends, [None if k is None else k + 1 for k in axes]
            shape, parts = [many, outermost.end, *shape[1:]], [which, 0, *parts[1:]]
            strides = [("", 0), *strides]
    bound = {**point.env, **{a.loop: a.base for a in point.lanes if a.loop not in names}}
    offsets: list[Any] = []
    check: list[int] = []
    mask = point.mask
    for k, part in enumerate(parts):
        lane = point.lanes[names[strides[k][0]]] if k < len(strides) and strides[k][0] else None
        at = tile.evaluate(part, bound)
        offsets.append(at if lane is None else lane.base + at if not (isinstance(part, int) and part == 0) else lane.base)
        if lane is None or not lane.ragged:
            continue
        if isinstance(part, int) and part == 0 and shape[k] == lane.end:
            check.append(k)
        else:
            mask = both(mask, tile.lt(point.number(lane.loop), tile.size(lane.end)))
    return Place(tile.view(buffer, shape), offsets, axes, check, mask)


def _one_of_many(extent: DimLike, start: DimLike, end: DimLike) -> tuple[DimLike, DimLike] | None:
    """An axis along which a loop up to ``end`` begins at ``start``, as (how many such loops lie along it, which one this is); None where
    it is the only one, or they do not divide the axis."""
    if end == extent or end == 0:
        return None
    many, which = _quotient(extent, end), _quotient(start, end)
    return None if many is None or which is None else (many, which)


def both(a: TileValue | None, b: TileValue) -> TileValue:
    return b if a is None else a & b


def _split_lanes(offset: DimLike, point: Point) -> tuple[Point, DimLike]:
    """Rewrite ``lane // D`` and ``lane % D`` where a tile never crosses a multiple of D: the quotient is a scalar."""
    if not isinstance(offset, Dim):
        return point, offset
    for i, lane in enumerate(point.lanes):
        for divisor in sorted(_divisors(offset, lane.loop)):
            if lane.aligned and not lane.ragged and divisor % lane.extent == 0:
                whole, part = f"{lane.loop}.q", f"{lane.loop}.r"
                env = {**point.env, whole: lane.base // divisor}
                ranges: dict[str, DimLike] = {part: divisor}
                offset = substitute(offset, {lane.loop: dim_name(whole) * divisor + dim_name(part)}, ranges)
                lanes = list(point.lanes)
                lanes[i] = Lanes(part, lane.base % divisor, lane.extent)
                return _split_lanes(offset, Point(env, tuple(lanes), point.mask))
    return point, offset


def _divisors(d: DimLike, loop: str) -> set[int]:
    """The numbers by which ``loop`` itself is divided in an expression."""
    out: set[int] = set()
    for mono, _ in d.terms if isinstance(d, Dim) else ():
        for atom, _ in mono:
            if not isinstance(atom, str) and atom[0] in ("floordiv", "mod"):
                if isinstance(atom[2], int) and atom[1] == dim_name(loop):
                    out.add(atom[2])
                out |= _divisors(atom[1], loop)
    return out


def _nested(strides: Mapping[str, DimLike]) -> list[tuple[str, DimLike]] | None:
    """Loops and strides, outermost first, where each stride is a multiple of the next; None where there is no such order."""
    items = list(strides.items())
    for order in permutations(items):
        if all(_quotient(a[1], b[1]) is not None and a[1] != b[1] for a, b in pairwise(order)):
            return list(order)
    return None


def _quotient(a: DimLike, b: DimLike) -> DimLike | None:
    q = floordiv(a, b)
    return q if q * b == a else None


def _shape(buffer: Buffer, strides: list[DimLike]) -> tuple[list[DimLike], list[DimLike]]:
    """The buffer's shape with an axis for each stride (and one for what is below the last), and the axes' strides."""
    units = [*strides] if not strides or (isinstance(strides[-1], int) and strides[-1] == 1) else [*strides, 1]
    units = units or [1]
    outer = floordiv(buffer.type.size, units[0])
    return [outer, *(floordiv(a, b) for a, b in pairwise(units))], units


def _spread(offset: DimLike, units: list[DimLike]) -> list[DimLike]:
    """An offset in elements as one part an axis: each term goes to the outermost axis whose stride divides it."""
    parts: list[DimLike] = [0] * len(units)
    for mono, coefficient in offset.terms if isinstance(offset, Dim) else (((), offset),):
        term = Dim(((mono, coefficient),)) if mono else coefficient
        for k, unit in enumerate(units):
            q = _quotient(term, unit)
            if q is None and isinstance(term, int) and isinstance(unit, int):
                parts[k] = parts[k] + term // unit
                term = term % unit
            elif q is not None:
                parts[k] = parts[k] + q
                break
    return parts


def gather_offsets(buffer: Buffer, index: Sequence[DimLike], point: Point) -> TileValue:
    total = number(flat_index(index, buffer.shape), point)
    return tile.broadcast_to(tile.convert(total, "int64"), point.shape)


def edge_mask(point: Point) -> TileValue | None:
    mask = point.mask
    for lane in point.lanes:
        if lane.ragged:
            mask = both(mask, tile.lt(point.number(lane.loop), tile.size(lane.end)))
    return mask


def _thin(mask: TileValue | None, axes: Sequence[int | None]) -> TileValue | bool | None:
    """A mask without the lanes that have no axis; False where it differs along one of them."""
    if mask is None or not mask.rank:
        return mask
    if any(a is None and n != 1 for a, n in zip(axes, mask.shape, strict=True)):
        return False
    return tile.reshape(mask, tuple(n for a, n in zip(axes, mask.shape, strict=True) if a is not None))


def load(buffer: Buffer, index: Sequence[DimLike], point: Point) -> TileValue:
    """The elements at ``index``: a scalar, or a tile whose extents are the lanes' (1 along lanes that the index does not contain).

    Lanes beyond a loop's end give 0.
    """
    at = place(buffer, index, point)
    mask = _thin(at.mask, at.axes) if at is not None else False
    if at is None or mask is False:
        return tile.gather(buffer, gather_offsets(buffer, index, point), mask=edge_mask(point))
    shape = tuple(a.extent for a, k in zip(point.lanes, at.axes, strict=True) if k is not None)
    got = tile.load(at.view, at.offsets, shape, axes=[k for k in at.axes if k is not None], check=at.check, mask=mask)
    if not point.lanes:
        return got
    return tile.reshape(got, tuple(a.extent if k is not None else 1 for a, k in zip(point.lanes, at.axes, strict=True)))


def store(buffer: Buffer, index: Sequence[DimLike], value: TileValue, point: Point) -> None:
    """Write the tile's elements to ``index``, each where its lanes lie inside their loops and the guards hold."""
    at = place(buffer, index, point)
    mask = _thin(at.mask, at.axes) if at is not None else False
    whole = at is not None and all(k is not None or a.extent == 1 for a, k in zip(point.lanes, at.axes, strict=True))
    if at is None or mask is False or not whole:
        tile.scatter(buffer, gather_offsets(buffer, index, point), tile.broadcast_to(value, point.shape), mask=edge_mask(point))
        return
    shape = tuple(a.extent for a, k in zip(point.lanes, at.axes, strict=True) if k is not None)
    value = tile.reshape(tile.broadcast_to(value, point.shape), shape)
    tile.store(at.view, at.offsets, value, axes=[k for k in at.axes if k is not None], check=at.check, mask=mask)


# -- blocks --------------------------------------------------------------------------------------------------------------
class BlockRunner:
    """Evaluates a template's block (scalar ops of a sched kernel) on tiles.

    Args:
        block: its arguments stand for all operands in order, then for the scalars that the template hands in.
        buffers: the operands.
    """

    def __init__(self, block: Block, buffers: Sequence[Buffer]):
        self.block, self.buffers = block, dict(zip(block.args, buffers, strict=False))
        self.scalars = block.args[len(buffers):]

    def run(self, point: Point, *scalars: TileValue) -> list[TileValue]:
        """The values that the block yields at the point; ``scalars`` are tiles of the point's shape."""
        values: dict[Any, Any] = dict(zip(self.scalars, scalars, strict=True))
        return self._ops(self.block, values, point)

    def _ops(self, block: Block, values: dict[Any, Any], point: Point) -> list[TileValue]:
        for op in block.ops:
            if op.name == "yield":
                return [values[v] for v in op.operands]
            rule = getattr(self, f"_{op.name}", None)
            out = rule(op, values, point) if rule is not None else self._pointwise(op, values)
            if op.results:
                for old, new in zip(op.results, out if isinstance(out, list) else [out], strict=True):
                    values[old] = new
        return []

    def _at(self, op: Op, values: dict[Any, Any], point: Point, first: int) -> Point:
        dynamic = op.attrs.get("dyn", ())
        if not dynamic:
            return point
        extra = {n: values[v].to("int64") for n, v in zip(dynamic, op.operands[first:], strict=True)}
        return Point({**point.env, **extra}, point.lanes, point.mask)

    def _load(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        return load(self.buffers[op.operands[0]], op.attrs["index"], self._at(op, values, point, 1))

    def _store(self, op: Op, values: dict[Any, Any], point: Point) -> None:
        store(self.buffers[op.operands[0]], op.attrs["index"], values[op.operands[1]], self._at(op, values, point, 2))

    def _index(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        got = number(op.attrs["value"], self._at(op, values, point, 0))
        return got if isinstance(got, TileValue) else tile.constant(got, "int64")

    def _constant(self, op: Op, values: dict[Any, Any], point: Point) -> TileValue:
        return tile.constant(op.attrs["value"], op.result.type.dtype)

    def _guard(self, op: Op, values: dict[Any, Any], point: Point) -> list[TileValue]:
        p = values[op.operands[0]]
        inner = self._ops(op.blocks[0], dict(values), Point(point.env, point.lanes, p if point.mask is None else point.mask & p))
        other = op.attrs.get("other", 0)
        return [tile.where(p, v, tile.constant(other, v.dtype)) for v in inner]

    def _check(self, op: Op, values: dict[Any, Any], point: Point) -> None:
        ok, seen = (values[v] for v in op.operands)
        mask = edge_mask(point)
        tile.check(ok if mask is None else ok | ~mask, seen, op.attrs["site"])

    def _pointwise(self, op: Op, values: dict[Any, Any]) -> TileValue:
        operands = [values[v] for v in op.operands]
        if op.name == "select":
            return tile.where(*operands)
        t = op.result.type
        if not isinstance(t, ScalarType):
            raise CompileError(f"a template's block may not hold {op.name!r}", loc=op.loc)
        if op.name == "convert":
            x: TileValue = operands[0]
            return x.to(t.dtype)
        if op.name == "bitcast":
            return tile.bitcast(operands[0], t.dtype)
        return typed(op.name, common(operands), attrs=op.attrs or None)
