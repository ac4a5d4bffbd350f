"""``@ts.kernel``: the kernels of the specification, ragged edges, registers and shared memory, loops and helpers."""

# ruff: noqa: F821  (names of sizes in annotations)
import math

import ml_dtypes
import numpy as np
import pytest

from tessera import tile
from tessera.ir import interpret_tile
from tessera.ir.text import parse_function
from tessera.ir.tile import verify
from tessera.tiling import frontend
from tessera.tiling.frontend import Tile, Tile3D, kernel
from tessera.types.dtypes import bf16, f32, int32

SIZES = [1, 3, 5, 14, 17, 64, 65, 100]


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch):
    """Programs run block by block in a shuffled order, with race and bounds checks, from their printed text."""
    def launch(fn, buffers, sizes):
        again = parse_function(str(fn))
        verify(again)
        assert str(again) == str(fn)
        interpret_tile.run(again, buffers, sizes, seed=1)
    monkeypatch.setattr(frontend, "launch", launch)


def rand(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# -- the specification's kernels -----------------------------------------------------------------------------------------
@kernel
def tile_matmul(
    A: Tile["M", "K", bf16],
    B: Tile["K", "N", bf16],
    C: Tile["M", "N", f32],
):
    """
    Tiles abstract away thread/warp complexity
    M, N, K are tile dimensions (e.g., 64x64)
    """
    # Get tile configuration
    ctx = tile.context()

    # Load tiles (automatic vectorization)
    a_tile = tile.load(A, shape=(ctx.M, ctx.K))
    b_tile = tile.load(B, shape=(ctx.K, ctx.N))

    # Compute (maps to tensor cores)
    c_tile = tile.mma(a_tile, b_tile)

    # Store (automatic coalescing)
    tile.store(C, c_tile)


@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (1, 1, 1), (3, 5, 14), (100, 70, 90), (17, 130, 65), (128, 64, 192)])
def test_tile_matmul(m, k, n):
    a, b = rand(m, k, dtype=ml_dtypes.bfloat16), rand(k, n, seed=1, dtype=ml_dtypes.bfloat16)
    guarded = np.full((m + 2, n), 7, np.float32)
    tile_matmul(a, b, guarded[1:-1])
    assert np.allclose(guarded[1:-1], a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-4)
    assert (guarded[[0, -1]] == 7).all()


def test_one_program_serves_every_size():
    texts = {tile_matmul.tile_ir(*(np.zeros(s, d) for s, d in [((m, k), ml_dtypes.bfloat16), ((k, n), ml_dtypes.bfloat16), ((m, n), "f4")]))
             for m, k, n in [(200, 30, 7), (9, 999, 2)]}
    assert len(texts) == 1


def test_the_configuration_comes_from_the_schedule():
    seen = []

    def body(A: Tile["M", "K", f32], B: Tile["K", "N", f32], C: Tile["M", "N", f32]):
        ctx = tile.context()
        seen.append((ctx.M, ctx.N, ctx.K))
        tile.store(C, tile.mma(tile.load(A, shape=(ctx.M, ctx.K)), tile.load(B, shape=(ctx.K, ctx.N))))

    a, b, c = rand(20, 30), rand(30, 10, seed=1), np.zeros((20, 10), np.float32)
    kernel(body, tile_m=16, tile_n=8, tile_k=4)(a, b, c)
    assert np.allclose(c, a @ b, atol=1e-5)
    kernel.with_schedule({"tile_m": 4, "tile_size": 12})(body)(a, b, c)
    kernel(body).with_schedule({"tile_k": 3})(a, b, c)
    assert np.allclose(c, a @ b, atol=1e-5)
    assert seen == [(16, 8, 4), (4, 12, 12), (64, 64, 3)]


class ts:  # the names that the next kernel, copied from the specification, uses
    from tessera.types.dtypes import bf16, f32
    kernel, Tile, tile = kernel, Tile, tile


