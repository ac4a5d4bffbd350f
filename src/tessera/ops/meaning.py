"""The numpy meaning of pointwise ops that numpy has no function for, or gives another meaning at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from ..types.dtypes import DType
from .rules import LOW, Array, is_float


# -- division ----------------------------------------------------------------------------------------------------------
def div(x: Array, y: Array) -> Array:
    """The quotient; of complex numbers by the textbook formula with room for its squares, where it is undefined by C99, G.5.1."""
    with np.errstate(all="ignore"):
        if x.dtype.kind != "c":
            return np.asarray(np.divide(x, y))
        wide = np.complex128 if x.dtype == np.complex64 else np.clongdouble
        p, q = x.astype(wide), y.astype(wide)
        out = p * np.conj(q) / (q.real * q.real + q.imag * q.imag)
        return np.where(np.isfinite(out), out, _unusual_quotient(p, q)).astype(x.dtype)


def _unusual_quotient(x: Array, y: Array) -> Array:
    def corner(z: Array, other: Array) -> Array:
        there, out = np.isinf(z) & np.isfinite(other), np.empty_like(z)
        out.real, out.imag = (np.where(there, np.copysign(np.isinf(v), v), v) for v in (z.real, z.imag))
        return out

    p, q = corner(x, y), corner(y, x)
    size = np.where(np.isinf(x) & np.isfinite(y), np.inf, np.where(np.isinf(y) & np.isfinite(x), 0.0, np.nan))
    zero, sign = y == 0, np.copysign(np.inf, y.real)
    parts = (p.real * q.real + p.imag * q.imag, p.imag * q.real - p.real * q.imag)
    out = np.empty_like(x)
    out.real, out.imag = (np.where(zero, sign * v, size * t) for v, t in zip((x.real, x.imag), parts, strict=True))
    return out


def floor_div(x: Array, y: Array) -> Array:
    """Rounded down; an integer divided by zero gives 0 (and, compiled, a run-time error)."""
    with np.errstate(all="ignore"):
        return np.asarray(np.floor_divide(x, y))


def mod(x: Array, y: Array) -> Array:
    """The remainder with the sign of ``y``; an integer modulo zero gives 0 (and, compiled, a run-time error)."""
    with np.errstate(all="ignore"):
        return np.asarray(np.mod(x, y))


def sign(x: Array) -> Array:
    one, zero = x.dtype.type(1), x.dtype.type(0)
    if x.dtype.kind == "u":
        return np.asarray(np.where(x > 0, one, zero))
    return np.asarray(np.where(x > 0, one, np.where(x < 0, -one, np.where(x == 0, zero, x))), x.dtype)


def copysign(x: Array, y: Array) -> Array:
    return np.asarray(np.copysign(x, y))


# -- bits --------------------------------------------------------------------------------------------------------------
def _bits(x: Array) -> int:
    return x.dtype.itemsize * 8


def shift_left(x: Array, n: Array) -> Array:
    inside = (n >= 0) & (n < _bits(x))
    return np.asarray(np.where(inside, np.left_shift(x, np.where(inside, n, 0).astype(x.dtype)), x.dtype.type(0)))


def shift_right(x: Array, n: Array) -> Array:
    inside = (n >= 0) & (n < _bits(x))
    count = np.where(inside, n, _bits(x) - 1).astype(x.dtype)
    moved = np.right_shift(x, count)
    return np.asarray(moved if x.dtype.kind == "i" else np.where(inside, moved, x.dtype.type(0)))


def nextafter(x: Array, y: Array) -> Array:
    """The neighbour in the format itself: 16-bit ones by counting in their bits, for the way must not pass through f32."""
    if x.dtype not in LOW:
        return np.asarray(np.nextafter(x, y))
    bits = x.view(np.int16).astype(np.int32)
    a, b = x.astype(np.float64), y.astype(np.float64)
    up = bits + np.where((a < b) == (a > 0), 1, -1)
    tiny = np.where(b > 0, 1, -32767)  # 0x8001: the least negative subnormal
    out = np.where(a == b, y.view(np.int16), np.where(a == 0, tiny, up)).astype(np.int16)
    out = out.view(x.dtype)
    return np.where(np.isnan(a) | np.isnan(b), np.asarray(np.nan).astype(x.dtype), out)


# -- one rounding --------------------------------------------------------------------------------------------------------
def fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c with one rounding: f32 through f64 with rounding to odd, f64 by exact rationals."""
    if a.dtype == np.float32:
        product = a.astype(np.float64) * b.astype(np.float64)  # exact
        wide = c.astype(np.float64)
        total = product + wide
        part = total - product
        error = (product - (total - part)) + (wide - part)
        return _to_odd(np.asarray(total), np.asarray(error)).astype(np.float32)
    if a.dtype == np.float64:
        return np.asarray(_fma64(a, b, c), np.float64)
    return np.asarray(a * b + c)


