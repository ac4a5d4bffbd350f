"""BERT encoders and the sentence embeddings made from them.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019); sentence embeddings by masked mean
pooling as in Reimers and Gurevych, "Sentence-BERT" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tessera as ts
from tessera import nn


@dataclass(frozen=True)
class BertConfig:
    """Sizes and constants, named as in a Hugging Face ``config.json``."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """The fields this model knows, from a parsed ``config.json``.

        Raises:
            UnsupportedError: the configuration asks for another kind of attention or activation.
        """
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ts.errors.UnsupportedError("only absolute position embeddings are supported")
        if config.get("hidden_act", "gelu") not in _ACTIVATIONS:
            raise ts.errors.UnsupportedError(f"no activation is called {config['hidden_act']!r}")
        return cls(**{k: config[k] for k in cls.__dataclass_fields__ if k in config})


B, S, D = ts.sym("B S D")
_ACTIVATIONS: dict[str, Callable[[ts.Tensor], ts.Tensor]] = {
    "gelu": lambda x: ts.gelu(x),
    "gelu_new": lambda x: ts.gelu(x, approximate="tanh"),
    "relu": lambda x: ts.relu(x),
}


class SelfAttention(nn.Module):
    """Multi-head attention over the whole sequence."""

    def __init__(self, c: BertConfig):
        self.heads = c.num_attention_heads
        self.query = nn.Linear(c.hidden_size, c.hidden_size)
        self.key = nn.Linear(c.hidden_size, c.hidden_size)
        self.value = nn.Linear(c.hidden_size, c.hidden_size)
        self.output = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x: ts.Tensor, mask: ts.Tensor) -> ts.Tensor:
        B, S, D = x.shape

        def split(t: ts.Tensor) -> ts.Tensor:
            return t.reshape(B, S, self.heads, D // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        return self.output(ts.attention(q, k, v, mask=mask).transpose(1, 2).reshape(B, S, D))


class Layer(nn.Module):
    """Attention and a feed-forward network, each with a residual connection and a norm after it."""

    def __init__(self, c: BertConfig):
        self.attention = SelfAttention(c)
        self.attention_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size)
        self.output_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.activation = _ACTIVATIONS[c.hidden_act]

    def forward(self, x: ts.Tensor, mask: ts.Tensor) -> ts.Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.down(self.activation(self.up(x))))


class BertModel(nn.Module):
    """The encoder: token ids [B, S] and a mask [B, S] (1 = token, 0 = padding) to states [B, S, hidden]."""

    def __init__(self, config: BertConfig):
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]

    def forward(self, ids: ts.Tensor, mask: ts.Tensor) -> ts.Tensor:
        S = ids.shape[1]
        x = self.words(ids) + self.positions(ts.arange(S)) + self.types.weight[0]
        x = self.norm(x)
        keep = mask[:, None, None, :] != 0
        for layer in self.layers:
            x = layer(x, keep)
        return x

    @classmethod
    def from_state(cls, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> BertModel:
        """Build from a Hugging Face configuration and its tensors."""
        with nn.uninitialized():
            model = cls(BertConfig.from_dict(config))
        return model.load_state_dict({ours: _fetch(state, theirs, flip) for ours, theirs, flip in _names(model.config)})


def _fetch(state: Mapping[str, np.ndarray], name: str, flip: bool) -> np.ndarray:
    a = state[name] if name in state else state[f"bert.{name}"]
    return a.T if flip else a


def _names(c: BertConfig) -> list[tuple[str, str, bool]]:
    """(our name, the checkpoint's name, whether its matrix is [out, in])."""
    e = "embeddings"
    rows = [("words.weight", f"{e}.word_embeddings.weight", False), ("positions.weight", f"{e}.position_embeddings.weight", False),
            ("types.weight", f"{e}.token_type_embeddings.weight", False),
            ("norm.weight", f"{e}.LayerNorm.weight", False), ("norm.bias", f"{e}.LayerNorm.bias", False)]
    parts = {"attention.query": "attention.self.query", "attention.key": "attention.self.key",
             "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
             "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense", "down": "output.dense",
             "output_norm": "output.LayerNorm"}
    for i in range(c.num_hidden_layers):
        for ours, theirs in parts.items():
            rows.append((f"layers.{i}.{ours}.weight", f"encoder.layer.{i}.{theirs}.weight", "norm" not in ours))
            rows.append((f"layers.{i}.{ours}.bias", f"encoder.layer.{i}.{theirs}.bias", False))
    return rows


class SentenceEncoder:
    """Sentences to unit vectors.

    One compiled program serves every batch size and sentence length.  Sentences are sorted by length and padded within
    a batch only, so little work is spent on padding.

    Args:
        model: the encoder.
        tokenizer: a ``tokenizers.Tokenizer``.
        max_length: tokens kept of a sentence.
    """

    def __init__(self, model: BertModel, tokenizer: Any, max_length: int = 256):
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

        @ts.jit
        def embed(ids: ts.Tensor[B, S, ts.int64], mask: ts.Tensor[B, S, ts.int64]) -> ts.Tensor[B, D, ts.f32]:
            states = model(ids, mask)
            weight = mask.to(ts.f32)[:, :, None]
            mean = (states * weight).sum(dim=1) / ts.maximum(weight.sum(dim=1), 1e-9)
            return mean / ts.maximum(ts.sqrt((mean * mean).sum(dim=-1, keepdim=True)), 1e-12)

        self.embed = embed

    def encode(self, sentences: Sequence[str], batch_size: int = 64, progress: Any = None) -> np.ndarray:
        """Unit vectors [len(sentences), hidden] in f32.  ``progress(done, tokens)`` is called after every batch."""
        encoded = [[*e.ids[:self.max_length - 1], e.ids[-1]] if len(e.ids) > self.max_length else e.ids
                   for e in self.tokenizer.encode_batch(list(sentences))]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        out = np.empty((len(encoded), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start:start + batch_size]
            width = max(len(encoded[i]) for i in batch)
            ids = np.zeros((len(batch), width), np.int64)
            mask = np.zeros((len(batch), width), np.int64)
            for row, i in enumerate(batch):
                ids[row, :len(encoded[i])] = encoded[i]
                mask[row, :len(encoded[i])] = 1
            out[batch] = np.asarray(self.embed(ts.from_numpy(ids), ts.from_numpy(mask)))
            if progress is not None:
                progress(start + len(batch), int(mask.sum()))
        return out