@ts.kernel
def fused_attention_kernel(
    Q: ts.Tile["B*H", "S", "D", ts.bf16],
    K: ts.Tile["B*H", "S", "D", ts.bf16],
    V: ts.Tile["B*H", "S", "D", ts.bf16],
    O: ts.Tile["B*H", "S", "D", ts.bf16],
    scale: float
):
    """Custom Flash Attention kernel with manual optimization."""

    # Automatic tiling and memory management
    ctx = ts.tile.context()  # noqa: F841

    # Shared memory allocation (automatically optimized)
    smem_q = ts.tile.alloc_shared(128, 64, dtype=ts.bf16)
    smem_k = ts.tile.alloc_shared(128, 64, dtype=ts.bf16)
    smem_v = ts.tile.alloc_shared(128, 64, dtype=ts.bf16)

    # Online softmax state
    m_state = ts.tile.alloc_register(128, dtype=ts.f32)
    l_state = ts.tile.alloc_register(128, dtype=ts.f32)
    acc = ts.tile.alloc_register(128, 64, dtype=ts.f32)

    # Initialize
    ts.tile.fill(m_state, -float('inf'))
    ts.tile.fill(l_state, 0.0)
    ts.tile.fill(acc, 0.0)

    # Main computation loop (automatically pipelined)
    for q_tile in ts.tile.range(Q.shape[1], step=128):
        # Load Q tile (async prefetch)
        ts.tile.load_async(smem_q, Q[q_tile:q_tile+128])

        for kv_tile in ts.tile.range(K.shape[1], step=128):
            # Load K,V tiles (double buffered)
            ts.tile.load_async(smem_k, K[kv_tile:kv_tile+128])
            ts.tile.load_async(smem_v, V[kv_tile:kv_tile+128])
            ts.tile.barrier()

            # Attention scores: Q @ K^T (uses tensor cores)
            scores = ts.tile.matmul(smem_q, smem_k.T) * scale

            # Online softmax update (numerically stable)
            m_new, l_new, scores_norm = ts.tile.online_softmax(
                scores, m_state, l_state
            )

            # Attention output: P @ V (uses tensor cores)
            v_out = ts.tile.matmul(scores_norm, smem_v)

            # Update accumulator
            ts.tile.update_accumulator(acc, v_out, m_state, m_new, l_state, l_new)

            # Update states
            m_state = m_new
            l_state = l_new

    # Store final output
    ts.tile.store(O, acc / l_state)


def attention(q, k, v, scale):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    s = np.einsum("bqd,bkd->bqk", q, k) * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("heads, s, d", [(2, 256, 64), (1, 130, 48), (3, 5, 17), (1, 129, 64)])
def test_fused_attention(heads, s, d):
    q, k, v = (rand(heads, s, d, seed=i, dtype=ml_dtypes.bfloat16) for i in range(3))
    o = np.zeros_like(q)
    fused_attention_kernel(q, k, v, o, 1 / np.sqrt(d))
    assert np.abs(o.astype(np.float64) - attention(q, k, v, 1 / np.sqrt(d))).max() < 2**-7


def test_fused_attention_has_one_program_a_query_tile():
    q = np.zeros((6, 300, 64), ml_dtypes.bfloat16)
    text = fused_attention_kernel.tile_ir(q, q, q, q, 0.1)
    assert "grid = (<B_H_>, <((S+127)//(128))>)" in text
    assert text.count(" = for(") == 1


def test_a_head_wider_than_shared_memory_is_refused():
    q = np.zeros((1, 8, 80), ml_dtypes.bfloat16)
    with pytest.raises(frontend.KernelError, match="does not fit shared memory"):
        fused_attention_kernel(q, q, q, q, 0.1)


@pytest.mark.parametrize("shape", [(2, 130, 300), (1, 5, 17), (3, 128, 256)])
def test_hierarchical_tiles_visit_each_element_once(shape):
    def process(block):
        tile.store(block, tile.load(block) + 1)

    @kernel
    def hierarchical_kernel(X: Tile3D["D1", "D2", "D3"]):
        for l2_tile in tile.split(X, level="L2"):
            for l1_tile in tile.split(l2_tile, level="L1"):
                for reg_tile in tile.split(l1_tile, shape=(16, 64)):
                    process(reg_tile)

    x = rand(*shape)
    y = x.copy()
    hierarchical_kernel(y)
    assert np.array_equal(y, x + 1)


