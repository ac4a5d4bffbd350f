"""Fake quantisation: rounded to a grid of integers and back, with the straight-through derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike
from . import pointwise as pw
from . import reduction as rd
from .derivatives import kept
from .operands import as_tensor, axes_of, broadcast_to, convert
from .rules import FLOATS, LOW, Array, accept, expect_operands
from .table import Applied, Attrs, Bound, primitive

Types = Sequence[TensorType]


def _infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("fake_quantize", types, 3)
    accept("fake_quantize", types, FLOATS)
    if any(t != types[0] for t in types):
        raise ShapeError("'fake_quantize' takes a scale and a zero point for each element, of the tensor's type", expected=str(types[0]),
                         received=", ".join(map(str, types[1:])))
    return (types[0],)


def _expand(x: Any, scale: Any, zero: Any, *, low: int, high: int) -> Any:
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    x, scale, zero, out = convert(x, wide), convert(scale, wide), convert(zero, wide), x.dtype
    q = pw.clip(pw.add(pw.round(pw.div(x, scale)), zero), float(low), float(high))
    return convert(pw.mul(pw.sub(q, zero), scale), out)


def _reference(x: Array, scale: Array, zero: Array, *, low: int, high: int) -> Array:
    with np.errstate(all="ignore"):
        a, s, z = (v.astype(np.float32) if v.dtype in LOW else v for v in (x, scale, zero))
        return np.asarray((np.clip(np.rint(a / s) + z, low, high) - z) * s).astype(x.dtype)


def _within(x: Applied) -> Any:
    """Where the value lies in the range that the integers cover."""
    v, scale, zero = x.operands
    q = pw.add(pw.div(v, scale), zero)
    return pw.logical_and(pw.ge(q, x.attrs["low"] - 0.5), pw.le(q, x.attrs["high"] + 0.5))


def _jvp(x: Applied, ts: list[Any]) -> list[Any]:
    return [None if ts[0] is None else kept(_within(x), ts[0])]


def _vjp(x: Applied, gs: list[Any]) -> list[Any]:
    return [None if gs[0] is None else kept(_within(x), gs[0]), None, None]


primitive("fake_quantize", family="composite", infer=_infer, reference=_reference, dtypes=FLOATS, expand=_expand, bound=Bound(2),
          jvp=_jvp, vjp=_vjp, facts={"attrs": ("low", "high"), "derivative": "straight-through"},
          doc="x rounded to a whole number of scales, limited to [low, high] about the zero point, as a float.  The derivative is that "
              "of x where x lies in that range, else 0; scale and zero point have none.")


def grid(bits: int, symmetric: bool) -> tuple[int, int]:
    """The integers of a quantised format: symmetric ones leave out the least."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ArgumentError(f"quantisation takes 2 to 16 bits, not {bits!r}")
    return (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def parameters(low: Any, high: Any, bits: int, symmetric: bool) -> tuple[Any, Any]:
    """(scale, zero point) for values between two tensors of limits, as f32; an empty range gets the scale 1."""
    first, last = grid(bits, symmetric)
    if symmetric:
        top = pw.maximum(pw.abs(low), pw.abs(high))
        scale = pw.div(top, float(last))
        zero = pw.mul(scale, 0.0)
    else:
        low, high = pw.minimum(low, 0.0), pw.maximum(high, 0.0)
        scale = pw.div(pw.sub(high, low), float(last - first))
        zero = pw.round(pw.div(pw.neg(low), pw.where(pw.gt(scale, 0), scale, 1.0)))
    usable = pw.logical_and(pw.gt(scale, 0), pw.isfinite(scale))
    return pw.where(usable, scale, 1.0), pw.where(usable, zero, 0.0)


def limits(x: Any, axis: Any = None) -> tuple[Any, Any]:
    """The least and greatest element as f32: of the tensor, or for each index of ``axis`` (kept as axes of size 1 elsewhere)."""
    x = convert(as_tensor(x), dt.f32)
    rank = len(x.type.shape)
    channel = () if axis is None else axes_of("fake_quantize", x, axis)
    over = tuple(i for i in range(rank) if i not in channel)
    return (rd.min(x, over, True), rd.max(x, over, True)) if over else (x, x)


def fake_quantize(x: Any, bits: int = 8, *, scale: Any = None, zero_point: Any = None, symmetric: bool = True, axis: Any = None) -> Any:
    """``x`` rounded to the grid that ``bits`` bits can hold, still as a float: what a quantised tensor would give back.

    Differentiated, it is the identity within the grid's range and 0 outside (straight-through).

    Args:
        scale: the size of a step; taken from the greatest magnitude of ``x`` (of its range, where not symmetric) unless given.
        zero_point: the integer that stands for 0 (0 for symmetric grids).
        axis: one scale for each index along this axis.

    Raises:
        ArgumentError: bits outside 2 … 16, or a zero point without a scale.
        DTypeError: not a float tensor.
    """
    x = as_tensor(x)
    accept("fake_quantize", [x.type], FLOATS)
    low, high = grid(bits, symmetric)
    if scale is None:
        if zero_point is not None:
            raise ArgumentError("a zero point goes with a scale", hints=["Pass scale= too"])
        scale, zero_point = parameters(*limits(x, axis), bits, symmetric)
    shape: tuple[DimLike, ...] = x.type.shape

    def filled(v: Any) -> Any:
        return broadcast_to(convert(as_tensor(v), x.dtype), shape)

    return bind("fake_quantize", x, filled(scale), filled(0.0 if zero_point is None else zero_point), low=low, high=high)


__all__ = ["fake_quantize", "grid", "limits", "parameters"]
