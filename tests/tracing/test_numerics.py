"""Numerical policies in scope."""
# ruff: noqa: F821  (sizes in annotations)

import threading

import numpy as np
import pytest

import tessera as ts
from tessera import errors, numerics


def test_products_compute_and_accumulate_as_the_policy_says(rng):
    a, b = (rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
    x, y = ts.tensor(a), ts.tensor(b)
    plain = np.asarray(x @ y)
    with ts.precision("bf16"):
        low = x @ y
        graph = ts.jit(lambda x, y: x @ y).trace(x, y)
    assert low.dtype is ts.f32 and not np.array_equal(low, plain)
    want = np.asarray(x.to(ts.bf16).to(ts.f32)) @ np.asarray(y.to(ts.bf16).to(ts.f32))
    np.testing.assert_allclose(low, want, rtol=1e-6, atol=1e-6)
    assert "convert" in str(graph) and "accumulate = f32" in str(graph) and "bf16[8, 8]" in str(graph)
    assert np.array_equal(x @ y, plain)


def test_a_function_is_traced_once_for_each_policy(rng):
    f = ts.jit(lambda x: x @ x)
    x = ts.tensor(rng.normal(size=(4, 4)).astype(np.float32))
    plain = np.asarray(f(x))
    with ts.numerics(compute=ts.bf16):
        low = f(x)
    assert len(f.programs) == 2 and not np.array_equal(plain, low) and np.array_equal(f(x), plain)


def test_scopes_nest_and_belong_to_a_thread():
    seen = []
    with ts.numerics(ts.TrainingPolicy) as outer:
        assert outer.compute is ts.bf16 and outer.accumulate is ts.f32
        with ts.numerics("inference"):
            assert numerics.current().storage is ts.fp8 and numerics.current().saturate
        assert numerics.current() is outer
        t = threading.Thread(target=lambda: seen.append(numerics.current()))
        t.start()
        t.join()
    assert numerics.current() is None and seen == [None]


def test_declared_conversions_are_made_under_a_policy():
    @ts.function
    def compute_in_fp8(x: ts.Tensor["N", ts.fp8_e4m3]):
        return x

    x = ts.ones(3, dtype=ts.bf16)
    with pytest.raises(errors.DTypeError):
        compute_in_fp8(x)
    with ts.precision("mixed"):
        assert compute_in_fp8(x).dtype is ts.fp8_e4m3
    assert compute_in_fp8(x.to(ts.fp8_e4m3)).dtype is ts.fp8_e4m3


def test_registered_policies_and_decorators():
    @ts.numerics.policy("mine")
    class Mine(ts.TrainingPolicy):
        accumulate = ts.f64

    assert ts.numerics.get("mine").accumulate is ts.f64 and ts.numerics.get("mine").compute is ts.bf16

    @ts.numerics(Mine)
    def f():
        return numerics.current()

    assert f() == ts.numerics.get("mine") and numerics.current() is None


@pytest.mark.parametrize("call, kind, text", [
    (lambda: ts.numerics(acumulate=ts.f32), errors.ArgumentError, "did you mean 'accumulate'"),
    (lambda: ts.precision("mixd"), errors.ArgumentError, "did you mean 'mixed'"),
    (lambda: ts.numerics(compute="flot32"), errors.DTypeError, "did you mean"),
    (lambda: ts.numerics(rounding="upwards"), errors.ArgumentError, "upwards"),
    (lambda: ts.numerics(3), errors.ArgumentError, "not a numerical policy"),
])
def test_bad_policies(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