def test_memory_hierarchy():
    @kernel
    def memory_hierarchy_kernel(source: Tile["M", "N", bf16], output: Tile["M", "N", bf16]):
        shared_buffer = tile.alloc_shared(shape=(64, 64), dtype=bf16)
        register_buffer = tile.alloc_register(shape=(8, 8), dtype=f32)
        tile.async_copy(src=source, dst=shared_buffer, size=(64, 64), stage=2)
        tile.wait_async(stage=0)
        register_buffer = tile.load_shared(shared_buffer)
        result = register_buffer * 2
        tile.store_shared(shared_buffer, result)
        tile.async_copy(shared_buffer, output)

    for shape in [(64, 64), (100, 70), (5, 3)]:
        x, o = rand(*shape, dtype=ml_dtypes.bfloat16), np.zeros(shape, ml_dtypes.bfloat16)
        memory_hierarchy_kernel(x, o)
        assert np.array_equal(o.astype(np.float32), x.astype(np.float32) * 2)


def test_mma_in_place_and_matmul_with_an_output():
    @kernel
    def fragments(A: Tile["M", "K", f32], B: Tile["K", "N", f32], C: Tile["M", "N", f32]):
        c = tile.alloc_register(16, 16, dtype=f32)
        tile.fill(c, 1.0)
        tile.mma(c, tile.load(A, shape=(16, 8)), tile.load(B, shape=(8, 16)), c)
        tile.store(C, c)

    @kernel
    def scheduled(A, B, C):
        return tile.matmul(A, B, C)

    for m, k, n in [(16, 8, 16), (17, 30, 5), (70, 3, 70), (65, 65, 65)]:
        a, b, c = rand(m, k), rand(k, n, seed=1), np.zeros((m, n), np.float32)
        fragments(a, b, c)
        assert np.allclose(c, a @ b + 1, atol=1e-4)
        assert scheduled(a, b, c) is c
        assert np.allclose(c, a @ b, atol=1e-4)


@pytest.mark.parametrize("n", [5, 64, 70, 130])
def test_products_of_axes_that_share_a_name(n):
    @kernel
    def square(A: Tile["N", "N", f32], B: Tile["N", "N", f32], C: Tile["N", "N", f32]):
        tile.store(C, tile.mma(tile.load(A, shape=(32, 16)), tile.load(B, shape=(16, 32))))

    @kernel
    def gram(A: Tile["M", "K", f32], B: Tile["K", "M", f32], C: Tile["M", "M", f32]):
        tile.store(C, tile.mma(tile.load(A, shape=(32, 16)), tile.load(B, shape=(16, 32))))

    a, b, c = rand(n, n), rand(n, n, seed=1), np.zeros((n, n), np.float32)
    square(a, b, c)
    assert np.allclose(c, a @ b, atol=1e-4)
    a, b, c = rand(n, 19), rand(19, n, seed=1), np.zeros((n, n), np.float32)
    gram(a, b, c)
    assert np.allclose(c, a @ b, atol=1e-4)


def test_transposed_windows():
    @kernel
    def transpose(X: Tile["M", "N", f32], O: Tile["N", "M", f32]):
        tile.store(O, tile.load(X, shape=(16, 16)).T)

    x, o = rand(37, 21), np.zeros((21, 37), np.float32)
    transpose(x, o)
    assert np.array_equal(o, x.T)


# -- elementwise and reductions --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", SIZES)
def test_elementwise_of_whole_parameters(n):
    @kernel
    def axpy(A: Tile["N", f32], X: Tile["N", f32], Y: Tile["N", f32], factor: float = 2.0):
        tile.store(Y, tile.fma(A, X, Y) * factor)

    a, x, y = (rand(n, seed=s) for s in range(3))
    expected = (a.astype(np.float64) * x + y).astype(np.float32)
    axpy(a, x, y, factor=0.5)
    assert np.array_equal(y, expected * np.float32(0.5))


@pytest.mark.parametrize("m, n", [(1, 1), (3, 5), (14, 17), (33, 100)])
def test_row_softmax_masks_the_ragged_edge(m, n):
    @kernel
    def softmax(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        for i in tile.range(X.shape[0], step=8):
            m = tile.alloc_register(8, dtype=f32)
            l = tile.alloc_register(8, dtype=f32)
            tile.fill(m, float("-inf"))
            tile.fill(l, 0.0)
            for j in tile.range(X.shape[1], step=16):
                m, l, _ = tile.online_softmax(X[i:i + 8, j:j + 16], m, l)
            for j in tile.range(X.shape[1], step=16):
                tile.store(O[i:i + 8, j:j + 16], tile.exp(X[i:i + 8, j:j + 16] - m) / l)

    x, o = rand(m, n) - 50, np.zeros((m, n), np.float32)
    softmax(x, o)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    assert np.allclose(o, e / e.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 14, 17, 64, 100])
