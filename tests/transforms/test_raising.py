"""Formulas written by hand become composites: with and without scale, mask, weights, in several spellings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from trace_cases import agree, names, traced

import tessera as ts
from tessera.ir.core import TensorType
from tessera.transforms.raising import raise_composites
from tessera.types import dtypes as dt

D, S, T = 8, 5, 7
Q, K, V = (2, 3, S, D), (2, 3, T, D), (2, 3, T, 6)
SQUARE = (2, 3, S, D)


def soft(x: Any) -> Any:
    e = ts.exp(x - ts.max(x, axis=-1, keepdims=True))
    return e / ts.sum(e, axis=-1, keepdims=True)


def norm(x: Any, w: Any = None, b: Any = None) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / ts.sqrt(x.var(-1, keepdims=True) + 1e-5)
    y = y if w is None else y * w
    return y if b is None else y + b


C = math.sqrt(2 / math.pi)
FORMULAS: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    "softmax": ("softmax", soft, ((4, 9),)),
    "softmax over the first axis": (
        "softmax", lambda x: ts.exp(x - x.max(0, keepdims=True)) / ts.exp(x - x.max(0, keepdims=True)).sum(0, keepdims=True), ((4, 9),)),
    "softmax by a reciprocal": ("softmax", lambda x: ts.exp(x - x.max(-1, keepdims=True)) * (
        1.0 / ts.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)), ((4, 9),)),
    "log softmax": ("log_softmax", lambda x: (x - x.max(-1, keepdims=True)) - ts.log(
        ts.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)), ((4, 9),)),
    "layer norm": ("layer_norm", norm, ((4, 9),)),
    "layer norm with weight": ("layer_norm", norm, ((4, 9), (9,))),
    "layer norm with weight and bias": ("layer_norm", norm, ((4, 9), (9,), (9,))),
    "rms norm": ("rms_norm", lambda x, w: x * ts.rsqrt(ts.mean(x * x, -1, keepdims=True) + 1e-6) * w, ((4, 9), (9,))),
    "gelu": ("gelu", lambda x: 0.5 * x * (1 + ts.erf(x / math.sqrt(2))), ((4, 9),)),
    "gelu, another order": ("gelu", lambda x: x * ((ts.erf(x * 0.7071067811865476) + 1.0) * 0.5), ((4, 9),)),
    "gelu by tanh": ("gelu", lambda x: 0.5 * x * (1 + ts.tanh(C * (x + 0.044715 * x**3))), ((4, 9),)),
    "gelu by tanh, factored": ("gelu", lambda x: x * 0.5 * (1.0 + ts.tanh(x * C * (1.0 + 0.044715 * x * x))), ((4, 9),)),
    "silu": ("silu", lambda x: x * ts.sigmoid(x), ((4, 9),)),
    "silu by exp": ("silu", lambda x: x / (1 + ts.exp(-x)), ((4, 9),)),
    "attention": ("attention", lambda q, k, v: soft(q @ k.mT) @ v, (Q, K, V)),
    "attention with a scale": ("attention", lambda q, k, v: soft(q @ k.mT * 0.3) @ v, (Q, K, V)),
    "attention with a quotient": ("attention", lambda q, k, v: soft(q @ k.mT / math.sqrt(D)) @ v, (Q, K, V)),
    "attention with scaled queries": ("attention", lambda q, k, v: ts.softmax((q * 0.3) @ k.mT, -1) @ v, (Q, K, V)),
    "attention by einsum": ("attention", lambda q, k, v: ts.einsum(
        "bhst,bhte->bhse", ts.softmax(ts.einsum("bhsd,bhtd->bhst", q, k) * 0.3, -1), v), (Q, K, V)),
    "attention with a mask": ("attention", lambda q, k, v, m: soft(q @ k.mT * 0.3 + m) @ v, (Q, K, V, (2, 1, 1, T))),
    "attention with a bool mask": ("attention", lambda q, k, v, m: soft(ts.where(m, q @ k.mT * 0.3, -1e9)) @ v,
                                   (Q, K, V, TensorType(dt.bool_, (S, T)))),
    "attention on matrices": ("attention", lambda q, k, v: soft(q @ k.T * 0.3) @ v, (Q[2:], K[2:], V[2:])),
}


@pytest.mark.parametrize("case", list(FORMULAS))
def test_formula(case: str) -> None:
    wanted, f, types = FORMULAS[case]
    fn = traced(f, *types)
    raised = raise_composites(fn)
    assert wanted in names(raised)
    assert not {"exp", "tanh", "erf", "sqrt", "rsqrt", "sigmoid", "dot_general"} & set(names(raised))
    agree(fn, raised, 2e-5)


def test_causal_masks() -> None:
    def by_positions(q: Any, k: Any, v: Any) -> Any:
        i = ts.arange(S)
        return soft(ts.where(i[:, None] >= i[None, :], q @ k.mT * 0.3, -math.inf)) @ v

    def by_triangle(q: Any, k: Any, v: Any) -> Any:
        return soft(ts.where(ts.tril(ts.ones((S, S), dtype=ts.bool_)), q @ k.mT * 0.3, -math.inf)) @ v

    for f in (by_positions, by_triangle):
        fn = traced(f, SQUARE, SQUARE, SQUARE)
        raised = raise_composites(fn)
        (op,) = [op for op in raised.body.ops if op.name == "attention"]
        assert op.attrs["causal"] is True and len(op.operands) == 3
        agree(fn, raised, 2e-5)


def test_scale_and_finite_penalty_are_read_off() -> None:
    raised = raise_composites(traced(lambda q, k, v: soft(q @ k.mT / math.sqrt(D)) @ v, Q, K, V))
    (op,) = [op for op in raised.body.ops if op.name == "attention"]
    assert op.attrs["scale"] == pytest.approx(1 / math.sqrt(D), rel=1e-6)


def test_half_precision_attention_through_converts() -> None:
    kinds = [TensorType(dt.bf16, s) for s in (Q, K, V)]
    fn = traced(lambda q, k, v: ts.softmax((q @ k.mT).to(ts.f32) * 0.3, -1).to(ts.bf16) @ v, *kinds)
    raised = raise_composites(fn)
    assert names(raised) == ["attention"]
    agree(fn, raised, 3e-2)


def test_cross_entropy() -> None:
    def loss(x: Any, t: Any) -> Any:
        return -ts.take_along_axis(ts.log_softmax(x, -1), t[:, None], -1)[:, 0]

    fn = traced(loss, (4, 9), TensorType(dt.int64, (4,)))
    raised = raise_composites(fn)
    assert "cross_entropy" in names(raised) and "log_softmax" not in names(raised)
    agree(fn, raised, 1e-5)


NOT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "the maximum of another tensor": (lambda x, y: ts.exp(x - y.max(-1, keepdims=True)) / ts.exp(
        x - y.max(-1, keepdims=True)).sum(-1, keepdims=True), ((4, 9), (4, 9))),
    "different axes": (lambda x: ts.exp(x - x.max(0, keepdims=True)) / ts.exp(x - x.max(0, keepdims=True)).sum(-1, keepdims=True),
                       ((4, 9),)),
    "a mean over the wrong axis": (lambda x: (x - x.mean(0, keepdims=True)) / ts.sqrt(x.var(-1, keepdims=True) + 1e-5), ((4, 9),)),
    "another constant in gelu": (lambda x: 0.5 * x * (1 + ts.erf(x / 1.5)), ((4, 9),)),
    "a gate from another tensor": (lambda x, y: x * ts.sigmoid(y), ((4, 9), (4, 9))),
    "a sum that is no mean": (lambda x: x * ts.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6), ((4, 9),)),
}


@pytest.mark.parametrize("case", list(NOT))
def test_look_alikes_stay(case: str) -> None:
    f, types = NOT[case]
    fn = traced(f, *types)
    raised = raise_composites(fn)
    assert not {"softmax", "layer_norm", "rms_norm", "gelu", "silu"} & set(names(raised))
    agree(fn, raised, 1e-6)


def test_a_scale_outside_the_mask_is_no_plain_mask() -> None:
    fn = traced(lambda q, k, v, m: soft((q @ k.mT + m) * 0.3) @ v, Q, K, V, (2, 1, 1, T))
    raised = raise_composites(fn)
    agree(fn, raised, 2e-5)
    assert all(len(op.operands) == 3 for op in raised.body.ops if op.name == "attention")


@pytest.mark.parametrize("step", [lambda x: x * x, lambda x: 0.9 * x * (1 - x)], ids=["squares", "logistic map"])
def test_long_chains_of_products(step: Callable[[Any], Any]) -> None:
    def f(x: Any) -> Any:
        for _ in range(1500):
            x = step(x)
        return x

    fn = traced(f, (4,))
    assert names(raise_composites(fn)).count("mul") == names(fn).count("mul")
