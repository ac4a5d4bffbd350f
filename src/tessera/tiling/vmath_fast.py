"""Faster, less exact forms of the main functions, in f32: what ``ts.numerics(fast_math_functions=True)`` picks (attribute ``fast``).

They leave out what costs time and seldom matters: results below the normal numbers become 0, polynomials are shorter, and sin and
cos reduce their argument in f32, which holds up to some ten thousand.  ``docs/accuracy.md`` says how far off they are, and how fast.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

from . import vmath_tables as T
from .vmath_builder import E, V
from .vmath_exp import FORMATS, split
from .vmath_trig import signed

_BIAS_RANGE = 126.0


def _scaled(v: V, tail: E, r: E, k: E) -> E:
    """(1 + r + r^2 tail) 2^n, n from k; the least normal number and less give 0."""
    return v.fma(v.fma(r * r, tail, r), 2.0, 2.0) * (k.bits << FORMATS[k.dtype].mantissa).as_float


def exp(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    t = v.at_most(v.at_least(x, -87.3), 88.8)
    k = v.fma(t, 1.4426950408889634, f.magic)
    n = k - f.magic
    r = v.fma(n, -f.ln2[1], v.fma(n, -f.ln2[0], t))
    y = _scaled(v, v.poly(r, T.EXP_FAST), r, k)
    return v.select(x < -87.3, 0.0, v.select(x > 88.72284, inf, y))


def exp2(v: V, x: E) -> E:
    f = FORMATS[x.dtype]
    t = v.at_most(v.at_least(x, -_BIAS_RANGE), 128.0)
    k = t + f.magic
    r = t - (k - f.magic)
    y = v.fma(r * v.poly(r, T.EXP2_FAST), 2.0, 2.0) * (k.bits << f.mantissa).as_float
    return v.select(x < -_BIAS_RANGE, 0.0, y)


def _special(v: V, x: E, y: E) -> E:
    """Logarithms outside the positive normal numbers; subnormal ones count as 0."""
    other = v.select(x < 0.0, nan, v.select(x < FORMATS[x.dtype].tiny, -inf, x))
    return v.select((x < FORMATS[x.dtype].tiny) | ~(x < inf), other, y)


def log(v: V, x: E) -> E:
    e, m = split(v, x)
    f, number = m - 1.0, e.to(x.dtype)
    y = v.fma(number, 0.6931471805599453, v.fma(f * f, v.poly(f, T.LOG_FAST), f))
    return _special(v, x, y)


def log2(v: V, x: E) -> E:
    e, m = split(v, x)
    f = m - 1.0
    return _special(v, x, v.fma(f, v.poly(f, T.LOG2_FAST), e.to(x.dtype)))


def log10(v: V, x: E) -> E:
    return log2(v, x) * 0.3010299956639812


def sigmoid(v: V, x: E) -> E:
    return 1.0 / (exp(v, -x) + 1.0)


def tanh(v: V, x: E) -> E:
    """Near 0 its error is small beside 1, not beside the result."""
    e = exp(v, v.at_most(v.abs(x) * 2.0, 20.0))
    return v.copysign(1.0 - 2.0 / (e + 1.0), x)


def power(v: V, x: E, y: E) -> E:
    """x^y for x >= 0 by log2 and exp2; a negative x gives NaN, unless y is a whole number."""
    size = exp2(v, y * log2(v, v.abs(x)))
    whole = v.floor(y).eq(y)
    odd = whole & v.floor(y * 0.5).ne(y * 0.5)
    out = v.select(x < 0.0, v.select(whole, v.select(odd, -size, size), nan), size)
    return v.select(y.eq(0.0), 1.0, out)


def _sin_cos(v: V, x: E) -> tuple[E, E, E]:
    f = FORMATS[x.dtype]
    k = v.fma(x, 0.6366197723675814, 1.5 * 2.0**f.mantissa)
    n = k - 1.5 * 2.0**f.mantissa
    r = x
    for part in T.HALF_PI_FAST:
        r = v.fma(n, -part, r)
    z = r * r
    s = v.fma(r * z, v.poly(z, T.SIN_FAST), r)
    c = v.fma(z * z, v.poly(z, T.COS_FAST), v.fma(z, -0.5, 1.0))
    return k.bits, s, c


def sin(v: V, x: E) -> E:
    quadrant, s, c = _sin_cos(v, x)
    return signed(v, v.select((quadrant & 1).ne(0), c, s), quadrant)


def cos(v: V, x: E) -> E:
    quadrant, s, c = _sin_cos(v, x)
    return signed(v, v.select((quadrant & 1).ne(0), s, c), quadrant + 1)


FAST: dict[str, Callable[..., E]] = {
    "exp": exp, "exp2": exp2, "log": log, "log2": log2, "log10": log10, "sigmoid": sigmoid, "tanh": tanh, "pow": power, "sin": sin,
    "cos": cos}

__all__ = ["FAST"]