def _to_odd(total: Array, error: Array) -> Array:
    """``total`` moved to its odd neighbour on the side of a non-zero ``error``, so that rounding again is harmless."""
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(inexact, np.where(away, bits + 1, bits - 1), bits).astype(np.int64).view(np.float64)


def _fma_one(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return float(np.float64(a) * np.float64(b) + np.float64(c)) if a * b == 0 or c == 0 else 0.0
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


_fma64 = np.vectorize(_fma_one, otypes=[np.float64])


# -- powers ------------------------------------------------------------------------------------------------------------
def rsqrt(x: Array) -> Array:
    return np.asarray(1 / np.sqrt(x))


def power(x: Array, y: Array) -> Array:
    """Integers: wrapping products; a negative exponent gives the truncated quotient 1/x**|y| (0 for base 0)."""
    if x.dtype.kind == "u":
        return np.asarray(np.power(x, y))
    positive = np.power(x, np.maximum(y, 0))
    odd = (y & 1).astype(bool)
    unit = np.where(x == 1, 1, np.where(x == -1, np.where(odd, -1, 1), 0)).astype(x.dtype)
    return np.where(y < 0, unit, positive).astype(x.dtype)


# -- special functions, evaluated in f64 ----------------------------------------------------------------------------------
def _through(fn: Callable[[float], float]) -> Callable[[Array], Array]:
    each = np.vectorize(fn, otypes=[np.float64])

    def apply(x: Array) -> Array:
        return np.asarray(each(x.astype(np.float64))).astype(x.dtype) if x.size else x.copy()

    return apply


def _lgamma(x: float) -> float:
    try:
        return math.lgamma(x)
    except ValueError:
        return math.inf


def _digamma(x: float) -> float:
    if math.isnan(x) or x == -math.inf:
        return math.nan
    if x == math.inf:
        return math.inf
    if x == 0:
        return -math.copysign(math.inf, x)
    if x < 0:
        if x == math.floor(x):
            return math.nan
        return _digamma(1 - x) - math.pi / math.tan(math.pi * x)
    shift = 0.0
    while x < 10:
        shift, x = shift + 1 / x, x + 1
    q = 1 / (x * x)
    tail = q * (1 / 12 - q * (1 / 120 - q * (1 / 252 - q * (1 / 240 - q * (1 / 132 - q * 691 / 32760)))))
    return math.log(x) - 0.5 / x - tail - shift


def _erfinv(y: float) -> float:
    if math.isnan(y) or not -1 <= y <= 1:
        return math.nan
    if y in (-1.0, 0.0, 1.0):
        return y * math.inf if y else y
    a = 0.147
    t = math.log1p(-y * y)
    u = 2 / (math.pi * a) + t / 2
    x = math.copysign(math.sqrt(max(math.sqrt(u * u - t / a) - u, 0.0)), y)
    for _ in range(4):  # Newton on erf, or on erfc in the tails where erf has no digits left
        slope = 2 / math.sqrt(math.pi) * math.exp(-x * x)
        miss = math.erf(x) - y if abs(y) < 0.5 else math.copysign(1, y) * ((1 - abs(y)) - math.erfc(abs(x)))
        step = miss / slope
        x -= step / (1 + x * step)
    return x


erf, erfc, erfinv = _through(math.erf), _through(math.erfc), _through(_erfinv)
lgamma, digamma = _through(_lgamma), _through(_digamma)


def log1p(x: Array) -> Array:
    """numpy's; of complex numbers without its loss next to 0."""
    if x.dtype.kind != "c":
        return np.asarray(np.log1p(x))
    re, im = x.real.astype(np.longdouble), x.imag.astype(np.longdouble)
    out = np.empty_like(x)
    out.real, out.imag = 0.5 * np.log1p(re * (2 + re) + im * im), np.arctan2(im, 1 + re)
    return out


def sigmoid(x: Array) -> Array:
    if x.dtype.kind == "c":
        wide = x.astype(np.clongdouble)
        e = np.exp(np.where(wide.real < 0, wide, -wide))
        return np.asarray(np.where(wide.real < 0, e / (1 + e), 1 / (1 + e)), x.dtype)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


# -- conversion ----------------------------------------------------------------------------------------------------------
def convert(x: Array, dtype: DType, saturate: bool = False) -> Array:
    """Values in another dtype; see the op's stanza for the edges."""
    target = dtype.np
    with np.errstate(all="ignore"):
        if x.dtype == target:
            return x.copy()
        if x.dtype.kind == "V":  # the formats of ml_dtypes do not convert into each other directly
            x = x.astype(np.float32 if x.dtype in LOW else np.int8)
        if dtype.kind == "bool":
            return np.asarray(x.astype(np.float32) != 0 if x.dtype in LOW else x != 0)
        if x.dtype.kind == "c" and not dtype.is_complex:
            return convert(np.ascontiguousarray(x.real), dtype, saturate)
        if dtype.is_integer and is_float(x):
            return _float_to_int(x.astype(np.float64), dtype)
        if dtype.is_integer and dtype.bits == 4:
            return _wrap4(x, dtype)
        if dtype.is_float and saturate:
            limit = float(dtype.finfo.max)
            wide = x.astype(np.float64)
            x = np.where(np.isnan(wide), wide, np.clip(wide, -limit, limit))
        return np.asarray(x.astype(target))


def _float_to_int(x: Array, dtype: DType) -> Array:
    low, high = int(dtype.iinfo.min), int(dtype.iinfo.max)
    whole = np.trunc(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf))
    above, below = whole >= float(high) + (0.0 if high >= 2**53 else 1.0), whole < float(low)
    inner = np.where(above | below, 0.0, whole)
    wide = inner.astype(np.uint64 if dtype.kind == "uint" else np.int64)
    wide = np.where(above, wide.dtype.type(high), np.where(below, wide.dtype.type(low), wide))
    return np.asarray(wide.astype(dtype.np))


def _wrap4(x: Array, dtype: DType) -> Array:
    low = x.astype(np.int64) & 15
    return np.asarray((low if dtype.kind == "uint" else np.where(low > 7, low - 16, low)).astype(np.int8).astype(dtype.np))


def make_complex(re: Array, im: Array) -> Array:
    out: Array = np.empty(re.shape, {4: np.complex64, 8: np.complex128}.get(re.dtype.itemsize, np.clongdouble))
    out.real, out.imag = re, im
    return out


_WIDER: dict[Any, Any] = {np.float32: np.float64, np.float64: np.longdouble, np.complex64: np.complex128,
                          np.complex128: np.clongdouble}


def widen(x: Any) -> Array:
    """The array in the precision in which the error of a compiled result is measured: f64, extended for f64."""
    x = np.asarray(x)
    wider = np.float64 if x.dtype in LOW else _WIDER.get(x.dtype.type)
    return np.asarray(x if wider is None else x.astype(wider))
