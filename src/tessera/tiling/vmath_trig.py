"""Trigonometric functions and their inverses.

Arguments are reduced in f64: by three parts of pi/2 up to 2^27, beyond that (rare: only when some lane needs it) with the
192 digits of 2/pi that matter for the argument's exponent, in integers, as Payne and Hanek described.
"""

from __future__ import annotations

from math import inf, nan, pi

from ..types.dtypes import f32, f64, int64
from . import vmath_tables as T
from .vmath_builder import E, V
from .vmath_exp import two_product, two_sum

LIMIT = 2.0**27
_MASK = 0xFFFFFFFF


def _reduce(v: V, x: E) -> tuple[E, E, E]:
    """(quadrant as int64, r, r_low): x = quadrant * pi/2 + r + r_low with |r| <= pi/4 and a little."""
    inside = v.select(v.abs(x) >= LIMIT, 0.0, x)  # a NaN stays
    n = v.round(inside * T.TWO_OVER_PI[0])
    p1, p2, p3 = T.HALF_PI_F64
    first = v.fma(n, -p1, inside)
    r = v.fma(n, -p2, first)
    low = v.fma(n, -p2, first - r)
    usual = (n.to(int64), r, v.fma(n, -p3, low))
    big = v.abs(x) >= LIMIT
    return tuple(v.where_any(big, lambda: _reduce_big(v, x), usual))  # type: ignore[return-value]


def _digits(v: V, start: E) -> list[E]:
    """Six 32-bit words of 2/pi (as int64) from binary digit ``start`` on; 0 is 32 digits before the point."""
    word, shift = start >> 5, start & 31
    table: list[E] = [v.const(w, int64) for w in (0, *T.TWO_OVER_PI_WORDS)]
    step = 16
    while step:  # choose by the bits of the word's number, highest first: what can still be wanted shrinks
        taken = (word & step).ne(0)
        keep = step - 1 + 7
        table = [v.select(taken, table[min(k + step, len(table) - 1)], table[k]) for k in range(min(keep, len(table)))]
        step //= 2
    out = []
    for k in range(6):
        pair = (table[k] << shift) | (table[k + 1] >> (32 - shift))
        out.append(pair & _MASK)
    return out


def _reduce_big(v: V, x: E) -> tuple[E, E, E]:
    a = v.abs(x)
    bits = a.bits
    exponent = (bits >> 52) - 1075  # a = mantissa * 2^exponent
    mantissa = (bits & (2**52 - 1)) | 2**52
    # Digits of 2/pi with weight 2^-i, i <= exponent - 2, contribute multiples of 4: take 192 from the next one on.
    words = _digits(v, exponent + 30)
    m1, m0 = mantissa >> 32, mantissa & _MASK
    limbs: list[E] = [v.const(0, int64)] * 6
    carry = v.const(0, int64)
    for k in range(5, -1, -1):
        low = m0 * words[k]
        total = carry + (low & _MASK)
        up = _high(low)
        if k < 5:
            other = m1 * words[k + 1]
            total = total + (other & _MASK)
            up = up + _high(other)
        limbs[k] = total & _MASK
        carry = up + _high(total)
    high, mid = ((limbs[i] << 32) | limbs[i + 1] for i in (0, 2))
    # high: two bits of quadrant, then the fraction
    quadrant = _logical(v, high + (1 << 61), 62)
    fraction = high - (quadrant << 62)
    scale = 2.0**-62
    parts = [(fraction >> 32).to(f64) * (2.0**32 * scale), (fraction & _MASK).to(f64) * scale,
             _logical(v, mid, 32).to(f64) * (2.0**-32 * scale), (mid & _MASK).to(f64) * (2.0**-64 * scale)]
    s, e1 = two_sum(v, parts[0], parts[1])
    s, e2 = two_sum(v, s, parts[2])
    s, low = two_sum(v, s, e1 + (e2 + parts[3]))
    r, r_low = two_product(v, s, v.const(T.HALF_PI_F64[0], f64))
    r_low = r_low + v.fma(s, T.HALF_PI_F64[1], low * T.HALF_PI_F64[0])
    negative = x < 0.0
    finite = a < inf
    quadrant = v.select(negative, -quadrant, quadrant)
    r = v.select(finite, v.select(negative, -r, r), nan)
    return quadrant, r, v.select(negative, -r_low, r_low)


def _high(a: E) -> E:
    """The upper 32 of 64 bits, as an unsigned number."""
    return (a >> 32) & _MASK


def _logical(v: V, a: E, count: int) -> E:
    """A shift right that brings in zeros."""
    return (a >> count) & ((1 << (64 - count)) - 1)


