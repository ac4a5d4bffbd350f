"""The exact meaning of the basic pointwise ops, in numpy: what interpreters run and compiled code must reproduce bit for bit.

* f32 and f64: IEEE, round to nearest even.  ``fma`` rounds once.
* 16-bit and smaller floats: operands convert to f32, the op is done there, the result rounds once to the format.
* ``minimum`` and ``maximum`` give NaN if an operand is NaN, and order -0 below +0.
* Integers wrap.  ``floor_div`` and ``mod`` follow Python's signs; by zero both give 0 (a program that must report it has
  a ``check``).  Shift counts are read as unsigned: out of range they give 0, or the sign for ``shift_right`` of signed.
* ``convert``: floats to integers truncate toward zero and saturate, NaN gives 0; integers to integers wrap; anything to
  bool is ``!= 0``; to 16-bit and smaller floats by way of f32 (two roundings for f64 and wide integers).
* complex numbers: componentwise textbook formulas; quotients and functions are written in functions of the parts before.

Names that are not basic (``exp`` …) evaluate in f64 and round: good to about one ulp, but not what compiled code gives;
programs are expanded by ``tiling/vmath.py`` before they are compared bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..types.dtypes import DType, as_dtype, bool_, f32, f64
from .interpret_graph import REFERENCES

Array = np.ndarray[Any, np.dtype[Any]]


def pointwise(name: str, operands: Sequence[Any], dtype: DType) -> Array:
    """One op on arrays of equal shape (0-d for scalars); ``dtype`` is that of the result.

    Raises:
        KeyError: no pointwise op is called that.
    """
    arrays = [np.asarray(x) for x in operands]
    with np.errstate(all="ignore"):
        if name == "convert":
            return convert(arrays[0], dtype)
        if name == "bitcast":
            return np.ascontiguousarray(arrays[0]).view(dtype.np).reshape(arrays[0].shape)
        if name == "select":
            return np.where(arrays[0], arrays[1], arrays[2]).astype(dtype.np, copy=False)
        source = as_dtype(arrays[0].dtype)
        table = _BOOL if source is bool_ else _INT if source.is_integer else _COMPLEX if source.is_complex else _FLOAT
        fn = table.get(name)
        if fn is None:
            return _transcendental(name, arrays, dtype)
        if source.is_float and source.bits < 32:
            out = fn(*(a.astype(np.float32) for a in arrays))
        elif source.bits == 4:  # ml_dtypes has no arithmetic on 4-bit integers worth relying on
            out = fn(*(a.astype(np.int8 if source.kind == "int" else np.uint8) for a in arrays), bits=4) if name in _SHIFTS \
                else fn(*(a.astype(np.int8 if source.kind == "int" else np.uint8) for a in arrays))
        else:
            out = fn(*arrays)
        out = np.asarray(out)
        return out if out.dtype == dtype.np else convert(out, dtype)


# -- conversion --------------------------------------------------------------------------------------------------------
def convert(value: Any, dtype: DType) -> Array:
    """``value`` in another dtype, by the rules above."""
    x: Array = np.asarray(value)
    source = as_dtype(x.dtype)
    if source is dtype:
        return x
    with np.errstate(all="ignore"):
        if dtype is bool_:
            return np.asarray(x.astype(np.float32) != 0 if source.is_float and source.bits < 32 else x != 0)
        if source is bool_:
            return x.astype(np.uint8).astype(np.float32).astype(dtype.np) if dtype.is_inexact else _wrap(x.astype(np.uint8), dtype)
        if source.is_complex and not dtype.is_complex:
            return convert(x.real, dtype)
        if dtype.is_complex:
            wide = x.astype(np.float32) if source.is_float and source.bits < 32 else x
            return np.asarray(wide.astype(dtype.np))
        if dtype.is_float:
            if source.bits == 4 and source.is_integer:
                x = x.astype(np.int8 if source.kind == "int" else np.uint8)
            return x.astype(dtype.np) if dtype.bits >= 32 else x.astype(np.float32).astype(dtype.np)
        if source.is_float:
            return _saturate(x, dtype)
        return _wrap(x, dtype)


def _wrap(x: Array, dtype: DType) -> Array:
    """Integers modulo 2**bits."""
    if as_dtype(x.dtype).bits == 4:
        x = x.astype(np.int8 if as_dtype(x.dtype).kind == "int" else np.uint8)
    if dtype.bits == 4:
        low = x.astype(np.int64) & 15 if x.dtype != np.uint64 else (x & np.uint64(15)).astype(np.int64)
        return ((low ^ 8) - 8 if dtype.kind == "int" else low).astype(np.int8).astype(dtype.np)
    return x.astype(dtype.np)


def _saturate(x: Array, dtype: DType) -> Array:
    """A float truncated toward zero into an integer dtype; NaN gives 0."""
    wide = x.astype(np.float64)
    lo, hi = int(dtype.iinfo.min), int(dtype.iinfo.max)
    whole = np.trunc(np.where(np.isnan(wide), 0.0, wide))
    inside = (whole > float(lo) - 1) & (whole < float(hi) + 1) if dtype.bits < 64 else (whole >= float(lo)) & (whole < float(hi))
    kind = np.uint64 if dtype.kind == "uint" else np.int64
    out = np.where(inside, whole, 0.0).astype(kind)
    out = np.where(inside, out, np.where(whole < 0, np.array(lo, kind), np.array(hi, kind)))
    return _wrap(np.asarray(out), dtype)


# -- fma ---------------------------------------------------------------------------------------------------------------
def fma(a: Any, b: Any, c: Any) -> Array:
    """``a * b + c`` rounded once, for f32 and f64 arrays (wrapping for integers)."""
    a, b, c = np.broadcast_arrays(a, b, c)
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:
            return _fma32(a, b, c)
        return _fma64(a, b, c)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _to_odd(s: Array, err: Array) -> Array:
    """``s + err`` rounded to odd, for s the nearest float: an inexact even significand moves toward the error."""
    bits = np.ascontiguousarray(s).view(np.int64).reshape(s.shape)
    adjust = (err != 0) & ((bits & 1) == 0) & np.isfinite(s) & np.isfinite(err)
    away = (err > 0) == (s > 0)  # toward larger magnitude
    moved = np.where(away, bits + 1, bits - 1)
    return np.where(adjust, moved, bits).view(np.float64)


def _fma32(a: Array, b: Array, c: Array) -> Array:
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
    s, err = _two_sum(product, c.astype(np.float64))
    return _to_odd(s, err).astype(np.float32)


def _fma64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond's algorithm where nothing can overflow or underflow; exact rational arithmetic elsewhere."""
    out = np.asarray(a * b + c)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0)
    ea, eb, ec = np.frexp(a)[1], np.frexp(b)[1], np.frexp(c)[1]
    safe = finite & (np.abs(ea) < 900) & (np.abs(eb) < 900) & (np.abs(ea + eb) < 900) & ((np.abs(ec) < 900) | (c == 0))
    x, y, z = (np.where(safe, v, 1.0) for v in (a, b, c))
    uh, ul = _two_product(x, y)
    th, tl = _two_sum(z, ul)
    vh, vl = _two_sum(uh, th)
    low = _to_odd(*_two_sum(tl, vl))
    out = np.where(safe, vh + low, out)
    hard = finite & ~safe
    if hard.any():
        out = out.copy()
        for i in zip(*np.nonzero(hard), strict=True) if out.ndim else [()]:
            out[i] = _exact_fma(float(a[i]), float(b[i]), float(c[i]))
    return out


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _split(a: Array) -> tuple[Array, Array]:
    t = a * 134217729.0  # 2**27 + 1
    hi = t - (t - a)
    return hi, a - hi


