"""Group B of the inventory: functions and decorators, control flow and jit as the specification spells them (other rows have their tests
beside the features: rows/B.toml)."""

# ruff: noqa: F821, F722, UP037  (names of sizes in annotations)

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

import tessera as ts

RNG = np.random.default_rng(0)


def test_b017_b018_scan_as_decorator_and_function():
    w = ts.tensor(RNG.normal(size=(4, 4)) * 0.3)

    @ts.scan
    def cell(carry, x):
        carry = ts.tanh(carry @ w + x)
        return carry, carry * 2

    def step(carry, x):
        carry = ts.tanh(carry @ w + x)
        return carry, carry * 2

    xs, start = RNG.normal(size=(9, 4)), ts.zeros(4, dtype=ts.f64)
    final, outs = ts.scan(step, start, ts.tensor(xs))
    same = cell(start, ts.tensor(xs))
    assert np.array_equal(same[0].numpy(), final.numpy()) and np.array_equal(same[1].numpy(), outs.numpy())
    c = np.zeros(4)
    for x, y in zip(xs, outs.numpy(), strict=True):
        c = np.tanh(c @ w.numpy() + x)
        assert np.allclose(y, 2 * c, rtol=1e-13)

    def unrolled(xs):
        c, total = start, 0.0
        for k in range(9):
            c, y = step(c, xs[k])
            total = total + y.sum()
        return total

    g = ts.grad(lambda xs: ts.scan(step, start, xs)[1].sum())(ts.tensor(xs))
    assert np.allclose(g.numpy(), ts.grad(unrolled)(ts.tensor(xs)).numpy(), rtol=1e-12)
    sizes = [sum(1 for _ in ts.jit(lambda xs: ts.scan(step, start, xs)).trace(ts.zeros(n, 4, dtype=ts.f64)).walk()) for n in (3, 300)]
    assert sizes[0] == sizes[1]


def test_b019_b020_fold_is_a_balanced_tree_on_any_number_of_threads():
    @ts.fold
    def tree_reduce(x, y):
        return x + y

    values = RNG.uniform(size=1_000_000).astype(np.float32)
    exact = values.astype(np.float64).sum()
    naive = float(np.cumsum(values, dtype=np.float32)[-1])
    threads, found = ts.get_num_threads(), set()
    try:
        for n in (1, 2, 4):
            ts.set_num_threads(n)
            found.add(float(tree_reduce(ts.tensor(values))))
    finally:
        ts.set_num_threads(threads)
    (total,) = found
    assert abs(total - exact) < abs(naive - exact) / 10 and abs(total / exact - 1) < 1e-6


def test_b021_b023_a_routine_with_a_condition_from_outside():
    @ts.while_loop
    def refine(x, condition, max_iters: int = 100):
        @ts.jit
        def body(x, i):
            return x / 2, i + 1

        return ts.while_loop(cond=lambda x, i: condition(x) and i < max_iters, body=body, init=(x, 0))[0]

    large = lambda x: x > 0.2
    assert float(refine(ts.tensor(1.0), large)) == 0.125 and float(refine(ts.tensor(1.0), large, max_iters=2)) == 0.25

    f = ts.jit(lambda x, condition: ts.while_loop(condition, lambda x: x / 2, x))
    other = lambda x: x > 0.6
    assert [float(f(ts.tensor(1.0), c)) for c in (large, large, other)] == [0.125, 0.125, 0.5] and len(f.programs) == 2


def test_b022_a_while_loop_has_one_body_and_forward_mode():
    def root(a):  # Newton's iteration for the square root
        go_on = lambda x, i: ts.logical_and(ts.abs(x * x - a) > 1e-12, i < 50)
        return ts.while_loop(cond=go_on, body=lambda x, i: (0.5 * (x + a / x), i + 1), init=(a, 0))[0]

    y, dy = ts.jvp(root, (ts.tensor(2.0, dtype=ts.f64),), (ts.tensor(1.0, dtype=ts.f64),))
    assert abs(float(y) - 2 ** 0.5) < 1e-12 and abs(float(dy) - 0.5 / 2 ** 0.5) < 1e-12
    graph = ts.jit(root).trace(ts.tensor(2.0, dtype=ts.f64))
    assert sum(op.name == "while" for op in graph.walk()) == 1 and sum(op.name == "div" for op in graph.walk()) == 1
    capped = ts.while_loop(lambda x, i: i < 7, lambda x, i: (x + 1, i + 1), (ts.tensor(0.0), 0))
    assert float(capped[0]) == 7


def test_b024_an_inner_jit_is_part_of_the_outer_program():
    traced = []

    @ts.jit
    def outer(x):
        @ts.jit
        def inner(x):
            traced.append(1)
            return x * 2

        return inner(x) + 1

    assert [float(outer(ts.tensor(float(k)))) for k in range(3)] == [1, 3, 5] and len(traced) == 1 and len(outer.programs) == 1


