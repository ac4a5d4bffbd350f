"""Functions of complex numbers, written in real functions of their parts.

The stanzas of ``exp``, ``log`` … take complex numbers too; what they mean there stands here, and the pass that expands composites puts it
in.  Everything is computed in f64 and rounded once: complex64 keeps its digits where the parts cancel, and cannot overflow on
the way.  complex128 is protected where a plain formula would lose it: next to |z| = 1 (``log``), next to poles (``tanh``), and where
a factor overflows although the result does not.

Branch cuts are those of C99 (annex G): ``log`` and ``sqrt`` along the negative real axis, continuous from the side that the sign
of the imaginary part names; ``asin``, ``acos`` and ``atanh`` along the real axis beyond 1 and -1, ``acosh`` below 1, ``asinh`` and
``atan`` along the imaginary axis beyond i and -i.  ``tanh`` and the inverse functions: W. Kahan, Branch cuts for complex elementary
functions (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..tracing.recorder import bind
from ..types import dtypes as dt
from .operands import aligned, broadcast_to, scalar

Fn = Callable[..., Any]
Pair = tuple[Any, Any]

LN2 = math.log(2)
LN2_LOW = 2.3190468138462996e-17  # log(2) - LN2
FAR = 700.0  # exp of more is near the end of f64's range
SHIFT = 40.0  # subtracted from such exponents exactly
REST = math.exp(SHIFT)


def _real(name: str) -> Fn:
    """An op on tensors and numbers of one shape."""
    return lambda *xs: bind(name, *aligned(name, *xs))


exp, exp2, expm1, log, log1p, sqrt = map(_real, ("exp", "exp2", "expm1", "log", "log1p", "sqrt"))
sin, cos, tan, sinh, cosh, asinh = map(_real, ("sin", "cos", "tan", "sinh", "cosh", "asinh"))
hypot, atan2, copysign, fma, abs_, maximum, minimum, isinf, isnan, isfinite = map(_real, (
    "hypot", "atan2", "copysign", "fma", "abs", "maximum", "minimum", "isinf", "isnan", "isfinite"))
both, either = _real("logical_and"), _real("logical_or")


def _where(p: Any, x: Any, y: Any) -> Any:
    def tensor(v: Any) -> Any:
        return broadcast_to(scalar(v, dt.f64 if isinstance(v, float) else dt.int64), p.type.shape) if isinstance(v, float | int) else v

    a, b = aligned("where", tensor(x), tensor(y))
    return bind("select", p, a, b)


def _parts(z: Any) -> Pair:
    x, y = bind("real", z), bind("imag", z)
    return (x, y) if x.dtype is dt.f64 else (bind("convert", x, dtype=dt.f64), bind("convert", y, dtype=dt.f64))


def _together(z: Any, parts: Pair) -> Any:
    """The parts as a number of ``z``'s dtype."""
    kind = z.dtype.real
    return bind("complex", *(p if kind is dt.f64 else bind("convert", p, dtype=kind) for p in parts))


def of_parts(fn: Callable[[Any, Any], Pair]) -> Fn:
    """A function of (x, y) in f64 as one of complex numbers."""
    return lambda z: _together(z, fn(*_parts(z)))


# -- exponentials ----------------------------------------------------------------------------------------------------------
def _grown(power: Fn, x: Any, y: Any, turn: Pair, far: float, rest: float) -> Pair:
    """``power(x)`` times ``turn``, the cosine and sine of an angle with the sign of ``y``; beyond ``far`` the power may overflow alone."""
    beyond = x > far
    size, more = power(_where(beyond, x - SHIFT, x)), _where(beyond, rest, 1.0)
    gone, endless = x == -math.inf, both(x == math.inf, bind("logical_not", isfinite(y)))
    re = _where(gone, 0.0, _where(endless, x, size * turn[0] * more))
    return re, _where(either(gone, y == 0), copysign(_where(gone, 0.0, y), y), size * turn[1] * more)


def _exp(x: Any, y: Any) -> Pair:
    return _grown(exp, x, y, (cos(y), sin(y)), FAR, REST)


def _exp2(x: Any, y: Any) -> Pair:
    """2**x turned by y log 2, whose rounding error is a small turn of its own."""
    angle = y * LN2
    lost = fma(y, LN2, -angle) + y * LN2_LOW
    lost = _where(abs_(lost) < 2.0**-26, lost, 0.0)  # whose square does not count; of larger angles nothing is known that closely
    c, s = cos(angle), sin(angle)
    return _grown(exp2, x, y, (c - lost * s, s + lost * c), 1000.0, 2.0**SHIFT)


