"""Named composites: their definition against the numpy meaning, whole and written out; losses and activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ways import WAYS, Way, interpreted, traced

import tessera.ops as o
from tessera.ops.table import OPS

RNG = np.random.default_rng(3)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def close(got: Any, want: Any, tol: float = 2e-6) -> None:
    assert got.shape == np.shape(want)
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


COMPOSITES: dict[str, tuple[tuple[np.ndarray, ...], dict[str, Any]]] = {
    "softmax": ((f32(3, 17),), {"axis": 1}), "log_softmax": ((f32(17, 3),), {"axis": 0}),
    "layer_norm": ((f32(3, 16), f32(16), f32(16)), {"eps": 1e-5}), "rms_norm": ((f32(3, 16), f32(16)), {"eps": 1e-6}),
    "gelu": ((f32(50),), {"approximate": "none"}), "silu": ((f32(50),), {}),
    "attention": ((f32(2, 4, 5, 8), f32(2, 2, 7, 8), f32(2, 2, 7, 8), RNG.random((2, 1, 5, 7)) < 0.7), {"scale": 0.3, "causal": True}),
    "attention_forward": ((f32(2, 4, 5, 8), f32(2, 2, 7, 8), f32(2, 2, 7, 8)), {"scale": 0.3, "causal": True}),
    "attention_backward": ((f32(2, 4, 5, 8), f32(2, 2, 7, 8), f32(2, 2, 7, 8), f32(2, 4, 5, 8), 3 + f32(2, 4, 5), f32(2, 4, 5)),
                           {"scale": 0.3, "causal": True}),
    "cross_entropy": ((f32(6, 9), RNG.integers(0, 9, 6)), {}),
    "searchsorted": ((np.sort(f32(33)), f32(9)), {"side": "left"}), "nextafter": ((f32(20), f32(20)), {}),
    "logsumexp": ((f32(3, 5, 7),), {"axes": (0, 2)}), "solve": ((f32(2, 4, 4) + 4 * np.eye(4, dtype=np.float32), f32(2, 4, 3)), {}),
    "fake_quantize": ((f32(40), np.full(40, 0.125, np.float32), np.full(40, 2, np.float32)), {"low": -7, "high": 7}),
    "pairwise_sum": ((f32(3, 700),), {"axes": (1,)}),
    "reduce_precision": ((f32(40),), {"exponent_bits": 5, "mantissa_bits": 7}), "flush_subnormals": ((f32(20) * np.float32(1e-38),), {}),
    "integer_pow": ((RNG.integers(-9, 9, 20), RNG.integers(-2, 9, 20)), {}),
}


def several(got: Any) -> tuple[Any, ...]:
    return got if isinstance(got, tuple) else (got,)


def test_every_composite_is_here() -> None:
    barriers = {"checkpoint_here", "stop_gradient"}  # identities that tell differentiation something: tests/transforms
    assert set(COMPOSITES) == {n for n, op in OPS.items() if op.expand is not None} - barriers


@pytest.mark.parametrize("name", COMPOSITES)
def test_definition_agrees_with_meaning(name: str) -> None:
    arrays, attrs = COMPOSITES[name]
    got = interpreted(lambda *xs: OPS[name].expand(*xs, **attrs), *arrays)
    for one, want in zip(several(got), several(OPS[name].reference(*arrays, **attrs)), strict=True):
        close(one, want, 5e-6)


WITHOUT_BF16 = ("searchsorted", "nextafter", "integer_pow", "solve", "reduce_precision", "pairwise_sum", "attention_forward",
                "attention_backward")


@pytest.mark.parametrize("name", [n for n in COMPOSITES if n not in WITHOUT_BF16])
def test_definition_rounds_once(name: str) -> None:
    """On bf16 operands: within one rounding of the meaning in f32."""
    import ml_dtypes
    arrays, attrs = COMPOSITES[name]
    low = [a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a for a in arrays]
    got = interpreted(lambda *xs: OPS[name].expand(*xs, **attrs), *low)
    want = OPS[name].reference(*[a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a for a in low], **attrs)
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2.0 ** -8, atol=1e-6)


def test_composites_stay_whole_in_the_graph() -> None:
    graph, _ = traced(lambda x: o.softmax(o.gelu(x)), (f32(3, 4),))
    assert [op.name for op in graph.walk()] == ["gelu", "softmax", "return"]


def test_softmax_does_not_overflow(way: Way) -> None:
    x = np.array([[1e4, 0.0, -1e4], [-np.inf, 0.0, 0.0], [np.inf, 0.0, 0.0]], np.float32)
    got = way(lambda x: o.softmax(x), x)
    np.testing.assert_array_equal(got[:2], [[1, 0, 0], [0, 0.5, 0.5]])
    assert np.isnan(got[2, 0])


def test_norms(way: Way) -> None:
    x, w, b = f32(5, 12), f32(12), f32(12)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    close(way(lambda x: o.layer_norm(x), x), normal, 1e-5)
    close(way(lambda x, w, b: o.layernorm(x, w, b), x, w, b), normal * w + b, 1e-5)
    close(way(lambda x, b: o.layer_norm(x, bias=b), x, b), normal + b, 1e-5)
    close(way(lambda x, w: o.rms_norm(x, w), x, w), x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w, 1e-5)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: Any = 0.0, scale: float | None = None) -> np.ndarray:
    s = q.astype(np.float64) @ np.swapaxes(k, -1, -2) * (scale or 1 / math.sqrt(q.shape[-1])) + bias
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True) @ v)


def test_attention(way: Way) -> None:
    q, k, v = f32(2, 4, 5, 8), f32(2, 4, 7, 8), f32(2, 4, 7, 8)
    close(way(lambda q, k, v: o.attention(q, k, v), q, k, v), _attention(q, k, v))
    mask = RNG.random((5, 7)) < 0.7
    mask[:, 0] = True
    close(way(lambda q, k, v, m: o.attention(q, k, v, m), q, k, v, mask), _attention(q, k, v, np.where(mask, 0, -np.inf)))
    bias = f32(4, 5, 7)
    close(way(lambda q, k, v, b: o.attention(q, k, v, b, scale=0.5), q, k, v, bias), _attention(q, k, v, bias, 0.5))


def test_causal_attention_lets_the_last_query_see_all_keys(way: Way) -> None:
    q, k, v = f32(1, 2, 3, 4), f32(1, 2, 6, 4), f32(1, 2, 6, 4)
    seen = np.arange(6) <= np.arange(3)[:, None] + 3
    close(way(lambda q, k, v: o.attention(q, k, v, causal=True), q, k, v), _attention(q, k, v, np.where(seen, 0, -np.inf)))


def test_grouped_heads(way: Way) -> None:
    q, k, v = f32(2, 6, 3, 4), f32(2, 2, 5, 4), f32(2, 2, 5, 4)
    close(way(lambda q, k, v: o.attention(q, k, v), q, k, v), _attention(q, np.repeat(k, 3, 1), np.repeat(v, 3, 1)))


def test_activations(way: Way) -> None:
    x = f32(40) * 4
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    close(way(o.relu, x), np.maximum(x, 0))
    close(way(o.silu, x), x * s)
    close(way(o.softplus, x), np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0))
    close(way(o.log_sigmoid, x), np.log(s), 1e-5)
    close(way(lambda x: o.leaky_relu(x, 0.1), x), np.where(x > 0, x, x * 0.1))
    close(way(o.elu, x), np.where(x > 0, x, np.expm1(np.minimum(x, 0))))
    close(way(o.relu6, x), np.clip(x, 0, 6))
    erf = np.vectorize(math.erf)
    close(way(lambda x: o.gelu(x), x), 0.5 * x * (1 + erf(x / math.sqrt(2))), 1e-5)
    cubic = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)))
    close(way(lambda x: o.gelu(x, "tanh"), x), cubic, 1e-5)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return np.asarray(x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True))


def test_cross_entropy(way: Way) -> None:
    x, t = f32(6, 9), RNG.integers(0, 9, 6)
    each = -_log_softmax(x)[np.arange(6), t]
    close(way(lambda x, t: o.cross_entropy(x, t), x, t), each.mean())
    close(way(lambda x, t: o.cross_entropy(x, t, "none"), x, t), each)
    smooth = 0.9 * each - 0.1 * _log_softmax(x).mean(-1)
    close(way(lambda x, t: o.cross_entropy(x, t, "sum", label_smoothing=0.1), x, t), smooth.sum(), 1e-5)
    t[2] = -100
    kept = np.arange(6) != 2
    close(way(lambda x, t: o.cross_entropy(x, t, ignore_index=-100), x, t), each[kept].mean())
    p = np.exp(_log_softmax(f32(6, 9))).astype(np.float32)
    close(way(lambda x, p: o.cross_entropy(x, p), x, p), -(p * _log_softmax(x)).sum(-1).mean(), 1e-5)
    smoothed = 0.9 * p + 0.1 / 9
    close(way(lambda x, p: o.cross_entropy(x, p, label_smoothing=0.1), x, p), -(smoothed * _log_softmax(x)).sum(-1).mean(), 1e-5)
