"""One peer in a process of its own: ``python peers.py NAME`` obeys lines of JSON on its standard input.

``{"prepare": case}`` builds a case and answers with the result's dtype, a checksum and the threads in use, or ``{"absent": why}``;
``{"run": n}`` answers with ``n`` times in seconds; ``{"drop": true}`` forgets the case.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import CASES, Arrays, Case

Thunk = Callable[[], Any]


class Absent(Exception):
    """This peer has no fair form of the case."""


# -- models in plain array code, for numpy and jax -----------------------------------------------------------------------
def _norm(xp: Any, x: Any, w: Any, b: Any, eps: float) -> Any:
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    return centred / xp.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * w + b


def _gelu_tanh(xp: Any, x: Any) -> Any:
    c = np.float32(math.sqrt(2 / math.pi))
    return np.float32(0.5) * x * (1 + xp.tanh(c * (x + np.float32(0.044715) * x * x * x)))


def _softmax(xp: Any, x: Any) -> Any:
    e = xp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attend(xp: Any, q: Any, k: Any, v: Any, bias: Any = None) -> Any:
    s = q @ k.swapaxes(-1, -2) * np.float32(1 / math.sqrt(q.shape[-1]))
    return _softmax(xp, s if bias is None else s + bias) @ v


def _causal_bias(n: int) -> np.ndarray:
    return np.where(np.tri(n, dtype=bool), np.float32(0), np.float32(-np.inf)).astype(np.float32)


def _heads(x: Any, heads: int) -> Any:
    b, s, d = x.shape
    return x.reshape(b, s, heads, d // heads).swapaxes(1, 2)


def _gpt2_forward(xp: Any, w: Any, c: dict[str, Any], ids: Any) -> Any:
    b, s = ids.shape
    bias = _causal_bias(s)
    eps = np.float32(c["layer_norm_epsilon"])
    x = w["wte.weight"][ids] + w["wpe.weight"][:s]
    for i in range(c["n_layer"]):
        def p(name: str, i: int = i) -> Any:
            return w[f"h.{i}.{name}"]
        h = _norm(xp, x, p("ln_1.weight"), p("ln_1.bias"), eps) @ p("attn.c_attn.weight") + p("attn.c_attn.bias")
        q, k, v = (_heads(t, c["n_head"]) for t in xp.split(h, 3, -1))
        a = _attend(xp, q, k, v, bias).swapaxes(1, 2).reshape(b, s, -1)
        x = x + a @ p("attn.c_proj.weight") + p("attn.c_proj.bias")
        h = _norm(xp, x, p("ln_2.weight"), p("ln_2.bias"), eps) @ p("mlp.c_fc.weight") + p("mlp.c_fc.bias")
        x = x + _gelu_tanh(xp, h) @ p("mlp.c_proj.weight") + p("mlp.c_proj.bias")
    return _norm(xp, x, w["ln_f.weight"], w["ln_f.bias"], eps) @ w["wte.weight"].T


def _bert_embed(xp: Any, erf: Any, w: Any, c: dict[str, Any], ids: Any, mask: Any) -> Any:
    b, s = ids.shape
    eps, e = np.float32(c["layer_norm_eps"]), "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][:s] + w[e + "token_type_embeddings.weight"][0]
    x = _norm(xp, x, w[e + "LayerNorm.weight"], w[e + "LayerNorm.bias"], eps)
    bias = xp.where(mask[:, None, None, :] != 0, np.float32(0), np.float32(-np.inf))
    for i in range(c["num_hidden_layers"]):
        def dense(t: Any, name: str, i: int = i) -> Any:
            return t @ w[f"encoder.layer.{i}.{name}.weight"].T + w[f"encoder.layer.{i}.{name}.bias"]

        def norm(t: Any, name: str, i: int = i) -> Any:
            return _norm(xp, t, w[f"encoder.layer.{i}.{name}.LayerNorm.weight"], w[f"encoder.layer.{i}.{name}.LayerNorm.bias"], eps)
        q, k, v = (_heads(dense(x, f"attention.self.{n}"), c["num_attention_heads"]) for n in ("query", "key", "value"))
        a = _attend(xp, q, k, v, bias).swapaxes(1, 2).reshape(b, s, -1)
        x = norm(x + dense(a, "attention.output.dense"), "attention.output")
        h = dense(x, "intermediate.dense")
        h = np.float32(0.5) * h * (1 + erf(h * np.float32(math.sqrt(0.5))))
        x = norm(x + dense(h, "output.dense"), "output")
    return _pool(xp, x, mask)


def _pool(xp: Any, x: Any, mask: Any) -> Any:
    weight = mask[:, :, None].astype(np.float32)
    mean = (x * weight).sum(1) / xp.maximum(weight.sum(1), np.float32(1e-9))
    return mean / xp.sqrt((mean * mean).sum(-1, keepdims=True))


# -- the peers -----------------------------------------------------------------------------------------------------------
def _array_forms(xp: Any, attention: Any, erf: Any) -> dict[str, Callable[[Arrays], tuple[Any, tuple[str, ...]]]]:
    """For each case: a function of its arrays, and their names, in numpy's vocabulary."""
    def chain(inner: Any) -> Any:
        return lambda x: xp.abs(xp.sqrt(inner(x * np.float32(1.5) + np.float32(0.25)) ** 2 + np.float32(1)) - x)

    def mlp(x: Any, w: Any, b: Any) -> Any:
        return _gelu_tanh(xp, x @ w + b)

    def matmul(a: Any, b: Any) -> Any:
        return a @ b

    qkv = ("q", "k", "v")
    plain: dict[str, tuple[Any, tuple[str, ...]]] = {
        "matmul1024": (matmul, ("a", "b")), "matmul2048": (matmul, ("a", "b")), "matmul2048_bf16": (matmul, ("a", "b")),
        "mlp512": (mlp, ("x", "w", "b")), "mlp1024": (mlp, ("x", "w", "b")),
        "softmax4096": (lambda x: _softmax(xp, x), ("x",)),
        "layernorm4096": (lambda x, w, b: _norm(xp, x, w, b, np.float32(1e-5)), ("x", "w", "b")),
        "attention": (lambda q, k, v: attention(q, k, v, False), qkv),
        "attention_causal": (lambda q, k, v: attention(q, k, v, True), qkv),
        "chain_tanh": (chain(xp.tanh), ("x",)), "chain_max": (chain(lambda t: xp.maximum(t, np.float32(0))), ("x",)),
        "sum16M": (lambda x: x.sum(), ("x",)), "add16": (lambda x: x + x, ("x",)),
    }
    forms: dict[str, Any] = {name: (lambda arrays, pair=pair: pair) for name, pair in plain.items()}
    forms["gpt2"] = lambda arrays: ((lambda ids, weights: _gpt2_forward(xp, weights, arrays["config"], ids)), ("ids", "weights"))
    forms["minilm"] = lambda arrays: (
        (lambda ids, mask, weights: _bert_embed(xp, erf, weights, arrays["config"], ids, mask)), ("ids", "mask", "weights"))
    return forms