def _expm1(x: Any, y: Any) -> Pair:
    """Small numbers keep their digits: e**x cos y - 1 is (e**x - 1) cos y - 2 sin(y/2)**2."""
    re, im = _exp(x, y)
    half = sin(0.5 * y)
    return _where(abs_(x + 20.0) < 21.0, expm1(x) * cos(y) - 2.0 * half * half, re - 1.0), im


def _sigmoid(x: Any, y: Any) -> Pair:
    """exp(z/2) / (2 cosh(z/2)), which keeps its digits next to the poles; far from the imaginary axis exp(z), or 1 less exp(-z)."""
    low, high = x < -40.0, x > 40.0
    u, v = _where(either(low, high), 0.0, 0.5 * x), 0.5 * y
    e, c, s = exp(u), cos(v), sin(v)
    r, t = 2.0 * cosh(u) * c, 2.0 * sinh(u) * s
    size = r * r + t * t
    (p, q), small = _exp(-abs_(x), y), either(low, high)
    re, im = e * (c * r + s * t) / size, e * (s * r - c * t) / size
    return _where(small, _where(low, p, 1.0 - p), re), _where(small, q, im)


def _hyperbolic(x: Any) -> tuple[Any, Any, Any]:
    """(sinh x, cosh x) over a factor that keeps them finite, and the factor."""
    size = abs_(x)
    far = size > FAR
    half = 0.5 * exp(_where(far, size - SHIFT, 0.0))
    near = _where(far, 0.0, x)
    return _where(far, copysign(half, x), sinh(near)), _where(far, half, cosh(near)), _where(far, REST, 1.0)


def _sinh(x: Any, y: Any) -> Pair:
    s, c, more = _hyperbolic(x)
    endless = both(isinf(x), bind("logical_not", isfinite(y)))
    return _where(either(x == 0, endless), x, s * cos(y) * more), _where(y == 0, y, c * sin(y) * more)


def _cosh(x: Any, y: Any) -> Pair:
    s, c, more = _hyperbolic(x)
    endless = both(isinf(x), bind("logical_not", isfinite(y)))
    return _where(endless, math.inf, c * cos(y) * more), _where(either(x == 0, y == 0), copysign(0.0, x * y), s * sin(y) * more)


def _tanh(x: Any, y: Any) -> Pair:
    size = minimum(abs_(x), 22.0)  # beyond, the real part is 1
    t = tan(y)
    beta = 1.0 + t * t
    s = sinh(size)
    below = 1.0 + beta * (s * s)
    far = abs_(x) >= 22.0
    re = _where(far, 1.0, beta * sqrt(1.0 + s * s) * s / below)
    im = _where(far, 4.0 * (t / beta) * exp(-2.0 * abs_(x)), t / below)
    flat = both(isinf(x), bind("logical_not", isfinite(y)))
    return copysign(_where(either(isnan(x), x == 0), x, re), x), _where(either(flat, y == 0), _where(flat, 0.0, y), im)


def _turned(fn: Callable[[Any, Any], Pair]) -> Callable[[Any, Any], Pair]:
    """-i f(i z): sin of sinh, tan of tanh, asinh of asin."""
    def turned(x: Any, y: Any) -> Pair:
        a, b = fn(-y, x)
        return b, -a
    return turned


# -- logarithms and roots --------------------------------------------------------------------------------------------------
def _square_less_one(a: Any, b: Any) -> Any:
    """a*a + b*b - 1 for a >= b and a sum in [1/2, 2]: what the squares and their sum lost in rounding is added in the end."""
    p, q = a * a, b * b
    total = p + q
    lost = (q - (total - p)) + (fma(a, a, -p) + fma(b, b, -q))
    return (total - 1.0) + lost


def _log_size(x: Any, y: Any) -> Any:
    """log|z|; next to |z| = 1 as log1p(|z|**2 - 1) / 2, else as log of the larger part and what the lesser adds."""
    x, y = abs_(x), abs_(y)
    a, b = maximum(x, y), minimum(x, y)
    square = a * a + b * b
    near = both(square >= 0.5, square <= 2.0)
    slope = b / _where(a == 0, 1.0, a)
    rest = _where(near, _square_less_one(_where(near, a, 1.0), _where(near, b, 0.0)), slope * slope)
    size = _where(near, 0.0, log(a)) + 0.5 * log1p(rest)
    return _where(either(isinf(x), isinf(y)), math.inf, size)


def _log(x: Any, y: Any) -> Pair:
    return _log_size(x, y), atan2(y, x)


def _log1p(x: Any, y: Any) -> Pair:
    near = both(abs_(x) < 0.5, abs_(y) < 0.5)
    re, im = _log(1.0 + x, y)
    return _where(near, 0.5 * log1p(_where(near, x * (2.0 + x) + y * y, 0.0)), re), im


def _log_by(base: float) -> Callable[[Any, Any], Pair]:
    def scaled(x: Any, y: Any) -> Pair:
        size, angle = _log(x, y)
        return size / math.log(base), angle / math.log(base)
    return scaled


