"""Attention's definition and derivatives: attached to the stanzas in ``composites.py``.

Reverse mode keeps one number a query, the log-sum-exp of its scores, and makes the probabilities again from it: memory grows
with the number of queries and keys, not with their product.  With ``p`` the probabilities and ``g`` the result's cotangent,
the scores' cotangent is ``p * (g v^T - delta)``, where ``delta = sum(g * out)`` of each row (Dao et al., "FlashAttention",
2022); a cotangent of the log-sum-exp is subtracted from ``delta``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.promotion import accumulator
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .contraction import dot_general
from .derivatives import Tangent, zeros
from .operands import as_tensor, broadcast_to, convert
from .rules import LOW, Array
from .table import Applied


# -- the definition -----------------------------------------------------------------------------------------------------------
def _repeat_heads(t: Any, heads: Any) -> Any:
    shape = t.type.shape
    times = heads // shape[-3]
    wide = broadcast_to(sh.unsqueeze(t, -3), (*shape[:-2], times, *shape[-2:]))
    return sh.reshape(wide, (*shape[:-3], heads, *shape[-2:]))


def _each_head(q: Any, *shared: Any) -> list[Any]:
    """Keys and values with a head for each head of the queries."""
    if q.type.rank < 3 or q.type.shape[-3] == shared[0].type.shape[-3]:
        return list(shared)
    return [_repeat_heads(t, q.type.shape[-3]) for t in shared]


def _lead(t: Any) -> tuple[int, ...]:
    return tuple(range(t.type.rank - 2))


def _paired(x: Any, y: Any, a: int, b: int, dtype: Any = None) -> Any:
    """The product of stacks of matrices over axis ``a`` of the first and ``b`` of the second (-1 or -2)."""
    r = x.type.rank
    return dot_general(x, y, ((r + a,), (r + b,)), (_lead(x), _lead(x)), dtype=dtype)


def _held(t: Any, accumulate: Any) -> Any:
    """What an accumulator in that format holds of ``t``."""
    return t if accumulate is None else convert(convert(t, accumulate), t.dtype)


def _scores(q: Any, k: Any, mask: Any, scale: float, causal: bool, accumulate: Any = None) -> Any:
    """scale * q k^T, masked, in the accumulator's dtype."""
    wide = accumulator(q.dtype)
    s = _held(pw.mul(_paired(q, k, -1, -1, wide), scale), accumulate)
    if mask is not None:
        s = pw.where(mask, s, -math.inf) if mask.dtype is dt.bool_ else pw.add(s, convert(mask, wide))
    if causal:
        square = s.type.shape[-2:]
        rows, cols = (bind("iota", shape=square, axis=a, dtype=dt.int64) for a in (0, 1))
        s = pw.where(pw.le(cols, pw.add(rows, as_tensor(square[1] - square[0]))), s, -math.inf)
    return s


def _softmax_product(q: Any, k: Any, v: Any, mask: Any, scale: float, causal: bool, accumulate: Any) -> tuple[Any, Any, Any]:
    """The result, and the maximum and sum of each row."""
    out, wide = q.dtype, accumulator(q.dtype)
    k, v = _each_head(q, k, v)
    s = _scores(q, k, mask, scale, causal, accumulate)
    top = rd.max(s, -1, True)
    top = pw.where(pw.isfinite(top), top, 0.0)
    p = pw.exp(pw.sub(s, top))
    total = rd.sum(p, -1, True)
    y = _held(_paired(p, convert(v, wide), -1, -2), accumulate)
    return convert(pw.div(y, pw.where(pw.eq(total, 0), 1.0, total)), out), top, total


def attention_expand(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float, causal: bool = False, accumulate: Any = None,
                     schedule: Any = None) -> Any:
    return _softmax_product(q, k, v, mask, scale, causal, accumulate)[0]


def forward_expand(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float, causal: bool = False, accumulate: Any = None
                   ) -> tuple[Any, Any]:
    out, top, total = _softmax_product(q, k, v, mask, scale, causal, accumulate)
    nothing = pw.eq(total, 0)
    sums = pw.where(nothing, -math.inf, pw.add(pw.log(pw.where(nothing, 1.0, total)), top))
    return out, sh.squeeze(sums, -1)


def _score_cotangent(q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, mask: Any, scale: float, causal: bool, accumulate: Any
                     ) -> tuple[Any, Any]:
    """The probabilities and the cotangent of the scores; k and v have a head for each head of q."""
    wide = lse.dtype
    base = pw.where(pw.isfinite(lse), lse, 0.0)  # a row that sees no key: all scores are -inf
    p = pw.exp(pw.sub(_scores(q, k, mask, scale, causal, accumulate), sh.unsqueeze(base, -1)))
    return p, pw.mul(p, pw.sub(_paired(g, v, -1, -1, wide), sh.unsqueeze(delta, -1)))


def backward_expand(q: Any, k: Any, v: Any, g: Any, lse: Any, delta: Any, mask: Any = None, *, scale: float, causal: bool = False,
                    accumulate: Any = None) -> tuple[Any, Any, Any]:
    wide = lse.dtype
    heads = k.type.shape
    k, v = _each_head(q, k, v)
    p, ds = _score_cotangent(q, k, v, g, lse, delta, mask, scale, causal, accumulate)
    ds = pw.mul(ds, scale)
    dq = _paired(ds, convert(k, wide), -1, -2)
    dk, dv = _paired(ds, convert(q, wide), -2, -2), _paired(p, convert(g, wide), -2, -2)
    return dq, _fewer_heads(dk, heads), _fewer_heads(dv, heads)


