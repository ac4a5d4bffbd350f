"""Conversions by other rounding modes than to nearest, and saturating ones."""

from __future__ import annotations

import numpy as np
import pytest

import tessera as ts
from tessera import errors
from tessera.types.policy import RoundingMode

VALUES = np.array([1.1, -1.1, 1e-40, -1e-9, 65519.0, 65535.0, -1e30, 448.0, 460.0, 0.0, -0.0, np.inf, -np.inf, np.nan, 3.3e38], np.float32)


@pytest.mark.parametrize("dtype", [ts.f16, ts.bf16, ts.fp8_e5m2, ts.fp8_e4m3, ts.fp4_e2m1])
@pytest.mark.parametrize("mode, sign", [("up", 1), ("down", -1), ("toward_zero", 0)])
def test_directed_modes_never_pass_the_value(dtype, mode, sign):
    x = ts.tensor(VALUES[np.isfinite(VALUES)])
    y = np.asarray(x.to(dtype, rounding=mode)).astype(np.float64)
    exact = np.asarray(x).astype(np.float64)
    beyond = np.abs(exact) > float(dtype.finfo.max)  # there the format has an infinity, a NaN, or its largest number
    ok = beyond | (y >= exact if sign > 0 else y <= exact if sign < 0 else np.abs(y) <= np.abs(exact))
    assert ok.all()
    nearest = np.asarray(x.to(dtype)).astype(np.float64)
    one = np.abs(np.nan_to_num(y) - np.nan_to_num(nearest)) <= 2 * np.maximum(np.abs(exact) * float(dtype.finfo.eps), float(
        dtype.finfo.smallest_subnormal))
    assert (one | beyond).all()


def test_a_number_of_the_format_stays_whatever_the_mode():
    codes = np.arange(256, dtype=np.uint8).view(ts.fp8_e5m2.np)
    wide = ts.tensor(codes.astype(np.float32))
    for mode in RoundingMode:
        back = wide.to(ts.fp8_e5m2, rounding=mode, key=ts.random.key(1) if mode == "stochastic" else None)
        assert np.array_equal(np.asarray(back).astype(np.float32), codes.astype(np.float32), equal_nan=True), mode


@pytest.mark.parametrize("dtype, value", [
    (ts.bf16, 1.0 + 1 / 700), (ts.bf16, -2.3), (ts.f16, 1.0 + 1e-4), (ts.fp8_e4m3, 0.3), (ts.int8, -7.3)])
def test_stochastic_rounding_is_right_on_average(dtype, value):
    n = 100_000
    y = np.asarray(ts.full((n,), value).to(dtype, rounding="stochastic", key=ts.random.key(3))).astype(np.float64)
    low, high = np.unique(y)
    exact = float(np.float32(value))
    assert low < exact < high
    spread = np.sqrt((exact - low) * (high - exact) / n)
    assert abs(y.mean() - exact) < 4 * spread


def test_stochastic_rounding_follows_the_seed_and_not_the_threads():
    x = ts.randn(70_000)
    f = ts.jit(lambda x: x.to(ts.bf16, rounding="stochastic"))
    out = []
    for threads in (1, 2):
        ts.manual_seed(5)
        before = ts.get_num_threads()
        ts.set_num_threads(threads)
        out.append(np.asarray(f(x)).view(np.uint16))
        ts.set_num_threads(before)
    ts.manual_seed(5)
    eager = np.asarray(x.to(ts.bf16, rounding="stochastic")).view(np.uint16)
    assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], eager)
    assert not np.array_equal(np.asarray(f(x)).view(np.uint16), out[0])


def test_saturation_and_integers():
    x = ts.tensor([1e6, -1e6, float("inf"), 2.5, float("nan")])
    np.testing.assert_array_equal(np.asarray(x.to(ts.fp8_e4m3, saturate=True)).astype(np.float32), [448, -448, 448, 2.5, np.nan])
    assert np.isnan(np.asarray(x.to(ts.fp8_e4m3)).astype(np.float32)[:3]).all()
    y = ts.tensor([2.5, 3.5, -2.5, 300.0])
    assert np.asarray(y.to(ts.int8, rounding="nearest")).tolist() == [2, 4, -2, 127]
    assert np.asarray(y.to(ts.int8)).tolist() == [2, 3, -2, 127]
    assert np.asarray(y.to(ts.int8, rounding="up")).tolist() == [3, 4, -2, 127]


def test_reduced_precision_and_flushing():
    assert float(ts.reduce_precision(ts.tensor(1 / 3), 8, 10)) == float(np.float32(np.rint(1 / 3 * 4096) / 4096))
    assert np.asarray(ts.flush_subnormals(ts.tensor([1e-40, -1e-40, 1.0]))).tolist() == [0.0, -0.0, 1.0]
    with pytest.raises(errors.DTypeError, match="does not hold a format of 9 exponent"):
        ts.reduce_precision(ts.tensor(1.0), 9, 3)


@pytest.mark.parametrize("call, kind, text", [
    (lambda x: x.to(ts.bf16, rounding="stochastik"), errors.ArgumentError, "did you mean 'stochastic'"),
    (lambda x: x.to(ts.bf16, rounding="up", key=ts.random.key(1)), errors.ArgumentError, "takes no key"),
    (lambda x: x.to(ts.complex64, rounding="up"), errors.DTypeError, "complex numbers convert by rounding to nearest"),
])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call(ts.tensor([1.5]))


def test_stochastic_rounding_is_a_random_effect():
    @ts.pure
    def f(x):
        return x.to(ts.bf16, rounding="stochastic")

    with pytest.raises(errors.EffectError, match="random"):
        f(ts.ones(3))
