"""Mixed precision, loss scales, precision that follows gradients; quantised functions."""

import re

import numpy as np
import pytest

import tessera as ts
from tessera import errors


@pytest.fixture
def xw(rng):
    return ts.tensor(rng.normal(size=(8, 32)).astype(np.float32)), ts.tensor(rng.normal(size=(32, 16)).astype(np.float32))


def low(x):
    return np.asarray(x.to(ts.bf16)).astype(np.float32)


# -- autocast and scales -------------------------------------------------------------------------------------------------------
def test_autocast_reaches_products_alone(xw):
    x, w = xw
    with ts.autocast():
        y, p = x @ w, ts.softmax(x, -1)
        graph = str(ts.jit(lambda x, w: ts.softmax(x @ w, -1)).trace(x, w))
        with ts.autocast(enabled=False):
            exact = x @ w
    np.testing.assert_allclose(y, low(x) @ low(w), rtol=1e-5, atol=1e-5)
    assert np.array_equal(p, ts.softmax(x, -1)) and np.array_equal(exact, x @ w) and not np.array_equal(y, exact)
    assert re.search(r"dot_general\(.*accumulate = f32", graph) and re.search(r"softmax\(%\d+\).*: f32", graph)
    with ts.autocast(ts.f16, storage=ts.f16):
        assert (x @ w).dtype is ts.f16


def test_the_seeds_training_step(xw):
    x, w = xw

    @ts.mixed_precision(compute=ts.bf16, accumulate=ts.f32, grad_scale=1024)
    def step(grads):
        with ts.autocast():
            out = x @ w
        assert float(ts.grad_scale()) == 1024
        return out, ts.unscale_grads(grads)

    out, grads = step({"w": ts.tensor([2048.0, 1.0]), "b": ts.tensor([512.0]).to(ts.f16)})
    np.testing.assert_allclose(out, low(x) @ low(w), rtol=1e-5, atol=1e-5)
    assert np.asarray(grads["w"]).tolist() == [2.0, 1 / 1024] and grads["b"].dtype is ts.f32 and float(grads["b"][0]) == 0.5
    assert float(ts.grad_scale()) == 1.0
    _, grads = step({"w": ts.tensor([np.inf, 1.0])})
    assert np.asarray(grads["w"]).tolist() == [0.0, 0.0] and step.scaler.overflowed and step.scaler.scale == 1024


def test_a_dynamic_scale_halves_and_grows_without_a_new_program():
    scaler = ts.GradScaler(1024.0, growth_interval=2)
    scaled = ts.jit(scaler.scaled)
    seen = [float(scaled(ts.tensor(1.0)))]
    for g in (1.0, np.inf, 1.0, 1.0, np.nan):
        _, finite = scaler.unscaled([ts.tensor([g])])
        scaler.update(finite)
        seen.append(float(scaled(ts.tensor(1.0))))
    assert seen == [1024, 1024, 512, 512, 1024, 512] and len(scaled.programs) == 1

    class Sgd:
        taken = 0

        def step(self, grads):
            self.taken += 1

    sgd = Sgd()
    assert scaler.step(sgd, [ts.ones(2)]) and not scaler.step(sgd, [ts.tensor([np.inf])]) and sgd.taken == 1


def test_scaling_rescues_small_gradients_of_f16():
    g, scaler = 2e-8, ts.GradScaler(65536.0)
    assert float(ts.tensor(g).to(ts.f16)) == 0
    back, finite = scaler.unscaled(ts.tensor(g * scaler.scale).to(ts.f16))
    assert bool(finite) and float(back) == pytest.approx(g, rel=1e-3)


def test_in_a_traced_function_the_scale_waits():
    scaler = ts.GradScaler(8.0)

    @ts.jit
    def step(g):
        out, finite = scaler.unscaled(g)
        return out, finite

    _, finite = step(ts.tensor([np.inf]))
    scaler.update(finite)
    assert scaler.scale == 4.0

    @ts.jit
    def wrong(g):
        scaler.update(scaler.unscaled(g)[1])
        return g

    with pytest.raises(errors.TracingError, match="not known while a function is traced"):
        wrong(ts.ones(2))


