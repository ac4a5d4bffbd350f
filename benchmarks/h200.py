"""Tessera beside cuBLAS, cuDNN and PyTorch on one NVIDIA GPU: ``python benchmarks/h200.py [--only gemm,epilogue,attention,rows,…]``.

All in one process, on the same memory (taken over by DLPack), on fresh random data.  Kernels are timed as CUDA graphs of several
launches over several sets of buffers, so that neither Python nor the second-level cache flatters anybody; a figure is the median over
rounds, and the peers take turns within a round.  Every result is checked against PyTorch in f32 before it is timed, on poisoned memory.

Results go to ``benchmarks/results/h200-DATE.json`` with machine, driver, versions and commit.
"""

import argparse
import functools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import tessera as ts
from tessera import tile
from tessera.runtime import gpu as runtime
from tessera.targets.nvidia import driver

HERE = Path(__file__).resolve().parent
BF16 = torch.bfloat16
Run = Callable[[], Any]


# -- measuring ---------------------------------------------------------------------------------------------------------------
class Ours:
    """A compiled plan on the memory of torch's tensors, launched without anything around it."""

    def __init__(self, program: runtime.GpuProgram, sets: list[tuple[list[torch.Tensor], torch.Tensor]]):
        stream = program.compiler.gpu.stream
        self.stream = stream
        self.launches = []
        for inputs, out in sets:
            arrays = [ts.from_dlpack(x)._p for x in inputs]
            program(arrays)  # makes the plan
            plan = program.plans[(stream.number, *[a.shape for a in arrays])]
            pointers = [*(a.pointer for a in arrays), out.data_ptr()]
            self.launches.append([(s, plan._parameters(s, pointers)) for s in plan.launches])
        stream.synchronize()
        self.kept = sets

    def run(self, which: int) -> None:
        for s, p in self.launches[which]:
            s.kernel.launch(self.stream, p, s.blocks)


def graph_of(ours: Ours, count: int) -> Run:
    graph = driver.Graph(ours.stream)
    with graph:
        for i in range(count):
            ours.run(i % len(ours.launches))
    start, end = driver.Event(True), driver.Event(True)

    def run() -> float:
        start.record(ours.stream)
        graph.launch()
        end.record(ours.stream).synchronize()
        return end.since(start) / count

    return run


def torch_graph(calls: list[Run], count: int) -> Run:
    for c in calls:
        c()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / count

    run.graph = graph  # type: ignore[attr-defined]
    return run


def rounds(runs: dict[str, Run], n: int = 7, warm: int = 1) -> dict[str, float]:
    """Milliseconds of each, the median of ``n`` rounds in which they take turns, after ``warm`` that do not count."""
    times: dict[str, list[float]] = {k: [] for k in runs}
    for r in range(warm + n):
        for k, f in runs.items():
            t = f()
            if r >= warm:
                times[k].append(t)
    return {k: statistics.median(v) for k, v in times.items()}


def check(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> float:
    error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.2e} exceeds {tolerance}")
    return error


def program_of(f: Any, *inputs: torch.Tensor) -> runtime.GpuProgram:
    """The device program of a Tessera function."""
    arrays = [ts.from_dlpack(x) for x in inputs]
    return f.program(*arrays).executable_on("gpu:0")  # type: ignore[no-any-return]


def cublas(a: torch.Tensor, b: torch.Tensor) -> Run:
    return functools.partial(torch.mm, a, b, out=torch.empty(a.shape[0], b.shape[1], device="cuda", dtype=a.dtype))


def copy(a: torch.Tensor) -> Run:
    return functools.partial(torch.empty_like(a).copy_, a)


# -- cases -------------------------------------------------------------------------------------------------------------------
@ts.function
def product_nt(a: ts.Tensor["M", "K", ts.bf16], b: ts.Tensor["N", "K", ts.bf16]) -> ts.Tensor["M", "N", ts.bf16]:  # noqa: F821
    return a @ b.T