def _exact_fma(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c if c == 0 else 0.0
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


# -- tables ------------------------------------------------------------------------------------------------------------
def _minimum(a: Array, b: Array) -> Array:
    smaller = (a < b) | ((a == b) & np.signbit(a))
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), np.where(smaller, a, b))


def _maximum(a: Array, b: Array) -> Array:
    larger = (a > b) | ((a == b) & ~np.signbit(a))
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), np.where(larger, a, b))


def _sign(a: Array) -> Array:
    return np.where(np.isnan(a) | (a == 0), a, np.copysign(np.array(1, a.dtype), a))


def _float_mod(a: Array, b: Array) -> Array:
    r = np.fmod(a, b)
    r = np.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
    return np.where(r == 0, np.copysign(r, b), r)


def _float_floor_div(a: Array, b: Array) -> Array:
    return np.asarray(np.floor_divide(a, b))


_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}
_FLOAT: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs, "fma": fma,
    "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "minimum": _minimum,
    "maximum": _maximum, "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "sign": _sign, "copysign": np.copysign,
    "mod": _float_mod, "floor_div": _float_floor_div, **_COMPARE,
}


def _nonzero(a: Array, b: Array, fn: Callable[..., Any]) -> Array:
    """``fn`` where the divisor is not 0, else 0; the one overflow (lowest // -1) wraps."""
    minus_one = (b == -1) if b.dtype.kind == "i" else np.zeros(b.shape, bool)
    safe = np.where((b == 0) | minus_one, np.array(1, b.dtype), b)
    out = fn(a, safe)
    wrapped = np.negative(a) if fn is np.floor_divide else np.zeros_like(a)
    return np.where(b == 0, np.array(0, a.dtype), np.where(minus_one, wrapped, out))


