"""Sums that lose less: compensated (Kahan's, in Knuth's and Neumaier's form), pairwise, and Welford's mean and deviations.

All three reduce the last axis of f32 or f64; :func:`over_axes` brings other axes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import ceildiv, product
from ..types.promotion import accumulator, to_inexact
from . import batch_rules as br
from . import pointwise as pw
from . import reduction_rules as rules
from .derivatives import stretched
from .operands import as_tensor, axes_of, convert, one_of
from .reduction import count
from .rules import Array, accept, expect_operands
from .table import Applied, Attrs, Bound, primitive

Types = Sequence[TensorType]
WIDE = (dt.f32, dt.f64)
BLOCK = 128  # elements of a pairwise sum that are added in one go (by the lanes of a vector)


def _infer(name: str, results: int) -> Any:
    def infer(types: Types, attrs: Attrs) -> Types:
        expect_operands(name, types, 1)
        accept(name, types, WIDE)
        t = types[0]
        if not t.rank or tuple(attrs["axes"]) != (t.rank - 1,):
            raise ShapeError(f"{name!r} reduces the last axis of a tensor, not axes {tuple(attrs['axes'])}", received=str(t))
        return (t.with_shape(t.shape[:-1]),) * results

    return infer


def _exact_sum(x: Array, axes: Any) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.sum(x.astype(np.longdouble), axis=tuple(axes)).astype(x.dtype))


def _terms(types: Types, attrs: Attrs) -> float:
    n = types[0].shape[-1]
    return 1e-6 * n if isinstance(n, int) else 1e-3


primitive("compensated_sum", family="summation", infer=_infer("compensated_sum", 1), reference=_exact_sum, dtypes=WIDE,
          template="compensated_sum", bound=Bound(1, _terms), linear=True, vjp=rules.sum_back, batch=br.shifting("axes"),
          facts={"attrs": ("axes",)},
          doc="The sum over the last axis, the rounding errors of the additions summed beside it and added at the end.")


def _pairwise_expand(x: Any, *, axes: Any) -> Any:
    """Blocks of 128, the blocks' sums in blocks of 128, and so on; an axis of symbolic size is cut twice."""
    n, cuts = x.type.shape[-1], 0
    while (n > BLOCK if isinstance(n, int) else cuts < 2):
        blocks = ceildiv(n, BLOCK)
        lead = len(x.type.shape) - 1
        if n != blocks * BLOCK:
            x = bind("pad", x, low=(0,) * (lead + 1), high=(*[0] * lead, blocks * BLOCK - n), value=0.0)
        x = bind("reduce_sum", bind("reshape", x, shape=(*x.type.shape[:-1], blocks, BLOCK)), axes=(lead + 1,))
        n, cuts = blocks, cuts + 1
    return bind("reduce_sum", x, axes=axes)


primitive("pairwise_sum", family="composite", infer=_infer("pairwise_sum", 1), reference=_exact_sum, dtypes=WIDE,
          expand=_pairwise_expand, bound=Bound(1, lambda types, attrs: 40.0), linear=True, vjp=rules.sum_back, batch=br.shifting("axes"),
          facts={"attrs": ("axes",)}, doc="The sum over the last axis by halves: its error grows with the logarithm of the length.")


# -- Welford -----------------------------------------------------------------------------------------------------------------
def _welford_reference(x: Array, axes: Any) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        wide = x.astype(np.longdouble)
        mean = np.mean(wide, axis=tuple(axes), keepdims=True)
        return (np.asarray(mean[..., 0].astype(x.dtype)),
                np.asarray(np.sum((wide - mean) ** 2, axis=tuple(axes)).astype(x.dtype)))


def _welford_jvp(x: Applied, ts: list[Any]) -> list[Any]:
    (t,), (v,) = ts, x.operands
    if t is None:
        return [None, None]
    axes = x.attrs["axes"]
    off = pw.sub(v, stretched(x.results[0], axes, v.type.shape))
    return [pw.div(bind("reduce_sum", t, axes=axes), count(v, axes, v.dtype)),
            bind("reduce_sum", pw.mul(pw.mul(off, 2.0), t), axes=axes)]