@ts.function
def product_nn(a: ts.Tensor["M", "K", ts.bf16], b: ts.Tensor["K", "N", ts.bf16]) -> ts.Tensor["M", "N", ts.bf16]:  # noqa: F821
    return a @ b


def gemm(sizes: tuple[int, ...] = (2048, 4096, 8192), more: Any = None) -> list[dict[str, Any]]:
    out = []
    for n in sizes:
        for form, f in (("NT", product_nt), ("NN", product_nn)):
            count = max(2, min(40, round(2e13 / (2 * n**3))))
            sets = [([torch.randn(n, n, device="cuda", dtype=BF16) for _ in range(2)],
                     torch.full((n, n), math.nan, device="cuda", dtype=BF16)) for _ in range(2)]
            ours = Ours(program_of(f, *sets[0][0]), sets)
            ours.run(0)
            ours.stream.synchronize()
            (a, b), c = sets[0]
            error = check(f"gemm {form} {n}", c, a.float() @ (b.float().T if form == "NT" else b.float()), 5e-3)
            calls = [cublas(a, b.T if form == "NT" else b) for (a, b), _ in sets]
            runs = {"tessera": graph_of(ours, count), "cublas": torch_graph(calls, count)}
            if more is not None and form == "NT":
                runs["reference"] = graph_of(more.gemm(sets, n, ours.stream), count)
            ms = rounds(runs)
            out.append({"case": f"gemm bf16 {form} {n}", "unit": "TFLOP/s", "error": error,
                        **{k: 2 * n**3 / t / 1e9 for k, t in ms.items()}})
            report(out[-1])
    return out


@ts.function
def dense_gelu(x: ts.Tensor["M", "K", ts.bf16], w: ts.Tensor["K", "N", ts.bf16],  # noqa: F821
               b: ts.Tensor["N", ts.bf16]) -> ts.Tensor["M", "N", ts.bf16]:  # noqa: F821
    return ts.gelu(x @ w + b)


def epilogue(n: int = 4096) -> list[dict[str, Any]]:
    """gelu(x @ w + b), one kernel, beside cuBLAS with its bias and a kernel of PyTorch's for gelu, and beside the bare product."""
    sets = [([torch.randn(n, n, device="cuda", dtype=BF16), torch.randn(n, n, device="cuda", dtype=BF16) / math.sqrt(n),
              torch.randn(n, device="cuda", dtype=BF16)], torch.full((n, n), math.nan, device="cuda", dtype=BF16)) for _ in range(2)]
    ours = Ours(program_of(dense_gelu, *sets[0][0]), sets)
    ours.run(0)
    ours.stream.synchronize()
    (x, w, b), c = sets[0]
    error = check("epilogue", c, F.gelu(x.float() @ w.float() + b.float()), 5e-3)
    calls: list[Run] = [functools.partial(lambda x, w, b: F.gelu(torch.addmm(b, x, w)), *i) for i, _ in sets]
    bare = [cublas(x, w) for (x, w, _), _ in sets]
    ms = rounds({"tessera": graph_of(ours, 20), "torch": torch_graph(calls, 20), "cublas product alone": torch_graph(bare, 20)})
    out = {"case": f"gelu(x @ w + b) bf16 {n}", "unit": "TFLOP/s", "error": error, **{k: 2 * n**3 / t / 1e9 for k, t in ms.items()}}
    report(out)
    return [out]