@pytest.mark.parametrize("call, kind, text", [
    (lambda: ts.mixed_precision(grad_scale="dynamik"), errors.ArgumentError, "a number, 'dynamic' or a GradScaler"),
    (lambda: ts.mixed_precision(compute=ts.int8), errors.DTypeError, "a float compute format, not int8"),
    (lambda: ts.GradScaler(0), errors.ArgumentError, "a positive number"),
    (lambda: ts.adaptive_precision(3), errors.ArgumentError, "chooses no precision"),
    (lambda: ts.fake_quantize(ts.ones(3), 1), errors.ArgumentError, "2 to 16 bits"),
    (lambda: ts.fake_quantize(ts.ones(3), zero_point=1), errors.ArgumentError, "goes with a scale"),
    (lambda: ts.quantization_aware(weights=ts.f16), errors.DTypeError, "signed integer format"),
    (lambda: ts.quantization_aware(accumulate=ts.int16), errors.DTypeError, "int32 or int64"),
    (lambda: ts.quantize(ts.ones(3), ts.uint8), errors.DTypeError, "signed integer format"),
])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_half_the_memory_in_sixteen_bits():
    """Activations and weights of a transformer layer, by the memory plan."""
    def layer(x, qkv, o, up, down):
        h = ts.layer_norm(x)
        q, k, v = (t.reshape(2, 64, 4, 16).transpose(0, 2, 1, 3) for t in ts.split(h @ qkv, 3, dim=-1))
        x = x + ts.attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(2, 64, 64) @ o
        return x + ts.gelu(ts.layer_norm(x) @ up) @ down

    total = {}
    for dtype in (ts.f32, ts.bf16):
        shapes = [(2, 64, 64), (64, 192), (64, 64), (64, 256), (256, 64)]
        args = [ts.zeros(s, dtype=dtype) for s in shapes]
        f = ts.jit(layer)
        out = f(*args)
        arena = int(re.search(r"arena = (\d+)", f.schedule_ir).group(1))
        total[dtype] = arena + sum(a.nbytes for a in (*args, out))
    assert total[ts.bf16] <= 0.55 * total[ts.f32], total


class ByGradient(ts.PrecisionPolicy):
    def select_precision(self, tensor, grad_scale):
        return ts.f32 if grad_scale > 1e3 else ts.bf16 if grad_scale > 1 else ts.fp8


def test_precision_follows_the_gradients(xw):
    x, w = xw

    @ts.adaptive_precision(ByGradient())
    def f(x, w):
        return x @ w

    errors_seen = [np.abs(np.asarray(f(x, w)) - np.asarray(x @ w)).max()]
    for size in (1e4, 10.0, 0.1):
        f.observe({"w": ts.tensor([size, -0.01])})
        errors_seen.append(np.abs(np.asarray(f(x, w)) - np.asarray(x @ w)).max())
    assert [c.dtype for c in f.log] == [ts.f32] * 4 + [ts.bf16] * 2 + [ts.fp8] * 2 and f.log[-1].grad_scale == pytest.approx(0.1)
    assert errors_seen[0] == errors_seen[1] == 0 < errors_seen[2] < errors_seen[3]