class NumpyPeer:
    package = "numpy"

    def __init__(self) -> None:
        def erf(x: Any) -> Any:
            raise Absent("numpy has no erf")
        self.forms = _array_forms(np, lambda q, k, v, causal: _attend(np, q, k, v, _causal_bias(q.shape[2]) if causal else None), erf)

    def threads(self) -> int:
        from threadpoolctl import threadpool_info
        return max((int(p["num_threads"]) for p in threadpool_info() if p["user_api"] == "blas"), default=1)

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        if name == "matmul2048_bf16":
            raise Absent("numpy has no bf16 product")
        if name == "minilm":
            raise Absent("numpy has no erf")
        fn, names = self.forms[name](arrays)
        args = [arrays[n] for n in names]
        return lambda: fn(*args)

    def to_numpy(self, out: Any) -> np.ndarray:
        return np.asarray(out)


class JaxPeer:
    package = "jax"

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp
        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax = jax

        def attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
            return _attend(jnp, q, k, v, _causal_bias(q.shape[2]) if causal else None)
        self.forms = _array_forms(jnp, attention, jax.scipy.special.erf)
        self.forms["mlp512"] = self.forms["mlp1024"] = lambda arrays: (
            (lambda x, w, b: jax.nn.gelu(x @ w + b, approximate=True)), ("x", "w", "b"))

    def threads(self) -> int:
        return len(os.sched_getaffinity(0))   # XLA's pool has one thread for each processor the process may use

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        fn, names = self.forms[name](arrays)
        put = self.jax.tree.map(self.jax.numpy.asarray, [arrays[n] for n in names])
        if name == "matmul2048_bf16":
            put = [p.astype(self.jax.numpy.bfloat16) for p in put]
        jitted = self.jax.jit(fn)
        return lambda: jitted(*put).block_until_ready()

    def to_numpy(self, out: Any) -> np.ndarray:
        return np.asarray(out)


