"""Policies reach every op: contractions, reductions and pointwise ops, from scopes and from declared types."""
# ruff: noqa: F821  (sizes in annotations)

import numpy as np
import pytest

import tessera as ts
from tessera import errors


def f32(x):
    return np.asarray(x).astype(np.float32)


def to(x, d):
    return x.astype(np.float32).astype(d.np).astype(np.float32)


@pytest.fixture
def xy(rng):
    return rng.normal(size=(6, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)


@pytest.mark.parametrize("way", [lambda f: f, ts.jit])
def test_pointwise_ops_compute_in_the_policys_format(way, xy):
    a, b = xy
    with ts.numerics(compute=ts.bf16):
        got = way(lambda x, y: x * y)(ts.tensor(a), ts.tensor(b))
    assert got.dtype is ts.f32
    assert np.array_equal(got, to(to(a, ts.bf16) * to(b, ts.bf16), ts.bf16))


def test_storage_is_the_dtype_of_results_where_it_is_named(xy):
    a, b = xy
    with ts.numerics(storage=ts.fp8_e5m2, compute=ts.bf16, accumulate=ts.f32, saturate=True):
        got = ts.tensor(a) + ts.tensor(b)
        product = ts.tensor(a) @ ts.tensor(b.T)
        moved = ts.tensor(a).reshape(8, 6)
    assert got.dtype is product.dtype is ts.fp8_e5m2 and moved.dtype is ts.f32
    assert np.array_equal(f32(got), to(to(to(a, ts.bf16) + to(b, ts.bf16), ts.bf16), ts.fp8_e5m2))


@pytest.mark.parametrize("axis", [None, 1])
def test_sums_run_in_the_accumulator(axis):
    x = ts.tensor(np.full((2, 4096), 1.0, np.float32))
    with ts.numerics(compute=ts.bf16, accumulate=ts.f32):
        assert np.all(np.asarray(ts.sum(x, axis)) == (8192 if axis is None else 4096))
    with ts.numerics(compute=ts.bf16, accumulate=ts.bf16):
        low = np.asarray(x.sum(axis))
        graph = str(ts.jit(lambda x: x.sum(axis)).trace(x))
    assert "accumulate = bf16" in graph and np.isfinite(low).all()
    y = ts.tensor(np.concatenate([[1.0], np.full(1 << 16, 1e-8)]).astype(np.float32))
    with ts.numerics(accumulate=ts.f64):
        assert float(y.sum()) == np.float32(np.asarray(y).astype(np.float64).sum())


def test_rounding_modes_bound_the_exact_result(xy):
    a, b = xy
    exact = a.astype(np.float64) * b
    bounds = {}
    for mode in ("down", "up", "toward_zero"):
        with ts.numerics(rounding=mode):
            bounds[mode] = np.asarray(ts.tensor(a) * ts.tensor(b)).astype(np.float64)
    assert (bounds["down"] <= exact).all() and (bounds["up"] >= exact).all() and (bounds["down"] < bounds["up"]).any()
    assert (np.abs(bounds["toward_zero"]) <= np.abs(exact)).all()


def test_stochastic_rounding_reaches_pointwise_ops_sums_and_products():
    x = ts.full((20_000,), 1.0, dtype=ts.bf16)
    ts.manual_seed(1)
    with ts.numerics(storage=ts.bf16, compute=ts.bf16, rounding="stochastic"):
        added = f32(x + 1e-3)
        product = f32(ts.full((2000, 1), 1.0, dtype=ts.bf16) @ ts.full((1, 1), 1 + 1 / 128, dtype=ts.bf16))
        total = f32(ts.stack([ts.full((5000,), 1.0), ts.full((5000,), 1e-3)]).sum(0))
    assert abs(added.mean() - 1 - float(np.float32(1e-3).astype(ts.bf16.np))) < 4 * (1 / 128) / np.sqrt(20_000)
    assert set(np.unique(added)) == {1.0, 1 + 1 / 128} and set(np.unique(product)) == {1 + 1 / 128}
    assert set(np.unique(total)) == {1.0, 1 + 1 / 128}


def test_subnormal_numbers_are_flushed_or_kept():
    x, y = ts.tensor([1e-30, 1e-40]), ts.tensor([1e-10, 1.0])
    with ts.numerics(denorm_mode="flush"):
        assert np.asarray(x * y).tolist() == [0.0, 0.0]
        assert float((ts.tensor([[1e-40]]) @ ts.tensor([[1e3]]))[0, 0]) == 0.0
    assert (np.asarray(x * y) > 0).all()


def test_saturation():
    x = ts.tensor([300.0, -3.0])
    with ts.numerics(storage=ts.fp8_e4m3, compute=ts.f32, saturate=True):
        assert f32(x * 2).tolist() == [448.0, -6.0]
    with ts.numerics(storage=ts.fp8_e4m3, compute=ts.f32):
        assert np.isnan(f32(x * 2)[0])


def test_tf32_reads_operands_in_ten_bits():
    x = ts.tensor([1 + 2**-11 + 2**-20, 1 + 2**-12])
    with ts.precision("tf32"):
        assert np.asarray(x * 1.0).tolist() == [1 + 2**-10, 1.0]
    with ts.numerics(accumulate=ts.tf32, round="toward_zero"):
        assert (x @ x).dtype is ts.f32
    with pytest.raises(errors.ArgumentError, match="tensors are stored as f32"):
        ts.numerics(storage=ts.tf32)


def test_composites_and_reductions_keep_their_own_stability():
    x = ts.tensor([[1e4, 1e4 + 64.0]])
    with ts.precision("bf16"):
        np.testing.assert_allclose(ts.softmax(x, -1), [[0, 1]], atol=1e-6)
        assert float(x.max()) == f32(ts.tensor(1e4 + 64.0).to(ts.bf16))


# -- declared types ----------------------------------------------------------------------------------------------------------
FP8 = ts.Policy(storage=ts.fp8_e5m2, compute=ts.bf16, accumulate=ts.f32)


def test_a_declared_policy_travels_through_the_ops(xy):
    a, b = (x.astype(ts.fp8_e5m2.np) for x in xy)

    @ts.function
    def f(x: ts.Tensor["B", "D", FP8], y: ts.Tensor["B", "D", FP8]):
        return (x + y).T * 3.0, (x @ y.T).sum(0)

    first, second = f(ts.tensor(a), ts.tensor(b))
    assert first.dtype is second.dtype is ts.fp8_e5m2 and first.nbytes == first.size
    added = to(to(a.astype(np.float32) + b.astype(np.float32), ts.bf16), ts.fp8_e5m2)
    assert np.array_equal(f32(first), to(to(added.T * 3, ts.bf16), ts.fp8_e5m2))


def test_amp_from_types(rng):
    """The seeds' example: bf16 activations, fp8 weights, sums in f32, a bf16 result."""
    @ts.function
    def model(x: ts.Tensor["B", "S", "D", ts.bf16 @ ts.accum(ts.f32)], w: ts.Tensor["D", "K", ts.fp8_e4m3 @ ts.accum(ts.f32)],
              ) -> ts.Tensor["B", "S", "K", ts.bf16]:
        return ts.linear(x, w)

    x = rng.integers(-4, 5, (2, 3, 32)).astype(ts.bf16.np)
    w = (rng.integers(-8, 9, (32, 8)) / 8).astype(ts.fp8_e4m3.np)
    got = model(ts.tensor(x), ts.tensor(w))
    want = (x.astype(np.float32) @ w.astype(np.float32)).astype(ts.bf16.np)  # exact sums: every order gives these bits
    assert got.dtype is ts.bf16 and np.array_equal(f32(got), want.astype(np.float32))
    graph = str(model.trace(ts.tensor(x), ts.tensor(w)))
    assert "fp8_e4m3" in graph and "accumulate = f32" in graph
    with pytest.raises(errors.DTypeError, match="Cannot implicitly convert"):
        ts.jit(lambda x, w: x @ w)(ts.tensor(x), ts.tensor(w))


def test_a_class_is_a_policy_too():
    @ts.numerics.policy("eight")
    class Eight(ts.InferencePolicy):
        rounding = "nearest"
        accumulate = ts.f32

    assert Eight().saturate and ts.numerics.get("eight").compute is ts.fp8_e4m3 and Eight().rounding == "nearest"

    @ts.function
    def f(x: ts.Tensor["N", Eight]):
        return x * 2

    assert f(ts.tensor([1.5]).to(ts.fp8_e4m3)).dtype is ts.fp8_e4m3
    with ts.numerics.policy("eight"):
        assert (ts.ones(3) * 2).dtype is ts.fp8_e4m3
    assert (ts.InferencePolicy().rounding, ts.InferencePolicy().accumulate) == ("stochastic", ts.bf16)
    assert ts.TrainingPolicy().storage is ts.bf16


def test_results_are_the_same_eager_and_compiled(xy):
    a, b = xy

    def f(x, y):
        return ts.gelu(x * y).mean(1) + ts.exp(x).sum(1)

    with ts.numerics(ts.TrainingPolicy):
        eager, jitted = f(ts.tensor(a), ts.tensor(b)), ts.jit(f)(ts.tensor(a), ts.tensor(b))
    assert eager.dtype is jitted.dtype is ts.bf16 and np.array_equal(f32(eager), f32(jitted))


def test_what_is_compiled_under_a_policy_is_the_same_elsewhere(xy):
    """Definitions of composites and programs that draw numbers are kept: they must not remember the scope in which they were made."""
    x = ts.tensor(xy[0]).to(ts.bf16)
    with ts.numerics(storage=ts.bf16, compute=ts.bf16):
        ts.jit(lambda x: ts.silu(ts.layer_norm(x)))(x)
        ts.manual_seed(3)
        inside = ts.jit(lambda: ts.random.exponential(50))()
    assert np.array_equal(f32(ts.jit(lambda x: ts.silu(x))(x)), f32(ts.silu(x)))
    ts.manual_seed(3)
    assert np.array_equal(inside, ts.random.exponential(50))