def _sqrt(x: Any, y: Any) -> Pair:
    """The root with a real part that is not negative; very large and very small numbers are scaled by a power of four."""
    a = maximum(abs_(x), abs_(y))
    large, small = a > 2.0**1000, a < 2.0**-900
    scale = _where(large, 2.0**-4, _where(small, 2.0**110, 1.0))
    back = _where(large, 4.0, _where(small, 2.0**-55, 1.0))
    u, v = x * scale, y * scale
    t = sqrt(0.5 * (abs_(u) + hypot(u, v)))
    other = _where(t == 0, 0.0, abs_(v) / (2.0 * _where(t == 0, 1.0, t)))
    right = u >= 0
    re, im = _where(right, t, other) * back, _where(right, other, t) * back
    endless = isinf(y)
    return _where(endless, math.inf, re), copysign(_where(endless, math.inf, im), y)


def _pow(z: Any, w: Any) -> Any:
    """exp(w log z); 0**w is 1 for w = 0, and 0 where the real part of w is positive."""
    (x, y), (u, v) = _parts(z), _parts(w)
    size, angle = _log(x, y)
    re, im = _exp(_kept(u, size) - _kept(v, angle), _kept(u, angle) + _kept(v, size))
    origin, nothing = both(x == 0, y == 0), both(u == 0, v == 0)
    at_zero = _where(nothing, 1.0, _where(u > 0, 0.0, math.nan))
    zero = _where(either(nothing, u > 0), 0.0, math.nan)
    known = either(origin, nothing)
    return _together(z, (_where(known, at_zero, re), _where(known, _where(nothing, 0.0, zero), im)))


def _kept(a: Any, b: Any) -> Any:
    """a * b, and 0 where ``a`` is 0 whatever ``b`` is."""
    return _where(a == 0, 0.0, a * b)


# -- quotients ---------------------------------------------------------------------------------------------------------------
def _product_sum(a: Any, b: Any, c: Any, d: Any) -> Any:
    """a*b + c*d, right to two units in the last place even where the products cancel (W. Kahan)."""
    w = c * d
    return fma(a, b, w) - fma(-c, d, w)  # the second is what w lost, and +0 where that is nothing: a sum of -0 stays one


def _power_of_two(exponent: Any) -> Any:
    return bind("bitcast", bind("shift_left", *aligned("shift_left", exponent + 1023, 52)), dtype=dt.f64)


def _unit(x: Any, y: Any) -> tuple[Any, Any, Any]:
    """(x, y) over the power of two that leaves its larger part in [1, 2), and the exponent of that power."""
    size = maximum(abs_(x), abs_(y))
    large, small = size > 2.0**900, size < 2.0**-900
    near = _where(large, 2.0**-200, _where(small, 2.0**200, 1.0))  # there the number and its reciprocal are normal
    bits = bind("bitcast", size * near, dtype=dt.int64)
    exponent = minimum(bind("shift_right", *aligned("shift_right", bits, 52)) - 1023, 1000)  # infinities stay infinite
    unit = _power_of_two(-exponent)
    return x * near * unit, y * near * unit, exponent + _where(large, 200, _where(small, -200, 0))


def _divided(z: Any, top: Pair, bottom: Pair) -> Any:
    """A quotient of two numbers given by their parts in f64, of ``z``'s dtype.

    Of complex64 the textbook formula: in f64 its products are exact and cannot overflow.  Of complex128 that formula on numbers scaled
    to [1, 2), so that each part is right to a few units in its last place unless it is below 2**-960 of the other.
    """
    (a, b), (c, d), scaled = top, bottom, z.dtype is dt.complex128
    if scaled:
        a, b, up = _unit(a, b)
        c, d, down = _unit(c, d)
    size = c * c + d * d
    x = (_product_sum(a, c, b, d) if scaled else a * c + b * d) / size
    y = (_product_sum(b, c, -a, d) if scaled else b * c - a * d) / size
    usual = isfinite(x + y)
    if scaled:
        exponent = minimum(maximum(up - down, -1200), 2040)  # beyond, both parts are 0 or infinite
        half = bind("shift_right", *aligned("shift_right", exponent, 1))
        first, second = _power_of_two(half), _power_of_two(exponent - half)
        x, y = x * first * second, y * first * second
    u, v = _unusual_quotient(*top, *bottom)
    return _together(z, (_where(usual, x, u), _where(usual, y, v)))


