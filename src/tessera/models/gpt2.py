"""GPT-2: a decoder-only transformer with a KV cache.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import tessera as ts
from tessera import nn


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and constants, named as in a Hugging Face ``config.json``; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GPT2Config:
        """The fields this model knows, from a parsed ``config.json``.

        Raises:
            UnsupportedError: an activation or attention variant that GPT-2 does not have.
        """
        if config.get("activation_function", "gelu_new") != "gelu_new":
            raise ts.errors.UnsupportedError(f"GPT-2 uses gelu_new, not {config['activation_function']!r}")
        if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
            raise ts.errors.UnsupportedError("only attention scaled by 1/sqrt(head size) is supported")
        return cls(**{k: config[k] for k in cls.__dataclass_fields__ if k in config})

    @property
    def inner(self) -> int:
        return self.n_inner or 4 * self.n_embd


B, S = ts.sym("B S")
KV = tuple[ts.Tensor, ts.Tensor]


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm and with a residual connection; ``attend`` computes the attention of a
    whole sequence (q, k, v, causal=)."""

    def __init__(self, c: GPT2Config, attend: Callable[..., ts.Tensor] | None = None):
        self.heads = c.n_head
        self.attend = attend or ts.attention
        self.ln_1 = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.proj = nn.Linear(c.n_embd, c.n_embd)
        self.ln_2 = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.up = nn.Linear(c.n_embd, c.inner)
        self.down = nn.Linear(c.inner, c.n_embd)

    def heads_of(self, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor, ts.Tensor]:
        """q, k, v as [B, heads, S, D] from the normed input [B, S, width]."""
        B, S, D = x.shape
        q, k, v = ts.split(self.qkv(x), dim=-1, sections=3)
        return tuple(t.reshape(B, S, self.heads, D // self.heads).transpose(1, 2) for t in (q, k, v))

    def finish(self, x: ts.Tensor, attended: ts.Tensor) -> ts.Tensor:
        """Project the heads, add the residual, apply the feed-forward network."""
        B, S, D = x.shape
        x = x + self.proj(attended.transpose(1, 2).reshape(B, S, D))
        return x + self.down(ts.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    def forward(self, x: ts.Tensor) -> tuple[ts.Tensor, KV]:
        q, k, v = self.heads_of(self.ln_1(x))
        return self.finish(x, self.attend(q, k, v, causal=True)), (k, v)

    def step(self, x: ts.Tensor, cache: KV, position: ts.Tensor) -> tuple[ts.Tensor, KV]:
        """One token: ``x`` [B, 1, width]; ``cache`` [B, heads, N, D] is filled up to ``position``."""
        q, k, v = self.heads_of(self.ln_1(x))
        keys = ts.dynamic_update_slice(cache[0], k, (0, 0, position, 0))
        values = ts.dynamic_update_slice(cache[1], v, (0, 0, position, 0))
        seen = ts.arange(keys.shape[2]) <= position
        return self.finish(x, ts.attention(q, keys, values, mask=seen[None, None, None, :])), (keys, values)


class GPT2Model(nn.Module):
    """Token ids [B, S] to logits [B, S, vocab].  ``generate`` decodes greedily with a KV cache."""

    def __init__(self, config: GPT2Config | None = None, attend: Callable[..., ts.Tensor] | None = None):
        c = self.config = config or GPT2Config()
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(c.n_positions, c.n_embd)
        self.blocks = [Block(c, attend) for _ in range(c.n_layer)]
        self.ln_f = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)

    def logits(self, x: ts.Tensor) -> ts.Tensor:
        """The language-model head, tied to the token embedding."""
        return self.ln_f(x) @ self.wte.weight.T

    def forward(self, ids: ts.Tensor) -> ts.Tensor:
        return self.logits(self.states(ids)[0])

    def states(self, ids: ts.Tensor) -> tuple[ts.Tensor, list[KV]]:
        """States [B, S, width] and each layer's keys and values [B, heads, S, D]."""
        x = self.wte(ids) + self.wpe(ts.arange(ids.shape[1]))
        kept: list[KV] = []
        for block in self.blocks:
            x, kv = block(x)
            kept.append(kv)
        return x, kept

    def step(self, ids: ts.Tensor, caches: list[KV], position: ts.Tensor) -> tuple[ts.Tensor, list[KV]]:
        """Logits [B, vocab] for one more token ``ids`` [B, 1] at ``position`` (int64 scalar), and the filled caches."""
        x = self.wte(ids) + self.wpe(position.reshape(1))
        kept: list[KV] = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, kv = block.step(x, cache, position)
            kept.append(kv)
        return self.logits(x)[:, -1], kept

    def generate(self, prompt: Sequence[int] | np.ndarray, max_new_tokens: int) -> list[int]:
        """The prompt followed by the ``max_new_tokens`` most likely tokens, one at a time.

        Raises:
            ValueError: an empty prompt, or more positions than the model has.
        """
        tokens = [int(t) for t in prompt]
        total = len(tokens) + max_new_tokens
        if not tokens or total > self.config.n_positions:
            raise ValueError(f"a prompt of {len(tokens)} tokens and {max_new_tokens} more do not fit "
                             f"1 to {self.config.n_positions} positions")
        if max_new_tokens <= 0:
            return tokens
        prefill, step = self._compiled()
        home = self.wte.weight.device
        last, kept = prefill(ts.tensor(np.array([tokens], np.int64)).to(home))
        caches = [tuple(_pad_to(t, total) for t in kv) for kv in kept]
        tokens.append(int(np.argmax(np.asarray(last)[0])))
        while len(tokens) < total:
            ids = ts.tensor(np.array([tokens[-1:]], np.int64)).to(home)
            last, caches = step(ids, caches, ts.tensor(np.array(len(tokens) - 1, np.int64)).to(home))
            tokens.append(int(np.argmax(np.asarray(last)[0])))
        return tokens

    def _compiled(self) -> tuple[Any, Any]:
        if "_programs" not in self.__dict__:
            @ts.jit
            def prefill(ids: ts.Tensor[B, S, ts.int64]) -> Any:
                x, kept = self.states(ids)
                return self.logits(x[:, -1:])[:, -1], kept

            self._programs = (prefill, ts.jit(self.step, donate_argnums=(1,)))
        return self._programs

    @classmethod
    def from_state(cls, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> GPT2Model:
        """Build from a Hugging Face configuration and its tensors."""
        with nn.uninitialized():
            model = cls(GPT2Config.from_dict(config))
        return model.load_state_dict({ours: _fetch(state, theirs) for ours, theirs in _names(model.config)})


class GPT2(GPT2Model):
    """GPT-2 with random weights (GPT-2 small, 124 million parameters, unless ``config`` says otherwise), ready to be called.

    The options change how it runs, not what it computes.

    Args:
        precision: a numerical policy, its name or a preset ("mixed") under which calls run; None: f32.
        attention: "flash2" (what the compiler makes of attention), "flash1" (the older algorithm) or "auto".
        compile_mode: "optimize" runs calls as one compiled program, "eager" op by op.

    Raises:
        ArgumentError: there is no such attention or mode.
    """

    def __init__(self, config: GPT2Config | None = None, *, precision: Any = None, attention: str = "auto",
                 compile_mode: str = "optimize"):
        for what, value, known in (("attention", attention, _ATTENTIONS), ("compile_mode", compile_mode, ("optimize", "eager"))):
            if value not in known:
                raise ts.errors.ArgumentError(f"there is no {what} {value!r}{ts.errors.suggest(str(value), list(known))}",
                                              expected=", ".join(known), received=repr(value))
        super().__init__(config, _ATTENTIONS[attention])
        self.precision = precision
        self._forward = ts.jit(super().forward) if compile_mode == "optimize" else super().forward

    def forward(self, ids: ts.Tensor) -> ts.Tensor:
        with self._policy():
            return self._forward(ids)

    def generate(self, prompt: Sequence[int] | np.ndarray, max_new_tokens: int) -> list[int]:
        with self._policy():
            return super().generate(prompt, max_new_tokens)

    def _policy(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        enter = ts.precision if isinstance(self.precision, str) else ts.numerics
        scope: AbstractContextManager[Any] = enter(self.precision)
        return scope


_ATTENTIONS: dict[str, Callable[..., ts.Tensor] | None] = {
    "auto": None, "flash2": nn.flash_attention_v2, "flash1": nn.flash_attention_v1}


def _pad_to(t: ts.Tensor, length: int) -> ts.Tensor:
    """``t`` [B, heads, S, D] as the first positions of a cache of ``length``, where ``t`` lives."""
    b, heads, s, d = t.shape
    return ts.concat([t, ts.zeros(b, heads, length - s, d, dtype=t.dtype).to(t.device)], axis=2)


def _fetch(state: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return state[name] if name in state else state[f"transformer.{name}"]


def _names(c: GPT2Config) -> list[tuple[str, str]]:
    """(our name, the checkpoint's name); GPT-2 stores its matrices [in, out], as Tessera does."""
    rows = [("wte.weight", "wte.weight"), ("wpe.weight", "wpe.weight"), ("ln_f.weight", "ln_f.weight"), ("ln_f.bias", "ln_f.bias")]
    parts = {"ln_1": "ln_1", "qkv": "attn.c_attn", "proj": "attn.c_proj", "ln_2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    for i in range(c.n_layer):
        rows += [(f"blocks.{i}.{ours}.{leaf}", f"h.{i}.{theirs}.{leaf}") for ours, theirs in parts.items() for leaf in ("weight", "bias")]
    return rows
