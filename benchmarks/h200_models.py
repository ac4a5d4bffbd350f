"""GPT-2 small in bf16 on one NVIDIA GPU, beside PyTorch: ``python benchmarks/h200_models.py``.

Forward (every position's logits), and loss with the gradient of every parameter, on random weights that both sides hold.  PyTorch
runs its best: scaled_dot_product_attention, once eagerly, once through torch.compile where it works, both captured as a CUDA graph
for the forward pass.  Tessera's figure is that of a plain call, timed on the stream over several calls.  Medians of rounds in which
the peers take turns; results go to ``benchmarks/results/h200-models-DATE.json``.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from h200 import HERE, check, commit, facts, rounds

import tessera as ts
from tessera.models.gpt2 import GPT2Config, GPT2Model
from tessera.targets.nvidia import driver

Call = Callable[[], Any]


class Peer(torch.nn.Module):
    """GPT-2 on the memory of Tessera's parameters."""

    def __init__(self, model: GPT2Model):
        super().__init__()
        self.config = model.config
        self.names = {name: name.replace(".", "_") for name, _ in model.named_parameters()}
        for name, t in model.named_parameters():
            self.register_parameter(self.names[name], torch.nn.Parameter(torch.from_dlpack(t).clone()))

    def of(self, name: str) -> torch.Tensor:
        return getattr(self, self.names[name])  # type: ignore[no-any-return]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.of(name + ".weight") + self.of(name + ".bias")

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.of(name + ".weight"), self.of(name + ".bias"), self.config.layer_norm_epsilon)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        c, (b, s) = self.config, ids.shape
        x = self.of("wte.weight")[ids] + self.of("wpe.weight")[:s]
        for i in range(c.n_layer):
            at = f"blocks.{i}."
            q, k, v = self.linear(self.norm(x, at + "ln_1"), at + "qkv").view(b, s, 3, c.n_head, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, -1)
            x = x + self.linear(y, at + "proj")
            x = x + self.linear(F.gelu(self.linear(self.norm(x, at + "ln_2"), at + "up"), approximate="tanh"), at + "down")
        return self.norm(x, "ln_f") @ self.of("wte.weight").T


def timed(call: Call, count: int, synchronize: Call) -> Call:
    """A round: milliseconds of a call, over ``count`` of them."""
    def run() -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        return (time.perf_counter() - start) / count * 1e3
    return run


def captured(call: Call) -> Call:
    """A call of PyTorch's as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def first(call: Call) -> float:
    start = time.perf_counter()
    call()
    driver.gpu(0).stream.synchronize()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(model: GPT2Model, peer: Peer, batch: int, length: int) -> dict[str, Any]:
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device="cuda")
    mine, f = ts.from_dlpack(ids), ts.jit(model.forward)
    begun = first(lambda: f(mine))
    with torch.no_grad():
        error = check("GPT-2", torch.from_dlpack(f(mine)), peer(ids), 3e-2)
        runs = {"tessera": timed(lambda: f(mine), 5, driver.gpu(0).stream.synchronize),
                "torch": timed(captured(lambda: peer(ids)), 5, torch.cuda.synchronize)}
        try:
            fast = torch.compile(peer, fullgraph=True)
            fast(ids)
            runs["torch.compile"] = timed(captured(lambda: fast(ids)), 5, torch.cuda.synchronize)
        except Exception as e:  # the compiler of this installation may be incomplete
            print("torch.compile:", type(e).__name__, str(e)[:200])
        ms = rounds(runs, 9, warm=2)
    return {"case": f"GPT-2 small bf16 forward B{batch} S{length}", "unit": "ms", "error": error, "first call s": begun, **ms}


def step(model: GPT2Model, peer: Peer, batch: int, length: int) -> dict[str, Any]:
    ids = torch.randint(0, model.config.vocab_size, (batch, length + 1), device="cuda")
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    mine = [ts.from_dlpack(t) for t in (x, y)]

    def loss(m: GPT2Model, x: ts.Tensor, y: ts.Tensor) -> ts.Tensor:
        return ts.cross_entropy(m(x).reshape(-1, m.config.vocab_size), y.reshape(-1))

    def theirs() -> torch.Tensor:
        for p in peer.parameters():
            p.grad = None
        out = F.cross_entropy(peer(x).view(-1, peer.config.vocab_size), y.view(-1))
        out.backward()
        return out

    f = ts.jit(ts.value_and_grad(loss))
    begun = first(lambda: f(model, *mine))
    value, gradients = f(model, *mine)
    want = theirs()
    check("loss", torch.from_dlpack(value), want.detach(), 1e-2)
    found = dict(gradients.named_parameters()) if hasattr(gradients, "named_parameters") else gradients
    error = check("gradient", torch.from_dlpack(found["blocks.0.qkv.weight"]), peer.of("blocks.0.qkv.weight").grad, 1e-1)
    ms = rounds({"tessera": timed(lambda: f(model, *mine), 3, driver.gpu(0).stream.synchronize),
                    "torch": timed(theirs, 3, torch.cuda.synchronize)}, 9, warm=2)
    return {"case": f"GPT-2 small bf16 loss and gradients B{batch} S{length}", "unit": "ms", "error": error, "first call s": begun, **ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="forward,step")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"h200-models-{time.strftime('%Y%m%d')}.json")
    parser.add_argument("--commit", default=commit())
    args = parser.parse_args()
    torch.zeros(1, device="cuda")
    model = GPT2Model(GPT2Config()).to(ts.bf16, "gpu:0")
    peer = Peer(model)
    results = []
    for name in args.only.split(","):
        for batch, length in ((8, 1024), (1, 512)) if name == "forward" else ((4, 512),):
            results.append({"forward": forward, "step": step}[name](model, peer, batch, length))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()}, flush=True)
            args.out.write_text(json.dumps({**facts(args.commit), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
