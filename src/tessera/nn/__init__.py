"""Layers: plain Python objects that own tensors, written with the public API alone; and the functions that layers are made of."""

from typing import Any

import tessera as ts
from tessera.errors.boundary import guard_names, guarded

from .layers import Embedding, LayerNorm, Linear, RMSNorm
from .module import Module, Parameter, uninitialized
from .transformer import flash_attention_v1, flash_attention_v2, transformer_block, transformer_stack, transformer_weights

FUNCTIONS = frozenset({"linear", "embedding", "layer_norm", "rms_norm", "group_norm", "attention", "flash_attention",
                       "scaled_dot_product_attention", "relu", "relu6", "gelu", "silu", "swish", "sigmoid", "tanh", "elu", "leaky_relu",
                       "softplus", "softsign", "hardtanh", "log_sigmoid", "softmax", "log_softmax", "cross_entropy", "mse_loss", "l1_loss",
                       "huber_loss", "binary_cross_entropy_with_logits", "dropout", "one_hot", "conv1d", "conv2d", "conv3d", "max_pool2d",
                       "avg_pool2d"})
"""Functions of ``tessera`` that go by the same name here: ``ts.nn.gelu is ts.gelu``."""


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        return getattr(ts, name)
    known = [*__all__, *FUNCTIONS]
    raise AttributeError(f"module 'tessera.nn' has no attribute {name!r}{ts.errors.suggest(name, known)}")


def __dir__() -> list[str]:
    return sorted([*__all__, *FUNCTIONS])


__all__ = ["Embedding", "LayerNorm", "Linear", "Module", "Parameter", "RMSNorm", "flash_attention_v1", "flash_attention_v2",
           "transformer_block", "transformer_stack", "transformer_weights", "uninitialized"]

guard_names(globals(), __all__, "nn.")
for _layer in (Embedding, LayerNorm, Linear, RMSNorm):
    setattr(_layer, "__init__", guarded(_layer.__init__, _layer.__name__))  # noqa: B010