# -- quantisation --------------------------------------------------------------------------------------------------------------
def test_fake_quantisation_stays_within_half_a_step(rng):
    x = rng.normal(size=(6, 50)).astype(np.float32)
    for bits in (2, 4, 8):
        scale = np.abs(x).max() / (2 ** (bits - 1) - 1)
        y = np.asarray(ts.fake_quantize(ts.tensor(x), bits))
        assert np.abs(y - x).max() <= scale / 2 * 1.0001 and len(np.unique(y)) <= 2**bits
    channel = np.asarray(ts.fake_quantize(ts.tensor(x), 8, axis=0))
    assert (np.abs(channel - x).max(1) <= np.abs(x).max(1) / 127 / 2 * 1.0001).all()
    positive = np.abs(x)
    y = np.asarray(ts.fake_quantize(ts.tensor(positive), 8, symmetric=False))
    assert np.abs(y - positive).max() <= positive.max() / 255 / 2 * 1.001
    clipped = np.asarray(ts.fake_quantize(ts.tensor([-9.0, 0.26, 9.0]), 8, scale=0.01))
    np.testing.assert_allclose(clipped, [-1.27, 0.26, 1.27], rtol=1e-6)
    assert np.asarray(ts.fake_quantize(ts.zeros(3))).tolist() == [0, 0, 0]


def test_training_on_the_grid_and_inference_in_integers_agree(xw):
    x, w = xw

    @ts.quantization_aware(weights=ts.int8, activations=ts.int8, accumulate=ts.int32)
    def model(x, w):
        return ts.relu(x @ w) @ w.mT

    trained = np.asarray(model(x, w))
    graph = str(model.trace(x, w))
    assert "fake_quantize" in graph and "int8" not in graph
    inferred = np.asarray(model.eval()(x, w))
    graph = str(model.trace(x, w))
    assert re.search(r"dot_general\(.*accumulate = int32.*: int32\[8, 16\]", graph) and "int8[32, 16]" in graph
    exact = np.asarray(ts.relu(x @ w) @ w.mT)
    np.testing.assert_allclose(trained, inferred, atol=1e-4)
    assert 0 < np.abs(inferred - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_allclose(ts.jit(model)(x, w), inferred, atol=1e-4)


def test_calibration_fixes_the_ranges(xw):
    x, w = xw

    @ts.quantization.aware(weights=ts.int8, activations=ts.int8, calibrate=True)
    @ts.jit
    def model(x):
        return (x @ w) @ w.mT

    assert model.mode == "calibrate"
    assert np.array_equal(model(x), x @ w @ w.mT)  # in floats
    model(x * 0.5)
    assert len(model.settings.ranges) == 2 and model.settings.ranges[0] == (float(x.min()), float(x.max()))
    inferred = np.asarray(model.eval()(x))
    assert np.abs(inferred - np.asarray(x @ w @ w.mT)).max() < 0.05 * np.abs(inferred).max()
    clipped = np.asarray(model(x * 10))  # beyond what calibration saw
    assert np.abs(clipped).max() < 0.5 * np.abs(np.asarray((x * 10) @ w @ w.mT)).max()
    with model.calibration(percentile=90):
        model(x * 20)
    assert model.settings.ranges[0][1] > float(x.max()) and not np.array_equal(model(x * 10), clipped)


def test_quantised_tensors(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    q = ts.quantize(ts.tensor(x), ts.int8, axis=1)
    assert q.values.dtype is ts.int8 and q.values.nbytes == 24 and q.scale.shape == (1, 6)
    assert (np.abs(np.asarray(q.dequantize()) - x) <= np.asarray(q.scale) / 2 * 1.0001).all()


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (17, 35, 21), (64, 48, 130), (33, 16, 8)])
@pytest.mark.parametrize("transposed", [False, True])
def test_integer_products_are_exact(m, n, k, transposed, rng):
    a = rng.integers(-128, 128, (m, k)).astype(np.int8)
    b = rng.integers(-128, 128, (n, k) if transposed else (k, n)).astype(np.int8)
    x, y = ts.tensor(a), ts.tensor(b)
    got = ts.matmul(x, y.mT if transposed else y, accumulate=ts.int32, dtype=ts.int32)
    assert got.dtype is ts.int32 and np.array_equal(got, a.astype(np.int64) @ (b.T if transposed else b).astype(np.int64))