def _welford_vjp(x: Applied, gs: list[Any]) -> list[Any]:
    (v,), axes = x.operands, x.attrs["axes"]
    out = None
    if gs[0] is not None:
        out = stretched(pw.div(gs[0], count(v, axes, v.dtype)), axes, v.type.shape)
    if gs[1] is not None:
        off = pw.sub(v, stretched(x.results[0], axes, v.type.shape))
        part = pw.mul(pw.mul(off, 2.0), stretched(gs[1], axes, v.type.shape))
        out = part if out is None else pw.add(out, part)
    return [out]


def _welford_infer(types: Types, attrs: Attrs) -> Types:
    out = _infer("welford", 2)(types, attrs)
    if types[0].shape[-1] == 0:
        raise ShapeError("'welford' over an axis of size 0: there is no element", received=str(types[0]))
    return out  # type: ignore[no-any-return]


primitive("welford", family="summation", infer=_welford_infer, reference=_welford_reference, dtypes=WIDE, template="welford",
          bound=Bound(4, lambda types, attrs: 64.0), jvp=_welford_jvp, vjp=_welford_vjp, batch=br.shifting("axes"),
          facts={"attrs": ("axes",)},
          doc="The mean over the last axis and the sum of squared deviations from it, in one pass (Welford; joined by Chan's formula).")


# -- the user's functions ----------------------------------------------------------------------------------------------------
def to_last(x: Any, axes: Sequence[int]) -> Any:
    """``x`` with ``axes`` brought to the end and made one."""
    rank = len(x.type.shape)
    kept = [i for i in range(rank) if i not in axes]
    order = (*kept, *axes)
    if order != tuple(range(rank)):
        x = bind("transpose", x, perm=order)
    if len(axes) != 1:
        x = bind("reshape", x, shape=(*x.type.shape[:len(kept)], product(x.type.shape[len(kept):])))
    return x


def over_axes(name: str, x: Any, axes: Sequence[int]) -> Any:
    """One of the ops above over any axes."""
    x = to_last(x, axes)
    return bind(name, x, axes=(len(x.type.shape) - 1,))


def _sum(name: str, method: str, x: Any, axis: Any, keepdims: bool) -> Any:
    x = as_tensor(x)
    axes = axes_of(method, x, axis)
    out = x.dtype if x.dtype.is_inexact else accumulator(x.dtype)
    if not axes or not out.is_float:
        return bind("reduce_sum", convert(x, out), axes=axes) if axes else x
    wide = convert(x, accumulator(out))
    y = convert(over_axes(name, wide, axes), out)
    return bind("reshape", y, shape=tuple(1 if i in axes else n for i, n in enumerate(x.type.shape))) if keepdims else y


def compensated_sum(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The sum over ``axis`` with the rounding errors summed beside it: about as exact as twice the digits; integers sum exactly."""
    return _sum("compensated_sum", "compensated_sum", x, one_of("compensated_sum", axis, dim, "axis", "dim"),
                bool(one_of("compensated_sum", keepdims, keepdim, "keepdims", "keepdim", False)))


def pairwise_sum(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The sum over ``axis`` by halves: its error grows with the logarithm of the number of terms."""
    return _sum("pairwise_sum", "pairwise_sum", x, one_of("pairwise_sum", axis, dim, "axis", "dim"),
                bool(one_of("pairwise_sum", keepdims, keepdim, "keepdims", "keepdim", False)))


def welford(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None,
            correction: int = 0) -> tuple[Any, Any]:
    """(mean, variance) over ``axis`` (the last) in one pass by Welford's method, whatever the mean's size beside the spread.

    Integers give f32; small floats are read as f32 and rounded once.  ``correction`` as in :func:`var`.
    """
    x = as_tensor(x)
    axes = axes_of("welford", x, one_of("welford", axis, dim, "axis", "dim", -1))
    out = to_inexact(x.dtype)
    mean, squares = over_axes("welford", convert(x, accumulator(out)), axes)
    n = count(x, axes, mean.dtype)
    variance = pw.div(squares, pw.sub(n, correction) if correction else n)
    results = [convert(mean, out), convert(variance, out)]
    if one_of("welford", keepdims, keepdim, "keepdims", "keepdim", False):
        shape = tuple(1 if i in axes else s for i, s in enumerate(x.type.shape))
        results = [bind("reshape", r, shape=shape) for r in results]
    return results[0], results[1]


__all__ = ["compensated_sum", "over_axes", "pairwise_sum", "to_last", "welford"]
