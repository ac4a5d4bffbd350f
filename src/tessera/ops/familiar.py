"""Functions that NumPy, torch and JAX have and that are a line or two of others: no ops of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError
from ..types.promotion import to_inexact
from . import composites as cp
from . import contraction as ct
from . import indexing as ix
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .operands import as_tensor, axis_of, convert, one_of


# -- arrays ----------------------------------------------------------------------------------------------------------------
def unbind(x: Any, axis: int | None = None, *, dim: int | None = None) -> tuple[Any, ...]:
    """The slices of ``x`` along ``axis`` (0), without that axis.

    Raises:
        ShapeError: the axis has no known size.
        IndexOutOfRangeError: ``x`` has no such axis.
    """
    x = as_tensor(x)
    axis = axis_of("unbind", x, one_of("unbind", axis, dim, "axis", "dim", 0))
    n = x.type.shape[axis]
    if not isinstance(n, int):
        raise ShapeError(f"unbind() needs a known size along axis {axis}", received=str(x.type),
                         hints=["Index one slice: x[i]", "Loop inside the program: ts.scan"])
    return tuple([sh.squeeze(sh.slice_axis(x, axis, i, i + 1), axis) for i in range(n)])


def diag(x: Any, k: int = 0) -> Any:
    """A vector [N] as the ``k``-th diagonal of a matrix [N+|k|, N+|k|] of zeros; of a matrix, its ``k``-th diagonal.

    Raises:
        ShapeError: ``x`` is no vector or matrix.
    """
    x = as_tensor(x)
    rank = len(x.type.shape)
    if rank not in (1, 2):
        raise ShapeError("diag() takes a vector or a matrix", received=str(x.type), hints=["ts.diagonal takes any two axes"])
    before, after = max(-k, 0), max(k, 0)
    if rank == 1:
        n = x.type.shape[0]
        square = pw.where(sh.eye(n, dtype="bool"), sh.unsqueeze(x, 1), pw.mul(x, 0) if x.dtype.is_integer else 0.0)
        return sh.pad(convert(square, x.dtype), ((before, after), (after, before)))
    m, n = x.type.shape
    return ct.diagonal(sh.slice_axis(sh.slice_axis(x, 0, before, m), 1, after, n))


def diff(x: Any, n: int = 1, axis: int | None = None, *, dim: int | None = None) -> Any:
    """``x[i+1] - x[i]`` along ``axis`` (-1), ``n`` times.

    Raises:
        ArgumentError: ``n`` is negative.
    """
    x = as_tensor(x)
    axis = axis_of("diff", x, one_of("diff", axis, dim, "axis", "dim", -1))
    if n < 0:
        raise ArgumentError("diff() takes differences 0 times or more often", received=str(n))
    for _ in range(n):
        size = x.type.shape[axis]
        above, below = sh.slice_axis(x, axis, 1, size), sh.slice_axis(x, axis, 0, size - 1)
        x = pw.ne(above, below) if x.dtype.name == "bool" else pw.sub(above, below)
    return x


def kron(x: Any, y: Any) -> Any:
    """The Kronecker product: every element of ``x`` times the whole of ``y``; the smaller rank gets leading axes of size 1."""
    x, y = as_tensor(x), as_tensor(y)
    rank = max(len(x.type.shape), len(y.type.shape))
    xs, ys = [(*[1] * (rank - len(t.type.shape)), *t.type.shape) for t in (x, y)]
    apart = pw.mul(sh.reshape(x, [n for a in xs for n in (a, 1)]), sh.reshape(y, [n for b in ys for n in (1, b)]))
    return sh.reshape(apart, [a * b for a, b in zip(xs, ys, strict=True)])


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    """``x`` with ``nan`` for NaN and, for the infinities, the dtype's largest and smallest numbers unless others are given."""
    x = as_tensor(x)
    if not x.dtype.is_float:
        return x
    limits = x.dtype.finfo
    number, above, below = (convert(as_tensor(float(v)), x.dtype) for v in (
        nan, limits.max if posinf is None else posinf, limits.min if neginf is None else neginf))
    finite = pw.where(pw.isinf(x), pw.where(pw.gt(x, convert(as_tensor(0.0), x.dtype)), above, below), x)
    return pw.where(pw.isnan(x), number, finite)


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """``start + weight * (end - start)``."""
    start = as_tensor(start)
    return pw.add(start, pw.mul(weight, pw.sub(end, start)))


