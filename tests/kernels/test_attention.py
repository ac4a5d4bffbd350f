"""Attention's tile program: compiled against the interpreter bit for bit, and against f64."""

from __future__ import annotations

import numpy as np
import pytest
from attentions import attention_function
from products import Compiled, check

import tessera as ts
from tessera.ir.core import BufferType, ScalarType
from tessera.machine import X86_AVX2, host_cpu
from tessera.types.dims import name
from tessera.types.dtypes import bf16, bool_, f32


def reference(q, k, v, causal=False, groups=1, mask=None):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = np.repeat(k, groups, 0), np.repeat(v, groups, 0)
    s = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        s = np.where(np.arange(s.shape[2]) <= np.arange(s.shape[1])[:, None] + s.shape[2] - s.shape[1], s, -np.inf)
    if mask is not None:
        s = np.where(mask, s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(s - np.where(np.isinf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    return p @ v / np.where(total == 0, 1, total)


def draw(rng, *shapes, dtype=f32):
    return [rng.standard_normal(s).astype(np.float32).astype(dtype.np) for s in shapes]


@pytest.mark.parametrize("heads, q, t, d, e, groups, causal, keys", [
    (2, 5, 7, 4, 4, 1, False, 64), (2, 30, 70, 20, 40, 2, False, 64), (1, 33, 33, 16, 16, 1, True, 32),
    (2, 1, 90, 8, 8, 1, True, 64), (1, 20, 50, 16, 33, 1, True, 32), (1, 17, 9, 8, 8, 1, True, 32), (3, 1, 1, 3, 1, 3, False, 64),
])
def test_matches_interpreter(heads, q, t, d, e, groups, causal, keys):
    rng = np.random.default_rng(q * t)
    a, b, c = draw(rng, (heads, q, d), (heads // groups, t, d), (heads // groups, t, e))
    fn = attention_function(heads, q, t, d, e, groups=groups, causal=causal, key_block=keys)
    got = check(fn, [a.ravel(), b.ravel(), c.ravel(), np.zeros(heads * q * e, np.float32)])[3]
    assert np.abs(got.reshape(heads, q, e) - reference(a, b, c, causal, groups)).max() <= 2e-6


def test_heads_side_by_side():
    """Operands and result as [s, h * d], without a transposition of their own."""
    heads, s, d = 3, 19, 16
    rng = np.random.default_rng(1)
    a, b, c = draw(rng, *[(s, heads, d)] * 3)
    fn = attention_function(heads, s, s, d, joined=True, key_block=32)
    got = check(fn, [a.ravel(), b.ravel(), c.ravel(), np.zeros(s * heads * d, np.float32)])[3].reshape(s, heads, d)
    want = reference(*(x.transpose(1, 0, 2) for x in (a, b, c))).transpose(1, 0, 2)
    assert np.abs(got - want).max() <= 2e-6


def test_bf16():
    heads, s, d = 2, 21, 16
    a, b, c = draw(np.random.default_rng(2), *[(heads, s, d)] * 3, dtype=bf16)
    got = check(attention_function(heads, s, s, d, dtype=bf16), [a.ravel(), b.ravel(), c.ravel(), np.zeros(heads * s * d, bf16.np)])[3]
    assert np.abs(got.reshape(heads, s, d).astype(np.float64) - reference(a, b, c)).max() <= 2e-2


def _keep(builder, operands, score):
    keep = builder.value("load", (operands[3],), ScalarType(bool_), {"index": (name("t"),)})
    lowest = builder.value("constant", (), ScalarType(f32), {"value": float("-inf")})
    return builder.value("select", (keep, score, lowest), score.type)


@pytest.mark.parametrize("q, t, causal", [(20, 37, False), (33, 33, True)])
def test_mask(q, t, causal):
    """A mask over the keys; rows that see nothing give 0."""
    heads, d = 2, 8
    rng = np.random.default_rng(3)
    a, b, c = draw(rng, (heads, q, d), (heads, t, d), (heads, t, d))
    mask = rng.random(t) < 0.5
    mask[:4] = False
    fn = attention_function(heads, q, t, d, causal=causal, key_block=32, extra=[BufferType(bool_, (t,))], score=_keep)
    got = check(fn, [a.ravel(), b.ravel(), c.ravel(), mask, np.zeros(heads * q * d, np.float32)])[4].reshape(heads, q, d)
    assert np.abs(got - reference(a, b, c, causal, mask=mask)).max() <= 2e-6
    if causal:
        assert np.all(got[:, :4] == 0)


@pytest.mark.parametrize("causal", [False, True])
def test_symbolic_lengths(causal):
    """One program for every length."""
    heads, d = 2, 16
    compiled = Compiled(attention_function(heads, name("Q"), name("T"), d, causal=causal))
    rng = np.random.default_rng(4)
    for q, t in [(1, 1), (1, 130), (13, 13), (70, 70), (50, 300), (300, 300)]:
        a, b, c = draw(rng, (heads, q, d), (heads, t, d), (heads, t, d))
        out = np.full(heads * q * d, np.nan, np.float32)
        compiled([a.ravel(), b.ravel(), c.ravel(), out], {"Q": q, "T": t})
        assert np.abs(out.reshape(heads, q, d) - reference(a, b, c, causal)).max() <= 3e-6, (q, t)


def test_nan_and_infinity_stay_in_their_rows():
    heads, s, d = 1, 20, 8
    a, b, c = draw(np.random.default_rng(5), *[(heads, s, d)] * 3)
    a[0, 3] = np.nan
    out = np.zeros(heads * s * d, np.float32)
    Compiled(attention_function(heads, s, s, d))([a.ravel(), b.ravel(), c.ravel(), out])
    nan = np.isnan(out.reshape(s, d))
    assert nan[3].all() and not np.delete(nan, 3, 0).any()


def test_scores_far_apart():
    """The running maximum keeps every exponent at or below zero, however large the scores."""
    heads, s, d = 1, 150, 8
    a, b, c = draw(np.random.default_rng(6), *[(heads, s, d)] * 3)
    a *= 300
    out = np.zeros(heads * s * d, np.float32)
    Compiled(attention_function(heads, s, s, d, key_block=32))([a.ravel(), b.ravel(), c.ravel(), out])
    assert np.abs(out.reshape(heads, s, d) - reference(a, b, c)).max() <= 2e-3


@pytest.mark.skipif("avx2" not in host_cpu().features, reason="the host has no AVX2")
def test_narrow_vectors():
    heads, s, d = 2, 40, 16
    a, b, c = draw(np.random.default_rng(7), *[(heads, s, d)] * 3)
    fn = attention_function(heads, s, s, d, machine=X86_AVX2)
    got = check(fn, [a.ravel(), b.ravel(), c.ravel(), np.zeros(heads * s * d, np.float32)], machine=X86_AVX2)[3]
    assert np.abs(got.reshape(heads, s, d) - reference(a, b, c)).max() <= 2e-6


def test_a_mask_that_adds_the_least_number_weighs_a_hidden_row_evenly():
    """As models write masks: multiples of that number overflow, sums with scores round to it."""
    q, k, v = (ts.randn(1, 1, n, 16) for n in (5, 9, 9))
    mask = np.zeros((5, 9), np.float32)
    mask[0], mask[1, 4:] = np.finfo(np.float32).min, np.finfo(np.float32).min
    got, grads = ts.value_and_grad(lambda q, k, v: ts.attention(q, k, v, ts.tensor(mask)).sum(), argnums=(0, 1, 2))(q, k, v)
    out = ts.attention(q, k, v, ts.tensor(mask)).numpy()[0, 0]
    np.testing.assert_allclose(out[0], v.numpy()[0, 0].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1], ts.attention(q, k[:, :, :4], v[:, :, :4]).numpy()[0, 0, 1], rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(x.numpy()).all() for x in (got, *grads))
