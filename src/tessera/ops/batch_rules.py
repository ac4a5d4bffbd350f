"""How ops run over a batch of examples: the rules that stanzas name in ``batch``.

A rule receives operands of which the mapped ones carry the batch as axis 0, and returns results that all carry it there.  It
keeps the op whole wherever the op has leading axes of its own, so that products, norms, attention and transforms stay on their
templates; it never needs a concrete batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike
from .table import Applied, BatchRule

Mapped = tuple[bool, ...]


# -- pieces ----------------------------------------------------------------------------------------------------------------
def stretched(t: Any, size: DimLike) -> Any:
    """An operand that is the same for all examples, once for each."""
    return bind("broadcast_to", t, shape=(size, *t.type.shape))


def spread(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """The operands with the batch in front of all of them."""
    return [t if m else stretched(t, size) for t, m in zip(x.operands, mapped, strict=True)]


def moved(t: Any, source: int, target: int) -> Any:
    """``t`` with one axis at another place; the others keep their order."""
    order = [a for a in range(len(t.type.shape)) if a != source]
    order.insert(target, source)
    return t if order == list(range(len(order))) else bind("transpose", t, perm=tuple(order))


def as_list(made: Any) -> list[Any]:
    return list(made) if isinstance(made, tuple | list) else [made]


def again(x: Applied, *operands: Any, **changes: Any) -> list[Any]:
    """The op on other operands, with some attributes changed."""
    return as_list(bind(x.name, *operands, **{**x.attrs, **changes}))


def example_numbers(shape: Sequence[DimLike]) -> Any:
    """int64 [size, …]: for each place the number of its example."""
    return bind("iota", shape=tuple(shape), axis=0, dtype=dt.int64)


def reshaped(t: Any, shape: Sequence[DimLike]) -> Any:
    return t if t.type.shape == tuple(shape) else bind("reshape", t, shape=tuple(shape))


# -- whole families ----------------------------------------------------------------------------------------------------------
def leading(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Ops that work on trailing axes and run over the leading ones, or element by element."""
    return again(x, *spread(x, mapped, size))