def test_b025_b028_static_arguments_and_open_sizes():
    @ts.jit(static_argnums=(1,))
    def init(x, hidden_size):
        return x.sum() * ts.ones(hidden_size)

    assert [init(ts.ones(3), n).shape for n in (4, 4, 5)] == [(4,), (4,), (5,)] and len(init.programs) == 2

    @ts.jit
    def dynamic(x: ts.Tensor["?", "?"]):
        return ts.softmax(x, -1)

    for shape in ((2, 3), (4, 5), (2, 3)):
        assert np.allclose(dynamic(ts.ones(*shape)).numpy(), 1 / shape[1])
    assert len(dynamic.programs) <= 2


def test_b026_a_call_after_the_first_does_not_compile():
    def f(x):
        return ts.tanh(ts.sin(x) * 1.2345678) @ ts.ones(8)

    x, run = ts.randn(4, 8), ts.jit(f)
    start = time.perf_counter()
    first = run(x)
    middle = time.perf_counter()
    assert np.array_equal(run(x).numpy(), first.numpy())
    assert middle - start > 5 * (time.perf_counter() - middle) and len(run.programs) == 1
    assert np.allclose(first.numpy(), f(x).numpy(), rtol=1e-6)


def test_b001_the_chapter_s_first_function():
    @ts.function
    def layer_norm(x: ts.Tensor["...", "D"]) -> ts.Tensor["...", "D"]:
        """... means any number of leading dimensions"""
        mean = x.mean(dim=-1, keepdim=True)
        std = x.std(dim=-1, keepdim=True)
        return (x - mean) / (std + 1e-5)

    for shape in ((7,), (3, 7), (2, 3, 5)):
        x = RNG.normal(size=shape).astype(np.float32)
        wanted = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + np.float32(1e-5))
        assert np.allclose(layer_norm(ts.tensor(x)).numpy(), wanted, rtol=1e-5, atol=1e-6)
    small = np.array([0, 1e-5], np.float32)  # where std + eps and sqrt(var + eps) differ
    assert np.allclose(layer_norm(ts.tensor(small)).numpy(), [-1 / 3, 1 / 3], rtol=1e-4)


def test_b002_decorators_record_their_order():
    @ts.compile
    @ts.checkpoint
    @ts.function
    def layer(x):
        return ts.tanh(x) + x

    assert layer.decorators == ("function", "checkpoint", "compile")
    assert np.allclose(layer(ts.ones(3)).numpy(), np.tanh(1) + 1)
    assert np.allclose(ts.grad(lambda x: layer(x).sum())(ts.ones(3)).numpy(), 2 - np.tanh(1) ** 2)
    assert ts.compile(ts.function(lambda x: x)).decorators == ("function", "compile") and ts.jit(layer) is layer
    right = "from top to bottom the order is @ts.checkpoint, @ts.function"
    with pytest.warns(UserWarning, match=f"@ts.function stands above @ts.checkpoint at .*test_b.py.*{right}"):
        ts.function(ts.checkpoint(lambda x: x))
    with pytest.warns(UserWarning, match="@ts.checkpoint stands above @ts.compile"):
        ts.checkpoint(ts.compile(lambda x: x))
    with pytest.warns(UserWarning, match="@ts.function stands above @ts.compile"):
        assert ts.function(ts.compile(lambda x: x * 2))(ts.ones(2)).tolist() == [2, 2]


def test_b003_compile_as_a_bare_decorator():
    traced = []

    @ts.compile
    def f(x):
        traced.append(1)
        return ts.exp(x) * 2

    first, second = f(ts.ones(4)), f(ts.ones(4))
    assert len(traced) == 1 and len(f.kernels) == 1 and np.array_equal(first.numpy(), second.numpy())


def test_b004_a_model_is_compiled_whole():
    class Model(ts.nn.Module):
        def __init__(self):
            self.up, self.down = ts.nn.Linear(4, 8), ts.nn.Linear(8, 3)

        def forward(self, x):
            return self.down(ts.gelu(self.up(x)))

    model = Model()
    compiled, x = ts.compile(model), ts.randn(5, 4)
    assert np.allclose(compiled(x).numpy(), model(x).numpy(), rtol=1e-5, atol=1e-6)
    assert compiled.graph_ir.count("linear(") + compiled.graph_ir.count("dot_general(") == 2 and "gelu(" in compiled.graph_ir


def test_b006_names_of_models_and_what_runs_on_them():
    h200 = ts.Device("gpu:0", "NVIDIA H200")
    assert h200 == "H200" and h200 != "H100" and h200 != "H20" and ts.current_device() == "cpu"
    assert ts.Device("gpu:1", "NVIDIA A100-SXM4-80GB") == "A100" and ts.Device("gpu:0", "NVIDIA GeForce RTX 4090") == "RTX 4090"

    @ts.specialize_for("A100", "H100")
    def f(x):
        return x

    assert f.select(h200) is f.variants["H100"] and f.select(ts.Device("gpu:0", "L4")) is f.general
    both = ts.specialize_for("H100", "H200")(lambda x: x)
    assert both.select(h200) is both.variants["H200"]


