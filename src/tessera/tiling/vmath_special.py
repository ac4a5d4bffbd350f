"""Error functions, gamma functions, neighbours and remainders of floats."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, nan, pi

from ..types.dtypes import f32, f64, int8, int16, int32, int64
from . import vmath_tables as T
from .vmath_builder import E, V
from .vmath_exp import FORMATS, exp, exp_bounded, exp_sum, log1p
from .vmath_exp import log as log_of
from .vmath_trig import cos, sin

HALF_LOG_TWO_PI = 0.9189385332046727


# -- error functions ---------------------------------------------------------------------------------------------------
def erf(v: V, x: E) -> E:
    a = v.abs(x)
    z = x * x
    if x.dtype is f32:
        small = v.fma(x, v.poly(z, T.ERF_SMALL_F32), x)
        t = v.at_most(a, 4.0)
        curve = v.poly(t, T.ERF_LARGE_F32)
        p = t * curve
        y = p - t
        low = v.fma(t, curve, -p) + (p - (y + t))  # what y is short of
        e = exp_bounded(v, y)
        large = 1.0 - v.fma(e, low, e)
        return v.select(a < 0.97, small, v.copysign(large, x))
    small = v.fma(x, v.poly(z, T.ERF_F64), x)
    large = 1.0 - _erfc_right(v, v.at_most(a, 6.0))
    return v.select(a < 1.0, small, v.copysign(large, x))


def _erfc_right(v: V, a: E) -> E:
    """erfc of a >= 1/2 in f64."""
    q = (a - 4.0) / (a + 4.0)
    scaled = v.poly(q, T.ERFCX_F64) / (a + a + 1.0)
    square = a * a
    return scaled * exp_sum(v, -square, -v.fma(a, a, -square))


def erfc(v: V, x: E) -> E:
    if x.dtype is f32:
        return erfc(v, x.to(f64)).to(f32)
    a = v.abs(x)
    z = x * x
    right = _erfc_right(v, v.at_least(v.at_most(a, 28.0), 0.5))
    inner = 1.0 - v.fma(x, v.poly(z, T.ERF_F64), x)
    return v.select(a < 0.5, inner, v.select(x < 0.0, 2.0 - right, right))


def erfinv(v: V, y: E) -> E:
    """A rough start from the tail's asymptote, then Halley's steps on erf or erfc."""
    if y.dtype is f32:
        return erfinv(v, y.to(f64)).to(f32)
    a = v.abs(y)
    complement = 1.0 - a
    w = -log1p(v, -(a * a))
    x = _winitzki(v, w)
    for _ in range(3):
        outer = x > 0.5
        error = v.select(outer, complement - _erfc_right(v, v.at_least(x, 0.5)), erf(v, x) - a)
        slope = 1.1283791670955126 * exp(v, -(x * x))
        step = error / slope
        x = x - step / v.fma(x, step, 1.0)
    x = v.select(a < 1e-8, a * 0.886226925452758, x)
    x = v.select(a.eq(1.0), inf, v.select(a <= 1.0, x, nan))
    return v.copysign(x, y)


def _winitzki(v: V, w: E) -> E:
    """erfinv to three digits, from w = -log(1 - y^2)."""
    c = 0.147
    half = 2.0 / (pi * c) - 0.5 * w
    return v.sqrt(v.sqrt(v.fma(half, half, w / c)) - half)


# -- gamma -------------------------------------------------------------------------------------------------------------
def _lgamma_positive(v: V, x: E) -> E:
    """log gamma of x > 0 in f64."""
    # x >= 8: Stirling.  Below, shift into [1.5, 2.5) by the recurrence, as one product.
    big = v.at_least(x, 8.0)
    u = 1.0 / big
    series = v.fma(u, v.poly(u * u, T.STIRLING_F64), HALF_LOG_TWO_PI)
    logarithm = log_of(v, big)
    large = v.fma(big - 0.5, logarithm - 1.0, series - 0.5)
    t, product, below = x, v.const(1.0, f64), x < 1.5
    for _ in range(6):
        high = t >= 2.5
        t = v.select(high, t - 1.0, t)
        product = v.select(high, product * t, product)
    divisor = v.const(1.0, f64)
    for _ in range(2):
        low = t < 1.5
        divisor = v.select(low, divisor * t, divisor)
        t = v.select(low, t + 1.0, t)
    one_step = (x >= 0.5) & below
    d = v.select(one_step, x - 1.0, v.select(x < 0.5, x, t - 2.0))  # t - 2, without the rounding of t
    # Around 1 the result passes 0 and must not be a difference: log1p of what the divisor lacks to 1.
    near = v.fma(d * d, v.poly(d, T.LGAMMA_TWO_F64), d * 0.42278433509846713)
    small = near + log_of(v, product) - v.select(one_step, log1p(v, v.select(one_step, x - 1.0, 0.0)), log_of(v, divisor))
    return v.select(x < 8.0, small, v.select(x.eq(inf), inf, large))


def lgamma(v: V, x: E) -> E:
    if x.dtype is f32:
        return lgamma(v, x.to(f64)).to(f32)
    a = v.abs(x)
    right = _lgamma_positive(v, v.select(a < 2.0**-60, 1.0, a))
    right = v.select(a < 2.0**-60, -log_of(v, a), right)
    whole = v.round(a)
    sine = v.abs(sin(v, (a - whole) * pi))
    left = log(pi) - log_of(v, sine * a) - right
    pole = (x <= 0.0) & v.floor(x).eq(x)
    y = v.select((x < 0.0) & (a > 2.0**-60), left, right)
    return v.select(v.isnan(x), x, v.select(pole | a.eq(inf), inf, y))


def digamma(v: V, x: E) -> E:
    if x.dtype is f32:
        return digamma(v, x.to(f64)).to(f32)
    reflect = x < 0.5
    t = v.select(reflect, 1.0 - x, x)
    shift = v.const(0.0, f64)
    for _ in range(8):
        low = t < 8.0
        shift = v.select(low, shift + 1.0 / t, shift)
        t = v.select(low, t + 1.0, t)
    u = 1.0 / t
    z = u * u
    y = log_of(v, t) - 0.5 * u - z * v.poly(z, T.DIGAMMA_F64) - shift
    d = (x - T.DIGAMMA_ZERO[0]) - T.DIGAMMA_ZERO[1]
    y = v.select(v.abs(d) < 0.46, d * v.poly(d, T.DIGAMMA_ROOT_F64), y)
    fraction = x - v.round(x)
    angle = fraction * pi
    y = v.select(reflect, y - pi * cos(v, angle) / sin(v, angle), y)
    pole = (x < 0.0) & v.floor(x).eq(x)
    y = v.select(pole, nan, v.select(x.eq(0.0), v.copysign(inf, -x), y))
    return v.select(x.eq(inf), inf, v.select(x.eq(-inf), nan, y))


# -- floats as numbers on a line -----------------------------------------------------------------------------------------
def nextafter(v: V, x: E, y: E) -> E:
    """The neighbour of ``x`` toward ``y``, in a format of 8 bits or more."""
    integer = {8: int8, 16: int16, 32: int32, 64: int64}[x.dtype.bits]
    bits = v.emit("bitcast", (x,), integer)
    up = y > x
    # Away from zero is one more; a zero becomes the least subnormal of the direction's sign.
    away = up.eq(x > 0.0)
    moved = v.select(away, bits + 1, bits - 1)
    least = v.select(up, 1, v.const(-(2 ** (integer.bits - 1)) + 1, integer))
    moved = v.select(x.eq(0.0), least, moved)
    out = v.select(x.eq(y), y, v.emit("bitcast", (moved,), x.dtype))
    return v.select(v.isnan(x) | v.isnan(y), x + y, out)


def _remainder(v: V, a: E, b: E) -> E:
    """a mod b for a >= 0, b > 0 finite, exactly (sign of a): long division, as many digits a round as the format holds."""
    f = FORMATS[a.dtype]
    most = 2.0 ** (f.mantissa - 1)

    def far(state: Sequence[E]) -> E:
        return state[0] >= state[1]

    def step(state: Sequence[E]) -> tuple[E, E]:
        r, d = state
        # Scale d by a power of two until the quotient is a whole number that the format holds.
        ratio = v.emit("trunc", (r / d,), r.dtype)
        scale = v.select(ratio < most, v.const(1.0, r.dtype), _power_below(v, ratio * (1.0 / most)))
        whole = d * scale
        q = v.emit("trunc", (r / whole,), r.dtype)
        rest = v.fma(-q, whole, r)
        rest = v.select(rest < 0.0, rest + whole, rest)
        rest = v.select(rest >= whole, rest - whole, rest)
        return v.select(r >= d, rest, r), d

    return v.repeat_while((a, b), far, step)[0]


def _power_below(v: V, x: E) -> E:
    """The largest power of two <= x, for normal x."""
    f = FORMATS[x.dtype]
    return ((x.bits >> f.mantissa) << f.mantissa).as_float


def fmod_positive(v: V, a: E, b: E) -> E:
    """|a| mod |b| in f64, exactly; NaN for what has no remainder."""
    x, y = v.abs(a), v.abs(b)
    valid = (x < inf) & (y > 0.0)
    safe_x, safe_y = v.select(valid, x, 0.0), v.select(valid & (y < inf), y, 1.0)
    r = _remainder(v, safe_x, safe_y)
    return v.select(valid, v.select(y.eq(inf), x, r), nan)


def mod(v: V, a: E, b: E) -> E:
    """Python's ``%``: the sign of the divisor."""
    if a.dtype is f32:
        return mod(v, a.to(f64), b.to(f64)).to(f32)
    r = v.copysign(fmod_positive(v, a, b), a)
    other_side = r.ne(0.0) & (r < 0.0).ne(b < 0.0)
    y = v.select(other_side, r + b, r)
    y = v.select(y.eq(0.0), v.copysign(y, b), y)
    return v.select(v.isnan(a) | v.isnan(b), a + b, y)


def floor_div(v: V, a: E, b: E) -> E:
    """``floor(a / b)``, from the exact remainder; a / b itself where b is 0 or a infinite."""
    if a.dtype is f32:
        return floor_div(v, a.to(f64), b.to(f64)).to(f32)
    rest = mod(v, a, b)
    # An infinite remainder is that of a finite number by an infinite one of the other sign: just below 0.
    quotient = v.select(v.abs(rest).eq(inf), v.const(-1.0, a.dtype), (a - rest) / b)
    whole = v.round(quotient)
    y = v.select(whole.eq(0.0), v.copysign(0.0, a / b), whole)
    y = v.select(b.eq(0.0), a / b, y)
    return v.select(v.isnan(a) | v.isnan(b), a + b, v.select(v.abs(a).eq(inf), nan, y))