def _fewer_heads(t: Any, shape: Any) -> Any:
    """Summed over the query heads that share a key head."""
    if t.type.rank < 3 or t.type.shape[-3] == shape[-3]:
        return t
    lead, heads, rest = t.type.shape[:-3], t.type.shape[-3], t.type.shape[-2:]
    return rd.sum(sh.reshape(t, (*lead, shape[-3], heads // shape[-3], *rest)), -3)


# -- the rules ----------------------------------------------------------------------------------------------------------------
def _meaning(x: Applied) -> dict[str, Any]:
    """The attributes that the other kernels of attention share: those of what it computes."""
    return {k: v for k, v in x.attrs.items() if k != "schedule"}


def attention_forward(x: Applied) -> tuple[list[Any], Any]:
    out, lse = bind("attention_forward", *x.operands, **_meaning(x))
    return [out], lse


def attention_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    return _back(x, x.out, x.residuals, gs[0], None)


def forward_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    """Of (out, log-sum-exp): attention differentiated twice comes here."""
    out, lse = x.results
    return _back(x, out, lse, zeros(out.type) if gs[0] is None else gs[0], gs[1])


def _back(x: Applied, out: Any, lse: Any, g: Any, of_sums: Tangent) -> list[Tangent]:
    wide = lse.dtype
    delta = rd.sum(pw.mul(convert(g, wide), convert(out, wide)), -1)
    delta = delta if of_sums is None else pw.sub(delta, of_sums)
    q, k, v, *mask = x.operands
    made: list[Tangent] = [None] * len(x.operands)
    if any(x.wanted[:3]):
        parts = bind("attention_backward", q, k, v, g, lse, delta, *mask, **_meaning(x))
        made[:3] = [convert(d, t.dtype) if w else None for d, t, w in zip(parts, (q, k, v), x.wanted, strict=False)]
    if mask and x.wanted[3]:
        made[3] = _mask_cotangent(x, g, lse, delta)
    return made


def _mask_cotangent(x: Applied, g: Any, lse: Any, delta: Any) -> Any:
    """A mask has the size of the scores, or is stretched to them; only it needs the scores' cotangent in memory."""
    q, k, v, mask = x.operands
    keys, values = _each_head(q, k, v)
    ds = _score_cotangent(q, keys, values, g, lse, delta, mask, x.attrs["scale"], x.attrs.get("causal", False),
                          x.attrs.get("accumulate"))[1]
    axes = tuple(i for i, (a, b) in enumerate(zip(mask.type.shape, ds.type.shape, strict=True)) if a != b)
    return convert(rd.apply("reduce_sum", ds, axes, True), mask.dtype)


# -- the meaning in numpy -------------------------------------------------------------------------------------------------------
def _numpy_held(x: Array, accumulate: dt.DType | None) -> Array:
    return x if accumulate is None else x.astype(accumulate.np).astype(x.dtype)


def numpy_scores(q: Array, k: Array, mask: Array | None, scale: float, causal: bool, accumulate: dt.DType | None = None) -> Array:
    s = _numpy_held(np.matmul(q, np.swapaxes(k, -1, -2)) * q.dtype.type(scale), accumulate)
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == np.bool_ else s + mask.astype(q.dtype)
    if causal:
        rows, cols = s.shape[-2:]
        s = np.where(np.arange(cols) <= np.arange(rows)[:, None] + (cols - rows), s, -np.inf)
    return np.asarray(s)


def _numpy_wide(q: Array, *others: Array) -> list[Array]:
    """Operands in the dtype of the computation, keys and values with a head for each head of the queries."""
    wide = np.dtype(np.float32) if q.dtype in LOW else q.dtype
    out = [q.astype(wide)]
    for t in others:
        grouped = q.ndim >= 3 and q.shape[-3] != t.shape[-3]
        out.append(np.repeat(t.astype(wide), q.shape[-3] // t.shape[-3], -3) if grouped else t.astype(wide))
    return out


def forward_reference(q: Array, k: Array, v: Array, mask: Array | None = None, *, scale: float, causal: bool = False,
                      accumulate: dt.DType | None = None) -> tuple[Array, Array]:
    out = q.dtype
    q, k, v = _numpy_wide(q, k, v)
    s = numpy_scores(q, k, mask, scale, causal, accumulate)
    top = np.max(s, -1, keepdims=True, initial=-np.inf)
    base = np.where(np.isfinite(top), top, 0).astype(q.dtype)
    p = np.exp(s - base)
    total = np.sum(p, -1, keepdims=True)
    with np.errstate(all="ignore"):
        sums = np.asarray(np.log(total) + base)
    return np.asarray(_numpy_held(np.matmul(p, v), accumulate) / np.where(total == 0, 1, total)).astype(out), sums[..., 0]


def backward_reference(q: Array, k: Array, v: Array, g: Array, lse: Array, delta: Array, mask: Array | None = None, *, scale: float,
                       causal: bool = False, accumulate: dt.DType | None = None) -> tuple[Array, Array, Array]:
    heads = k.shape
    q, k, v, g = _numpy_wide(q, k, v, g)
    p = np.exp(numpy_scores(q, k, mask, scale, causal, accumulate) - np.where(np.isfinite(lse), lse, 0)[..., None])
    ds = p * (np.matmul(g, np.swapaxes(v, -1, -2)) - delta[..., None]) * q.dtype.type(scale)
    dk, dv = np.matmul(np.swapaxes(ds, -1, -2), q), np.matmul(np.swapaxes(p, -1, -2), g)
    if len(heads) >= 3 and dk.shape[-3] != heads[-3]:
        dk, dv = (t.reshape(*heads[:-2], -1, *t.shape[-2:]).sum(-3) for t in (dk, dv))
    return tuple(np.asarray(t, q.dtype) for t in (np.matmul(ds, k), dk, dv))  # type: ignore[return-value]