class TorchPeer:
    package = "torch"

    def __init__(self, compiled: bool = False) -> None:
        import torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_grad_enabled(False)
        self.torch, self.compiled = torch, compiled

    def threads(self) -> int:
        return int(self.torch.get_num_threads())

    def _forms(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        torch, F = self.torch, self.torch.nn.functional
        qkv = ("q", "k", "v")
        return {
            "matmul1024": (torch.matmul, ("a", "b")), "matmul2048": (torch.matmul, ("a", "b")),
            "matmul2048_bf16": (torch.matmul, ("a", "b")),
            "mlp512": (lambda x, w, b: F.gelu(torch.addmm(b, x, w), approximate="tanh"), ("x", "w", "b")),
            "mlp1024": (lambda x, w, b: F.gelu(torch.addmm(b, x, w), approximate="tanh"), ("x", "w", "b")),
            "softmax4096": (lambda x: torch.softmax(x, -1), ("x",)),
            "layernorm4096": (lambda x, w, b: F.layer_norm(x, (x.shape[-1],), w, b), ("x", "w", "b")),
            "attention": (F.scaled_dot_product_attention, qkv),
            "attention_causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), qkv),
            "chain_tanh": (lambda x: torch.abs(torch.sqrt(torch.tanh(x * 1.5 + 0.25) ** 2 + 1) - x), ("x",)),
            "chain_max": (lambda x: torch.abs(torch.sqrt(torch.clamp(x * 1.5 + 0.25, min=0) ** 2 + 1) - x), ("x",)),
            "sum16M": (torch.sum, ("x",)), "add16": (torch.add, ("x", "x")),
        }

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        torch = self.torch
        if name in ("gpt2", "minilm"):
            fn, args = getattr(self, "_" + name)(arrays)
        else:
            fn, names = self._forms()[name]
            args = [torch.from_numpy(arrays[n]) for n in names]
            if name == "matmul2048_bf16":
                args = [a.bfloat16() for a in args]
        if self.compiled:
            fn = torch.compile(fn)
        return lambda: fn(*args)

    def _gpt2(self, arrays: Arrays) -> tuple[Any, list[Any]]:
        model = torch_gpt2(self.torch, arrays)
        return (lambda ids: model(ids, use_cache=False).logits), [self.torch.from_numpy(arrays["ids"])]

    def _minilm(self, arrays: Arrays) -> tuple[Any, list[Any]]:
        torch = self.torch
        model = torch_bert(torch, arrays)

        def embed(ids: Any, mask: Any) -> Any:
            states, weight = model(ids, attention_mask=mask).last_hidden_state, mask[:, :, None].float()
            mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)
        return embed, [torch.from_numpy(arrays["ids"]), torch.from_numpy(arrays["mask"])]

    def to_numpy(self, out: Any) -> np.ndarray:
        if out.dtype is self.torch.bfloat16:
            import ml_dtypes
            return np.asarray(out.view(self.torch.int16).numpy().view(ml_dtypes.bfloat16))
        return np.asarray(out.numpy())


