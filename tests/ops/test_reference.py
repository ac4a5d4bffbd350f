"""The numpy meanings against independent ones: numpy's own functions in float64, Python's integers, definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

from tessera.ops.table import OPS
from tessera.types import dtypes as dt

RNG = np.random.default_rng(0)
X = np.linspace(-3.0, 3.0, 61)


def ref(name: str, *arrays: np.ndarray, **attrs: object) -> np.ndarray:
    return OPS[name].reference(*[np.asarray(a) for a in arrays], **attrs)


MPMATH = {
    "exp": mpmath.exp, "expm1": mpmath.expm1, "log": mpmath.log, "log1p": mpmath.log1p, "sin": mpmath.sin, "cos": mpmath.cos,
    "tan": mpmath.tan, "asin": mpmath.asin, "acos": mpmath.acos, "atan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "asinh": mpmath.asinh, "acosh": mpmath.acosh, "atanh": mpmath.atanh, "erf": mpmath.erf,
    "erfc": mpmath.erfc, "erfinv": mpmath.erfinv, "digamma": mpmath.digamma, "sqrt": mpmath.sqrt, "log2": lambda x: mpmath.log(x, 2),
    "log10": mpmath.log10, "exp2": lambda x: mpmath.mpf(2) ** x, "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)), "rsqrt": lambda x: 1 / mpmath.sqrt(x), "reciprocal": lambda x: 1 / x,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
}


@pytest.mark.parametrize("name", sorted(MPMATH))
def test_transcendental_meaning(name: str) -> None:
    low, high = OPS[name].facts.get("domain", (-4.0, 4.0))
    x = np.random.default_rng(1).uniform(low, high, 50)
    mpmath.mp.prec = 200
    want = np.array([float(MPMATH[name](mpmath.mpf(float(v)))) for v in x])
    np.testing.assert_allclose(ref(name, x), want, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("name", ["add", "mul", "div", "exp", "tanh"])
def test_small_floats_round_once(name: str, kind: type) -> None:
    arrays = [RNG.uniform(0.5, 3.0, 200).astype(kind) for _ in range(1 if name in ("exp", "tanh") else 2)]
    wide = ref(name, *[a.astype(np.float32) for a in arrays])
    np.testing.assert_array_equal(ref(name, *arrays), wide.astype(kind))
    assert ref(name, *arrays).dtype == np.dtype(kind)


def test_fma_rounds_once() -> None:
    for kind in (np.float32, np.float64):
        a, b, c = (RNG.standard_normal(300).astype(kind) for _ in range(3))
        c[::3] = -(a * b)[::3]  # all digits of the product but the lost ones cancel
        exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
        np.testing.assert_array_equal(ref("fma", a, b, c), np.array([kind(_rounded(e, kind)) for e in exact]))
    assert np.isnan(ref("fma", np.float32(np.inf), np.float32(0), np.float32(1)))


def _rounded(e: Fraction, kind: type) -> float:
    """The nearest value of ``kind``, by exact comparison with the neighbours."""
    near = kind(float(e))
    around = [near, np.nextafter(near, kind(np.inf)), np.nextafter(near, kind(-np.inf))]
    return min(around, key=lambda v: (abs(Fraction(float(v)) - e), int(v.view(np.int32 if kind is np.float32 else np.int64)) & 1))


INTS = [d for d in dt.ALL if d.is_integer and d.bits >= 8]


@pytest.mark.parametrize("d", INTS, ids=str)
def test_integers_are_defined_everywhere(d: dt.DType) -> None:
    low, high = int(d.iinfo.min), int(d.iinfo.max)
    edge = [v for v in (low, low + 1, -7, -1, 0, 1, 2, 3, 7, high - 1, high) if low <= v <= high]
    x, y = (np.array(v, d.np) for v in zip(*[(a, b) for a in edge for b in edge], strict=True))
    wrap = lambda v: (int(v) - low) % (high - low + 1) + low
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    for name, fn in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b),
                     ("floor_div", lambda a, b: a // b if b else 0), ("mod", lambda a, b: a % b if b else 0)):
        np.testing.assert_array_equal(ref(name, x, y), np.array([wrap(fn(a, b)) for a, b in pairs], d.np), err_msg=name)
    bits = d.bits
    left = [wrap(a << b) if 0 <= b < bits else 0 for a, b in pairs]
    right = [a >> b if 0 <= b < bits else (-1 if a < 0 else 0) for a, b in pairs]
    np.testing.assert_array_equal(ref("shift_left", x, y), np.array(left, d.np))
    np.testing.assert_array_equal(ref("shift_right", x, y), np.array(right, d.np))
    small = y.clip(max(low, -3), 6)
    power = [wrap(a ** b) if b >= 0 else (int(Fraction(1, a ** -b)) if a else 0) for a, b in zip(x.tolist(), small.tolist(), strict=True)]
    np.testing.assert_array_equal(ref("integer_pow", x, small), np.array(power, d.np))
    np.testing.assert_array_equal(ref("abs", x), np.array([wrap(abs(a)) for a in x.tolist()], d.np))
    np.testing.assert_array_equal(ref("neg", x), np.array([wrap(-a) for a in x.tolist()], d.np))


@pytest.mark.parametrize("d", [d for d in dt.ALL if d.is_integer], ids=str)
def test_float_to_integer_saturates(d: dt.DType) -> None:
    low, high = int(d.iinfo.min), int(d.iinfo.max)
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1.99, -1.99, 0.5, -0.0, float(high), float(low), float(high) + 1.5])
    want = [0 if math.isnan(v) else high if v >= high else low if v <= low else int(v) for v in x.tolist()]
    np.testing.assert_array_equal(ref("convert", x, dtype=d).astype(object), np.array(want, object))


def test_integers_wrap_when_narrowed() -> None:
    x = np.array([-129, 128, 255, 256, 7, -8, -9, 8])
    np.testing.assert_array_equal(ref("convert", x, dtype=dt.int8), x.astype(np.int8))
    assert ref("convert", x, dtype=dt.int4).astype(int).tolist() == [-1, 0, -1, 0, 7, -8, 7, -8]
    assert ref("convert", x, dtype=dt.uint4).astype(int).tolist() == [15, 0, 15, 0, 7, 8, 7, 8]


def test_saturating_conversion() -> None:
    x = np.array([1e6, -1e6, 3.0, np.nan], np.float32)
    out = ref("convert", x, dtype=dt.fp8_e4m3, saturate=True).astype(np.float32)
    np.testing.assert_array_equal(out, np.array([448, -448, 3, np.nan], np.float32))
    assert np.isnan(ref("convert", x, dtype=dt.fp8_e4m3).astype(np.float32)[0])  # the format has no infinity


def test_extrema_and_comparisons_of_nan() -> None:
    nan, one = np.array([np.nan, 1.0, np.nan]), np.array([1.0, np.nan, np.nan])
    assert np.isnan(ref("maximum", nan, one)).all() and np.isnan(ref("minimum", nan, one)).all()
    assert ref("eq", nan, nan).tolist() == [False, True, False] and ref("ne", nan, one).all()
    assert ref("argmax", np.array([1.0, np.nan, 3.0, np.nan]), axis=0) == 1
    assert np.isnan(ref("sign", np.array([np.nan]))[0])
    assert np.isnan(ref("reduce_max", nan, axes=(0,)))


def test_round_is_half_to_even() -> None:
    assert ref("round", np.array([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0.0, 2.0, 2.0, -0.0, -2.0]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_nextafter_moves_one_step(kind: type) -> None:
    bits = np.int16 if np.dtype(kind).itemsize == 2 else np.int32
    x = RNG.standard_normal(100).astype(kind)
    up = ref("nextafter", x, np.full_like(x, np.inf))
    assert (up.astype(np.float64) > x.astype(np.float64)).all()
    assert (np.abs(up.view(bits).astype(np.int64) - x.view(bits).astype(np.int64)) == 1).all()
    assert float(ref("nextafter", kind(0), kind(1))) > 0 > float(ref("nextafter", kind(0), kind(-1)))


def test_sort_is_stable_and_nan_is_greatest() -> None:
    x = np.array([3.0, np.nan, 1.0, 3.0, np.nan, -np.inf])
    assert ref("argsort", x, axis=0).tolist() == [5, 2, 0, 3, 1, 4]
    assert ref("argsort", x, axis=0, descending=True).tolist() == [1, 4, 0, 3, 2, 5]


def test_gather_counts_from_the_end_and_clamps() -> None:
    x = np.arange(10.0)
    assert ref("gather", x, np.array([-1, 0, 9, -10, 50, -50]), axes=(0,)).tolist() == [9, 0, 9, 0, 9, 0]


def test_scatter_takes_updates_in_order() -> None:
    x, i = np.zeros(4), np.array([1, 1, -1])
    u = np.array([5.0, 7.0, 9.0])
    assert ref("scatter", x, i, u, mode="set").tolist() == [0, 7, 0, 9]
    assert ref("scatter", x, i, u, mode="add").tolist() == [0, 12, 0, 9]


def test_attention_row_without_keys_is_zero() -> None:
    q = k = v = np.ones((2, 3, 4), np.float32)
    mask = np.ones((2, 3, 3), bool)
    mask[0, 1] = False
    out = ref("attention", q, k, v, mask, scale=1.0)
    assert not out[0, 1].any() and out[0, 0].all()
