"""Exponentials, logarithms and what is made of them.

Every function takes and gives f32 or f64 (``x.dtype``); the reductions are Cody and Waite's, the polynomials from
``vmath_tables``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

from ..types.dtypes import DType, f32, f64, int32, int64
from . import vmath_tables as T
from .vmath_builder import E, V


@dataclass(frozen=True)
class Format:
    """What the algorithms need to know of f32 and f64."""

    integer: DType
    mantissa: int
    bias: int
    sqrt_half: int  # bits of the least m of [sqrt(1/2), sqrt(2))
    exp: tuple[float, ...]
    exp2: tuple[float, ...]
    ln2: tuple[float, ...]
    exp_range: tuple[float, float]
    exp2_range: tuple[float, float]
    expm1_least: float
    tiny: float  # least normal number

    @property
    def magic(self) -> float:
        """Adding it rounds to an integer n and leaves n + bias - 1 in the low bits."""
        return 1.5 * 2.0**self.mantissa + self.bias - 1

    @property
    def epsilon(self) -> float:
        return 2.0 ** -(self.mantissa + 1)


FORMATS = {
    f32: Format(int32, 23, 127, 0x3F3504F3, T.EXP_F32, T.EXP2_F32, T.LN2_F32, (-104.0, 89.0), (-151.0, 129.0), -18.0, 2.0**-126),
    f64: Format(int64, 52, 1023, 0x3FE6A09E667F3BCD, T.EXP_F64, T.EXP2_F64, T.LN2_F64, (-746.0, 710.0), (-1076.0, 1025.0), -38.0,
                2.0**-1022),
}


# -- exponentials ------------------------------------------------------------------------------------------------------
def _reduce(v: V, x: E) -> tuple[E, E, E]:
    """(k, n, r): x = n log 2 + r, and the low bits of k are those of n + bias - 1."""
    f = FORMATS[x.dtype]
    k = v.fma(x, 1.4426950408889634, f.magic)
    n = k - f.magic
    r = v.fma(n, -f.ln2[1], v.fma(n, -f.ln2[0], x))
    return k, n, r


def _grown(v: V, r: E) -> E:
    """e^r - 1 for a reduced r."""
    return v.fma(r * r, v.poly(r, FORMATS[r.dtype].exp), r)


def _half_power(v: V, k: E) -> E:
    """2^(n-1) from k."""
    return (k.bits << FORMATS[k.dtype].mantissa).as_float


def _scaled(v: V, twice: E, k: E, n: E) -> E:
    """``twice * 2^(n-1)`` where n may lie below the normal exponents: then in two steps, so that it rounds once."""
    f = FORMATS[k.dtype]
    low = n < float(2 - f.bias)
    y = twice * _half_power(v, v.select(low, k + 64.0, k))
    return v.select(low, y * 2.0**-64, y)


def exp(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    x = v.at_most(v.at_least(x, f.exp_range[0]), f.exp_range[1])
    k, n, r = _reduce(v, x)
    return _scaled(v, _twice_power(v, r), k, n)


def _twice_power(v: V, r: E) -> E:
    """2 e^r for a reduced r: r goes into the sum before the rest of the series, so that only the rest is rounded."""
    high = r + 1.0
    low = r - (high - 1.0)
    y = high + v.fma(r * r, v.poly(r, FORMATS[r.dtype].exp), low)
    return y + y


def exp_sum(v: V, high: E, low: E) -> E:
    """e^(high + low) for a small ``low``, which counts only where ``high`` gives a finite number other than 0."""
    least, most = FORMATS[high.dtype].exp_range
    t = v.at_most(v.at_least(high, least), most)
    k, n, r = _reduce(v, t)
    grown, low = _grown(v, r), v.select(t.eq(high), low, 0.0)
    return _scaled(v, v.fma(grown + v.fma(grown, low, low), 2.0, 2.0), k, n)


def exp_bounded(v: V, x: E) -> E:
    """``exp`` where the result is certainly normal."""
    k, _, r = _reduce(v, x)
    return _twice_power(v, r) * _half_power(v, k)


def exp2(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    x = v.at_most(v.at_least(x, f.exp2_range[0]), f.exp2_range[1])
    k = x + f.magic
    n = k - f.magic
    r = x - n
    return _scaled(v, v.fma(r * v.poly(r, f.exp2), 2.0, 2.0), k, n)


def expm1(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    inside = v.at_most(v.at_least(x, f.expm1_least), f.exp_range[1])
    k, _, r = _reduce(v, inside)
    half = _half_power(v, k)
    y = v.fma(half, _grown(v, r), half - 0.5)
    return v.select(v.abs(x) < f.epsilon, x, y + y)


# -- logarithms ----------------------------------------------------------------------------------------------------------
def split(v: V, x: E) -> tuple[E, E]:
    """(e, m): x = 2^e m with m in [sqrt(1/2), sqrt(2)), e as an integer; for normal x."""
    f = FORMATS[x.dtype]
    bits = x.bits
    e = (bits - f.sqrt_half) >> f.mantissa
    return e, (bits - (e << f.mantissa)).as_float


def _split_any(v: V, x: E) -> tuple[E, E]:
    """As ``split`` for every positive x, with e as a float."""
    f = FORMATS[x.dtype]
    tiny = x < f.tiny
    up = f.mantissa + 1
    e, m = split(v, v.select(tiny, x * 2.0**up, x))
    number = e.to(x.dtype)
    return v.select(tiny, number - float(up), number), m


def log_special(v: V, x: E, y: E) -> E:
    """``y`` for positive finite x; else what a logarithm is there."""
    special = v.select(x.eq(0.0), -inf, v.select(x < 0.0, nan, x))
    return v.select((x > 0.0) & (x < inf), y, special)


def _log_of(v: V, e: E, f: E) -> E:
    """``e log 2 + log(1 + f)``, f from ``split``."""
    high, low = FORMATS[f.dtype].ln2
    if f.dtype is f32:
        u = f + v.fma(f * f, v.poly(f, T.LOG_F32), e * low)
    else:
        s = f / (f + 2.0)
        z = s * s
        u = f + v.fma(-s, f - z * v.poly(z, T.LOG_F64), e * low)
    return v.fma(e, high, u)


def log(v: V, x: E) -> E:
    e, m = _split_any(v, x)
    return log_special(v, x, _log_of(v, e, m - 1.0))


def log2(v: V, x: E) -> E:
    e, m = _split_any(v, x)
    f = m - 1.0
    if x.dtype is f32:
        return log_special(v, x, v.fma(f, v.poly(f, T.LOG2_F32), e))
    y = _log_of(v, v.const(0.0, f64), f)
    return log_special(v, x, v.fma(y, T.LOG2E_F64[0], v.fma(y, T.LOG2E_F64[1], e)))


def log10(v: V, x: E) -> E:
    if x.dtype is f32:
        return log10(v, x.to(f64)).to(f32)
    e, m = _split_any(v, x)
    y = _log_of(v, v.const(0.0, f64), m - 1.0)
    low = v.fma(y, T.LOG10E_F64[1], e * T.LOG10_2_F64[1])
    return log_special(v, x, v.fma(e, T.LOG10_2_F64[0], v.fma(y, T.LOG10E_F64[0], low)))


def log1p(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    u = x + 1.0
    back = u - 1.0
    error = (1.0 - (u - back)) + (x - back)  # 1 + x = u + error, exactly
    e, m = split(v, u)
    scale = ((f.bias - v.emit("minimum", (e, v.const(f.mantissa + 2, f.integer)), f.integer)) << f.mantissa).as_float
    y = _log_of(v, e.to(x.dtype), v.fma(error, scale, m - 1.0))
    return v.select(v.abs(x) < f.epsilon, x, log_special(v, u, y))


def logaddexp(v: V, a: E, b: E) -> E:
    if a.dtype is f32:  # the sum may cancel
        return logaddexp(v, a.to(f64), b.to(f64)).to(f32)
    high = v.select(a < b, b, a)
    d = v.abs(a - b)
    y = high + log1p(v, exp(v, -d))
    same_infinity = a.eq(b)
    return v.select(same_infinity, a + 0.6931471805599453, v.select(v.isnan(d) | v.isnan(a), a + b, y))


# -- hyperbolic functions and the logistic --------------------------------------------------------------------------------
def sigmoid(v: V, x: E) -> E:
    e = exp(v, -v.abs(x))
    left = x < 0.0
    q = v.select(left, e, 1.0) / (e + 1.0)
    return v.select(left, v.fma(-e, q, e), q)  # e - e q is e / (1 + e) again, with the division's error scaled down


def tanh(v: V, x: E) -> E:
    a = v.abs(x)
    z = x * x
    if x.dtype is f32:
        small = v.fma(x * z, v.poly(z, T.TANH_F32), x)
        e = exp_bounded(v, v.at_most(a + a, 18.2))
        return v.copysign(v.select(a < 1.0, small, 1.0 - 2.0 / (e + 1.0)), x)
    small = v.fma(x * z, v.poly(z, T.TANH_F64), x)
    grown = expm1(v, v.at_most(a + a, 40.0))
    large = v.select(a < 1.0, grown / (grown + 2.0), 1.0 - 2.0 / (grown + 2.0))
    return v.copysign(v.select(a < 0.54, small, large), x)


def sinh(v: V, x: E) -> E:
    if x.dtype is f32:
        return sinh(v, x.to(f64)).to(f32)
    a = v.abs(x)
    grown = expm1(v, v.at_most(a, 709.0))
    y = 0.5 * (grown + grown / (grown + 1.0))
    half = exp(v, 0.5 * a)
    return v.copysign(v.select(a < 709.0, y, (0.5 * half) * half), x)


def cosh(v: V, x: E) -> E:
    if x.dtype is f32:
        return cosh(v, x.to(f64)).to(f32)
    a = v.abs(x)
    e = exp(v, v.at_most(a, 709.0))
    half = exp(v, 0.5 * a)
    return v.select(a < 709.0, 0.5 * e + 0.5 / e, (0.5 * half) * half)


def asinh(v: V, x: E) -> E:
    if x.dtype is f32:
        return asinh(v, x.to(f64)).to(f32)
    a = v.abs(x)
    inside = v.at_most(a, 2.0**28)
    z = inside * inside
    small = log1p(v, inside + z / (v.sqrt(z + 1.0) + 1.0))
    large = log(v, a) + 0.6931471805599453
    return v.copysign(v.select(a < 2.0**28, small, v.select(v.isnan(x), x, large)), x)


def acosh(v: V, x: E) -> E:
    if x.dtype is f32:
        return acosh(v, x.to(f64)).to(f32)
    t = x - 1.0
    small = log1p(v, t + v.sqrt(v.fma(t, t, t + t)))
    return v.select(x < 2.0**28, small, log(v, x) + 0.6931471805599453)


def atanh(v: V, x: E) -> E:
    if x.dtype is f32:
        return atanh(v, x.to(f64)).to(f32)
    a = v.abs(x)
    twice = a + a
    return v.copysign(0.5 * log1p(v, v.select(a < 0.5, twice + twice * a / (1.0 - a), twice / (1.0 - a))), x)


# -- powers --------------------------------------------------------------------------------------------------------------
def reciprocal(v: V, x: E) -> E:
    return 1.0 / x


def rsqrt(v: V, x: E) -> E:
    return 1.0 / v.sqrt(x)


def cbrt(v: V, x: E) -> E:
    if x.dtype is f32:
        return cbrt(v, x.to(f64)).to(f32)
    a = v.abs(x)
    tiny = a < 2.0**-1000
    up = v.select(tiny, a * 2.0**54, a)
    y = exp2(v, log2(v, up) * (1.0 / 3.0))
    y = y - v.fma(y * y, y, -up) / (3.0 * (y * y))  # one of Newton's steps
    y = v.select(tiny, y * 2.0**-18, y)
    return v.select((a > 0.0) & (a < inf), v.copysign(y, x), x)


def hypot(v: V, a: E, b: E) -> E:
    if a.dtype is f32:
        return hypot(v, a.to(f64), b.to(f64)).to(f32)
    a, b = v.abs(a), v.abs(b)
    big, small = v.select(a < b, b, a), v.select(a < b, a, b)
    scale = v.select(big > 2.0**500, 2.0**-600, v.select(big < 2.0**-450, 2.0**600, v.const(1.0, f64)))
    back = v.select(big > 2.0**500, 2.0**600, v.select(big < 2.0**-450, 2.0**-600, v.const(1.0, f64)))
    p, q = big * scale, small * scale
    y = v.sqrt(v.fma(p, p, q * q)) * back
    infinite = a.eq(inf) | b.eq(inf)
    return v.select(infinite, inf, v.select(v.isnan(a) | v.isnan(b), a + b, y))


def power(v: V, x: E, y: E) -> E:
    narrow = x.dtype is f32
    a = v.abs(x).to(f64)
    exponent = y.to(f64)
    size = _power_narrow(v, a, exponent) if narrow else _power_wide(v, a, exponent)
    out = size.to(x.dtype)
    half = 0.5 * y
    whole = v.floor(y).eq(y)
    odd = whole & v.floor(half).ne(half) & (v.abs(y) < inf)
    signed = v.select((x.bits < 0) & odd, -out, out)
    valid = v.select((x < 0.0) & ~whole & (x > -inf), nan, signed)
    valid = v.select(v.abs(x).eq(1.0) & v.abs(y).eq(inf), 1.0, valid)
    nans = v.select(v.isnan(x) | v.isnan(y), x + y, valid)
    return v.select(y.eq(0.0) | x.eq(1.0), 1.0, nans)


def _power_narrow(v: V, a: E, y: E) -> E:
    """a^y in f64 for f32 operands: one pass of plain f64 is precise enough."""
    e, m = _split_any(v, a)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    logarithm = v.fma(v.fma(s * z, v.poly(z, T.LOG_NARROW), s + s), T.LOG2E_F64[0], e)
    t = y * log_special(v, a, logarithm)
    t = v.at_most(v.at_least(t, -1076.0), 1025.0)
    k = t + FORMATS[f64].magic
    n = k - FORMATS[f64].magic
    r = t - n
    return v.fma(r * v.poly(r, T.EXP2_NARROW), 2.0, 2.0) * _half_power(v, v.at_least(k, FORMATS[f64].magic - 300.0))


def two_product(v: V, a: E, b: E) -> tuple[E, E]:
    """a * b as a sum of two floats, exactly."""
    p = a * b
    return p, v.fma(a, b, -p)


def quick_two_sum(a: E, b: E) -> tuple[E, E]:
    """a + b as a sum of two floats, exactly where |a| >= |b|."""
    s = a + b
    return s, b - (s - a)


def _log_long(v: V, a: E) -> tuple[E, E]:
    """log a as a sum of two f64, to about 2^-68 of its size; for positive finite a."""
    e, m = _split_any(v, a)
    f = m - 1.0
    den = f + 2.0
    den_low = f - (den - 2.0)
    s = f / den
    s_low = (v.fma(-s, den, f) - s * den_low) / den
    z, z_low = two_product(v, s, s)
    z_low = v.fma(s + s, s_low, z_low)
    tail = z * v.poly(z, T.LOG_WIDE)
    third = 2.0 / 3.0
    c, c_low = quick_two_sum(v.const(third, f64), tail + 3.700743415417188e-17)
    p, p_low = two_product(v, s, z)
    p_low = p_low + v.fma(s, z_low, s_low * z)
    q, q_low = two_product(v, p, c)
    q_low = q_low + v.fma(p, c_low, p_low * c)
    base, base_low = two_product(v, e, v.const(T.LN2_LONG[0], f64))
    h, h_low = two_sum(v, base, s + s)
    low = h_low + (q_low + (s_low + s_low)) + v.fma(e, T.LN2_LONG[1], base_low)
    h2, h2_low = two_sum(v, h, q)
    return quick_two_sum(h2, h2_low + low)


def two_sum(v: V, a: E, b: E) -> tuple[E, E]:
    """a + b as a sum of two floats, exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _power_wide(v: V, a: E, y: E) -> E:
    high, low = _log_long(v, a)
    special = log_special(v, a, high)
    regular = (a > 0.0) & (a < inf)
    p, p_low = two_product(v, y, v.select(regular, high, special))
    p_low = v.fma(y, v.select(regular, low, 0.0), p_low)
    return exp_sum(v, p, v.select(regular & (v.abs(y) < inf), p_low, 0.0))