def torch_gpt2(torch: Any, arrays: Arrays) -> Any:
    """transformers' GPT-2 with the case's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(**arrays["config"])).eval().requires_grad_(False)
    state = {f"transformer.{k}": torch.from_numpy(v) for k, v in arrays["weights"].items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if any("bias" not in m and "lm_head" not in m for m in missing):
        raise ValueError(f"weights are missing: {missing}")
    model.tie_weights()
    return model


def torch_bert(torch: Any, arrays: Arrays) -> Any:
    """transformers' BERT with the case's weights."""
    from transformers import BertConfig, BertModel
    model = BertModel(BertConfig(**arrays["config"]), add_pooling_layer=False).eval().requires_grad_(False)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays["weights"].items() if not k.startswith("pooler.")})
    return model


class OnnxPeer:
    """onnxruntime on what torch exports (the two models only)."""

    package = "onnxruntime"

    def __init__(self) -> None:
        import onnxruntime
        self.ort = onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = len(os.sched_getaffinity(0))

    def threads(self) -> int:
        return int(self.options.intra_op_num_threads)

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        if name not in ("gpt2", "minilm"):
            raise Absent("onnxruntime is measured on the models")
        import tempfile

        import torch
        feeds = {"ids": arrays["ids"]}
        if name == "minilm":
            feeds["mask"] = arrays["mask"]
            embed, _ = TorchPeer()._minilm(arrays)
        else:
            model = torch_gpt2(torch, arrays)

            def embed(ids: Any) -> Any:
                return model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

        class Wrapper(torch.nn.Module):  # type: ignore[misc]
            def forward(self, *args: Any) -> Any:
                return embed(*args)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            torch.onnx.export(Wrapper(), tuple(torch.from_numpy(v) for v in feeds.values()), path, dynamo=False,
                              input_names=list(feeds), opset_version=17)
            session = self.ort.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)[0]

    def to_numpy(self, out: Any) -> np.ndarray:
        return np.asarray(out)


class TesseraPeer:
    """Tessera through its public API."""

    package = "tessera-lang"

    def __init__(self) -> None:
        import tessera as ts
        ts.set_num_threads(len(os.sched_getaffinity(0)))
        self.ts = ts

    def threads(self) -> int:
        return int(self.ts.get_num_threads())

    def _forms(self) -> dict[str, tuple[Any, tuple[str, ...]]]:
        ts = self.ts
        qkv = ("q", "k", "v")
        return {
            "matmul1024": (lambda a, b: a @ b, ("a", "b")), "matmul2048": (lambda a, b: a @ b, ("a", "b")),
            "matmul2048_bf16": (lambda a, b: a @ b, ("a", "b")),
            "mlp512": (lambda x, w, b: ts.gelu(x @ w + b, approximate="tanh"), ("x", "w", "b")),
            "mlp1024": (lambda x, w, b: ts.gelu(x @ w + b, approximate="tanh"), ("x", "w", "b")),
            "softmax4096": (lambda x: ts.softmax(x, dim=-1), ("x",)),
            "layernorm4096": (lambda x, w, b: ts.layer_norm(x, w, b), ("x", "w", "b")),
            "attention": (lambda q, k, v: ts.attention(q, k, v), qkv),
            "attention_causal": (lambda q, k, v: ts.attention(q, k, v, causal=True), qkv),
            "chain_tanh": (lambda x: ts.abs(ts.sqrt(ts.tanh(x * 1.5 + 0.25) ** 2 + 1) - x), ("x",)),
            "chain_max": (lambda x: ts.abs(ts.sqrt(ts.maximum(x * 1.5 + 0.25, 0.0) ** 2 + 1) - x), ("x",)),
            "sum16M": (lambda x: x.sum(), ("x",)), "add16": (lambda x: x + x, ("x",)),
        }

    def prepare(self, name: str, arrays: Arrays) -> Thunk:
        ts = self.ts
        if name == "gpt2":
            from tessera.models import GPT2Model
            model = GPT2Model.from_state(arrays["config"], arrays["weights"])
            fn, args = ts.jit(lambda ids: model(ids)), [ts.from_numpy(arrays["ids"])]
        elif name == "minilm":
            from tessera.models import BertModel, SentenceEncoder
            fn = SentenceEncoder(BertModel.from_state(arrays["config"], arrays["weights"]), None).embed
            args = [ts.from_numpy(arrays["ids"]), ts.from_numpy(arrays["mask"])]
        else:
            form, names = self._forms()[name]
            fn, args = ts.jit(form), [ts.from_numpy(arrays[n]) for n in names]
            if name == "matmul2048_bf16":
                args = [a.to(ts.bf16) for a in args]
        return lambda: fn(*args)

    def to_numpy(self, out: Any) -> np.ndarray:
        return np.asarray(out)


PEERS: dict[str, Callable[[], Any]] = {
    "tessera": TesseraPeer, "numpy": NumpyPeer, "torch": TorchPeer, "inductor": lambda: TorchPeer(compiled=True),
    "jax": JaxPeer, "onnxruntime": OnnxPeer,
}


def _time(thunk: Thunk, count: int, inner: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(inner):
            thunk()
        times.append((time.perf_counter() - start) / inner)
    return times


class Session:
    """What one process holds: the peer and the case that is prepared."""

    def __init__(self, peer: Any, cases: dict[str, Case]):
        self.peer, self.cases = peer, cases
        self.thunk: Thunk | None = None
        self.inner = 1

    def prepare(self, name: str) -> dict[str, Any]:
        arrays = self.cases[name].inputs()
        start = time.perf_counter()
        thunk = self.peer.prepare(name, arrays)
        out = self.peer.to_numpy(thunk())
        first = time.perf_counter() - start
        thunk()
        start = time.perf_counter()
        thunk()
        once = time.perf_counter() - start
        self.thunk, self.inner = thunk, max(1, int(0.002 / max(once, 1e-7)))
        sums = np.abs(out.astype(np.float64))
        return {"dtype": str(out.dtype), "shape": list(out.shape), "mean": float(sums.mean()), "first_s": first, "once_s": once,
                "threads": self.peer.threads()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "prepare" in request:
            self.thunk = None
            return self.prepare(request["prepare"])
        if "run" in request and self.thunk is not None:
            return {"times": _time(self.thunk, request["run"], self.inner)}
        if "drop" in request:
            self.thunk = None
            return {}
        return {"error": f"not understood: {request}"}


def main(name: str, peers: dict[str, Callable[[], Any]], cases: dict[str, Case]) -> None:
    """Serve requests until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                  # libraries that print do not disturb the answers
    peer = peers[name]()
    version = importlib.metadata.version(peer.package) if name != "tessera" else getattr(peer.ts, "__version__", "0")
    session = Session(peer, cases)
    answers.write(json.dumps({"ready": name, "version": version, "cpus": len(os.sched_getaffinity(0))}) + "\n")
    for line in sys.stdin:
        try:
            reply = session.answer(json.loads(line))
        except Absent as e:
            reply = {"absent": str(e)}
        except Exception as e:
            reply = {"error": f"{type(e).__name__}: {e}"[:2000]}
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], PEERS, CASES)
