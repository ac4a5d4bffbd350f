"""Sums that lose less, statistics and formulas that stay finite."""
# ruff: noqa: F821  (sizes in annotations)

import builtins

import numpy as np
import pytest

import tessera as ts
from tessera import errors, stable

# -- sums ------------------------------------------------------------------------------------------------------------------
SMALL = np.concatenate([[1.0], np.full(1_000_000, 1e-8)]).astype(np.float32)


@ts.kahan_sum
def precise_sum(x):
    return sum(x)  # Python's own


@ts.summation.kahan
@ts.function
def high_precision(x: ts.Tensor["N"]):
    return x.sum()


@pytest.mark.parametrize("f", [precise_sum, high_precision, ts.jit(precise_sum), ts.summation.kahan(lambda x: ts.sum(x))])
def test_compensated_sums(f):
    exact = SMALL.astype(np.float64).sum()
    assert abs(float(f(ts.tensor(SMALL))) - exact) <= np.spacing(np.float32(exact))
    assert abs(float(ts.tensor(SMALL).sum()) - exact) > np.spacing(np.float32(exact))


def test_compensation_survives_cancellation_infinities_and_empty_sums():
    x = ts.tensor([1.0, 1e30, 1.0, -1e30])
    assert float(ts.compensated_sum(x)) == 2.0
    assert float(ts.compensated_sum(ts.tensor([np.inf, 1.0]))) == np.inf
    assert np.isnan(float(ts.compensated_sum(ts.tensor([np.inf, -np.inf]))))
    assert np.asarray(ts.compensated_sum(ts.zeros((3, 0)), 1)).tolist() == [0, 0, 0]
    assert int(ts.compensated_sum(ts.tensor([1, 2, 3]))) == 6


@pytest.mark.parametrize("f", [ts.compensated_sum, ts.pairwise_sum])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2), -1])
def test_axes(f, axis, rng):
    x = rng.normal(size=(3, 5, 7)).astype(np.float32)
    for keep in (False, True):
        got = f(ts.tensor(x), axis, keepdims=keep)
        np.testing.assert_allclose(got, x.astype(np.float64).sum(axis, keepdims=keep), rtol=1e-6, atol=1e-6)


def test_symbolic_sizes(rng):
    @ts.function
    def f(x: ts.Tensor["B", "N"]):
        return ts.pairwise_sum(x, 1), ts.compensated_sum(x, 0), ts.welford(x)[1]

    for n in (3, 200, 5000):
        x = rng.normal(size=(4, n)).astype(np.float32)
        wanted = (x.sum(1, dtype=np.float64), x.sum(0, dtype=np.float64), x.var(1, dtype=np.float64))
        for got, want in zip(f(ts.tensor(x)), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=3e-6)
    assert len(f.programs) == 1


def test_pairwise_is_a_scope_too():
    with ts.summation.pairwise():
        total = float(ts.tensor(SMALL).sum())
    assert abs(total - SMALL.astype(np.float64).sum()) < 1e-6


# -- statistics --------------------------------------------------------------------------------------------------------------
def test_welford_far_from_zero(rng):
    x = (1e8 + rng.normal(size=(3, 20_000)) * 100).astype(np.float32)
    exact = x.astype(np.float64).var(1)
    naive = (x * x).mean(1) - x.mean(1) ** 2
    assert np.abs(naive / exact - 1).max() > 1
    t = ts.tensor(x)
    for got in (stable.variance(t), stable.variance(t, stable.mean(t)), stable.std(t) ** 2, ts.welford(t, -1)[1]):
        assert np.abs(np.asarray(got) / exact - 1).max() < 1e-5
    assert np.abs(np.asarray(stable.mean(t)) / x.astype(np.float64).mean(1) - 1).max() < 1e-7
    np.testing.assert_allclose(stable.variance(t, correction=1), x.astype(np.float64).var(1, ddof=1), rtol=1e-5)
    with pytest.raises(errors.ShapeError, match="not the shape of the mean"):
        stable.variance(t, ts.ones(7))


def test_stable_norm():
    assert float(stable.norm(ts.tensor([3e30, 4e30]))) == pytest.approx(5e30)
    assert float(stable.norm(ts.tensor([3e-30, 4e-30]))) == pytest.approx(5e-30)
    assert float(stable.norm(ts.zeros(3))) == 0


# -- formulas ----------------------------------------------------------------------------------------------------------------
@ts.numerically_stable
def naive(x):
    e = ts.exp(x)
    p = e / e.sum(-1, keepdim=True)
    return (p, ts.log(e.sum(-1)), ts.log(1 + ts.exp(x)), (x * x).mean(-1) - x.mean(-1) ** 2, ts.log(ts.sigmoid(-x)), ts.log(p),
            ts.log(x * 1e-20 + 1), ts.sqrt(x * x + x * x))