def _sin_cos_core(v: V, r: E, low: E, narrow: bool) -> tuple[E, E]:
    z = r * r
    sin_table, cos_table = (T.SIN_NARROW, T.COS_NARROW) if narrow else (T.SIN_F64, T.COS_F64)
    if narrow:
        return v.fma(r * z, v.poly(z, sin_table), r), v.fma(z * z, v.poly(z, cos_table), v.fma(z, -0.5, 1.0))
    sine = r + v.fma(r * z, v.poly(z, sin_table), low * v.fma(z, -0.5, 1.0))
    half = 0.5 * z
    w = 1.0 - half
    cosine = w + (((1.0 - w) - half) + v.fma(z * z, v.poly(z, cos_table), -(r * low)))
    return sine, cosine


def _sin_cos(v: V, x: E) -> tuple[E, E, E]:
    """(quadrant, sine and cosine of the reduced argument), in f64."""
    wide = x.to(f64)
    quadrant, r, low = _reduce(v, wide)
    s, c = _sin_cos_core(v, r, low, x.dtype is f32)
    return quadrant, s, c


def signed(v: V, value: E, quadrant: E) -> E:
    """Flip the sign where bit 1 of the quadrant is set."""
    return (value.bits ^ ((quadrant & 2) << (30 if value.dtype is f32 else 62))).as_float


def sin(v: V, x: E) -> E:
    quadrant, s, c = _sin_cos(v, x)
    y = signed(v, v.select((quadrant & 1).ne(0), c, s), quadrant).to(x.dtype)
    return v.select(x.eq(0.0), x, y)


def cos(v: V, x: E) -> E:
    quadrant, s, c = _sin_cos(v, x)
    return signed(v, v.select((quadrant & 1).ne(0), s, c), quadrant + 1).to(x.dtype)


def tan(v: V, x: E) -> E:
    quadrant, s, c = _sin_cos(v, x)
    odd = (quadrant & 1).ne(0)
    y = v.select(odd, -c, s) / v.select(odd, s, c)
    return v.select(x.eq(0.0), x, y.to(x.dtype))


# -- inverses ----------------------------------------------------------------------------------------------------------
def _atan_positive(v: V, a: E, b: E) -> E:
    """atan(a / b) for a, b >= 0 in f64, not both 0."""
    steep = a > b
    big, small = v.select(steep, a, b), v.select(steep, b, a)
    t = small / big
    upper = t > 0.41421356237309503
    u = v.select(upper, (small - big) / (small + big), t)
    z = u * u
    core = v.fma(u * z, v.poly(z, T.ATAN_F64), u)
    y = v.select(upper, pi / 4 + (core + 3.061616997868383e-17), core)
    return v.select(steep, pi / 2 - (y - 6.123233995736766e-17), y)


def atan(v: V, x: E) -> E:
    if x.dtype is f32:
        return atan(v, x.to(f64)).to(f32)
    a = v.abs(x)
    y = _atan_positive(v, v.at_most(a, 2.0**100), v.const(1.0, f64))
    return v.copysign(v.select(a < 2.0**-30, a, y), x)


def atan2(v: V, y: E, x: E) -> E:
    if x.dtype is f32:
        return atan2(v, y.to(f64), x.to(f64)).to(f32)
    a, b = v.abs(y), v.abs(x)
    both_infinite = a.eq(inf) & b.eq(inf)
    both_zero = a.eq(0.0) & b.eq(0.0)
    # Scale away from overflow (small + big) and from subnormals.
    big = v.select(a < b, b, a)
    scale = v.select(big > 2.0**1000, 2.0**-100, v.select(big < 2.0**-900, 2.0**100, v.const(1.0, f64)))
    a, b = a * scale, b * scale
    a, b = v.select(both_infinite, 1.0, a), v.select(both_infinite | both_zero, 1.0, b)
    first = v.select(a.eq(inf), pi / 2, v.select(b.eq(inf), 0.0, _atan_positive(v, a, b)))
    behind = x.bits < 0
    out = v.copysign(v.select(behind, pi - (first - 1.2246467991473532e-16), first), y)
    return v.select(v.isnan(x) | v.isnan(y), x + y, out)


def _asin_core(v: V, a: E) -> tuple[E, E, E]:
    """(is a > 1/2, sqrt((1 - a)/2) or a, asin of that) for a in [0, 1]."""
    big = a > 0.5
    z = v.select(big, (1.0 - a) * 0.5, a * a)
    s = v.select(big, v.sqrt(z), a)
    return big, s, v.fma(s * z, v.poly(z, T.ASIN_F64), s)


def asin(v: V, x: E) -> E:
    if x.dtype is f32:
        return asin(v, x.to(f64)).to(f32)
    a = v.abs(x)
    big, _, core = _asin_core(v, a)
    return v.copysign(v.select(big, pi / 2 - ((core + core) - 6.123233995736766e-17), core), x)


def acos(v: V, x: E) -> E:
    if x.dtype is f32:
        return acos(v, x.to(f64)).to(f32)
    a = v.abs(x)
    big, _, core = _asin_core(v, a)
    twice = core + core
    outer = v.select(x < 0.0, pi - (twice - 1.2246467991473532e-16), twice)
    return v.select(big, outer, pi / 2 - (v.copysign(core, x) - 6.123233995736766e-17))
