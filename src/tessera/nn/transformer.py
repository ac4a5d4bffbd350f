"""Functions of models whose weights are given at the call: a stack of transformer blocks, and attention as each of its papers has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tessera as ts
from tessera.errors.boundary import guarded

REQUIRED = ("qkv", "out", "up", "down")
OPTIONAL = ("norm1", "norm1_bias", "qkv_bias", "out_bias", "norm2", "norm2_bias", "up_bias", "down_bias")


@guarded
def transformer_weights(width: int, num_layers: int, inner: int | None = None, dtype: Any = ts.f32) -> dict[str, ts.Tensor]:
    """Random weights for :func:`transformer_stack`, stacked along a leading axis of ``num_layers``; ``inner`` is ``4 * width``."""
    inner = inner or 4 * width
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, inner), "down": (inner, width)}
    made = {n: (ts.randn(num_layers, *s) * s[0] ** -0.5).to(dtype) for n, s in shapes.items()}
    norms = {n: ts.ones(num_layers, width, dtype=dtype) for n in ("norm1", "norm2")}
    biases = {f"{n}_bias": ts.zeros(num_layers, width, dtype=dtype) for n in norms}
    return made | norms | biases


@guarded
def transformer_block(x: Any, weights: Mapping[str, Any], *, num_heads: int, causal: bool = True, eps: float = 1e-5) -> Any:
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))`` (the pre-norm block of GPT-2).

    Args:
        x: [..., S, D].
        weights: ``qkv`` [D, 3D], ``out`` [D, D], ``up`` [D, F], ``down`` [F, D]; and, where they are given, ``norm1`` and ``norm2`` [D]
            and the bias of each matrix and norm, ``qkv_bias`` [3D], ``norm1_bias`` [D], ….
        num_heads: divides D.

    Raises:
        ArgumentError: a weight is missing or unknown, or ``num_heads`` does not divide D.
    """
    _check_names(weights)
    w = weights.get
    width = x.shape[-1]
    if isinstance(width, int) and width % num_heads:
        raise ts.errors.ArgumentError(f"{num_heads} heads do not divide a width of {width}", expected="num_heads that divides x.shape[-1]")
    split = (*x.shape[:-1], num_heads, width // num_heads)
    normed = ts.layer_norm(x, w("norm1"), w("norm1_bias"), eps=eps)
    q, k, v = (ts.moveaxis(t.reshape(*split), -2, -3) for t in
               ts.split(ts.linear(normed, weights["qkv"], w("qkv_bias")), dim=-1, sections=3))
    attended = ts.moveaxis(ts.attention(q, k, v, causal=causal), -3, -2).reshape(*x.shape)
    x = x + ts.linear(attended, weights["out"], w("out_bias"))
    normed = ts.layer_norm(x, w("norm2"), w("norm2_bias"), eps=eps)
    return x + ts.linear(ts.gelu(ts.linear(normed, weights["up"], w("up_bias"))), weights["down"], w("down_bias"))


@guarded
def transformer_stack(x: Any, weights: Any, num_layers: int | None = None, *, num_heads: int | None = None, causal: bool = True,
                      eps: float = 1e-5) -> Any:
    """``num_layers`` blocks (:func:`transformer_block`) one after the other.

    Args:
        x: [..., S, D].
        weights: one of three forms.  A mapping of stacked tensors, each with a leading axis of ``num_layers``: the program is one scan
            with one traced body, whatever the number of layers.  A mapping of lists of ``num_layers`` tensors.  A list of
            ``num_layers`` mappings: each block is recorded, and equal ones are compiled once.
        num_layers: read off the weights unless given.
        num_heads: D // 64, and at least 1, unless given.

    Raises:
        ArgumentError: the weights are of none of these forms, or of another number of layers; a weight is missing or unknown.
    """
    width = x.shape[-1]
    if num_heads is None:
        num_heads = max(1, width // 64) if isinstance(width, int) else 1

    def block(x: Any, layer: Mapping[str, Any]) -> Any:
        return transformer_block(x, layer, num_heads=num_heads, causal=causal, eps=eps)

    if isinstance(weights, Mapping):
        _check_names(weights)
        sizes = {n: len(w) if isinstance(w, list | tuple) else w.shape[0] for n, w in weights.items()}
        layers = sizes["qkv"]
        for n, size in sizes.items():
            _check_layers(size, layers if num_layers is None else num_layers, f"weights[{n!r}]")
        if not any(isinstance(w, list | tuple) for w in weights.values()):
            return ts.scan(lambda x, layer: (block(x, layer), None), x, dict(weights))[0]
        weights = [{n: w[i] for n, w in weights.items()} for i in range(layers)]
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise ts.errors.ArgumentError("transformer_stack() takes weights by name, stacked or one mapping a layer",
                                      expected='{"qkv": [L, D, 3D], "out": …, "up": …, "down": …}', received=type(weights).__name__)
    _check_layers(len(weights), len(weights) if num_layers is None else num_layers, "weights")
    for layer in weights:
        x = block(x, layer)
    return x


def _check_layers(size: Any, wanted: Any, what: str) -> None:
    if size != wanted:
        raise ts.errors.ArgumentError(f"{what} holds {size} layers, not {wanted}", expected=f"{wanted} layers", received=str(size))


def _check_names(weights: Any) -> None:
    if not isinstance(weights, Mapping):
        raise ts.errors.ArgumentError("the weights of a block go by name", expected=", ".join(REQUIRED), received=type(weights).__name__)
    for n in weights:
        if n not in REQUIRED + OPTIONAL:
            raise ts.errors.ArgumentError(f"a transformer block has no weight {n!r}{ts.errors.suggest(n, REQUIRED + OPTIONAL)}",
                                          expected=", ".join(REQUIRED + OPTIONAL), received=str(n))
    missing = [n for n in REQUIRED if n not in weights]
    if missing:
        raise ts.errors.ArgumentError(f"a transformer block needs the weight {missing[0]!r}", expected=", ".join(REQUIRED),
                                      received=", ".join(weights) or "none")


def flash_attention_v1(q: Any, k: Any = None, v: Any = None, *, causal: bool = False, scale: float | None = None, block: int = 64) -> Any:
    """Attention by blocks of keys, each of which leaves a normalised result (algorithm 1 of Dao et al., 2022, arXiv:2205.14135).

    Args:
        q, k, v: [..., S, D], [..., T, D], [..., T, E]; ``k`` is ``q``, and ``v`` is ``k``, unless given.
        causal: query i sees keys up to i + (T - S).
        scale: 1/sqrt(D) unless given.
        block: keys a step.

    Raises:
        ShapeError: the operands do not fit.
        ArgumentError: ``block`` is no positive number.
    """
    k = q if k is None else k
    v = k if v is None else v
    _check_operands(q, k, v, block)
    s, t, width = q.shape[-2], k.shape[-2], q.shape[-1]
    scale = width ** -0.5 if scale is None else scale
    steps = -(-t // block)
    inner, f32 = steps * block - t, ts.f32

    def blocks(x: Any) -> Any:  # [steps, ..., block, D]
        x = ts.pad(x, [(0, 0)] * (len(x.shape) - 2) + [(0, inner), (0, 0)])
        return ts.moveaxis(x.reshape(*x.shape[:-2], steps, block, x.shape[-1]), -3, 0)

    last = (ts.arange(s) + (t - s) if causal else ts.zeros(s, dtype=ts.int64) + (t - 1))[:, None]  # the last key that a query sees

    def step(carry: Any, xs: Any) -> Any:
        out, total, top, first = carry
        keys, values = xs
        score = ts.matmul(q, keys.swapaxes(-1, -2)).to(f32) * scale
        score = ts.where(first + ts.arange(block) <= last, score, -float("inf"))
        new_top = ts.maximum(top, score.max(dim=-1, keepdim=True))
        p = ts.exp(score - new_top)
        old = ts.exp(top - new_top) * total
        new_total = old + p.sum(dim=-1, keepdim=True)
        out = (old * out + ts.matmul(p, values.to(f32))) / new_total
        return (out, new_total, new_top, first + block), None

    lead = q.shape[:-2]
    start = (ts.zeros(*lead, s, v.shape[-1]), ts.zeros(*lead, s, 1), ts.full((*lead, s, 1), -1e30), ts.tensor(0))
    return ts.scan(step, start, (blocks(k), blocks(v)))[0][0].to(v.dtype)


def flash_attention_v2(q: Any, k: Any = None, v: Any = None, *, causal: bool = False, scale: float | None = None) -> Any:
    """Attention that normalises once, after the last block of keys (Dao, 2023, arXiv:2307.08691): what ``ts.attention`` compiles to.

    Args:
        q, k, v: [..., S, D], [..., T, D], [..., T, E]; ``k`` is ``q``, and ``v`` is ``k``, unless given.

    Raises:
        ShapeError: the operands do not fit.
    """
    k = q if k is None else k
    return ts.attention(q, k, k if v is None else v, causal=causal, scale=scale)


def _check_operands(q: Any, k: Any, v: Any, block: Any) -> None:
    if not isinstance(block, int) or block < 1:
        raise ts.errors.ArgumentError("a block holds at least one key", expected="block >= 1", received=repr(block))
    ts.eval_shape(ts.attention, q, k, v)  # its rule says what fits
