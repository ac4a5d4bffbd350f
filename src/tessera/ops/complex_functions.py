"""Functions of complex numbers, written in real functions of their parts.

The stanzas of ``exp``, ``log`` … take complex numbers too; what they mean there stands here, and the pass that expands composites puts it
in.  Everything is computed in f64 and rounded once: complex64 keeps its digits where the parts cancel, and cannot overflow on
the way.  complex128 is protected where a plain formula would lose it: next to |z| = 1 (``log``), next to poles (``tanh``), and where
a factor overflows although the result does not.

Branch cuts are those of C99 (annex G): ``log`` and ``sqrt`` along the negative real axis, continuous from the side that the sign
of the imaginary part names.  ``tanh``: W. Kahan, Branch cuts for complex elementary functions (1987).
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

FAR = 700.0  # exp of more is near the end of f64's range
SHIFT = 40.0  # subtracted from such exponents exactly
REST = math.exp(SHIFT)


def _real(name: str) -> Fn:
    """An op on tensors and numbers of one shape."""
    return lambda *xs: bind(name, *aligned(name, *xs))


exp, log, log1p, sin, cos, tan, sinh, cosh, sqrt = map(_real, ("exp", "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "sqrt"))
hypot, atan2, copysign, fma, abs_, maximum, minimum, isinf, isnan, isfinite = map(_real, (
    "hypot", "atan2", "copysign", "fma", "abs", "maximum", "minimum", "isinf", "isnan", "isfinite"))
both, either = _real("logical_and"), _real("logical_or")


def _where(p: Any, x: Any, y: Any) -> Any:
    a, b = aligned("where", *(broadcast_to(scalar(v, dt.f64), p.type.shape) if isinstance(v, float | int) else v for v in (x, y)))
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
def _exp(x: Any, y: Any) -> Pair:
    """e**x * (cos y + i sin y), where e**x may overflow alone."""
    far = x > FAR
    size, more = exp(_where(far, x - SHIFT, x)), _where(far, REST, 1.0)
    gone, endless = x == -math.inf, both(x == math.inf, bind("logical_not", isfinite(y)))
    re = _where(gone, 0.0, _where(endless, x, size * cos(y) * more))
    return re, _where(either(gone, y == 0), copysign(_where(gone, 0.0, y), y), size * sin(y) * more)


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
    """-i f(i z): sin of sinh, tan of tanh."""
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


def _reciprocal(x: Any, y: Any) -> Pair:
    """1/z by R. L. Smith's division (1962), in which nothing is squared."""
    wide = abs_(x) >= abs_(y)
    a, b = _where(wide, x, y), _where(wide, y, x)
    slope = b / a
    d = a + b * slope
    u, v = 1.0 / d, slope / d
    return _where(wide, u, v), -_where(wide, v, u)


FUNCTIONS: dict[str, Fn] = {
    "exp": of_parts(_exp), "sinh": of_parts(_sinh), "cosh": of_parts(_cosh), "tanh": of_parts(_tanh),
    "sin": of_parts(_turned(_sinh)), "cos": of_parts(lambda x, y: _cosh(-y, x)), "tan": of_parts(_turned(_tanh)),
    "log": of_parts(_log), "log2": of_parts(_log_by(2)), "log10": of_parts(_log_by(10)),
    "sqrt": of_parts(_sqrt), "rsqrt": of_parts(lambda x, y: _reciprocal(*_sqrt(x, y))), "reciprocal": of_parts(_reciprocal), "pow": _pow,
}
"""For each op that has one its meaning on complex tensors."""


__all__ = ["FUNCTIONS"]