def _unusual_quotient(a: Any, b: Any, c: Any, d: Any) -> Pair:
    """(a + ib) / (c + id) where a part is infinite or NaN, or the divisor is 0: C99, G.5.1."""
    endless = both(either(isinf(a), isinf(b)), both(isfinite(c), isfinite(d)))
    vanishing = both(either(isinf(c), isinf(d)), both(isfinite(a), isfinite(b)))
    p, q, r, s = _corner(endless, a), _corner(endless, b), _corner(vanishing, c), _corner(vanishing, d)
    factor = _where(endless, math.inf, _where(vanishing, 0.0, math.nan))
    zero, huge = both(c == 0, d == 0), copysign(_where(c == 0, math.inf, c), c)
    return _where(zero, huge * a, factor * (p * r + q * s)), _where(zero, huge * b, factor * (q * r - p * s))


def _corner(there: Any, x: Any) -> Any:
    return _where(there, copysign(_where(isinf(x), 1.0, 0.0), x), x)


def _inverse(z: Any, of: Pair) -> Any:
    one, zero = (bind("full", shape=z.type.shape, value=v, dtype=dt.f64) for v in (1.0, 0.0))
    return _divided(z, (one, zero), of)


# -- inverse trigonometric and hyperbolic functions -----------------------------------------------------------------------------
def _roots(x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """The parts of sqrt(1 - z) and of sqrt(1 + z); their imaginary parts differ in sign, so that nothing below cancels."""
    return *_sqrt(1.0 - x, -y), *_sqrt(1.0 + x, y)


def _immense(x: Any, y: Any) -> tuple[Any, Any]:
    """Where |z| is so large that 1 is lost beside its square, and log(2 |z|) there."""
    there = either(abs_(x) > 2.0**500, abs_(y) > 2.0**500)
    return there, _log_size(_where(there, x, 1.0), _where(there, y, 0.0)) + LN2


def _asin(x: Any, y: Any) -> Pair:
    a, b, c, d = _roots(x, y)
    there, size = _immense(x, y)
    re = atan2(x, _where(there, abs_(y), a * c - b * d))
    return re, copysign(_where(there, size, asinh(a * d - b * c)), y)


def _acos(x: Any, y: Any) -> Pair:
    a, b, c, d = _roots(x, y)
    there, size = _immense(x, y)
    return _where(there, atan2(abs_(y), x), 2.0 * atan2(a, c)), copysign(_where(there, size, asinh(b * c - a * d)), -y)


def _acosh(x: Any, y: Any) -> Pair:
    """The logarithm's branch: a real part that is not negative."""
    angle, size = _acos(x, y)
    return abs_(size), copysign(angle, y)


def _atanh(x: Any, y: Any) -> Pair:
    """log((1 + z)/(1 - z)) / 2; squares are kept from underflow next to the poles, and from overflow far from them."""
    a, b = abs_(x), abs_(y)
    there = either(a > 2.0**500, b > 2.0**500)
    gap = 1.0 - a
    pole = both(abs_(gap) < 2.0**-400, b < 2.0**-400)
    u, v = _where(there, 0.0, a), _where(there, 1.0, y)
    below = (1.0 - u) * (1.0 - u) + v * v
    near = 0.5 * (LN2 - log(hypot(gap, y)))
    length = hypot(0.5 * a, 0.5 * b)
    far = _where(either(isinf(x), isinf(y)), 0.0, 0.5 * (0.5 * a / length / length))
    re = _where(pole, near, 0.25 * log1p(4.0 * (u / _where(pole, 1.0, below))))
    im = _where(there, 0.5 * math.pi, 0.5 * atan2(2.0 * b, (1.0 - u) * (1.0 + u) - v * v))
    return copysign(_where(there, far, re), x), copysign(im, y)


FUNCTIONS: dict[str, Fn] = {
    "exp": of_parts(_exp), "sinh": of_parts(_sinh), "cosh": of_parts(_cosh), "tanh": of_parts(_tanh),
    "sin": of_parts(_turned(_sinh)), "cos": of_parts(lambda x, y: _cosh(-y, x)), "tan": of_parts(_turned(_tanh)),
    "exp2": of_parts(_exp2), "expm1": of_parts(_expm1), "sigmoid": of_parts(_sigmoid), "log1p": of_parts(_log1p),
    "asin": of_parts(_asin), "acos": of_parts(_acos), "atan": of_parts(_turned(_atanh)),
    "asinh": of_parts(_turned(_asin)), "acosh": of_parts(_acosh), "atanh": of_parts(_atanh),
    "log": of_parts(_log), "log2": of_parts(_log_by(2)), "log10": of_parts(_log_by(10)),
    "sqrt": of_parts(_sqrt), "rsqrt": lambda z: _inverse(z, _sqrt(*_parts(z))), "reciprocal": lambda z: _inverse(z, _parts(z)), "pow": _pow,
    "div": lambda z, w: _divided(z, _parts(z), _parts(w)),
}
"""For each op that has one its meaning on complex tensors."""


__all__ = ["FUNCTIONS"]