def test_reductions_leave_out_lanes_beyond_the_edge(n):
    @kernel
    def statistics(X: Tile["R", "N", f32], O: Tile["R", "K", f32]):
        for r in tile.range(X.shape[0], step=4):
            best, least, total = float("-inf"), float("inf"), 0.0
            product = tile.full((4, 1), 1.0, f32)
            for j in tile.range(X.shape[1], step=32):
                t = X[r:r + 4, j:j + 32] * 1.0
                best = tile.maximum(best, tile.max(t, axis=1, keepdims=True))
                least = tile.minimum(least, tile.min(t, axis=1, keepdims=True))
                total = total + tile.sum(tile.exp(t), axis=1, keepdims=True)
                product = product * tile.prod(t, axis=1, keepdims=True)
            tile.store(O[r:r + 4, 0:1], best)
            tile.store(O[r:r + 4, 1:2], least)
            tile.store(O[r:r + 4, 2:3], total)
            tile.store(O[r:r + 4, 3:4], product)

    x, o = -rand(6, n) ** 2 - 1, np.zeros((6, 4), np.float32)
    statistics(x, o)
    expected = np.stack([x.max(1), x.min(1), np.exp(x).sum(1), x.prod(1)], 1)
    assert np.allclose(o, expected, rtol=1e-4)


def test_carried_tiles_ignore_lanes_beyond_a_moving_edge():
    @kernel
    def column_max(X: Tile["M", "N", f32], O: Tile["N", f32]):
        best = tile.full((16, 8), float("-inf"), f32)
        for i in tile.range(X.shape[0], step=16):
            for j in tile.range(X.shape[1], step=8, parallel=False):
                best = tile.maximum(best, X[i:i + 16, j:j + 8] - 3)
        tile.store(O[0:8], tile.max(best, axis=0))

    for m in (5, 16, 37):
        x, o = rand(m, 8) - 10, np.zeros(8, np.float32)
        column_max(x, o)
        assert np.allclose(o, x.max(0) - 3)