def test_unstable_formulas_are_replaced_and_listed():
    x = np.array([[1e4, 1e4 + 1, 3.0]], np.float32)
    got = [np.asarray(y) for y in naive(ts.tensor(x))]
    wide = x.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    lse = top + np.log(np.exp(wide - top).sum(-1, keepdims=True))
    want = [np.exp(wide - lse), lse[:, 0], np.logaddexp(0, wide), wide.var(-1), -np.logaddexp(0, wide), wide - lse, np.log1p(wide * 1e-20),
            np.hypot(wide, wide)]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=3e-6, atol=1e-30)
    assert [r.now for r in naive.rewrites] == ["softmax(x)", "logsumexp(x)", "softplus(x)", "var(x)", "log_sigmoid(x)", "log_softmax(x)",
                                               "log1p(x)", "hypot(x, y)"]
    assert all("test_stable.py:" in r.where for r in naive.rewrites)
    inside = ts.jit(lambda x: naive(x)[0] * 2)
    np.testing.assert_allclose(inside(ts.tensor(x)), 2 * want[0], rtol=1e-5, atol=1e-30)


def test_what_is_stable_already_stays():
    @ts.numerically_stable
    @ts.function
    def f(x: ts.Tensor["N"]):
        return ts.exp(x) / 2 + ts.log(x + 2) + ts.sqrt(x * x + x)

    f(ts.ones(4))
    assert f.rewrites == ()


def test_star_import_hides_no_builtin():
    assert not set(stable.__all__) & set(dir(builtins))
    assert all(callable(getattr(stable, n)) for n in stable.__all__)
    np.testing.assert_allclose(stable.softmax(ts.tensor([1e4, 1e4 + 1]), -1), [0.26894143, 0.7310586], rtol=1e-6)
    assert float(stable.logsumexp(ts.tensor([-np.inf, -np.inf]))) == -np.inf


# -- attention ---------------------------------------------------------------------------------------------------------------
def exact_attention(q, k, v, temperature, mask=None):
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]) / temperature
    if mask is not None:
        s = np.where(mask, s, -np.inf)
    top = s.max(-1, keepdims=True)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    return p @ v / np.where(total == 0, 1, total)


@pytest.mark.parametrize("size, length, dtype", [(1e3, 33, ts.bf16), (1.0, 1500, ts.f32), (3e2, 20, ts.f16), (1e18, 9, ts.f32)])
@pytest.mark.parametrize("log_space", [False, True])
def test_attention_of_large_long_and_low_precision_operands(size, length, dtype, log_space, rng):
    q, k = (ts.tensor((rng.normal(size=(1, 2, length, 16)) * size).astype(np.float32)).to(dtype) for _ in range(2))
    v = ts.tensor(rng.normal(size=(1, 2, length, 16)).astype(np.float32)).to(dtype)

    @stable.attention
    def attend(q, k, v):
        return stable.scaled_dot_product_attention(q, k, v, temperature=2.0, use_log_space=log_space)

    got = np.asarray(attend(q, k, v)).astype(np.float64)
    assert np.isfinite(got).all()
    bound = {ts.bf16: 2e-2, ts.f16: 3e-3, ts.f32: 1e-3}[dtype]
    worst = np.abs(got - exact_attention(q, k, v, 2.0))
    assert np.quantile(worst, 0.99) < bound  # (two scores of 1e6 that agree in all digits of f32 may change places)


def test_log_space_handles_rows_that_see_nothing(rng):
    q = ts.tensor(rng.normal(size=(1, 1, 4, 8)).astype(np.float32))
    mask = np.ones((1, 1, 4, 4), bool)
    mask[0, 0, 2] = False
    got = np.asarray(stable.scaled_dot_product_attention(q, q, q, ts.tensor(mask), use_log_space=True))
    assert (got[0, 0, 2] == 0).all()
    np.testing.assert_allclose(got, exact_attention(q, q, q, 1.0, mask), atol=1e-5)
    causal = stable.scaled_dot_product_attention(q, q, q, causal=True, use_log_space=True)
    np.testing.assert_allclose(causal, exact_attention(q, q, q, 1.0, np.tril(np.ones((4, 4), bool))), atol=1e-5)
    with pytest.raises(errors.ArgumentError, match="a temperature is positive"):
        stable.scaled_dot_product_attention(q, q, q, temperature=0)
