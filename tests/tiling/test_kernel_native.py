"""Kernels through the whole compiler: the interpreter's bits, eager, in traced functions and under jit."""
# ruff: noqa: F821  (names of sizes in annotations)

import ml_dtypes
import numpy as np
import pytest
import test_kernel as kernels

import tessera as ts
from tessera import tile
from tessera.ir import interpret_tile
from tessera.ir.text import parse_function
from tessera.tiling import frontend

ROWS = ts.Tile["M", "N", ts.f32]


@ts.kernel
def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
    tile.store(C, A + B)


@ts.kernel
def softmax(X: ROWS, O: ROWS):
    for i in tile.range(X.shape[0], step=4):
        m = tile.full((4, 1), float("-inf"), ts.f32)
        for j in tile.range(X.shape[1], step=16):
            m = tile.maximum(m, tile.max(X[i:i + 4, j:j + 16] * 1.0, axis=1, keepdims=True))
        l = tile.zeros((4, 1), ts.f32)
        for j in tile.range(X.shape[1], step=16):
            l = l + tile.sum(tile.exp(X[i:i + 4, j:j + 16] - m), axis=1, keepdims=True)
        for j in tile.range(X.shape[1], step=16):
            tile.store(O[i:i + 4, j:j + 16], tile.exp(X[i:i + 4, j:j + 16] - m) / l)


def interpreted(monkeypatch, k, *args):
    with monkeypatch.context() as m:
        m.setattr(frontend, "launch", lambda fn, buffers, sizes: interpret_tile.run(fn, buffers, sizes))
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        k(*copies)
    return copies


@pytest.mark.parametrize("n", [1, 14, 17, 64, 1000])
def test_elementwise(monkeypatch, n):
    args = kernels.rand(n), kernels.rand(n, seed=1), np.zeros(n, np.float32)
    expected = interpreted(monkeypatch, add, *args)
    add(*args)
    assert args[2].tobytes() == expected[2].tobytes() and np.array_equal(args[2], args[0] + args[1])


@pytest.mark.parametrize("m, n", [(1, 5), (14, 17), (9, 100)])
def test_softmax_has_the_interpreters_bits(monkeypatch, m, n):
    args = kernels.rand(m, n), np.zeros((m, n), np.float32)
    expected = interpreted(monkeypatch, softmax, *args)
    softmax(*args)
    assert args[1].tobytes() == expected[1].tobytes()
    assert np.allclose(args[1].sum(1), 1, atol=1e-5)


def test_the_specifications_kernels_have_the_interpreters_bits(monkeypatch):
    a, b = kernels.rand(70, 100, dtype=ml_dtypes.bfloat16), kernels.rand(100, 65, seed=1, dtype=ml_dtypes.bfloat16)
    args = a, b, np.zeros((70, 65), np.float32)
    expected = interpreted(monkeypatch, kernels.tile_matmul, *args)
    kernels.tile_matmul(*args)
    assert args[2].tobytes() == expected[2].tobytes()
    q, k, v = (kernels.rand(2, 150, 48, seed=i, dtype=ml_dtypes.bfloat16) for i in range(3))
    args = q, k, v, np.zeros_like(q), 0.15
    expected = interpreted(monkeypatch, kernels.fused_attention_kernel, *args)
    kernels.fused_attention_kernel(*args)
    assert args[3].tobytes() == expected[3].tobytes()


def test_an_eager_call_writes_its_output_in_place():
    a, b, c = ts.ones(10), ts.ones(10), ts.zeros(10)
    assert add(a, b, c) is c and c.tolist() == [2.0] * 10


def test_inside_a_function_the_output_argument_is_replaced():
    @ts.function
    def f(a: ts.Tensor["N", ts.f32], b: ts.Tensor["N", ts.f32]):
        c = ts.zeros_like(a)
        before = c + 1
        d = add(a, b, c)
        return c * 2 + d + before

    assert "kernel_call(" in str(f.graph_ir)
    assert f(ts.ones(10), ts.full((10,), 2.0)).tolist() == [10.0] * 10
    assert f(ts.ones(3), ts.full((3,), 2.0)).tolist() == [10.0] * 3


def test_jit_of_a_kernel():
    jitted = ts.jit(softmax)
    x = ts.from_numpy(kernels.rand(6, 20))
    got = jitted(x, ts.zeros(6, 20))
    assert np.allclose(got.numpy(), ts.softmax(x, -1).numpy(), atol=1e-6)


def test_an_in_place_kernel_in_a_function_leaves_its_argument_alone():
    @ts.kernel
    def double(X: ROWS):
        for i in tile.range(X.shape[0], step=2):
            X[i:i + 2, 0:8] = X[i:i + 2, 0:8] * 2

    x = ts.from_numpy(kernels.rand(5, 8))
    y = x.numpy().copy()

    @ts.jit
    def f(x):
        return double(x) + 1

    assert np.array_equal(f(x).numpy(), y * 2 + 1) and np.array_equal(x.numpy(), y)
    double(x)
    assert np.array_equal(x.numpy(), y * 2)


def test_shapes_are_checked_before_anything_runs():
    with pytest.raises(ts.errors.ShapeError, match="'B' has size 3 in dimension 0, expected N = 4"):
        add(ts.ones(4), ts.ones(3), ts.ones(4))

    with pytest.raises(ts.errors.ShapeError, match="'B' has size 3"):
        ts.jit(lambda a, b: add(a, b, ts.zeros_like(a)))(ts.ones(4), ts.ones(3))


def test_jit_of_the_specifications_attention():
    q, k, v = (ts.from_numpy(kernels.rand(2, 150, 48, seed=i, dtype=ml_dtypes.bfloat16)) for i in range(3))
    attention = ts.jit(kernels.fused_attention_kernel)
    for scale in (0.15, 0.3):
        got = attention(q, k, v, ts.zeros(2, 150, 48, dtype=ts.bf16), scale)
        expected = kernels.attention(q.numpy(), k.numpy(), v.numpy(), scale)
        assert np.abs(got.numpy().astype(np.float64) - expected).max() < 2**-6


def test_a_symbolic_size_that_the_kernel_needs_as_a_number():
    @ts.function
    def f(q: ts.Tensor["B", "S", "D", ts.bf16]):
        return kernels.fused_attention_kernel(q, q, q, ts.zeros_like(q), 0.1)

    with pytest.raises(ts.errors.KernelError, match=r"a tile shape must be static: Q.shape\[2\] is symbolic here"):
        f(ts.zeros(2, 10, 8, dtype=ts.bf16))

    @ts.function
    def g(q: ts.Tensor["B", "S", 8, ts.bf16]):
        return kernels.fused_attention_kernel(q, q, q, ts.zeros_like(q), 0.1)

    assert g(ts.zeros(2, 10, 8, dtype=ts.bf16)).shape == (2, 10, 8)


def test_two_kernels_of_one_name():
    def scaled(c):
        @ts.kernel
        def k(A: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
            tile.store(C, A * c)
        return k

    two, three = scaled(2.0), scaled(3.0)

    @ts.function
    def f(x: ts.Tensor["N", ts.f32]):
        return two(x, ts.zeros(x.shape)) + three(x, ts.zeros(x.shape)) + two(x, ts.zeros(x.shape))

    assert f(ts.ones(5)).tolist() == [7] * 5
    assert list(parse_function(f.graph_ir).functions) == ["k", "k_1"]
