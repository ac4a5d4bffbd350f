"""What a kernel's Tile function does, counted without running it: floating-point operations, and how it walks memory.

A loop from ``lo`` to ``hi`` in steps of ``s`` counts (hi - lo) / s times and a grid axis that walks ``n`` elements in windows of ``w``
counts n / w times, so the lanes that a ragged edge leaves empty are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

from ..ir.core import Block, Function, Op, TileType, Value
from ..ir.tile import POINTWISE
from ..types.dims import DimLike, evaluate

FLOPS = {"fma": 2}
"""Operations of one element, where they are not 1."""
FREE = frozenset({"convert", "bitcast", "select", "isnan", "isinf", "isfinite", "eq", "ne", "lt", "le", "gt", "ge"})
MOST_BLOCKS = 4096
"""Blocks that are looked at one by one where the work depends on the position in the grid; larger grids are sampled evenly."""

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "minimum": min, "maximum": max,
    "neg": lambda a: -a, "floor_div": lambda a, b: a // b if b else None, "mod": lambda a, b: a % b if b else None,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "logical_and": lambda a, b: a and b, "logical_or": lambda a, b: a or b,
    "logical_not": lambda a: not a, "select": lambda p, a, b: a if p else b, "convert": lambda a: a,
}


def count_flops(fn: Function, sizes: Mapping[str, int], spans: Mapping[int, tuple[DimLike, int]]) -> int:
    """Floating-point operations of the whole grid: a product of an [m, k] and a [k, n] tile counts 2 m n k, an fma 2, everything else 1.

    Args:
        sizes: the symbolic sizes.
        spans: for grid axes that walk an axis in windows: (its size, the window).
    """
    extents = [evaluate(e, sizes) for e in fn.attrs["grid"]]
    weights = [Fraction(1)] * len(extents)
    for axis, (total, window) in spans.items():
        if extents[axis]:
            weights[axis] = Fraction(evaluate(total, sizes), window * extents[axis])
    blocks = 1
    for e in extents:
        blocks *= e
    if not blocks:
        return 0
    share = Fraction(blocks)
    for w in weights:
        share *= w
    if not _reads_position(fn):
        return round(_Counter(fn, sizes, [0] * len(extents)).block(fn.body) * share)
    positions = list(_positions(extents, blocks))
    total_work = sum(_Counter(fn, sizes, at).block(fn.body) for at in positions)
    return round(total_work * share / len(positions))


def _positions(extents: Sequence[int], blocks: int) -> Iterator[tuple[int, ...]]:
    if blocks <= MOST_BLOCKS:
        yield from product(*map(range, extents))
        return
    for i in range(MOST_BLOCKS):
        at, rest = [], i * blocks // MOST_BLOCKS
        for e in reversed(extents):
            at.append(rest % e)
            rest //= e
        yield tuple(reversed(at))


def _reads_position(fn: Function) -> bool:
    """True when a loop's bounds or a condition depend on the block's position."""
    reached = {r for op in fn.walk() if op.name == "program_id" for r in op.results}
    for op in fn.walk():
        if any(v in reached for v in op.operands):
            if op.name in ("for", "if") and any(v in reached for v in op.operands[:3 if op.name == "for" else 1]):
                return True
            reached |= set(op.results)
            if op.name == "for":
                reached |= set(op.blocks[0].args)
    return False


class _Counter:
    """One block's work; scalars that come from data are unknown, and loops whose bounds are unknown count once."""

    def __init__(self, fn: Function, sizes: Mapping[str, int], at: Sequence[int]):
        self.sizes, self.at = sizes, at
        self.known: dict[Value, Any] = {a: sizes[a.name] for a in fn.args if a.name is not None and a.name in sizes}

    def block(self, block: Block) -> Fraction:
        return sum((self.op(op) for op in block.ops), Fraction(0))

    def op(self, op: Op) -> Fraction:
        if op.name == "for":
            return self.loop(op)
        if op.name == "if":
            p = self.known.get(op.operands[0])
            if p is None:
                return max(self.block(b) for b in op.blocks)
            return self.block(op.blocks[0 if p else 1]) if len(op.blocks) > 1 or p else Fraction(0)
        if op.blocks:
            return sum((self.block(b) for b in op.blocks), Fraction(0))
        self.scalar(op)
        return Fraction(work(op))

    def loop(self, op: Op) -> Fraction:
        bounds: list[Any] = [self.known.get(v) for v in op.operands[:3]]
        lo, hi, step = bounds
        body = op.blocks[0]
        trips = Fraction(1) if None in bounds or not step else max(Fraction(0), Fraction(hi - lo) / step)
        if not trips:
            return trips
        if self.varies(body, body.args[0]) and lo is not None and trips <= MOST_BLOCKS:
            out, i = Fraction(0), lo
            while i < hi:
                self.known[body.args[0]] = i
                out += self.block(body) * min(Fraction(1), Fraction(hi - i) / step)
                i += step
            return out
        self.known[body.args[0]] = lo
        return self.block(body) * trips

    def varies(self, body: Block, i: Value) -> bool:
        """True when a loop inside takes its bounds from ``i``."""
        reached = {i}
        for op in body.walk():
            if any(v in reached for v in op.operands):
                if op.name in ("for", "if"):
                    return True
                reached |= set(op.results)
        return False

    def scalar(self, op: Op) -> None:
        if len(op.results) != 1 or isinstance(op.results[0].type, TileType):
            return
        if op.name == "constant":
            value: Any = op.attrs["value"]
        elif op.name == "size":
            value = evaluate(op.attrs["value"], self.sizes) if not isinstance(op.attrs["value"], int) else op.attrs["value"]
        elif op.name == "program_id":
            value = self.at[op.attrs["axis"]]
        else:
            rule = _ARITHMETIC.get(op.name)
            given = [self.known.get(v) for v in op.operands]
            value = rule(*given) if rule is not None and None not in given else None
        if value is not None:
            self.known[op.results[0]] = value


def work(op: Op) -> int:
    """Floating-point operations of one execution of an op."""
    if not op.results:
        return 0
    t = op.results[0].type
    if op.name == "dot":
        m, k = op.operands[0].type.shape[-2:]
        return 2 * int(m) * int(k) * int(t.shape[-1])
    if op.name == "reduce":
        source = op.operands[0].type
        return source.size if source.dtype.is_inexact else 0
    if op.name in POINTWISE and op.name not in FREE and isinstance(t, TileType) and t.dtype.is_inexact:
        return t.size * FLOPS.get(op.name, 1)
    return 0


def access_pattern(fn: Function) -> str:
    """How the kernel walks global memory: "coalesced", "strided" (neighbouring lanes lie apart) or "gather" (offsets are data)."""
    outside = set(fn.args)
    pattern = "coalesced"
    for op in fn.walk():
        if op.name in ("gather", "scatter", "atomic") and op.operands[0] in outside:
            return "gather"
        if op.name in ("load", "store") and op.operands[0] in outside:
            buffer = op.operands[0].type
            t = op.results[0].type if op.results else op.operands[1 + buffer.rank].type
            if isinstance(t, TileType) and t.rank and _strided(t, op.attrs.get("axes"), buffer.rank):
                pattern = "strided"
    return pattern


def _strided(t: TileType, axes: tuple[int, ...] | None, rank: int) -> bool:
    """True when no axis of the tile with more than one lane lies along the buffer's last axis."""
    axes = axes or tuple(range(rank - t.rank, rank))
    wide = [a for a, n in zip(axes, t.shape, strict=True) if n > 1]
    return bool(wide) and rank - 1 not in wide


__all__ = ["access_pattern", "count_flops", "work"]