def test_a_row_vector_broadcasts_along_rows_even_where_the_tile_is_square():
    @kernel
    def center(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        x = tile.load(X, shape=(16, 16))
        tile.store(O, (x - tile.max(x, axis=1)) / (1 + tile.sum(x * x, axis=0)))

    x, o = rand(16, 16), np.zeros((16, 16), np.float32)
    center(x, o)
    assert np.allclose(o, (x - x.max(1, keepdims=True)) / (1 + (x * x).sum(0)), atol=1e-6)


def test_mean_counts_only_data():
    @kernel
    def means(X: Tile["M", "N", f32], O: Tile["M", f32]):
        for i in tile.range(X.shape[0], step=4):
            tile.store(O[i:i + 4], tile.mean(tile.load(X[i:i + 4, 0:32]), axis=1))

    x, o = rand(6, 19), np.zeros(6, np.float32)
    means(x, o)
    assert np.allclose(o, x.mean(1), atol=1e-6)


# -- grids ---------------------------------------------------------------------------------------------------------------
def test_leading_axes_are_the_grid():
    @kernel
    def scale_rows(X: Tile["A", "B", "M", "N", f32], W: Tile["A*1", "N", f32], O: Tile["A", "B", "M", "N", f32]):
        assert len(X.shape) == 4
        for i in tile.range(X.shape[2], step=4):
            tile.store(O[i:i + 4], X[i:i + 4] * 2)

    x, o = rand(2, 3, 5, 7), np.zeros((2, 3, 5, 7), np.float32)
    scale_rows(x, rand(2, 7), o)
    assert np.array_equal(o, x * 2)


def test_the_outermost_loop_stays_sequential_where_stores_do_not_depend_on_it():
    @kernel
    def total(X: Tile["N", f32], O: Tile["K", f32]):
        acc = 0.0
        for i in tile.range(X.shape[0], step=16):
            acc += tile.sum(X[i:i + 16])
        tile.store(O[0:1], acc)

    x, o = rand(50), np.zeros(1, np.float32)
    total(x, o)
    assert np.allclose(o, x.sum(), atol=1e-5)
    assert "grid = (1,)" in total.tile_ir(x, o)


def test_a_loop_that_reduces_before_one_that_writes():
    @kernel
    def normalise(X: Tile["N", f32], O: Tile["N", f32]):
        s = 0.0
        for i in tile.range(X.shape[0], step=16):
            s += tile.sum(X[i:i + 16])
        for i in tile.range(X.shape[0], step=16):
            O[i:i + 16] = X[i:i + 16] / s

    x, o = np.abs(rand(50)) + 1, np.zeros(50, np.float32)
    normalise(x, o)
    assert np.allclose(o, x / x.sum(), rtol=1e-5)


def test_in_place_windows():
    @kernel
    def double(X: Tile["M", "N", int32]):
        for i in tile.range(X.shape[0], step=3):
            X[i:i + 3] = X[i:i + 3] * 2

    x = np.arange(35, dtype=np.int32).reshape(7, 5)
    y = x.copy()
    assert double(y) is y and np.array_equal(y, x * 2)


def test_gather_and_scatter():
    @kernel
    def permute(X: Tile["N", f32], I: Tile["N", int32], O: Tile["N", f32], P: Tile["N", f32]):
        for i in tile.range(X.shape[0], step=8):
            where = tile.load(I[i:i + 8])
            tile.store(O[i:i + 8], tile.gather(X, where, fill=-1))

    x, i, o = rand(11), np.array([3, 0, 10, 11, -1, 2, 5, 5, 1, 9, 4], np.int32), np.zeros(11, np.float32)
    permute(x, i, o, o.copy())
    assert np.array_equal(o, np.where((i >= 0) & (i < 11), x[np.clip(i, 0, 10)], np.float32(-1)))


# -- control flow, registers, shared memory ----------------------------------------------------------------------------------
def test_registers_in_loops_and_conditionals():
    @kernel
    def walk(X: Tile["N", f32], O: Tile["K", f32]):
        r = tile.alloc_register(4, dtype=f32)
        s = tile.alloc_register(4, dtype=f32)
        tile.fill(r, 0.0)
        tile.fill(s, 1.0)
        n = 0
        while n < X.shape[0]:
            v = tile.sum(X[n:n + 1])
            if v > 0:
                tile.fill(r, v)
            else:
                tile.copy(s * 2.0, s)
            n += 1
        tile.store(O[0:4], r)
        tile.store(O[4:8], s)

    x, o = np.array([1, -1, 3, -2, -5], np.float32), np.zeros(8, np.float32)
    walk(x, o)
    assert o.tolist() == [3] * 4 + [8] * 4


def test_double_buffering_keeps_count_of_ragged_copies():
    @kernel
    def pipelined(X: Tile["N", f32], O: Tile["K", f32]):
        buffer = tile.alloc_shared(16, dtype=f32)
        tile.load_async(buffer, X[0:16])
        best = float("-inf")
        for i in tile.range(X.shape[0], step=16, parallel=False):
            tile.barrier()
            best = tile.maximum(best, tile.max(tile.load_shared(buffer) - 5, axis=0))
            tile.load_async(buffer, X[i + 16:i + 32])
        tile.store(O[0:1], best)

    for n in (5, 16, 40, 48):
        x, o = rand(n, seed=n) - 30, np.zeros(1, np.float32)
        pipelined(x, o)
        assert o[0] == (x - np.float32(5)).max()


def helper_with_loop(x, n):
    for _ in tile.range(n):
        if tile.max(x, axis=0) < 100:
            x = x * 2
    return x


def test_helper_functions_are_inlined_with_their_loops():
    @kernel
    def grow(X: Tile["N", f32], O: Tile["N", f32], times: int):
        def inner(v):
            return helper_with_loop(v, times) + 1

        for i in tile.range(X.shape[0], step=8):
            tile.store(O[i:i + 8], inner(X[i:i + 8] * 1.0))

    x, o = np.arange(1, 9, dtype=np.float32), np.zeros(8, np.float32)
    grow(x, o, 10)
    assert np.array_equal(o, x * 16 + 1)


def test_a_kernel_calls_another():
    @kernel
    def store_double(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, X * 2)

    @kernel
    def outer(X: Tile["N", f32], O: Tile["N", f32]):
        store_double(X, O)

    x, o = rand(5), np.zeros(5, np.float32)
    outer(x, o)
    assert np.array_equal(o, x * 2)


def test_static_arguments_build_separate_programs():
    @kernel
    def affine(X: Tile["N", f32], O: Tile["N", f32], mode: str, factor: float = 1.0):
        if mode == "square":
            y = X * X
        else:
            y = X * factor
        tile.store(O, y)

    x, o = rand(6), np.zeros(6, np.float32)
    affine(x, o, "square")
    assert np.array_equal(o, x * x)
    affine(x, o, mode="scale", factor=3.0)
    assert np.array_equal(o, x * np.float32(3))


def test_sizes_become_static_where_a_shape_needs_them():
    @kernel
    def transpose(X: Tile["M", "N", f32], O: Tile["N", "M", f32]):
        x = tile.load(X, (0, 0), shape=(X.shape[0], X.shape[1]))
        tile.store(O[:, :], x.T)

    for shape in [(3, 5), (14, 2)]:
        x, o = rand(*shape), np.zeros(shape[::-1], np.float32)
        transpose(x, o)
        assert np.array_equal(o, x.T)
    assert "sizes = ()" in transpose.tile_ir(x, o)


def test_read_only_and_strided_outputs():
    @kernel
    def fill_ones(O: Tile["M", "N", f32]):
        tile.store(O, 1.0 + tile.load(O) * 0)

    base = np.zeros((4, 6), np.float32)
    fill_ones(base[:, ::2])
    assert base[:, ::2].all() and not base[:, 1::2].any()


def test_empty_tensors():
    @kernel
    def double(X: Tile["M", "N", f32], O: Tile["M", "N", f32]):
        tile.store(O, X * 2)

    double(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32))
    a, c = np.zeros((3, 0), ml_dtypes.bfloat16), np.ones((3, 4), np.float32)
    tile_matmul(a, np.zeros((0, 4), ml_dtypes.bfloat16), c)
    assert not c.any()