def test_b007_two_generations_of_attention_agree():
    x = (ts.randn(2, 3, 130, 32) * 0.3).to(ts.bf16)
    q = k = v = x.numpy().astype(np.float64)
    s = q @ k.swapaxes(-1, -2) / np.sqrt(32)
    for causal in (False, True):
        one, two = (f(x, causal=causal) for f in (ts.flash_attention_v1, ts.flash_attention_v2))
        assert one.dtype is two.dtype is ts.bf16
        e = np.exp(np.where(np.tri(130, dtype=bool), s, -np.inf) if causal else s)
        wanted = e / e.sum(-1, keepdims=True) @ v
        # a unit in the last place of bf16 is 0.0039 at 0.5, so nearly equal numbers are compared by the error of each
        assert max(np.abs(a.numpy().astype(np.float64) - wanted).max() for a in (one, two)) < np.abs(wanted).max() * 2**-8
        f32 = [f(x.to(ts.f32), causal=causal).numpy() for f in (ts.flash_attention_v1, ts.flash_attention_v2)]
        assert np.abs(f32[0] - f32[1]).max() < 1e-6
    assert np.abs((ts.flash_attention_v1(x) - ts.flash_attention_v2(x)).to(ts.f32).numpy()).max() <= 1e-3

    with pytest.raises(ts.ShapeError, match="4 vs 5"):
        ts.flash_attention_v1(ts.ones(3, 4), ts.ones(7, 5))
    with pytest.raises(ts.errors.ArgumentError, match="at least one key"):
        ts.flash_attention_v1(x, block=0)

    @ts.function
    def open_length(x: ts.Tensor["B", "S", 16]):
        return ts.flash_attention_v1(x, x * 2, x - 1, causal=True)

    for n in (70, 7, 0):
        x = ts.randn(2, n, 16)
        assert np.allclose(open_length(x).numpy(), ts.attention(x, x * 2, x - 1, causal=True).numpy(), atol=1e-5)


def test_b029_a_stack_of_twelve_layers_from_its_weights():
    @ts.function
    def model(x, weights):
        return ts.nn.transformer_stack(x, weights, num_layers=12)

    model_jit = ts.jit(model)
    stacked, x = ts.nn.transformer_weights(16, 12), ts.randn(2, 5, 16)
    start = time.perf_counter()
    out = model_jit(x, stacked)
    assert time.perf_counter() - start < 20
    assert sum(op.name == "scan" for op in model_jit.programs[0].graph.walk()) == 1
    listed = [{n: w[i] for n, w in stacked.items()} for i in range(12)]
    by_name = {n: [w[i] for i in range(12)] for n, w in stacked.items()}
    loop = x
    for layer in listed:
        loop = ts.nn.transformer_block(loop, layer, num_heads=1)
    for same in (out, model_jit(x, listed), model_jit(x, by_name)):
        assert np.allclose(same.numpy(), loop.numpy(), rtol=1e-4, atol=1e-5)
    for weights, text in (({**stacked, "qvk": x}, "no weight 'qvk'; did you mean 'qkv'"), (listed[:3], "holds 3 layers, not 12"),
                          ([{"qkv": x}] * 12, "needs the weight 'out'"), (3, "takes weights by name")):
        with pytest.raises(ts.errors.ArgumentError, match=text):
            ts.nn.transformer_stack(x, weights, num_layers=12)
    with pytest.raises(ts.errors.ArgumentError, match="3 heads do not divide a width of 16"):
        ts.nn.transformer_stack(x, stacked, num_heads=3)
    assert ts.nn.transformer_stack(x, listed[:2]).shape == (2, 5, 16) and ts.nn.gelu is ts.gelu
    with pytest.raises(ts.errors.ArgumentError, match="did you mean 'num_layers'"):
        ts.nn.transformer_stack(x, stacked, num_layer=12)
    with pytest.raises(AttributeError, match="did you mean 'linear'"):
        ts.nn.liner  # noqa: B018


LAYER = """
import time, tessera as ts
def layer(x, w_qkv, w_out, w_up, w_down):
    q, k, v = (t.reshape(4, 2048, 16, 64).transpose(1, 2) for t in ts.split(x @ w_qkv, dim=-1, sections=3))
    x = ts.layer_norm(x + ts.attention(q, k, v, causal=True).transpose(1, 2).reshape(4, 2048, 1024) @ w_out)
    return x + ts.gelu(x @ w_up) @ w_down
shapes = (4, 2048, 1024), (1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)
given = [(ts.randn(*s) * s[-2] ** -0.5).to(ts.bf16).to("gpu:0") for s in shapes]
start = time.perf_counter()
ts.jit(layer)(*given).cpu()
print(time.perf_counter() - start)
"""


@pytest.mark.gpu
@pytest.mark.skipif(len(ts.get_devices()) < 2, reason="no NVIDIA device")
def test_b030_the_first_result_of_a_layer_on_a_gpu(tmp_path):
    def first_call() -> float:
        env = {**os.environ, "TESSERA_CACHE": str(tmp_path)}  # what the driver assembles is kept there too
        return float(subprocess.run([sys.executable, "-c", LAYER], env=env, capture_output=True, text=True, check=True, timeout=120).stdout)

    assert first_call() < 10 and first_call() < 1
