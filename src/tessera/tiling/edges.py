"""Which lanes of a kernel's tiles are data: where a tensor ends inside a tile, through every operation."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

from ..ir.tile import POINTWISE
from . import dsl
from .values import _HOOKS, Edge, Meta, TileValue, fail, internal

internal(__file__)
A = TypeVar("A")


def plain(key: str) -> str:
    """An axis key as the user wrote it."""
    return key.rstrip("'").lstrip("=")


def valid_lanes(x: TileValue, axes: Sequence[int] | None = None) -> TileValue | None:
    """A bool tile: which lanes are data along ``axes`` (default: all); None when all are."""
    if x.meta is None:
        return None
    out: TileValue | None = None
    for axis, edge in sorted(x.meta.edges.items()):
        if axes is not None and axis not in axes:
            continue
        line = dsl.iota((x.shape[axis],)) < edge.limit()
        shape = [1] * x.rank
        shape[axis] = x.shape[axis]
        here = dsl.broadcast_to(dsl.reshape(line, shape), x.shape)
        out = here if out is None else out & here
    return out


def masked(x: TileValue, fill: Any, axes: Sequence[int] | None = None) -> TileValue:
    """``x`` with ``fill`` in the lanes that are no data."""
    p = valid_lanes(x, axes)
    if p is None:
        return x
    out = dsl.where(p, x, fill)
    assert x.meta is not None
    done = x.meta.edges if axes is None else axes
    edges = {a: Edge(e.total, e.start, not fill, e.given) if a in done else e.unknown() for a, e in x.meta.edges.items()}
    out.meta = Meta(edges, x.meta.rows, x.meta.walks)
    return out


def _keep(new: TileValue, old: TileValue | None, axes: Sequence[int]) -> TileValue:
    """``new`` where its lanes are data along ``axes``; elsewhere what was there before (or 0)."""
    p = valid_lanes(new, axes)
    if p is None:
        return new
    out = dsl.where(p, new, 0 if old is None else old)
    assert new.meta is not None
    out.meta = Meta({a: e for a, e in new.meta.edges.items() if a not in axes}, new.meta.rows, new.meta.walks)
    return out


def merge_edges(metas: Sequence[Meta | None]) -> dict[int, Edge]:
    """Lanes that are data in every operand."""
    out: dict[int, Edge] = {}
    for m in metas:
        for axis, edge in (m.edges if m is not None else {}).items():
            have = out.get(axis)
            if have is None or have.key() == edge.key():
                out[axis] = edge if have is None or have.given == edge.given else Edge(edge.total, edge.start, have.zero and edge.zero)
            else:
                out[axis] = Edge(dsl.minimum(have.limit(), edge.limit()), given=have.given and edge.given)
    return out


_KEEPS_ZERO = frozenset({"convert", "neg", "abs", "reshape", "transpose", "slice", "broadcast"})


def _propagate(name: str, operands: Sequence[Any], attrs: Any, out: TileValue) -> None:
    """Give the result of an op what is known about its operands."""
    tiles = [v for v in operands if isinstance(v, TileValue)]
    metas = [v.meta for v in tiles]
    first, rows = metas[0] if metas else None, False
    edges: dict[int, Edge] = {}
    walks: dict[int, str] = {}
    if name in POINTWISE:
        edges, walks = merge_edges(metas), _merge_walks(metas)
        rows = any(m is not None and m.rows for m in metas)
    elif name == "dot":
        for axis, m in ((0, metas[0]), (1, metas[1])):
            if m is not None:
                edges.update({axis: m.edges[axis]} if axis in m.edges else {})
                walks.update({axis: m.walks[axis]} if axis in m.walks else {})
    elif name == "concat":
        gone = attrs.get("axis", 0)
        edges = {a: e for a, e in merge_edges(metas).items() if a != gone}
        walks = {a: w for a, w in _merge_walks(metas).items() if a != gone}
    elif first is not None:
        edges = _moved(name, first.edges, tiles[0].shape, out.shape, attrs or {})
        walks = _moved(name, first.walks, tiles[0].shape, out.shape, attrs or {})
    if name == "slice":
        edges = {a: Edge(e.total, e.start + attrs["starts"][a], e.zero, e.given) for a, e in edges.items()}
        walks = {a: w for a, w in walks.items() if tiles[0].shape[a] == out.shape[a]}
    if name not in _KEEPS_ZERO:
        edges = {a: e.unknown() for a, e in edges.items()}
    if edges or rows or walks:
        out.meta = Meta(edges, rows and out.rank == 1, walks)


def _merge_walks(metas: Sequence[Meta | None]) -> dict[int, str]:
    """The axes that all operands follow.

    Raises:
        KernelError: two operands follow different ones.
    """
    out: dict[int, str] = {}
    for m in metas:
        for axis, key in (m.walks if m is not None else {}).items():
            if out.setdefault(axis, key) != key:
                fail(f"along axis {axis} one operand follows {plain(out[axis])}, the other {plain(key)}",
                     hints=["transpose one operand", "give explicit positions: tile.load(A, (i, j), shape=…)"])
    return out


def _moved(name: str, edges: dict[int, A], before: tuple[int, ...], after: tuple[int, ...], attrs: Any) -> dict[int, A]:
    """What is known of a tile's axes, after they moved."""
    if name == "broadcast":
        return {a: e for a, e in edges.items() if before[a] == after[a]}
    if name == "transpose":
        return {k: edges[a] for k, a in enumerate(attrs["perm"]) if a in edges}
    if name == "slice":
        return dict(edges)
    if name == "reduce":
        return {a - (a > attrs["axis"]): e for a, e in edges.items() if a != attrs["axis"]}
    if name == "reshape":
        return _reshaped(edges, before, after)
    return {}


def _reshaped(edges: dict[int, A], before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, A]:
    """What is known of a tile's axes, after a reshape: an axis may be merged with those behind it.

    Raises:
        KernelError: the new axes cannot say where data end, and the kernel did not say what lies there.
    """
    out: dict[int, A] = {}
    for old, new in _groups(before, after):
        for a in (a for a in old if a in edges):
            edge = edges[a]
            if len(old) == len(new) == 1:
                out[new[0]] = edge
            elif isinstance(edge, Edge) and len(new) == 1 and a == old[0]:
                out[new[0]] = edge.merged(prod(before[a] for a in old[1:]))  # type: ignore[assignment]
            elif isinstance(edge, Edge) and not edge.given:
                fail(f"a tile with a ragged edge cannot be reshaped from {list(before)} to {list(after)}",
                     sentence="Reductions and products leave out lanes beyond the tensor's end; in the new shape they are no rectangle.",
                     hints=["make them data, by saying what they hold: tile.load(X, …, fill=0)"])
    return out


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The axes longer than 1 of two shapes of one size, in the smallest groups of equal product."""
    out: list[tuple[list[int], list[int]]] = []
    old, new = ([a for a, n in enumerate(shape) if n != 1] for shape in (before, after))
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (m := prod(before[a] for a in left)) != (n := prod(after[a] for a in right)):
            (left if m < n else right).append((old if m < n else new).pop(0))
        out.append((left, right))
    return out


_HOOKS.update(meta=_propagate, keep=_keep)

__all__ = ["masked", "merge_edges", "plain", "valid_lanes"]
