"""Attention whose heads have a symbolic extent: no template takes it, so it is computed by its definition."""

import numpy as np
import pytest

import tessera as ts

RNG = np.random.default_rng(0)
QKV = ts.Tensor["B", "H", "S", "D"]


@ts.function
def by_hand(q: QKV, k: QKV, v: QKV):
    return ts.softmax(q @ ts.adjoint(k) * 0.3) @ v


@ts.function
def op(q: QKV, k: QKV, v: QKV):
    return ts.attention(q, k, v)


@ts.function
def causal(q: QKV, k: QKV, v: QKV):
    return ts.attention(q, k, v, scale=0.3, causal=True)


def meaning(q, k, v, scale, causal=False):
    s = q @ k.swapaxes(-1, -2) * scale
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("d", [4, 9])
def test_heads_of_any_extent(d):
    q, k, v = (RNG.standard_normal((2, 3, 5, d)).astype(np.float32) for _ in range(3))
    args = [ts.tensor(x) for x in (q, k, v)]
    np.testing.assert_allclose(by_hand(*args), meaning(q, k, v, 0.3), atol=1e-5)
    np.testing.assert_allclose(op(*args), meaning(q, k, v, d**-0.5), atol=1e-5)
    np.testing.assert_allclose(causal(*args), meaning(q, k, v, 0.3, True), atol=1e-5)
    fixed = ts.grad(lambda q: ts.sum(ts.attention(q, args[1], args[2]) ** 2))(args[0])
    np.testing.assert_allclose(ts.grad(lambda q: ts.sum(op(q, args[1], args[2]) ** 2))(args[0]), fixed, atol=1e-5)
