"""The layers that models are made of.  Shapes: ``x`` has any leading dimensions; the last one is the feature."""

from __future__ import annotations

import math
from typing import Any

import tessera as ts

from .module import Module, initial


class Linear(Module):
    """``x @ weight + bias`` with ``weight`` of shape [in, out].

    Args:
        in_features, out_features: sizes of the last dimension before and after.
        bias: whether to add one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = ts.f32):
        bound = 1 / math.sqrt(in_features)
        shape = (in_features, out_features)
        self.weight = initial(shape, dtype, lambda: ts.random.uniform(shape) * (2 * bound) - bound)
        self.bias = ts.zeros(out_features, dtype=dtype) if bias else None

    def forward(self, x: ts.Tensor) -> ts.Tensor:
        return ts.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of ``weight`` [entries, features] by integer index."""

    def __init__(self, entries: int, features: int, dtype: Any = ts.f32):
        self.weight = initial((entries, features), dtype, lambda: ts.randn(entries, features) * 0.02)

    def forward(self, index: ts.Tensor) -> ts.Tensor:
        return ts.take(self.weight, index, axis=0)


class LayerNorm(Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension (biased variance)."""

    def __init__(self, features: int, eps: float = 1e-5, dtype: Any = ts.f32):
        self.weight = ts.ones(features, dtype=dtype)
        self.bias = ts.zeros(features, dtype=dtype)
        self.eps = eps

    def forward(self, x: ts.Tensor) -> ts.Tensor:
        return ts.layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension."""

    def __init__(self, features: int, eps: float = 1e-6, dtype: Any = ts.f32):
        self.weight = ts.ones(features, dtype=dtype)
        self.eps = eps

    def forward(self, x: ts.Tensor) -> ts.Tensor:
        return ts.rms_norm(x, self.weight, eps=self.eps)