def test_functions_and_builtins_of_tiles():
    @kernel
    def k(X: Tile["M", "N", f32], O: Tile["L", f32]):
        x = tile.load(X, (0, 0), shape=(4, 8))
        line = tile.load(X[-1, 0:8])                         # the last row
        rows = [
            tile.softmax(x, axis=1), tile.clamp(x, -0.5, 0.5), tile.relu(x), tile.silu(x), tile.gelu(x), x - tile.mean(x, 1, keepdims=True),
            x - tile.mean(x), x * tile.sum(x, axis=(0, 1)), tile.zeros_like(x) + tile.expand_dims(line, 0), x * len(X) + min(X.shape[1], 5),
            max(x, 0.25, line), abs(min(x, 0.0)), x - tile.max(x, axis=(0, -1), keepdims=True)]
        for at, row in enumerate(rows):
            tile.scatter(O, tile.iota((4, 8), 0) * 8 + tile.iota((4, 8), 1) + at * 32, row)

    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    o = np.full(13 * 32, np.nan, np.float32)
    k(x, o)
    e = np.exp(x.astype(np.float64))
    erf = np.vectorize(math.erf)
    want = [e / e.sum(1, keepdims=True), np.clip(x, -0.5, 0.5), np.maximum(x, 0), x / (1 + 1 / e), x * (1 + erf(x / np.sqrt(2))) / 2,
            x - x.mean(1, keepdims=True), x - x.mean(), x * x.sum(), np.broadcast_to(x[-1], x.shape), x * 4 + 5,
            np.maximum(np.maximum(x, 0.25), x[-1]), np.abs(np.minimum(x, 0)), x - x.max()]
    got = o.reshape(13, 4, 8)
    np.testing.assert_allclose(got[:, :, :7], want, rtol=2e-6, atol=2e-6)
    assert np.isnan(got[:, :, 7]).all()                      # lanes without data are not scattered
