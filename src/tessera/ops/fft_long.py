"""Long Fourier transforms, written in shorter ones.

One block of a kernel transforms a row in its own scratch memory.  What does not fit there, or would leave the other threads without
work, is written in ops:

* n = n1 * n2 as a matrix: transform its columns, multiply by the roots of n, transform its rows (Bailey 1990, the four-step form);
* a length without such factors becomes a convolution with a chirp, of a power of two (Bluestein 1970);
* a real row of even length is a complex one of half the length, whose coefficients are taken apart afterwards.

The parts are transforms like any other, and long ones are written out again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dtypes import DType
from . import pointwise as pw
from . import shaping as sh
from .operands import convert, scalar

LONG = 1 << 18          # complex rows longer than this are cut up: their columns still fit a block's scratch
LONG_REAL = 1 << 15     # real ones: what lies between the steps does too
LONG_CHIRP = 1 << 12    # rows whose length has a prime factor that is no radix
RADICES = (4, 2, 3, 5, 7, 11, 13)  # of the kernel's butterflies
SKEWED = 16             # a matrix with fewer rows (or columns) than this is no help


def is_long(attrs: Mapping[str, Any], types: Sequence[TensorType]) -> bool:
    """Whether a transform is written in shorter ones."""
    n = attrs.get("n", types[0].shape[-1])
    if not isinstance(n, int):
        return False
    whole = LONG if types[0].dtype.is_complex and "n" not in attrs else LONG_REAL
    return n > (LONG_CHIRP if factors(n) is None else whole)


def factors(n: int) -> list[int] | None:
    """``n`` as a product of :data:`RADICES`; None where it has another prime factor."""
    out = []
    for r in RADICES:
        while n % r == 0 and n > 1:
            out.append(r)
            n //= r
    return out if n == 1 else None


def split(n: int) -> tuple[int, int]:
    """``n1 * n2 == n``, as square as the factors allow."""
    first = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return first, n // first


def fft(x: Any) -> Any:
    """The transform of a long last axis."""
    n = x.type.shape[-1]
    return _by_matrix(x, "fft", *split(n)) if split(n)[0] >= SKEWED else _by_chirp(x)


def ifft(x: Any) -> Any:
    """The inverse transform, divided by the length."""
    n = x.type.shape[-1]
    if split(n)[0] >= SKEWED:
        return _by_matrix(x, "ifft", *split(n))
    back = _by_chirp(pw.conj(x))
    return _scaled(pw.conj(back), 1.0 / n)


def rfft(x: Any) -> Any:
    """The first n//2 + 1 coefficients of the transform of a long real row."""
    n = x.type.shape[-1]
    if n % 2:
        return _part(bind("fft", pw.complex_(x, pw.mul(x, scalar(0.0, x.dtype)))), 0, n // 2 + 1)
    half = n // 2
    z = bind("fft", pw.complex_(_part(x, 0, n, 2), _part(x, 1, n, 2)))
    z = sh.concat([z, _part(z, 0, 1)], -1)
    even, odd = _even_and_odd(z)                       # odd: of i times the transform of the odd elements
    w = _roots((half + 1,), _along((half + 1,), 0), n, x.dtype)
    turned = pw.complex_(pw.imag(odd), pw.neg(pw.real(odd)))
    return pw.add(even, pw.mul(turned, w))


def irfft(x: Any, n: int) -> Any:
    """The real inverse of :func:`rfft`, of ``n`` elements."""
    at = _along(x.type.shape, len(x.type.shape) - 1)
    ends = pw.eq(at, 0) if n % 2 else pw.logical_or(pw.eq(at, 0), pw.eq(at, n // 2))
    x = pw.complex_(pw.real(x), pw.where(ends, scalar(0.0, x.dtype.real), pw.imag(x)))
    if n % 2:
        mirrored = pw.conj(sh.flip(_part(x, 1, n // 2 + 1), -1))
        return pw.real(bind("ifft", sh.concat([x, mirrored], -1)))
    half = n // 2
    even, odd = _even_and_odd(x)
    odd = pw.mul(odd, pw.conj(_roots((half + 1,), _along((half + 1,), 0), n, x.dtype.real)))
    z = pw.complex_(pw.sub(pw.real(even), pw.imag(odd)), pw.add(pw.imag(even), pw.real(odd)))
    z = bind("ifft", _part(z, 0, half))
    pairs = [sh.reshape(part, (*z.type.shape, 1)) for part in (pw.real(z), pw.imag(z))]
    return sh.reshape(sh.concat(pairs, -1), (*z.type.shape[:-1], n))


def _even_and_odd(z: Any) -> tuple[Any, Any]:
    """(z[k] ± conj(z[h - k])) / 2, k = 0 … h."""
    mirrored = pw.conj(sh.flip(z, -1))
    return _scaled(pw.add(z, mirrored), 0.5), _scaled(pw.sub(z, mirrored), 0.5)


# -- the four-step form -----------------------------------------------------------------------------------------------------
def _by_matrix(x: Any, name: str, n1: int, n2: int) -> Any:
    lead = x.type.shape[:-1]
    columns = bind(name, sh.swapaxes(sh.reshape(x, (*lead, n1, n2)), -1, -2))           # [j2, k1]
    exponent = pw.mul(_along((n2, n1), 0), _along((n2, n1), 1))
    w = _roots((n2, n1), exponent, n1 * n2, x.dtype.real)
    rows = bind(name, sh.swapaxes(pw.mul(columns, w if name == "fft" else pw.conj(w)), -1, -2))  # [k1, k2]
    return sh.reshape(sh.swapaxes(rows, -1, -2), (*lead, n1 * n2))


# -- the chirp ---------------------------------------------------------------------------------------------------------------
def _by_chirp(x: Any) -> Any:
    n, kind = x.type.shape[-1], x.dtype.real
    m = 1 << (2 * n - 2).bit_length()
    at = _along((m,), 0)
    near = pw.minimum(at, pw.sub(m, at))
    chirp = _roots((m,), pw.mul(near, near), 2 * n, kind)             # exp(-pi i j^2 / n), mirrored beyond the middle
    first = _part(chirp, 0, n)
    inside = pw.lt(near, n)
    zero = scalar(0.0, kind)
    kernel = pw.complex_(pw.where(inside, pw.real(chirp), zero), pw.where(inside, pw.neg(pw.imag(chirp)), zero))
    signal = sh.pad(pw.mul(x, first), [*[(0, 0)] * (len(x.type.shape) - 1), (0, m - n)])
    found = bind("ifft", pw.mul(bind("fft", signal), bind("fft", kernel)))
    return pw.mul(_part(found, 0, n), first)


# -- pieces --------------------------------------------------------------------------------------------------------------------
def _along(shape: Sequence[Any], axis: int) -> Any:
    return bind("iota", shape=tuple(shape), axis=axis, dtype=dt.int64)


def _roots(shape: Sequence[int], exponent: Any, n: int, kind: DType) -> Any:
    """exp(-2 pi i e / n), computed in f64 and rounded once; whole turns are taken off exactly."""
    angle = pw.mul(convert(pw.mod(exponent, n), dt.f64), scalar(-2 * math.pi / n, dt.f64))
    return pw.complex_(convert(pw.cos(angle), kind), convert(pw.sin(angle), kind))


def _part(x: Any, start: int, limit: int, stride: int = 1) -> Any:
    return sh.slice_axis(x, len(x.type.shape) - 1, start, limit, stride)


def _scaled(z: Any, by: float) -> Any:
    factor = scalar(by, z.dtype.real)
    return pw.complex_(pw.mul(pw.real(z), factor), pw.mul(pw.imag(z), factor))


__all__ = ["factors", "fft", "ifft", "irfft", "is_long", "rfft", "split"]