def index_select(x: Any, axis: Any = None, index: Any = None, *, dim: Any = None) -> Any:
    """The slices of ``x`` along ``axis`` that integers ``index`` [N] name: torch's order of ``take``'s arguments.

    Raises:
        ArgumentError: there is no ``index``.
    """
    if index is None:
        raise ArgumentError("index_select() needs the slices' numbers", expected="index_select(x, axis, index)")
    return ix.take(x, index, one_of("index_select", axis, dim, "axis", "dim"))


def vstack(xs: Sequence[Any]) -> Any:
    """Tensors joined along axis 0; vectors are rows."""
    return sh.concat([sh.reshape(x, (1, -1)) if len(x.type.shape) < 2 else x for x in map(as_tensor, xs)], 0)


def hstack(xs: Sequence[Any]) -> Any:
    """Tensors joined along axis 1; vectors along their only axis."""
    parts = [sh.reshape(x, (1,)) if not x.type.shape else x for x in map(as_tensor, xs)]
    return sh.concat(parts, min(1, len(parts[0].type.shape) - 1) if parts else 0)


# -- layers and losses -------------------------------------------------------------------------------------------------------
def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Each of ``groups`` groups of channels of ``x`` [N, C, …] to mean 0 and variance 1, then times ``weight`` [C] plus ``bias`` [C].

    Raises:
        ShapeError: the channels do not divide.
    """
    x = as_tensor(x)
    x = convert(x, to_inexact(x.dtype))
    n, c, *rest = x.type.shape
    if isinstance(c, int) and c % groups:
        raise ShapeError(f"group_norm() cannot split {c} channels into {groups} groups", received=str(x.type))
    y = sh.reshape(cp.layer_norm(sh.reshape(x, (n, groups, -1)), eps=eps), x.type.shape)
    per_channel = (-1, *[1] * len(rest))
    if weight is not None:
        y = pw.mul(y, sh.reshape(as_tensor(weight), per_channel))
    return y if bias is None else pw.add(y, sh.reshape(as_tensor(bias), per_channel))


def _loss(value: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    return value if reduction == "none" else rd.mean(value) if reduction == "mean" else rd.sum(value)


def binary_cross_entropy_with_logits(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    """-(t log σ(z) + (1 - t) log(1 - σ(z))) for logits z and targets t in [0, 1] of one shape, in the form that cannot overflow.

    Raises:
        ShapeError: the shapes differ.
        ValueError: an unknown ``reduction``.
    """
    z, t = as_tensor(logits), as_tensor(targets)
    if z.type.shape != t.type.shape:  # broadcasting would hide a forgotten axis
        raise ShapeError("the targets have another shape than the logits", expected=str(z.type), received=str(t.type))
    t = convert(t, z.dtype)
    return _loss(pw.sub(pw.add(cp.softplus(pw.neg(pw.abs(z))), pw.maximum(z, 0.0)), pw.mul(z, t)), reduction)


def huber_loss(x: Any, y: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """d²/2 where the difference d is at most ``delta``, and delta * (|d| - delta/2) beyond.

    Raises:
        ValueError: an unknown ``reduction``.
    """
    d = pw.abs(pw.sub(x, y))
    return _loss(pw.where(pw.le(d, delta), pw.mul(pw.square(d), 0.5), pw.mul(pw.sub(d, delta / 2), delta)), reduction)


def cosine_similarity(x: Any, y: Any, axis: int | None = None, *, dim: int | None = None, eps: float = 1e-8) -> Any:
    """The cosine of the angle between vectors along ``axis`` (-1); norms count as at least ``eps``."""
    axis = one_of("cosine_similarity", axis, dim, "axis", "dim", -1)
    x, y = as_tensor(x), as_tensor(y)
    xx, yy = (rd.sum(pw.square(t), axis) for t in (x, y))
    least = math.pow(eps, 2)
    return pw.div(rd.sum(pw.mul(x, y), axis), pw.sqrt(pw.mul(pw.maximum(xx, least), pw.maximum(yy, least))))


__all__ = ["binary_cross_entropy_with_logits", "cosine_similarity", "diag", "diff", "group_norm", "hstack", "huber_loss", "index_select",
           "kron", "lerp", "nan_to_num", "unbind", "vstack"]