def attention(more: Any = None, cases: Any = None) -> list[dict[str, Any]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    out = []
    for width, causal, length in cases or [(w, c, s) for w in (128, 64) for c in (False, True) for s in (2048, 4096, 16384)]:
        heads = max(4, (1 << 18) // length) * (2 if width == 64 else 1) // 2

        @ts.function
        def f(q: Any, k: Any, v: Any, causal: bool = causal) -> Any:
            return ts.attention(q, k, v, causal=causal)

        inputs = [torch.randn(1, heads, length, width, device="cuda", dtype=BF16) for _ in range(3)]
        result = torch.full_like(inputs[0], math.nan)
        ours = Ours(program_of(f, *inputs), [(inputs, result)])
        ours.run(0)
        ours.stream.synchronize()
        few = [x[:, :2].float() for x in inputs]
        error = check(f"attention {width} {causal} {length}", result[:, :2], F.scaled_dot_product_attention(*few, is_causal=causal), 1e-2) \
            if length <= 4096 else None
        flops = 4 * heads * length**2 * width / (2 if causal else 1)
        count = max(1, min(10, round(4e12 / flops)))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            runs = {"tessera": graph_of(ours, count), "cudnn": torch_graph([lambda: F.scaled_dot_product_attention(
                *inputs, is_causal=causal)], count)}  # noqa: B023
        if more is not None and width == 128:
            runs["reference"] = graph_of(more.attention(inputs, result, causal, ours.stream), count)
        ms = rounds(runs, 5)
        out.append({"case": f"attention D{width} {'causal' if causal else 'full'} S{length} H{heads}", "unit": "TFLOP/s", "error": error,
                    **{k: flops / t / 1e9 for k, t in ms.items()}})
        report(out[-1])
    return out


def forms() -> list[dict[str, Any]]:
    """Attention with masks and with heads that lie beside each other, beside the fastest of torch's kernels that take the same."""
    b, h, s, out = 4, 16, 4096, []
    sdpa = F.scaled_dot_product_attention
    causal = torch.ones(s, s, device="cuda", dtype=torch.bool).tril()
    for width in (64, 128, 256):
        q, k, v = (torch.randn(b, h, s, width, device="cuda", dtype=BF16) for _ in range(3))
        few = torch.randn(2, b, h // 4, s, width, device="cuda", dtype=BF16)
        beside = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        added = torch.randn(b, 1, s, s, device="cuda", dtype=BF16)
        hidden = torch.rand(b, 1, 1, s, device="cuda") > 0.2
        plain, masked = ts.function(lambda q, k, v: ts.attention(q, k, v)), ts.function(lambda q, k, v, m: ts.attention(q, k, v, m))
        grouped = ts.function(lambda q, k, v: ts.attention(q, k, v, causal=True))
        apart = ts.function(lambda q, k, v: ts.attention(*(x.transpose(0, 2, 1, 3) for x in (q, k, v))).transpose(0, 2, 1, 3))
        cases: list[tuple[str, Any, list[torch.Tensor], Run]] = [
            ("heads apart", plain, [q, k, v], lambda q=q, k=k, v=v: sdpa(q, k, v)),
            ("B,S,H,D", apart, beside, lambda x=beside: sdpa(*(t.transpose(1, 2) for t in x)).transpose(1, 2)),
            ("shared keys, causal", grouped, [q, few[0], few[1]],
             lambda q=q, k=few[0], v=few[1]: sdpa(q, k, v, is_causal=True, enable_gqa=True)),
            ("bool [S,T]", masked, [q, k, v, causal], lambda q=q, k=k, v=v: sdpa(q, k, v, causal)),
            ("added [B,1,S,T]", masked, [q, k, v, added], lambda q=q, k=k, v=v, m=added: sdpa(q, k, v, m)),
            ("bool [B,1,1,T]", masked, [q, k, v, hidden], lambda q=q, k=k, v=v, m=hidden: sdpa(q, k, v, m))]
        for name, f, inputs, peer in cases:
            flops = 4 * b * h * s**2 * width / (2 if "causal" in name else 1)
            result = torch.full_like(inputs[0], math.nan)
            ours = Ours(program_of(f, *inputs), [(inputs, result)])
            ours.run(0)
            ours.stream.synchronize()
            error = check(f"attention {name} D{width}", result, peer(), 1.5e-2)
            runs = {"tessera": graph_of(ours, 5), **_backends(peer)}
            ms = rounds(runs, 5)
            out.append({"case": f"attention D{width} S{s} {name}", "unit": "TFLOP/s", "error": error,
                        **{k: flops / t / 1e9 for k, t in ms.items()}})
            report(out[-1])
    return out


def _backends(call: Run) -> dict[str, Run]:
    """The graphs of a call under each of torch's kernels that takes it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    out: dict[str, Run] = {}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION),
                          ("efficient", SDPBackend.EFFICIENT_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                out[name] = torch_graph([call], 5)
        except RuntimeError:
            torch.cuda.synchronize()
    return out


@ts.kernel
def tile_product(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.bf16]):  # noqa: F821
    for i in tile.range(A.shape[0], step=128):
        for j in tile.range(B.shape[1], step=256):
            acc = tile.alloc_register(128, 256, dtype=ts.f32)
            tile.fill(acc, 0.0)
            for k in tile.range(A.shape[1], step=64):
                acc = tile.mma(A[i:i + 128, k:k + 64], B[k:k + 64, j:j + 256], acc)
            tile.store(C[i:i + 128, j:j + 256], acc)


@ts.kernel
def tile_attention(Q: ts.Tile["H", "S", "D", ts.bf16], K: ts.Tile["H", "T", "D", ts.bf16], V: ts.Tile["H", "T", "D", ts.bf16],  # noqa: F821
                   O: ts.Tile["H", "S", "D", ts.bf16], scale: float):  # noqa: F821
    for i in tile.range(Q.shape[1], step=128):
        m, l = tile.alloc_register(128, dtype=ts.f32), tile.alloc_register(128, dtype=ts.f32)
        acc = tile.alloc_register(128, Q.shape[2], dtype=ts.f32)
        tile.fill(m, -math.inf)
        tile.fill(l, 0.0)
        tile.fill(acc, 0.0)
        for j in tile.range(0, K.shape[1], step=64):
            scores = tile.matmul(Q[i:i + 128], tile.load(K[j:j + 64]).T) * scale
            m_new, l_new, p = tile.online_softmax(scores, m, l)
            tile.update_accumulator(acc, tile.matmul(p.to(ts.bf16), V[j:j + 64]), m, m_new, l, l_new)
            m = m_new
            l = l_new
        tile.store(O[i:i + 128], acc / l)


def launches(f: Run, count: int = 10) -> Run:
    """Milliseconds of one of ``count`` calls on Tessera's stream."""
    stream = driver.gpu(0).stream
    start, end = driver.Event(True), driver.Event(True)

    def run() -> float:
        start.record(stream)
        for _ in range(count):
            f()
        end.record(stream).synchronize()
        return end.since(start) / count

    return run


def tiles(n: int = 4096) -> list[dict[str, Any]]:
    """Kernels as users write them, at the tile level, beside Triton's in the manner of its tutorials."""
    import triton_peers
    out = []
    a, b = torch.randn(n, n, device="cuda", dtype=BF16), torch.randn(n, n, device="cuda", dtype=BF16)
    c = torch.full((n, n), math.nan, device="cuda", dtype=BF16)
    mine = [ts.from_dlpack(x) for x in (a, b, c)]
    tile_product(*mine)
    driver.gpu(0).stream.synchronize()
    error = check("tile product", c, a.float() @ b.float(), 5e-3)
    ms = rounds({"tessera": launches(lambda: tile_product(*mine)), "triton": torch_graph([lambda: triton_peers.product(a, b)], 5),
                 "cublas product": torch_graph([cublas(a, b)], 5)}, 5)
    out.append({"case": f"tile-level product bf16 NN {n}", "unit": "TFLOP/s", "error": error,
                **{k: 2 * n**3 / t / 1e9 for k, t in ms.items()}})
    report(out[-1])
    for width in (64, 128):
        q, k, v = (torch.randn(32, n, width, device="cuda", dtype=BF16) for _ in range(3))
        o = torch.full_like(q, math.nan)
        given = [ts.from_dlpack(x) for x in (q, k, v, o)]
        tile_attention(*given, width**-0.5)
        driver.gpu(0).stream.synchronize()
        error = check(f"tile attention D{width}", o, F.scaled_dot_product_attention(q[None], k[None], v[None])[0], 1.5e-2)
        ms = rounds({"tessera": launches(lambda: tile_attention(*given, width**-0.5), 3),  # noqa: B023
                     "triton": torch_graph([lambda: triton_peers.attention(q, k, v)], 3)}, 5)  # noqa: B023
        out.append({"case": f"tile-level attention D{width} S{n}", "unit": "TFLOP/s", "error": error,
                    **{k: 4 * 32 * n**2 * width / t / 1e9 for k, t in ms.items()}})
        report(out[-1])
    return out


def _sets(rows: int, columns: int, dtype: torch.dtype, affine: int) -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    return [([torch.randn(rows, columns, device="cuda", dtype=dtype), *(torch.randn(columns, device="cuda", dtype=dtype)
                                                                        for _ in range(affine))],
             torch.full((rows, columns), math.nan, device="cuda", dtype=dtype)) for _ in range(4)]


def rows() -> list[dict[str, Any]]:
    layer = ts.function(lambda x, w, b: ts.layer_norm(x, w, b))
    rms = ts.function(lambda x, w: ts.rms_norm(x, w))
    soft = ts.function(lambda x: ts.softmax(x))
    kinds: list[tuple[str, Any, int, Any]] = [
        ("layer norm", layer, 2, lambda x, w, b: F.layer_norm(x, (x.shape[-1],), w, b)),
        ("RMS norm", rms, 1, lambda x, w: F.rms_norm(x, (x.shape[-1],), w, 1e-5)),
        ("softmax", soft, 0, lambda x: torch.softmax(x, -1))]
    out = []
    for dtype, sizes in ((BF16, ((8192, 4096), (8192, 8192), (4096, 16384))), (torch.float32, ((8192, 4096),))):
        for r, c in sizes:
            for name, f, affine, peer in kinds:
                sets = _sets(r, c, dtype, affine)
                ours = Ours(program_of(f, *sets[0][0]), sets)
                ours.run(0)
                ours.stream.synchronize()
                error = check(name, sets[0][1], peer(*(x.float() for x in sets[0][0])), 5e-3 if dtype is BF16 else 1e-5)
                copies = [copy(s[0][0]) for s in sets]
                calls = [functools.partial(peer, *s[0]) for s in sets]
                runs = {"tessera": graph_of(ours, 16), "torch": torch_graph(calls, 16), "copy": torch_graph(copies, 16)}
                nbytes = 2 * r * c * sets[0][1].element_size()
                out.append({"case": f"{name} {str(dtype)[6:]} {r}x{c}", "unit": "GB/s", "error": error,
                            **{k: nbytes / t / 1e6 for k, t in rounds(runs).items()}})
                report(out[-1])
    return out


def eight(x: Any, y: Any) -> Any:
    return ((((x * y + 1.0) * 0.5 - y) * x + 2.0) * y).abs()


def chain() -> list[dict[str, Any]]:
    out = []
    for dtype in (torch.float32, BF16):
        sets = [([torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2)],
                 torch.full((8192, 8192), math.nan, device="cuda", dtype=dtype)) for _ in range(2)]
        ours = Ours(program_of(ts.function(eight), *sets[0][0]), sets)
        ours.run(0)
        ours.stream.synchronize()
        error = check("chain", sets[0][1], eight(*(x.float() for x in sets[0][0])), 1e-6 if dtype is torch.float32 else 2e-2)
        calls = [functools.partial(eight, *s[0]) for s in sets]
        copies = [copy(s[0][0]) for s in sets]
        ms = rounds({"tessera": graph_of(ours, 8), "torch eager": torch_graph(calls, 4), "copy": torch_graph(copies, 8)})
        nbytes = sets[0][1].nbytes
        out.append({"case": f"chain of 8 {str(dtype)[6:]} 8192x8192", "unit": "GB/s", "error": error,
                    "tessera": 3 * nbytes / ms["tessera"] / 1e6, "torch eager": 3 * nbytes / ms["torch eager"] / 1e6,
                    "copy": 2 * nbytes / ms["copy"] / 1e6})
        report(out[-1])
    return out


def host() -> list[dict[str, Any]]:
    """Microseconds of host time of a call, and seconds from tile IR to PTX."""
    out = []
    x = ts.from_dlpack(torch.randn(256, 256, device="cuda"))
    f = ts.function(lambda a: a * 2.0 + 1.0)
    g = ts.function(lambda a: ts.softmax(ts.tanh(a @ a) @ a))
    for name, fn in (("one kernel", f), ("four kernels, one graph", g)):
        for _ in range(50):
            fn(x)
        times = []
        for _ in range(20):
            driver.gpu(0).stream.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                fn(x)
            times.append((time.perf_counter() - start) / 50 * 1e6)
        out.append({"case": f"host time of a call, {name}", "unit": "us", "tessera": statistics.median(times)})
        report(out[-1])
    from tessera.kernels.hopper.attention import attention_program
    from tessera.runtime.llvm_workers import Request, workers
    from tessera.targets.nvidia import kernels
    machine = runtime.compiler("gpu:0").machine
    fn = attention_program(16, 4096, 4096, 128)
    start = time.perf_counter()
    module = kernels.lower(fn, machine)
    ptx = workers().compile(Request(module.text, machine.triple, machine.cpu, machine.llvm_features, "asm", name="attention"))
    middle = time.perf_counter()
    code = driver.Code(ptx)
    out.append({"case": "attention, tile IR to PTX", "unit": "s", "tessera": middle - start, "driver": time.perf_counter() - middle,
                "complaints": kernels.complaints(code.log)})
    report(out[-1])
    return out


# -- reporting ---------------------------------------------------------------------------------------------------------------
def report(row: dict[str, Any]) -> None:
    print(f"{row['case']:45}", "  ".join(f"{k} {v:.1f}" if isinstance(v, float) and abs(v) >= 0.1 else f"{k} {v}"
                                        for k, v in row.items() if k not in ("case",)), flush=True)


def geomean(found: list[dict[str, Any]], peer: str) -> float | None:
    ratios = [r["tessera"] / r[peer] for r in found if peer in r]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def commit() -> str:
    try:
        found = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts(commit: str) -> dict[str, Any]:
    """Where and with what this ran."""
    return {"machine": torch.cuda.get_device_name(), "commit": commit, "date": time.strftime("%Y-%m-%d %H:%M"),
            "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda,
            "driver": int(driver.call("cuDriverGetVersion"))}


def main(more: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="gemm,epilogue,attention,forms,tiles,rows,chain,host")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"h200-{time.strftime('%Y%m%d')}.json")
    parser.add_argument("--commit", default=commit())
    args = parser.parse_args()
    torch.zeros(1, device="cuda")
    results: list[dict[str, Any]] = []
    for name in args.only.split(","):
        f = {"gemm": gemm, "epilogue": epilogue, "attention": attention, "forms": forms, "tiles": tiles, "rows": rows, "chain": chain,
             "host": host}[name]
        results += f(more=more) if name in ("gemm", "attention") else f()
        args.out.write_text(json.dumps({**facts(args.commit), "results": results}, indent=1) + "\n")
    for peer in ("cublas", "cudnn", "reference", "copy"):
        ratio = geomean(results, peer)
        if ratio is not None:
            print(f"tessera / {peer}: {ratio:.3f}")


if __name__ == "__main__":
    main()
