"""The exact numpy meaning of the basic pointwise ops."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tessera.ir.pointwise_numpy import convert, fma, pointwise
from tessera.types import dtypes as dt


def round_to(exact: Fraction, dtype):
    """The float of ``dtype`` nearest to an exact value, ties to even, found by comparing neighbours."""
    if exact == 0:
        return dtype(0)
    try:
        with np.errstate(over="ignore"):
            guess = dtype(float(exact))
    except OverflowError:
        return dtype(math.inf if exact > 0 else -math.inf)
    if dtype is np.float64 or not np.isfinite(guess):
        return guess
    near = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    return min((c for c in near if np.isfinite(c)), key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.int32)) & 1))


def cancelling(dtype, n, rng):
    """Operands whose product nearly cancels the addend, and operands from all over the format."""
    bits = np.uint32 if dtype is np.float32 else np.uint64
    a, b, c = (rng.integers(0, np.iinfo(bits).max, n, dtype=bits, endpoint=True).view(dtype) for _ in range(3))
    x, y = rng.standard_normal((2, n)).astype(dtype)
    with np.errstate(all="ignore"):
        z = -(x * y) * (1 + rng.integers(-3, 4, n).astype(dtype) * np.finfo(dtype).eps / 2)
    return np.concatenate([a, x]), np.concatenate([b, y]), np.concatenate([c, z.astype(dtype)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype):
    rng = np.random.default_rng(7)
    a, b, c = cancelling(dtype, 1500, rng)
    got = fma(a, b, c)
    for x, y, z, r in zip(a, b, c, got, strict=True):
        if all(np.isfinite(v) for v in (x, y, z)):
            assert r == round_to(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)


def test_fma_of_subnormals_and_overflow():
    tiny = np.array([5e-324, 1e-200, 1e300, -1e300])
    got = fma(tiny, np.array([0.5, 1e-200, 1e300, 1e300]), np.array([5e-324, -1e-320, -1e308, 1e308]))
    assert got.tolist() == [1e-323, -1e-320, math.inf, -math.inf]  # 1.5 units tie to 2
    assert np.isnan(fma(np.float64(np.inf), np.float64(0), np.float64(1)))


def test_fma_differs_from_two_roundings():
    x = np.float32(1 + 2.0**-12)
    assert fma(x, x, np.float32(-1)) != x * x - np.float32(1)


def test_float_to_integer_truncates_and_saturates():
    x = np.array([1e20, -1e20, np.nan, 3.7, -3.7, np.inf, -np.inf], np.float32)
    assert convert(x, dt.int32).tolist() == [2**31 - 1, -2**31, 0, 3, -3, 2**31 - 1, -2**31]
    assert convert(x, dt.uint8).tolist() == [255, 0, 0, 3, 0, 255, 0]
    assert convert(x, dt.int64).tolist() == [2**63 - 1, -2**63, 0, 3, -3, 2**63 - 1, -2**63]
    assert convert(x, dt.uint64).tolist() == [2**64 - 1, 0, 0, 3, 0, 2**64 - 1, 0]
    assert convert(np.array([9.0, -9.0], np.float32), dt.int4).astype(int).tolist() == [7, -8]


def test_integer_conversions_wrap():
    assert convert(np.array([300, -1, 127, 128]), dt.int8).tolist() == [44, -1, 127, -128]
    assert convert(np.array([7, 8, 15, 16, -9]), dt.int4).astype(int).tolist() == [7, -8, -1, 0, 7]
    assert convert(np.array([17, -1]), dt.uint4).astype(int).tolist() == [1, 15]
    assert convert(np.array([0, 3, -1]), dt.bool_).tolist() == [False, True, True]


def test_low_precision_goes_through_f32():
    rng = np.random.default_rng(0)
    for d in (dt.bf16, dt.f16, dt.fp8_e4m3, dt.fp8_e5m2):
        a, b, c = (convert(rng.standard_normal(500).astype(np.float32), d) for _ in range(3))
        wide = [x.astype(np.float32) for x in (a, b, c)]
        assert pointwise("mul", [a, b], d).tobytes() == (wide[0] * wide[1]).astype(d.np).tobytes()
        assert pointwise("fma", [a, b, c], d).tobytes() == fma(*wide).astype(d.np).tobytes()


def test_minimum_and_maximum_order_zeros_and_keep_nan():
    a, b = np.array([-0.0, 0.0, np.nan, 1.0], np.float32), np.array([0.0, -0.0, 1.0, np.nan], np.float32)
    low, high = pointwise("minimum", [a, b], dt.f32), pointwise("maximum", [a, b], dt.f32)
    assert np.signbit(low[:2]).all() and not np.signbit(high[:2]).any()
    assert np.isnan(low[2:]).all() and np.isnan(high[2:]).all()


def test_integer_division_is_defined_everywhere():
    a, b = np.array([-7, 7, 5, -2**31], np.int32), np.array([2, -2, 0, -1], np.int32)
    assert pointwise("floor_div", [a, b], dt.int32).tolist() == [-4, -4, 0, -2**31]
    assert pointwise("mod", [a, b], dt.int32).tolist() == [1, -1, 0, 0]


def test_shifts_out_of_range():
    a, n = np.array([-7, 7, 5, -2**31], np.int32), np.array([33, 1, -1, 31], np.int32)
    assert pointwise("shift_right", [a, n], dt.int32).tolist() == [-1, 3, 0, -1]
    assert pointwise("shift_left", [a, n], dt.int32).tolist() == [0, 14, 0, 0]
    assert pointwise("shift_right", [a.astype(np.uint32), n.astype(np.uint32)], dt.uint32).tolist() == [0, 3, 0, 1]


def test_four_bit_integers_wrap():
    a = np.array([7, -8, 5]).astype(dt.int4.np)
    assert pointwise("add", [a, a], dt.int4).astype(int).tolist() == [-2, 0, -6]
    assert pointwise("shift_left", [a, np.array([1, 1, 4]).astype(dt.int4.np)], dt.int4).astype(int).tolist() == [-2, 0, 0]


def test_bitcast_and_select():
    x = np.array([1.0, -2.0], np.float32)
    assert pointwise("bitcast", [x], dt.int32).tolist() == [0x3F800000, 0xC0000000 - 2**32]
    assert pointwise("select", [np.array([True, False]), x, -x], dt.f32).tolist() == [1.0, 2.0]


def test_unknown_op_has_no_meaning():
    with pytest.raises(KeyError, match="expand the program"):
        pointwise("frobnicate", [np.float32(1)], dt.f32)