def _shift_left(a: Array, n: Array, bits: int | None = None) -> Array:
    width = bits or 8 * a.dtype.itemsize
    bad = (n < 0) | (n >= width)
    return np.where(bad, np.array(0, a.dtype), np.left_shift(a, np.where(bad, np.array(0, n.dtype), n)))


def _shift_right(a: Array, n: Array, bits: int | None = None) -> Array:
    width = bits or 8 * a.dtype.itemsize
    bad = (n < 0) | (n >= width)
    sign = np.where(a < 0, np.array(-1, a.dtype), np.array(0, a.dtype)) if a.dtype.kind == "i" else np.array(0, a.dtype)
    return np.where(bad, sign, np.right_shift(a, np.where(bad, np.array(0, n.dtype), n)))


_SHIFTS = frozenset({"shift_left", "shift_right"})
_INT: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    "fma": lambda a, b, c: a * b + c, "minimum": np.minimum, "maximum": np.maximum,
    "floor_div": lambda a, b: _nonzero(a, b, np.floor_divide), "mod": lambda a, b: _nonzero(a, b, np.remainder),
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor, "bitwise_not": np.bitwise_not,
    "shift_left": _shift_left, "shift_right": _shift_right, "sign": np.sign, **_COMPARE,
}
_BOOL: dict[str, Callable[..., Any]] = {
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor, "logical_not": np.logical_not,
    "bitwise_and": np.logical_and, "bitwise_or": np.logical_or, "bitwise_xor": np.logical_xor, "bitwise_not": np.logical_not,
    "minimum": np.logical_and, "maximum": np.logical_or, **_COMPARE,
}


def _complex(re: Array, im: Array) -> Array:
    out = np.empty(np.broadcast(re, im).shape, np.complex64 if re.dtype == np.float32 else np.complex128)
    out.real, out.imag = re, im
    return out


def _complex_mul(a: Array, b: Array) -> Array:
    return _complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


_COMPLEX: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "neg": np.negative, "mul": _complex_mul,
    "fma": lambda a, b, c: _complex(
        fma(a.real, b.real, fma(-a.imag, b.imag, c.real)), fma(a.real, b.imag, fma(a.imag, b.real, c.imag))),
    "eq": np.equal, "ne": np.not_equal, "sqrt": np.sqrt,
}

# Not basic: a meaning to within rounding, in f64.
_each = np.vectorize
_REFERENCE: dict[str, Callable[..., Any]] = {
    "exp2_approx": np.exp2, "log2_approx": np.log2, "reciprocal_approx": lambda x: 1.0 / x,
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log1p": np.log1p, "log10": np.log10,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "cbrt": np.cbrt, "pow": np.power, "hypot": np.hypot, "logaddexp": np.logaddexp,
    "rsqrt": lambda x: 1.0 / np.sqrt(x), "reciprocal": lambda x: 1.0 / x, "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "erf": _each(math.erf, otypes=[np.float64]), "erfc": _each(math.erfc, otypes=[np.float64]),
}


def _transcendental(name: str, arrays: Sequence[Array], dtype: DType) -> Array:
    if name == "nextafter":
        return np.asarray(np.nextafter(*arrays))
    fn = _REFERENCE.get(name)
    if fn is None and name in REFERENCES:  # the stanza's own
        return np.asarray(REFERENCES[name](*arrays)).astype(dtype.np)
    if fn is None:
        raise KeyError(f"{name} has no numpy meaning here on {arrays[0].dtype}; expand the program (tiling.vmath) first")
    wide = [a if a.dtype.kind == "c" else a.astype(np.float64) for a in arrays]
    return convert(np.asarray(fn(*wide)), dtype)


__all__ = ["convert", "f32", "f64", "fma", "pointwise"]