def shifting(attr: str) -> BatchRule:
    """Ops whose attribute ``attr`` names an axis, or several."""
    def rule(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
        axes = x.attrs[attr]
        return again(x, *spread(x, mapped, size), **{attr: axes + 1 if isinstance(axes, int) else tuple(a + 1 for a in axes)})
    return rule


def prefixing(**values: Any) -> BatchRule:
    """Ops with an attribute entry for each axis: ``values`` are the entries for the batch ("size": its size)."""
    def rule(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
        changes = {k: (size if v == "size" else v, *x.attrs[k]) for k, v in values.items() if x.attrs.get(k) is not None}
        return again(x, *spread(x, mapped, size), **changes)
    return rule


def folding(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Ops over [N, …] whose only operand takes the batch into N."""
    (t,) = x.operands
    n, *rest = t.type.shape[1:]
    (out,) = again(x, reshaped(t, (size * n, *rest)))
    return [reshaped(out, (size, n, *out.type.shape[1:]))]


# -- movement ----------------------------------------------------------------------------------------------------------------
def transpose(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    return again(x, *x.operands, perm=(0, *[p + 1 for p in x.attrs["perm"]]))


def broadcast_to(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """NumPy's rule aligns trailing axes, so the axes that an example gains come after the batch."""
    (t,) = x.operands
    shape = x.attrs["shape"]
    own = t.type.shape[1:]
    t = reshaped(t, (size, *(1,) * (len(shape) - len(own)), *own))
    return again(x, t, shape=(size, *shape))


def reshape(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    return again(x, *x.operands, shape=(size, *x.attrs["shape"]))


# -- products ------------------------------------------------------------------------------------------------------------------
_CONTRACT = ("lhs_contract", "rhs_contract", "lhs_batch", "rhs_batch")


def dot_general(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Both mapped: one more batch axis.  One mapped: one product with one more free axis; nothing is repeated."""
    a, b = x.operands
    left, right = mapped
    axes = {k: tuple(n + (left if k[0] == "l" else right) for n in x.attrs[k]) for k in _CONTRACT}
    if left and right:
        return again(x, a, b, **axes | {"lhs_batch": (0, *axes["lhs_batch"]), "rhs_batch": (0, *axes["rhs_batch"])})
    batch = len(axes["lhs_batch"])
    free = len(b.type.shape) - batch - len(axes["rhs_contract"])
    if right and free == 1:  # a vector of each example: as the first operand it puts the batch where it belongs
        swapped = {k: axes["rhs" + k[3:] if k[0] == "l" else "lhs" + k[3:]] for k in _CONTRACT}
        (out,) = again(x, b, a, **swapped)
        return [moved(out, batch, 0)]
    (out,) = again(x, a, b, **axes)
    return [moved(out, batch if left else len(a.type.shape) - len(axes["lhs_contract"]), 0)]


def conv(x: Applied, mapped: Mapped, size: DimLike) -> list[Any] | None:
    """Images of all examples are one batch; kernels of all examples are output channels; both: groups."""
    t, w = x.operands
    groups = x.attrs["groups"]
    if not mapped[1]:
        n, *rest = t.type.shape[1:]
        (out,) = again(x, reshaped(t, (size * n, *rest)), w)
        return [reshaped(out, (size, n, *out.type.shape[1:]))]
    if not isinstance(size, int):
        return None  # the number of groups or the order of the channels would depend on it
    o, c, *window = w.type.shape[1:]
    if not mapped[0]:
        w = moved(reshaped(w, (size, groups, o // groups, c, *window)), 0, 1)
        (out,) = again(x, t, reshaped(w, (size * o, c, *window)))
        n, _, *places = out.type.shape
        out = moved(reshaped(out, (n, groups, size, o // groups, *places)), 2, 0)
        return [reshaped(out, (size, n, o, *places))]
    n, channels, *spatial = t.type.shape[1:]
    t = reshaped(moved(t, 0, 1), (n, size * channels, *spatial))
    (out,) = again(x, t, reshaped(w, (size * o, c, *window)), groups=size * groups)
    return [moved(reshaped(out, (n, size, o, *out.type.shape[2:])), 1, 0)]


def triangular_solve(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """One matrix for all examples: their right sides are columns of one."""
    a, b = x.operands
    if mapped[0] or len(a.type.shape) > 2:
        return leading(x, mapped, size)
    n, k = b.type.shape[1:]
    (out,) = again(x, a, reshaped(moved(b, 0, 1), (n, size * k)))
    return [moved(reshaped(out, (n, size, k)), 1, 0)]


# -- indexing ------------------------------------------------------------------------------------------------------------------
def _place(axes: Sequence[int]) -> int:
    return axes[0] if list(axes) == list(range(axes[0], axes[0] + len(axes))) else 0


def gather(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    t, *indices = x.operands
    axes: tuple[int, ...] = x.attrs["axes"]
    place = _place(axes)
    if not any(mapped[1:]):  # the examples are looked up at the same places
        rank, shifted = len(indices[0].type.shape), tuple(a + 1 for a in axes)
        (out,) = again(x, t, *indices, axes=shifted)
        return [out if _place(shifted) else moved(out, rank, 0)]
    indices = [i if m else stretched(i, size) for i, m in zip(indices, mapped[1:], strict=True)]
    if not mapped[0]:
        (out,) = again(x, t, *indices, axes=axes)
        return [moved(out, place, 0)]
    (out,) = again(x, t, example_numbers(indices[0].type.shape), *indices, axes=(0, *[a + 1 for a in axes]))
    rank = len(indices[0].type.shape) - 1  # the result is [size, indices…, kept…]
    for _ in range(rank if place else 0):
        out = moved(out, 1, rank + place)
    return [out]


def rows_of(i: Any, n: DimLike, checked: bool) -> Any:
    """Indices [size, …] into [size, n] as indices into [size * n]: each is checked against (and kept inside) its own example."""
    line = bind("iota", shape=(n,), axis=0, dtype=dt.int64)
    inside = bind("gather", line, i, axes=(0,), checked=checked)
    return _plus(inside, _times(example_numbers(i.type.shape), n))


def _number(n: DimLike, like: Any) -> Any:
    t = bind("constant", value=n, dtype=dt.int64) if isinstance(n, int) else bind("size", value=n)
    return bind("broadcast_to", t, shape=like.type.shape)


def _times(t: Any, n: DimLike) -> Any:
    return bind("mul", t, _number(n, t))


def _plus(a: Any, b: Any) -> Any:
    return bind("add", a, b)


def scatter(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """The rows of all examples are the rows of one tensor; within an example the order of the updates is kept."""
    t, i, u = spread(x, mapped, size)
    shape, m = t.type.shape, i.type.shape[1]
    n, rest = shape[1], shape[2:]
    at = reshaped(rows_of(i, n, x.attrs.get("checked", True)), (size * m,))
    (out,) = again(x, reshaped(t, (size * n, *rest)), at, reshaped(u, (size * m, *rest)), checked=False)
    return [reshaped(out, shape)]


def _own_starts(x: Applied, first: int, mapped: Mapped, size: DimLike, room: Sequence[DimLike]) -> list[tuple[int, Any]]:
    """(axis of an example, int64 [size] of checked starts) for each start that is a value."""
    out, k = [], first
    for axis, s in enumerate(x.attrs["starts"]):
        if s is not None:
            continue
        t = x.operands[k] if mapped[k] else stretched(x.operands[k], size)
        k += 1
        # As an unsigned number a negative start does not count from the end: it is outside, as a start of a slice is.
        t = bind("convert", t, dtype=dt.uint64) if t.dtype is not dt.uint64 else t
        line = bind("iota", shape=(room[axis] + 1,), axis=0, dtype=dt.int64)
        out.append((axis, bind("gather", line, t, axes=(0,), checked=x.attrs.get("checked", True))))
    return out


def _points(starts: Sequence[tuple[int, Any]], sizes: Sequence[DimLike], size: DimLike) -> list[Any]:
    """For each axis with a start of its own, its indices over [size, sizes of these axes…]."""
    shape = (size, *[sizes[a] for a, _ in starts])
    out = []
    for k, (_, t) in enumerate(starts):
        first = bind("broadcast_to", reshaped(t, (size, *(1,) * len(starts))), shape=shape)
        out.append(_plus(first, bind("iota", shape=shape, axis=k + 1, dtype=dt.int64)))
    return out


def dynamic_slice(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Equal starts: a slice of all examples.  Starts of each example's own: a gather."""
    t, starts, sizes = x.operands[0], x.attrs["starts"], x.attrs["sizes"]
    if not any(mapped[1:]):
        return again(x, *x.operands, starts=(0, *starts), sizes=(size, *sizes))
    shape = t.type.shape[1:] if mapped[0] else t.type.shape
    own = _own_starts(x, 1, mapped, size, [n - s for n, s in zip(shape, sizes, strict=True)])
    dynamic = [a for a, _ in own]
    begin = [0 if s is None else s for s in starts]
    limit = [n if a in dynamic else b + s for a, (n, b, s) in enumerate(zip(shape, begin, sizes, strict=True))]
    lead: tuple[Any, ...] = (0,) if mapped[0] else ()
    t = bind("slice", t, start=(*lead, *begin), limit=(*[size for _ in lead], *limit), stride=(1,) * (len(shape) + len(lead)))
    points = _points(own, sizes, size)
    if mapped[0]:
        points, axes = [example_numbers(points[0].type.shape), *points], (0, *[a + 1 for a in dynamic])
    else:
        axes = tuple(dynamic)
    out = bind("gather", t, *points, axes=axes, checked=False)
    # The gathered axes stand together; each goes back to its place in the example.
    at, k = _place(axes), len(dynamic)
    order = [a for a in range(len(shape)) if a not in dynamic]
    kept = iter([*range(at), *range(at + k + 1, len(out.type.shape))])
    places = {a: next(kept) for a in order} | {a: at + 1 + n for n, a in enumerate(dynamic)}
    perm = (at, *[places[a] for a in range(len(shape))])
    return [out if perm == tuple(range(len(perm))) else bind("transpose", out, perm=perm)]


def dynamic_update_slice(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Equal starts: one update of all examples.  Starts of each example's own: a scatter of what each writes."""
    starts = x.attrs["starts"]
    t, u = (t if m else stretched(t, size) for t, m in zip(x.operands[:2], mapped[:2], strict=True))
    if not any(mapped[2:]):
        return again(x, t, u, *x.operands[2:], starts=(0, *starts))
    if t.dtype.is_complex:  # written as pairs, along an axis that is covered whole
        parts = Applied(x.name, {**x.attrs, "starts": (*starts, 0)},
                        [bind("view_as_real", t), bind("view_as_real", u), *x.operands[2:]])
        (out,) = dynamic_update_slice(parts, (True, True, *mapped[2:]), size)
        return [bind("view_as_complex", out)]
    shape, sizes = t.type.shape[1:], u.type.shape[1:]
    own = _own_starts(x, 2, mapped, size, [n - s for n, s in zip(shape, sizes, strict=True)])
    dynamic = [a for a, _ in own]
    fixed = [a for a in range(len(shape)) if a not in dynamic]
    window = {"start": (0, *[0 if s is None else s for s in starts]), "stride": (1,) * (len(shape) + 1),
              "limit": (size, *[n if a in dynamic else starts[a] + s for a, (n, s) in enumerate(zip(shape, sizes, strict=True))])}
    part = bind("slice", t, **window)
    front = (0, *[a + 1 for a in dynamic], *[a + 1 for a in fixed])
    back = tuple(front.index(a) for a in range(len(front)))
    part, rows = bind("transpose", part, perm=front), bind("transpose", u, perm=front)
    turned, k = part.type.shape, len(dynamic) + 1
    at = example_numbers((size, *[sizes[a] for a in dynamic]))
    for i, a in zip(_points(own, sizes, size), dynamic, strict=True):
        at = _plus(_times(at, shape[a]), i)
    many = [_product(s.type.shape[:k]) for s in (part, rows)]
    out = bind("scatter", reshaped(part, (many[0], *turned[k:])), reshaped(at, (many[1],)),
               reshaped(rows, (many[1], *turned[k:])), mode="set", checked=False)
    out = bind("transpose", reshaped(out, turned), perm=back)
    return as_list(bind("dynamic_update_slice", t, out, starts=window["start"]))


def _product(sizes: Sequence[DimLike]) -> DimLike:
    n: DimLike = 1
    for s in sizes:
        n = n * s
    return n


# -- composites ------------------------------------------------------------------------------------------------------------------
def norm(affine: Sequence[str]) -> BatchRule:
    """A normalisation over the last axis; weights of each example's own are applied by the ops in ``affine`` afterwards."""
    def rule(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
        t, *weights = x.operands
        if not any(mapped[1:]):
            return again(x, t, *weights)
        out, wide = t.dtype, dt.f32 if t.dtype.bits < 32 else t.dtype
        (y,) = again(x, t if wide is out else bind("convert", t, dtype=wide))
        y = y if mapped[0] else stretched(y, size)
        shape = y.type.shape
        for name, w, own in zip(affine, weights, mapped[1:], strict=False):
            w = w if wide is out else bind("convert", w, dtype=wide)
            w = reshaped(w, (size, *(1,) * (len(shape) - 2), shape[-1])) if own else w
            y = bind(name, y, bind("broadcast_to", w, shape=shape))
        return [y if wide is out else bind("convert", y, dtype=out)]
    return rule


def attention(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """One more leading axis.  A mask for all examples is not repeated, nor are keys without heads."""
    q, k, v, *mask = x.operands
    q = q if mapped[0] else stretched(q, size)
    alone = len(q.type.shape) == 3 and not mapped[1] and not mapped[2]  # a number of queries shares one set of keys
    pair = [t if m else reshaped(t, (1, *t.type.shape)) if alone else stretched(t, size)
            for t, m in zip((k, v), mapped[1:3], strict=True)]
    more = [t if m else reshaped(t, (1, *t.type.shape)) for t, m in zip(mask, mapped[3:], strict=True)]
    return again(x, q, *pair, *more)


def attention_backward(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """One more leading axis; each example has its own cotangents, so keys and values are repeated."""
    whole = [t if m else stretched(t, size) for t, m in zip(x.operands[:6], mapped[:6], strict=True)]
    more = [t if m else reshaped(t, (1, *t.type.shape)) for t, m in zip(x.operands[6:], mapped[6:], strict=True)]
    return again(x, *whole, *more)


def searchsorted(x: Applied, mapped: Mapped, size: DimLike) -> list[Any] | None:
    """One vector for all examples: a search for more values."""
    return None if mapped[0] else again(x, *x.operands)


# -- random bits ---------------------------------------------------------------------------------------------------------------
def random_bits(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """A key for each example: each counts its own elements.  One key for all: the elements are numbered through."""
    return again(x, *x.operands, shape=(size, *x.attrs["shape"]))


# -- collectives ---------------------------------------------------------------------------------------------------------------
def all_gather(x: Applied, mapped: Mapped, size: DimLike) -> list[Any]:
    """Over an axis that is not the mapped one: the members stay in front of an example."""
    (out,) = again(x, *x.operands)
    return [moved(out, 1, 0)]


Within = Callable[[Applied, bool, DimLike], list[Any]]

__all__ = ["again", "all_gather", "as_list", "attention", "attention_backward", "broadcast_to", "conv", "dot_general", "dynamic_slice",
           "dynamic_update_slice", "example_numbers", "folding", "gather", "leading", "moved", "norm", "prefixing", "random_bits",
           "reshape", "reshaped", "rows_of", "scatter", "searchsorted", "shifting", "spread", "stretched", "transpose",
           "triangular_solve"]
