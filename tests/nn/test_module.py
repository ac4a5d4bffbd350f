"""Modules that change type or place: the tensors stay the same objects."""

import numpy as np
import pytest

import tessera as ts
from tessera import nn
from tessera.models.gpt2 import GPT2, GPT2Config


class Tied(nn.Module):
    def __init__(self):
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.count = ts.tensor(3)

    def forward(self, x):
        return self.right(self.left(x))


def test_a_compiled_function_sees_a_converted_module():
    layer, x = nn.Linear(3, 2), ts.randn(5, 3)
    f = ts.jit(lambda x: layer(x))
    assert f(x).dtype is ts.f32
    weight = layer.weight
    layer.to(ts.f64)
    assert layer.weight is weight and weight.dtype is ts.f64
    assert f(x.to(ts.f64)).dtype is ts.f64 and f(x).dtype is ts.f64  # not the program of f32 weights
    np.testing.assert_allclose(f(x.to(ts.f64)).numpy(), x.numpy() @ weight.numpy() + layer.bias.numpy(), rtol=1e-12)
    layer.to(ts.f32)
    assert f(x).dtype is ts.f32


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")


def test_ties_hold_and_integers_keep_their_type(two_devices):
    model = Tied().to(ts.bf16)
    assert model.right.weight is model.left.weight and model.left.weight.dtype is ts.bf16
    assert model.count.dtype is ts.tensor(3).dtype
    model.to("gpu:1", ts.f32)
    assert {t.device for t in model.parameters()} == {"gpu:1"} and model.left.bias.dtype is ts.f32
    assert model.right.weight is model.left.weight


def test_gradients_and_optimisers_go_on_after_a_conversion():
    model, x = Tied(), ts.randn(2, 4)
    loss = lambda m: (m(x.to(m.left.weight.dtype)) ** 2).mean()
    slope = ts.value_and_grad(loss)
    slope(model)
    before = model.left.weight
    model.to(ts.f64)
    value, _ = slope(model)
    assert value.dtype is ts.f64 and model.left.weight is before


def test_to_asks_for_one_dtype_and_one_device():
    layer = nn.Linear(2, 2)
    for wrong in ((), (ts.f32, ts.bf16), ("cpu", "cpu")):
        with pytest.raises(ts.errors.ArgumentError):
            layer.to(*wrong)
    before = layer.weight.numpy().copy()
    with pytest.raises(ts.errors.DeviceError):
        layer.to(ts.bf16, "gpu:7")
    assert layer.weight.dtype is ts.f32 and np.array_equal(layer.weight.numpy(), before)  # all or nothing

    @ts.jit
    def inside(x):
        layer.to(ts.bf16)
        return layer(x)

    with pytest.raises(ts.errors.EffectError, match="in place"):
        inside(ts.randn(1, 2))


@pytest.mark.parametrize("device", ["gpu:1", pytest.param("gpu:0", marks=pytest.mark.gpu)])
def test_gpt2_computes_and_decodes_where_its_weights_are(device, monkeypatch):
    if device == "gpu:1":
        monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")
    model = GPT2(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    ids = ts.tensor(np.arange(14).reshape(2, 7))
    logits, tokens = model(ids).numpy(), model.generate([1, 2, 3], 6)
    model.to(device)
    out = model(ids.to(device))
    assert out.device == device
    np.testing.assert_allclose(out.numpy(), logits, rtol=2e-4, atol=2e-4)
    assert model.generate([1, 2, 3], 6) == tokens
