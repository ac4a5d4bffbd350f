"""Derivatives of what this floor adds, and training in mixed precision."""

import numpy as np
import pytest

import tessera as ts


@pytest.fixture
def data(rng):
    return ts.tensor(rng.normal(size=(16, 7)).astype(np.float32)), ts.tensor(rng.normal(size=(7, 3)).astype(np.float32))


def test_straight_through_and_exact_rules(data):
    x, _ = data
    a = np.asarray(x)
    through = ts.grad(lambda v: ts.fake_quantize(v, 8, scale=0.01).sum())
    assert np.asarray(through(ts.tensor([0.5, 5.0, -0.2, -9.0]))).tolist() == [1, 0, 1, 0]
    for rounding in ("up", "toward_zero", "stochastic"):
        key = ts.random.key(1) if rounding == "stochastic" else None
        g = ts.grad(lambda v, r=rounding, k=key: v.to(ts.bf16, rounding=r, key=k).to(ts.f32).sum())(x)
        assert (np.asarray(g) == 1).all()
    for total in (ts.compensated_sum, ts.pairwise_sum):
        np.testing.assert_allclose(ts.grad(lambda v, f=total: f(v * v))(x), 2 * a, rtol=1e-6)
    off = a - a.mean(1, keepdims=True)
    np.testing.assert_allclose(ts.grad(lambda v: ts.welford(v)[1].sum())(x), 2 * off / 7, atol=1e-6)
    np.testing.assert_allclose(ts.grad(lambda v: (ts.stable.mean(v) * 3).sum())(x), np.full(a.shape, 3 / 7), rtol=1e-6)
    tangent = ts.jvp(lambda v: ts.welford(v)[1], (x,), (ts.ones_like(x) * 2 + x,))[1]
    np.testing.assert_allclose(tangent, 2 * (off * a).mean(1), rtol=1e-4, atol=1e-5)


def test_gradients_under_policies_stay_near(data):
    x, w = data
    loss = lambda w: ts.softmax(x @ w, -1)[:, 0].sum()
    exact = np.asarray(ts.grad(loss)(w))
    size = np.abs(exact).max()
    for scope, bound in (
            (ts.autocast(), 1e-2), (ts.precision("bf16"), 2e-2), (ts.precision("tf32"), 2e-3), (ts.numerics(ts.TrainingPolicy), 4e-2),
            (ts.numerics(compute=ts.bf16, rounding="stochastic"), 4e-2), (ts.summation.kahan(), 1e-6),
            (ts.numerics(denorm_mode="flush"), 1e-6)):
        with scope:
            assert np.abs(np.asarray(ts.grad(loss)(w)).astype(np.float64) - exact).max() < bound * size
    quantised = ts.quantization_aware(loss)
    assert 0 < np.abs(np.asarray(ts.grad(quantised)(w)) - exact).max() < 5e-2 * size


@pytest.mark.parametrize("f", [
    lambda v: ts.softmax(v)[0], lambda v: ts.logsumexp(v), lambda v: ts.layer_norm(v)[0], lambda v: ts.rms_norm(v)[0],
    lambda v: ts.numerically_stable(lambda v: (ts.exp(v) / ts.exp(v).sum())[0])(v), lambda v: ts.stable.norm(v),
    lambda v: ts.log_softmax(v)[1],
    lambda v: ts.stable.scaled_dot_product_attention(v[None, None, :, None], v[None, None, :, None], v[None, None, :, None],
                                                     use_log_space=True).sum()])
def test_gradients_of_stable_forms_are_finite_far_out(f):
    assert np.isfinite(np.asarray(ts.grad(f)(ts.tensor([1e4, 1e4 + 1, 9e3])))).all()


def train(precision, steps=60):
    rng = np.random.default_rng(3)
    x = ts.tensor(rng.normal(size=(64, 8)).astype(np.float32))
    y = ts.tensor((rng.normal(size=(8, 1)).T @ np.asarray(x).T).T.astype(np.float32))
    w1, w2 = (ts.tensor(rng.normal(size=s).astype(np.float32) * 0.3) for s in ((8, 16), (16, 1)))

    def loss(ws):
        return ((ts.tanh(x @ ws[0]) @ ws[1] - y) ** 2).mean()

    if precision == "mixed":
        @ts.mixed_precision(compute=ts.bf16, accumulate=ts.f32, grad_scale=1024)
        def step(ws):
            def scaled(ws):
                with ts.autocast():
                    return loss(ws) * ts.grad_scale()
            return ts.unscale_grads(ts.grad(scaled)(ws))
    else:
        step = ts.grad(loss)
    losses = []
    for _ in range(steps):
        losses.append(float(loss((w1, w2))))
        g1, g2 = step((w1, w2))
        w1, w2 = w1 - 0.1 * g1, w2 - 0.1 * g2
    return np.array(losses)


def test_mixed_precision_trains_like_single():
    single, mixed = train("single"), train("mixed")
    assert single[-1] < 0.3 * single[0]
    assert np.abs(mixed / single - 1).max() < 0.02


def test_stochastic_rounding_moves_weights_that_nearest_leaves():
    def run(scope):
        w, g = ts.full((4000,), 1.0, dtype=ts.bf16), ts.full((4000,), 1.0, dtype=ts.bf16)
        step = ts.jit(lambda w: w + 1e-4 * g)
        ts.manual_seed(0)
        for _ in range(1000):
            with scope():
                w = step(w)
        return float(w.to(ts.f32).mean())

    import contextlib
    assert run(contextlib.nullcontext) == 1.0
    assert abs(run(ts.rounding.stochastic) - 1.1) < 0.01


def test_ties_and_samples_are_reproducible():
    assert np.asarray(ts.topk(ts.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2)[1]).tolist() == [1, 2]
    logits = ts.tensor(np.zeros((5, 11), np.float32))
    draws = []
    for threads in (1, 2):
        before = ts.get_num_threads()
        ts.set_num_threads(threads)
        with ts.deterministic(seed=7):
            draws.append(np.asarray(ts.random.categorical(logits, (3,))))
        ts.set_num_threads(before)
    assert np.array_equal(*draws)
