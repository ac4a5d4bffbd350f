"""Derivatives of reductions, cumulative ops and windows: attached to the stanzas of ``reduction.py`` and ``convolution.py``.

Where several elements are the maximum (or minimum) of a reduction or of a window, they share its derivative equally; in a
running maximum the first of equal elements has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import product
from ..types.promotion import accumulator
from . import pointwise as pw
from .derivatives import Tangent, again, kept, onward, plus, reverse, stretched, zeros
from .indexing import along_back
from .operands import as_tensor, broadcast_to, convert
from .table import Applied

# -- sums and extrema -------------------------------------------------------------------------------------------------------
sum_back = reverse(lambda x, g: stretched(g, x.attrs["axes"], x.operands[0].type.shape))


def _shares(x: Applied) -> tuple[Any, Any]:
    """Where the operand is the extremum, and how many elements are (in the result's shape and dtype)."""
    t, axes = x.operands[0].type, x.attrs["axes"]
    mask = pw.eq(x.operands[0], stretched(x.out, axes, t.shape))
    return mask, bind("reduce_sum", bind("convert", mask, dtype=t.dtype), axes=axes)


def _extremum_jvp(x: Applied, t: Any) -> Any:
    mask, count = _shares(x)
    return pw.div(bind("reduce_sum", kept(mask, t), axes=x.attrs["axes"]), count)


def _extremum_back(x: Applied, g: Any) -> Any:
    mask, count = _shares(x)
    return kept(mask, stretched(pw.div(g, count), x.attrs["axes"], x.operands[0].type.shape))


extremum_jvp, extremum_back = onward(_extremum_jvp), reverse(_extremum_back)


# -- products -----------------------------------------------------------------------------------------------------------------
def moved(x: Any, axis: int, by: int, fill: Any) -> Any:
    """Elements moved ``by`` places along ``axis``, those pushed out lost, ``fill`` put in their place."""
    rank = x.type.rank
    low = tuple(by if a == axis else 0 for a in range(rank))
    return bind("pad", x, low=low, high=tuple(-n for n in low), value=fill)


def _others(x: Any) -> Any:
    """For each element the product of the others along the last axis: right beside zeros too."""
    last = x.type.rank - 1
    before = moved(bind("cumprod", x, axis=last), last, 1, 1)
    after = moved(bind("cumprod", x, axis=last, reverse=True), last, -1, 1)
    return pw.mul(before, after)


def _flattened(x: Applied, t: Any) -> tuple[Any, tuple[int, ...]]:
    """``t`` with the reduced axes merged into one last axis, and the order of axes before that."""
    axes = x.attrs["axes"]
    free = tuple(i for i in range(t.type.rank) if i not in axes)
    order = (*free, *axes)
    turned = t if order == tuple(range(t.type.rank)) else bind("transpose", t, perm=order)
    shape = t.type.shape
    return bind("reshape", turned, shape=(*[shape[i] for i in free], product(shape[i] for i in axes))), order


def _product_jvp(x: Applied, t: Any) -> Any:
    flat, _ = _flattened(x, x.operands[0])
    change, _ = _flattened(x, t)
    return bind("reduce_sum", pw.mul(_others(flat), change), axes=(flat.type.rank - 1,))


def _product_back(x: Applied, g: Any) -> Any:
    flat, order = _flattened(x, x.operands[0])
    shape = x.operands[0].type.shape
    out = pw.mul(_others(flat), stretched(g, (flat.type.rank - 1,), flat.type.shape))
    out = bind("reshape", out, shape=tuple(shape[i] for i in order))
    inverse = tuple(order.index(i) for i in range(len(order)))
    return out if inverse == tuple(range(len(order))) else bind("transpose", out, perm=inverse)


product_jvp, product_back = onward(_product_jvp), reverse(_product_back)


# -- cumulative ops -------------------------------------------------------------------------------------------------------------
cumsum_back = reverse(lambda x, g: bind("cumsum", g, axis=x.attrs["axis"], reverse=not x.attrs.get("reverse", False)))


def recurrence(a: Any, b: Any, axis: int, backwards: bool) -> Any:
    """h[i] = a[i] * h[i - 1] + b[i] along ``axis`` (or from its end), by doubling; a symbolic length is scanned."""
    n = a.type.shape[axis]
    if not isinstance(n, int):
        return _scanned(a, b, axis, backwards)
    step = 1
    while step < n:
        by = -step if backwards else step
        b = pw.add(b, pw.mul(a, moved(b, axis, by, 0)))
        step *= 2
        a = pw.mul(a, moved(a, axis, by, 1)) if step < n else a
    return b


def _scanned(a: Any, b: Any, axis: int, backwards: bool) -> Any:
    from ..tracing.control import scan
    from . import shaping as sh
    a, b = sh.moveaxis(a, axis, 0), sh.moveaxis(b, axis, 0)

    def body(h: Any, pair: Any) -> Any:
        h = pw.add(pw.mul(pair[0], h), pair[1])
        return h, h

    start = zeros(a.type.with_shape(a.type.shape[1:]))
    return sh.moveaxis(scan(body, start, (a, b), reverse=backwards)[1], 0, axis)


def _cumprod_parts(x: Applied) -> tuple[int, int, bool]:
    backwards = bool(x.attrs.get("reverse", False))
    return x.attrs["axis"], -1 if backwards else 1, backwards


def _cumprod_jvp(x: Applied, t: Any) -> Any:
    """y[i] = x[i] y[i-1], so y'[i] = x[i] y'[i-1] + y[i-1] x'[i]: no division, so zeros are no exception."""
    axis, by, backwards = _cumprod_parts(x)
    return recurrence(x.operands[0], pw.mul(moved(x.out, axis, by, 1), t), axis, backwards)


def _cumprod_back(x: Applied, g: Any) -> Any:
    axis, by, backwards = _cumprod_parts(x)
    after = moved(x.operands[0], axis, -by, 0)
    return pw.mul(moved(x.out, axis, by, 1), recurrence(after, g, axis, not backwards))


cumprod_jvp, cumprod_back = onward(_cumprod_jvp), reverse(_cumprod_back)


def _holder(x: Applied) -> Any:
    """The int64 position along the axis of the element that each running extremum is."""
    v, y, axis = x.operands[0], x.out, x.attrs["axis"]
    backwards = bool(x.attrs.get("reverse", False))
    greatest = x.name == "cummax"
    d = v.dtype
    before = moved(y, axis, -1 if backwards else 1, d.min if greatest else d.max)
    kept_on = (pw.le if greatest else pw.ge)(v, before)  # false for NaN, which takes over
    place = bind("iota", shape=v.type.shape, axis=axis, dtype=dt.int64)
    first = broadcast_to(as_tensor(v.type.shape[axis] - 1 if backwards else 0), v.type.shape)
    return bind("cummin" if backwards else "cummax", bind("select", kept_on, first, place), axis=axis,
                **({"reverse": True} if backwards else {}))


running_jvp = onward(lambda x, t: bind("take_along_axis", t, _holder(x), axis=x.attrs["axis"], checked=False))
running_back = reverse(lambda x, g: along_back(g, _holder(x), x.attrs["axis"], x.operands[0].type))


# -- log-sum-exp ----------------------------------------------------------------------------------------------------------------
def _weights(x: Applied, total: Any) -> Any:
    """softmax over the reduced axes, in the dtype of ``total``, the log-sum-exp."""
    v = convert(x.operands[0], total.dtype)
    base = pw.where(pw.isfinite(total), total, 0.0)
    return pw.exp(pw.sub(v, stretched(base, x.attrs["axes"], v.type.shape)))


def _exact_total(x: Applied) -> Any:
    """The log-sum-exp as it was before it was rounded to a small float."""
    wide = accumulator(x.operands[0].dtype)
    return x.out if x.results and wide is x.out.dtype else again(x, convert(x.operands[0], wide))


def _logsumexp_jvp(x: Applied, t: Any) -> Any:
    weights = _weights(x, _exact_total(x))
    return convert(bind("reduce_sum", pw.mul(weights, convert(t, weights.dtype)), axes=x.attrs["axes"]), t.dtype)


def logsumexp_forward(x: Applied) -> tuple[list[Any], Any]:
    total = _exact_total(x)
    return [convert(total, x.operands[0].dtype)], total


def _logsumexp_back(x: Applied, g: Any) -> Any:
    weights = _weights(x, x.residuals)
    g = stretched(convert(g, weights.dtype), x.attrs["axes"], weights.type.shape)
    return convert(pw.mul(weights, g), x.operands[0].dtype)


logsumexp_jvp, logsumexp_back = onward(_logsumexp_jvp), reverse(_logsumexp_back)


# -- windows ----------------------------------------------------------------------------------------------------------------------
class _Windows:
    """The places of a ``reduce_window``: slices of its padded operand, one for each place in the window, and back."""

    def __init__(self, x: Applied):
        a, self.t, out = x.attrs, x.operands[0].type, x.out.type.shape
        self.window, self.strides, self.pads, self.dilation = a["window"], a["strides"], a["padding"], a["dilation"]
        self.steps = (1, 1, *self.strides)
        self.spans = tuple((m - 1) * s + 1 for m, s in zip(out, self.steps, strict=True))
        self.sizes = tuple(n + p[0] + p[1] for n, p in zip(self.t.shape, ((0, 0), (0, 0), *self.pads), strict=True))

    def places(self) -> list[tuple[int, ...]]:
        out: list[tuple[int, ...]] = [(0, 0)]
        for w, d in zip(self.window, self.dilation, strict=True):
            out = [(*at, k * d) for at in out for k in range(w)]
        return out

    def padded(self, x: Any, fill: Any) -> Any:
        low, high = ((0, 0, *[p[i] for p in self.pads]) for i in (0, 1))
        return bind("pad", x, low=low, high=high, value=fill) if any(low) or any(high) else x

    def take(self, x: Any, at: tuple[int, ...]) -> Any:
        limit = tuple(a + span for a, span in zip(at, self.spans, strict=True))
        return bind("slice", x, start=at, limit=limit, stride=self.steps)

    def put(self, g: Any, at: tuple[int, ...]) -> Any:
        """The cotangent of the operand from that of a slice."""
        pads = ((0, 0), (0, 0), *self.pads)
        low = tuple(a - p[0] for a, p in zip(at, pads, strict=True))
        high = tuple(n - span - a - p[1] for n, span, a, p in zip(self.sizes, self.spans, at, pads, strict=True))
        return bind("pad", g, low=low, high=high, interior=tuple(s - 1 for s in self.steps), value=0)


def _window_masks(x: Applied) -> tuple[_Windows, list[tuple[tuple[int, ...], Any]], Any]:
    """For each place in the window where it holds the extremum, and how many places do."""
    w = _Windows(x)
    d = w.t.dtype
    padded = w.padded(x.operands[0], d.min if x.attrs["combine"] == "max" else d.max)
    masks = [(at, pw.eq(w.take(padded, at), x.out)) for at in w.places()]
    return w, masks, plus(*[bind("convert", m, dtype=d) for _, m in masks])


def window_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    if x.attrs["combine"] == "add":
        return [again(x, ts[0])]
    w, masks, count = _window_masks(x)
    padded = w.padded(ts[0], 0)
    return [pw.div(plus(*[kept(m, w.take(padded, at)) for at, m in masks]), count)]


def _tiles(x: Applied) -> bool:
    """Whether the windows cut the operand up: every element is in one of them."""
    a, sizes = x.attrs, x.operands[0].type.shape[2:]
    return (tuple(a["strides"]) == tuple(a["window"]) and all(p == (0, 0) for p in a["padding"]) and all(d == 1 for d in a["dilation"])
            and all(isinstance(n, int) and n % k == 0 for n, k in zip(sizes, a["window"], strict=True)))


def _tiled_back(x: Applied, g: Any) -> Any:
    """The cotangent of windows that cut the operand up: one pass over [N, C, places, window, places, window …]."""
    t, out = x.operands[0].type, x.out
    d, window, lead = t.dtype, x.attrs["window"], t.shape[:2]
    apart = (*lead, *[n for m, k in zip(out.type.shape[2:], window, strict=True) for n in (m, k)])
    thin = (*lead, *[n for m in out.type.shape[2:] for n in (m, 1)])
    held = pw.eq(bind("reshape", x.operands[0], shape=apart), broadcast_to(bind("reshape", out, shape=thin), apart))
    count = bind("reduce_sum", bind("convert", held, dtype=d), axes=tuple(range(3, len(apart), 2)))
    share = bind("reshape", pw.div(g, count), shape=thin)
    return bind("reshape", kept(held, broadcast_to(share, apart)), shape=t.shape)


def _overlaps(x: Applied) -> bool:
    """Whether the sizes are numbers and the windows dense, so that few of them meet an element."""
    a, sizes = x.attrs, (*x.operands[0].type.shape[2:], *x.out.type.shape[2:])
    return all(isinstance(n, int) and n > 0 for n in sizes) and all(d == 1 for d in a["dilation"])


def _overlapping_back(x: Applied, share: Any) -> Any:
    """The cotangent of overlapping windows in one pass over [N, C, blocks, stride, blocks, stride …].

    Element p of block b lies in the windows b - m with p + m * stride < window, so each element looks at ceil(window / stride)
    windows along each axis, whose extrema and shares every element of a block reads from the same place.
    """
    t, a, fill = x.operands[0].type, x.attrs, x.operands[0].dtype.min if x.attrs["combine"] == "max" else x.operands[0].dtype.max
    strides, pads, lead = a["strides"], a["padding"], t.shape[:2]
    blocks = [-(-(n + p[0] + p[1]) // s) for n, p, s in zip(t.shape[2:], pads, strides, strict=True)]
    most = [-(-k // s) for k, s in zip(a["window"], strides, strict=True)]
    apart = (*lead, *[n for b, s in zip(blocks, strides, strict=True) for n in (b, s)])
    thin = (*lead, *[n for b in blocks for n in (b, 1)])
    around = [(p[0], b * s - n - p[0]) for n, p, b, s in zip(t.shape[2:], pads, blocks, strides, strict=True)]
    filled = bind("pad", x.operands[0], low=(0, 0, *[p[0] for p in around]), high=(0, 0, *[p[1] for p in around]), value=fill)
    data = bind("reshape", filled, shape=apart)
    beside = {"low": (0, 0, *[m - 1 for m in most]),
              "high": (0, 0, *[max(b - n, 0) for b, n in zip(blocks, x.out.type.shape[2:], strict=True)]), "value": 0}
    tops, shares = (bind("pad", v, **beside) for v in (x.out, share))
    terms = []
    for at in itertools.product(*map(range, most)):
        start = (0, 0, *[m - 1 - k for m, k in zip(most, at, strict=True)])
        stop = tuple(f + n for f, n in zip(start, (*lead, *blocks), strict=True))
        top, mine = (broadcast_to(bind("reshape", bind("slice", v, start=start, limit=stop, stride=(1,) * t.rank), shape=thin), apart)
                     for v in (tops, shares))
        held = pw.eq(data, top)
        for i, (k, s, n) in enumerate(zip(at, strides, a["window"], strict=True)):
            if s * (k + 1) > n:  # the block's last elements lie beyond the window
                inside = pw.lt(bind("iota", shape=apart, axis=2 * i + 3, dtype=dt.int64), n - s * k)
                held = pw.logical_and(held, inside)
        terms.append(kept(held, mine))
    whole = bind("reshape", plus(*terms), shape=filled.type.shape)
    start = (0, 0, *[p[0] for p in around])
    return bind("slice", whole, start=start, limit=tuple(f + n for f, n in zip(start, t.shape, strict=True)), stride=(1,) * t.rank)


def window_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    g = gs[0]
    if x.attrs["combine"] != "add":
        if _tiles(x):
            return [_tiled_back(x, g)]
        w, masks, count = _window_masks(x)
        share = pw.div(g, count)
        if _overlaps(x):
            return [_overlapping_back(x, share)]
        return [plus(*[w.put(kept(m, share), at) for at, m in masks])]
    w = _Windows(x)
    before = [(k - 1) * d - p[0] for k, d, p in zip(w.window, w.dilation, w.pads, strict=True)]
    after = [n + (k - 1) * d - b - span for n, k, d, b, span in
             zip(w.t.shape[2:], w.window, w.dilation, before, w.spans[2:], strict=True)]
    spread = bind("pad", g, low=(0, 0, *before), high=(0, 0, *after), interior=tuple(s - 1 for s in w.steps), value=0)
    ones = (1,) * len(w.window)
    return [again(x, spread, strides=ones, padding=((0, 0),) * len(w.window))]
