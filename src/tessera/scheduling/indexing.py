"""Index arithmetic of Schedule IR: simplification, and names that clash with nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from ..types.dims import Dim, DimLike, evaluate, floordiv, known_nonnegative, mod, product, substitute
from ..types.shapes import contiguous_strides

Ranges = Mapping[str, DimLike]
Index = tuple[DimLike, ...]


class Names:
    """Fresh names for loops, apart from the symbolic sizes of a program."""

    def __init__(self, taken: Iterable[str] = ()):
        self.taken = set(taken)
        self.counts: dict[str, int] = {}

    def fresh(self, stem: str, plain: bool = False) -> str:
        """``stem0``, ``stem1`` …; with ``plain``, ``stem`` itself where it is free."""
        if plain and stem not in self.taken:
            self.taken.add(stem)
            return stem
        while True:
            n = self.counts.get(stem, 0)
            self.counts[stem] = n + 1
            name = f"{stem}{n}"
            if name not in self.taken:
                self.taken.add(name)
                return name


def simplify(e: DimLike, ranges: Ranges) -> DimLike:
    """``e`` with divisions and remainders resolved by the ranges of its loops, and ``d*(p//d) + p%d`` put together."""
    if isinstance(e, int) or not divides(e):
        return e
    return _simplified(e, tuple((n, ranges[n]) for n in names_of(e) if n in ranges))


def divides(e: DimLike) -> bool:
    """True when ``e`` is no polynomial."""
    return isinstance(e, Dim) and any(not isinstance(a, str) for m, _ in e.terms for a, _ in m)


@lru_cache(maxsize=65536)
def names_of(e: Dim) -> tuple[str, ...]:
    """The names in ``e``, sorted."""
    return tuple(sorted(e.names))


@lru_cache(maxsize=65536)
def _simplified(e: DimLike, items: tuple[tuple[str, DimLike], ...]) -> DimLike:
    ranges = dict(items)
    for _ in range(4):
        before = e
        e = substitute(e, {}, ranges)
        if isinstance(e, int):
            break
        e = _recombine(e)
        if isinstance(e, int) or e == before:
            break
    return e


@lru_cache(maxsize=65536)
def _replaced(e: Dim, env: tuple[tuple[str, DimLike], ...], items: tuple[tuple[str, DimLike], ...]) -> DimLike:
    ranges = dict(items)
    return simplify(substitute(e, dict(env), ranges), ranges)


def replace(e: DimLike, env: Ranges, ranges: Ranges) -> DimLike:
    """``e`` with names replaced by expressions, simplified."""
    if isinstance(e, int):
        return e
    here = tuple((n, env[n]) for n in names_of(e) if n in env)
    if not here:
        return simplify(e, ranges)
    inside = {n: None for _, x in here if isinstance(x, Dim) for n in names_of(x)}
    inside.update(dict.fromkeys(names_of(e)))
    return _replaced(e, here, tuple((n, ranges[n]) for n in inside if n in ranges))


def _recombine(e: Dim) -> DimLike:
    """Put ``c*d*(p//d) + c*(p%d)`` together to ``c*p``."""
    for mono, c in e.terms:
        for a, power in mono:
            if isinstance(a, str) or a[0] != "mod" or power != 1:
                continue
            p, d = a[1], a[2]
            scale: DimLike = c
            for other, n in mono:
                if other != a:
                    for _ in range(n):
                        scale = scale * Dim((((( other, 1),), 1),))
            quotient = floordiv(p, d)
            whole = scale * d * quotient
            rest = e - whole
            # Only where the quotient's terms are all there: the sum then got shorter.
            if len(_terms(rest)) + len(_terms(whole)) == len(e.terms):
                return rest - scale * mod(p, d) + scale * p
    return e


def _terms(e: DimLike) -> tuple[object, ...]:
    return (() if e == 0 else (e,)) if isinstance(e, int) else e.terms


def ravel(index: Sequence[DimLike], shape: Sequence[DimLike]) -> DimLike:
    """Row-major offset of ``index`` in ``shape``."""
    total: DimLike = 0
    for i, s in zip(index, contiguous_strides(shape), strict=True):
        total = total + i * s
    return total


def unravel(offset: DimLike, shape: Sequence[DimLike], ranges: Ranges) -> Index:
    """The index in ``shape`` that lies at row-major ``offset``."""
    out: list[DimLike] = []
    for axis, extent in enumerate(shape):
        if extent == 1:
            out.append(0)
            continue
        inner = product(shape[axis + 1:])
        q = simplify(floordiv(offset, inner, ranges), ranges) if inner != 0 else 0
        outer_is_one = all(d == 1 for d in shape[:axis])
        out.append(q if outer_is_one or extent == 0 else simplify(mod(q, extent, ranges), ranges))
    return tuple(out)


def same_offset(a: Sequence[DimLike], b: Sequence[DimLike], shape: Sequence[DimLike], ranges: Ranges) -> bool:
    """True when two indices certainly name one element."""
    if tuple(a) == tuple(b):
        return True
    return simplify(ravel(a, shape) - ravel(b, shape), ranges) == 0


def certainly_positive(d: DimLike) -> bool:
    """True when ``d >= 1`` whatever the sizes."""
    return known_nonnegative(d - 1)


TYPICAL = 128  # what a symbolic size counts as where only an order is needed


def typical(d: DimLike) -> int:
    """A number to compare sizes by that cannot be compared exactly."""
    return d if isinstance(d, int) else evaluate(d, dict.fromkeys(d.names, TYPICAL))


def injective(index: Sequence[DimLike], ranges: Ranges, loops: Sequence[str]) -> bool:
    """True when different points of ``loops`` certainly have different indices: each axis is a mixed-radix number."""
    left = set(loops)
    for e in index:
        if isinstance(e, int):
            continue
        parts: list[tuple[int, str]] = []
        for mono, c in e.terms:
            if not mono:
                continue
            if len(mono) != 1 or mono[0][1] != 1 or not isinstance(mono[0][0], str) or mono[0][0] not in left:
                return False
            parts.append((c, mono[0][0]))
            left.discard(mono[0][0])
        parts.sort()
        for (c, n), (larger, _) in itertools.pairwise(parts):
            extent = ranges[n]
            if c <= 0 or not isinstance(extent, int) or c * extent > larger:
                return False
    return all(ranges[n] == 1 for n in left)
