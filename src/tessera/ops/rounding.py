"""How conversions round, where they do not round to nearest: the meaning of ``convert`` with ``rounding`` and ``saturate``.

A plain ``convert`` rounds to nearest even, which every target does by itself.  What the attributes add is written here in basic
ops (the Graph pass that expands composites puts them in), so that every target gives the same bits.  A value is rounded in f32, or in f64
where it or the target is f64: bfloat16 by integer arithmetic on the bits, whose exponents are those of f32; other formats in
units of the target's last place, which are powers of two, so that scaling by them is exact.

``stochastic`` rounds up with the probability that the value's place between its two neighbours gives; the random words are an
operand, so a result depends on the key alone, never on threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dtypes import DType
from ..types.policy import RoundingMode
from . import meaning as m
from . import pointwise as pw
from .operands import as_tensor, convert
from .rules import EVERY, FLOATS, Array, accept, expect_operands, lifted
from .table import Applied, Attrs, primitive

TRUNCATES = ("toward_zero", "up", "down", "stochastic")


# -- convert ---------------------------------------------------------------------------------------------------------------
def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    """The rule of ``convert``: with stochastic rounding the second operand holds uint32 random words."""
    rounding = attrs.get("rounding", "nearest")
    try:
        mode = RoundingMode(rounding)
    except ValueError:
        raise DTypeError(f"there is no rounding mode {rounding!r}", expected=", ".join(RoundingMode)) from None
    stochastic = mode is RoundingMode.STOCHASTIC
    expect_operands("convert", types, 1 + stochastic)
    if stochastic and (types[1].dtype is not dt.uint32 or types[1].shape != types[0].shape):
        raise DTypeError("stochastic rounding takes one uint32 random word an element", expected=str(types[0].with_dtype(dt.uint32)),
                         received=str(types[1]))
    if rounding != "nearest" and (types[0].dtype.is_complex or attrs["dtype"].is_complex):
        raise DTypeError("complex numbers convert by rounding to nearest", received=str(types[0]),
                         hints=["Convert the parts: ts.real(x), ts.imag(x)"])
    return (types[0].with_dtype(attrs["dtype"]),)


def expands(attrs: Mapping[str, Any], types: Sequence[TensorType] = ()) -> bool:
    """Whether a ``convert`` is more than a plain one."""
    return "rounding" in attrs or bool(attrs.get("saturate"))


def _working(source: DType, target: DType) -> DType:
    return dt.f64 if dt.f64 in (source, target) or source.is_integer or source.bits > 32 else dt.f32


def expand(x: Any, bits: Any = None, *, dtype: DType, rounding: str | None = None, saturate: bool = False) -> Any:
    """``convert`` in basic ops."""
    if dtype is dt.bool_ or dtype.is_complex or x.dtype.is_complex:
        return convert(x, dtype)
    if rounding is None and dtype.is_integer:  # a plain conversion to an integer saturates
        return convert(x, dtype)
    wide = _working(x.dtype, dtype)
    x = convert(x, wide)
    if rounding is not None and dtype is not wide and (dtype.is_integer or rounding != "nearest"):
        x = _on_grid(x, dtype, rounding, bits)
    if saturate and dtype.is_float:
        limit = float(dtype.finfo.max)
        x = pw.where(pw.isnan(x), x, pw.clip(x, -limit, limit))
    return convert(x, dtype)


def _on_grid(x: Any, target: DType, rounding: str, bits: Any) -> Any:
    if target.is_integer:
        return _whole(x, rounding, bits)
    if target is dt.bf16 and x.dtype is dt.f32:
        return _upper_half(x, rounding, bits)
    unit, inverse = _unit(x, target)
    y = pw.mul(_whole(pw.mul(x, inverse), rounding, bits), unit)
    largest = float(target.finfo.max)
    if rounding in ("toward_zero", "down"):
        y = pw.minimum(y, largest)
    if rounding in ("toward_zero", "up"):
        y = pw.maximum(y, -largest)
    return pw.where(pw.isfinite(x), pw.copysign(y, x), x)


def _field(x: Any) -> tuple[Any, int, int]:
    """(the exponent's field, digits of the fraction, bias) of f32 or f64."""
    kind, digits, bias = (dt.int32, 23, 127) if x.dtype is dt.f32 else (dt.int64, 52, 1023)
    return pw.shift_right(bind("bitcast", pw.abs(x), dtype=kind), digits), digits, bias


def _unit(x: Any, target: DType) -> tuple[Any, Any]:
    """The unit in the last place of ``x`` in ``target``, a power of two, and its inverse."""
    field, digits, bias = _field(x)
    info = target.finfo
    place = pw.sub(pw.maximum(field, int(info.minexp) + bias), int(info.nmant))
    return tuple(bind("bitcast", pw.shift_left(f, digits), dtype=x.dtype) for f in (place, pw.sub(2 * bias, place)))


def _whole(x: Any, rounding: str, bits: Any) -> Any:
    if rounding != "stochastic":
        return {"nearest": pw.round, "toward_zero": pw.trunc, "up": pw.ceil, "down": pw.floor}[rounding](x)
    low = pw.floor(x)
    digits = 32 if x.dtype is dt.f64 else 24
    uniform = pw.mul(convert(pw.shift_right(bits, 32 - digits) if digits < 32 else bits, x.dtype), 2.0**-digits)
    return pw.where(pw.lt(uniform, pw.sub(x, low)), pw.add(low, 1.0), low)


def _upper_half(x: Any, rounding: str, bits: Any) -> Any:
    """f32 with the lower half of its bits rounded away; counting in the bits carries into the exponent as it should."""
    code = bind("bitcast", x, dtype=dt.int32)
    if rounding == "stochastic":
        code = pw.add(code, convert(pw.bitwise_and(bits, 0xFFFF), dt.int32))
    elif rounding in ("up", "down"):
        away = pw.ge(code, 0) if rounding == "up" else pw.lt(code, 0)
        code = pw.where(away, pw.add(code, 0xFFFF), code)
    y = bind("bitcast", pw.bitwise_and(code, -65536), dtype=dt.f32)
    return pw.where(pw.isfinite(x), y, x)


def reference(x: Array, bits: Array | None = None, *, dtype: DType, rounding: str | None = None, saturate: bool = False) -> Array:
    """``convert`` in numpy, by another way: the nearest value is found first, and moved to its neighbour where it lies wrong."""
    if rounding in (None, "nearest") and not (rounding and dtype.is_integer):
        return m.convert(x, dtype, saturate)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        by_bits = dtype is dt.bf16 and rounding == "stochastic" and x.dtype.itemsize <= 4 and x.dtype.kind not in "iu"
        if by_bits:  # the magnitude is rounded
            wide = np.abs(wide)
        if dtype.is_integer:
            low, high = np.floor(wide), np.ceil(wide)
        else:
            low, high = _neighbours(wide, dtype, rounding != "stochastic")
        if rounding == "nearest":
            y = np.rint(wide)
        elif rounding == "stochastic":
            assert bits is not None
            y = np.where(_uniforms(bits, x, dtype) < (wide - low) / np.where(high == low, 1, high - low), high, low)
        else:
            down = (wide >= 0) if rounding == "toward_zero" else np.full(wide.shape, rounding == "down")
            y = np.where(down, low, high)
        y = np.where(np.isfinite(wide), y, wide)
        return m.convert(np.copysign(y, x.astype(np.float64)), dtype, saturate)


def _neighbours(x: Array, dtype: DType, bounded: bool) -> tuple[Array, Array]:
    """The numbers of the format next below and above (or equal to) ``x``; past the largest comes what a unit more would be, and
    toward zero, where ``bounded``, the largest."""
    info = dtype.finfo
    exponent = np.maximum(np.frexp(x)[1] - 1, int(info.minexp))
    unit = np.exp2((exponent - int(info.nmant)).astype(np.float64))
    low, high, largest = np.floor(x / unit) * unit, np.ceil(x / unit) * unit, float(info.max)
    beyond = (np.abs(x) > largest) & bounded
    return (np.where(beyond & (x > 0), largest, low), np.where(beyond & (x < 0), -largest, high))


def _uniforms(bits: Array, x: Array, dtype: DType) -> Array:
    if dtype is dt.bf16 and x.dtype.itemsize <= 4 and x.dtype.kind not in "iu":  # the probability has 16 digits
        return np.asarray((0xFFFF - (bits & np.uint32(0xFFFF)).astype(np.float64)) / 65536)
    wide = _working(dt.as_dtype(x.dtype), dtype) is dt.f64
    return np.asarray(bits.astype(np.float64) * 2.0**-32 if wide else (bits >> np.uint32(8)).astype(np.float64) * 2.0**-24)


def _convert_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    return [convert(ts[0], x.attrs["dtype"])]


def _convert_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    """A real number becomes the real part of a complex one, and a complex number gives its real part."""
    g, kind = gs[0], x.operands[0].dtype
    return [convert(pw.real(g) if g.dtype.is_complex and not kind.is_complex else g, kind), *[None] * (len(x.operands) - 1)]


primitive("convert", family="pointwise", infer=infer, reference=reference, dtypes=EVERY, pointwise=True, jvp=_convert_jvp,
          vjp=_convert_vjp,
          doc="The value in another dtype: floats round to nearest even, float to integer truncates and saturates (NaN gives 0), integers "
              "wrap, and ``saturate`` clamps floats to the target's finite range.  ``rounding`` names another mode (for integers "
              "too); stochastic takes a second operand, a uint32 random word an element.",
          facts={"attrs": ("dtype", "saturate", "rounding"), "expands": expands, "written": expand})


# -- formats inside wider ones ---------------------------------------------------------------------------------------------------
def _reduce_infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("reduce_precision", types, 1)
    accept("reduce_precision", types, (dt.f32, dt.f64))
    e, f = attrs["exponent_bits"], attrs["mantissa_bits"]
    most = (8, 23) if types[0].dtype is dt.f32 else (11, 52)
    if not (1 < e <= most[0] and 0 < f <= most[1]):
        raise DTypeError(f"{types[0].dtype} does not hold a format of {e} exponent and {f} mantissa bits",
                         expected=f"2 to {most[0]} exponent bits, 1 to {most[1]} mantissa bits")
    return (types[0],)


def _reduce_expand(x: Any, *, exponent_bits: int, mantissa_bits: int) -> Any:
    kind, digits, bias = (dt.int32, 23, 127) if x.dtype is dt.f32 else (dt.int64, 52, 1023)
    code, drop, y = bind("bitcast", x, dtype=kind), digits - mantissa_bits, x
    if drop:
        odd = pw.bitwise_and(pw.shift_right(code, drop), 1)
        code = pw.bitwise_and(pw.add(pw.add(code, odd), (1 << (drop - 1)) - 1), -(1 << drop))
        y = bind("bitcast", code, dtype=x.dtype)
    own = (1 << (exponent_bits - 1)) - 1
    if own < bias:
        y = pw.where(pw.gt(pw.abs(y), 2.0**own * (2.0 - 2.0**-mantissa_bits)), pw.copysign(math.inf, x), y)
        y = pw.where(pw.lt(pw.abs(y), 2.0 ** (1 - own)), pw.copysign(0.0, x), y)
    return pw.where(pw.isfinite(x), y, x)


def _reduce_reference(x: Array, *, exponent_bits: int, mantissa_bits: int) -> Array:
    with np.errstate(all="ignore"):
        mantissa, exponent = np.frexp(x.astype(np.float64))
        y = np.ldexp(np.rint(np.ldexp(mantissa, mantissa_bits + 1)), exponent - mantissa_bits - 1)
        if mantissa_bits == (23 if x.dtype == np.float32 else 52):
            y = x.astype(np.float64)
        own = (1 << (exponent_bits - 1)) - 1
        if own < (127 if x.dtype == np.float32 else 1023):
            y = np.where(np.abs(y) > 2.0**own * (2.0 - 2.0**-mantissa_bits), np.copysign(np.inf, x), y)
            y = np.where(np.abs(y) < 2.0 ** (1 - own), np.copysign(0.0, x), y)
        return np.where(np.isfinite(x), y, x).astype(x.dtype)


primitive("reduce_precision", family="composite", infer=_reduce_infer, reference=_reduce_reference, expand=_reduce_expand,
          dtypes=(dt.f32, dt.f64), facts={"attrs": ("exponent_bits", "mantissa_bits"), "derivative": "straight-through"},
          jvp=lambda x, ts: ts, vjp=lambda x, gs: gs,
          doc="The value rounded to nearest even as if its format had so many exponent and mantissa bits, without subnormal numbers "
              "where it has fewer exponents; too large becomes infinite.")


def reduce_precision(x: Any, exponent_bits: int, mantissa_bits: int) -> Any:
    """``x`` rounded as if it were stored in a format of so many bits, in its own dtype: tf32 is (8, 10).

    Raises:
        DTypeError: the dtype does not hold such a format.
    """
    return bind("reduce_precision", as_tensor(x), exponent_bits=int(exponent_bits), mantissa_bits=int(mantissa_bits))


def _flush_infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("flush_subnormals", types, 1)
    accept("flush_subnormals", types, FLOATS)
    return (types[0],)


def _flush(x: Array) -> Array:
    least = 2.0**-1022 if x.dtype == np.float64 else 2.0**-126
    return np.where(np.abs(x) < least, np.copysign(x.dtype.type(0), x), x)


def _flush_half(x: Array) -> Array:
    if x.dtype != np.float16:
        return np.asarray(lifted(_flush)(x))
    return np.where(np.abs(x) < np.float16(2.0**-14), np.copysign(np.float16(0), x), x)


primitive("flush_subnormals", family="composite", infer=_flush_infer, reference=_flush_half, dtypes=FLOATS, jvp=lambda x, ts: ts,
          vjp=lambda x, gs: gs,
          expand=lambda x: pw.where(pw.lt(pw.abs(x), float(x.dtype.finfo.tiny)), pw.copysign(0.0, x), x),
          doc="Zero of its sign for a subnormal number, else the number.")


def flush_subnormals(x: Any) -> Any:
    """``x`` with subnormal numbers replaced by zeros of their sign."""
    return bind("flush_subnormals", as_tensor(x))


__all__ = ["expand", "expands", "flush_subnormals", "infer", "reduce_precision", "reference"]
