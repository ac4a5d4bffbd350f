"""Kernels of the tile level with their references, for a device or what stands for one: each in a jitted function on ``gpu:0``."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np

import tessera as ts
from tessera import tile


def product(kind, right, out, m, n, k):
    @ts.kernel
    def matmul(A: ts.Tile["M", "K", kind], B: ts.Tile["K", "N", right], C: ts.Tile["M", "N", out]):
        for i in tile.range(A.shape[0], step=m):
            for j in tile.range(B.shape[1], step=n, parallel=False):
                acc = tile.zeros((m, n), out)
                for l in tile.range(A.shape[1], step=k):
                    acc = tile.mma(A[i:i + m, l:l + k], B[l:l + k, j:j + n], acc)
                tile.store(C[i:i + m, j:j + n], acc)
    return matmul


@ts.kernel
def fragments(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.f32]):
    a, b, c = tile.fragment.a((16, 16), ts.bf16), tile.fragment.b((16, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
    left = tile.alloc_shared(16, 16, dtype=ts.bf16)
    for k in tile.range(0, 64, step=16, parallel=False):
        tile.async_copy(A[0:16, k:k + 16], left)
        tile.wait_async(0)
        tile.load_matrix(a, left)
        tile.load_matrix(b, B[k:k + 16, 0:16])
        tile.mma(c, a, b, c)
    tile.store_matrix(C[0:16, 0:16], c)


@ts.kernel
def attention(Q: ts.Tile["B*H", "S", "D", ts.bf16], K: ts.Tile["B*H", "S", "D", ts.bf16], V: ts.Tile["B*H", "S", "D", ts.bf16],
              O: ts.Tile["B*H", "S", "D", ts.bf16], scale: float):
    q, k, v = (tile.alloc_shared(64, 64, dtype=ts.bf16) for _ in range(3))
    m, l, acc = tile.alloc_register(64, dtype=ts.f32), tile.alloc_register(64, dtype=ts.f32), tile.alloc_register(64, 64, dtype=ts.f32)
    tile.fill(m, -float("inf"))
    tile.fill(l, 0.0)
    tile.fill(acc, 0.0)
    for i in tile.range(Q.shape[1], step=64):
        tile.load_async(q, Q[i:i + 64])
        for j in tile.range(K.shape[1], step=64):
            tile.load_async(k, K[j:j + 64])
            tile.load_async(v, V[j:j + 64])
            tile.barrier()
            m_new, l_new, p = tile.online_softmax(tile.matmul(q, k.T) * scale, m, l)
            tile.update_accumulator(acc, tile.matmul(p.to(ts.bf16), v), m, m_new, l, l_new)
            m = m_new
            l = l_new
    tile.store(O, acc / l)


CASES = [(ts.bf16, ts.bf16, ts.f32, (64, 64, 32)), (ts.f16, ts.f16, ts.f32, (128, 128, 32)), (ts.int8, ts.int8, ts.int32, (64, 64, 64)),
         (ts.fp8_e4m3, ts.fp8_e5m2, ts.f32, (64, 64, 64)), (ts.bf16, ts.bf16, ts.f32, (16, 8, 8))]


def check_product(kind, right, out, tiles, shape=(150, 90, 170)):
    """Small integers, whose sums are exact in any order."""
    rng = np.random.default_rng(0)
    m, n, k = shape
    a, b = rng.integers(-4, 5, (m, k)).astype(kind.np), rng.integers(-4, 5, (k, n)).astype(right.np)
    kernel = product(kind, right, out, *tiles)
    got = ts.jit(lambda a, b: kernel(a, b, ts.zeros(m, n, dtype=out, device="gpu:0")))(*(ts.from_numpy(x).to("gpu:0") for x in (a, b)))
    np.testing.assert_array_equal(got.numpy(), (a.astype(np.float64) @ b.astype(np.float64)).astype(out.np))


def check_fragments():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, s).astype(ts.bf16.np) for s in ((16, 64), (64, 16)))
    got = ts.jit(lambda a, b: fragments(a, b, ts.zeros(16, 16, device="gpu:0")))(*(ts.from_numpy(x).to("gpu:0") for x in (a, b)))
    np.testing.assert_array_equal(got.numpy(), a.astype(np.float32) @ b.astype(np.float32))


def check_attention(s, d):
    q, k, v = (ts.randn(3, s, d).to(ts.bf16) for _ in range(3))
    run = ts.jit(lambda q, k, v: attention(q, k, v, ts.zeros(3, s, d, dtype=ts.bf16, device="gpu:0"), d ** -0.5))
    got = run(*(x.to("gpu:0") for x in (q, k, v))).numpy().astype(np.float64)
    q, k, v = (x.numpy().astype(np.float64) for x in (q, k, v))
    scores = np.einsum("bqd,bkd->bqk", q, k) * d ** -0.5
    p = np.exp(scores - scores.max(-1, keepdims=True))
    assert np.abs(got - p / p.sum(-1, keepdims=True) @ v).max() < 2**-5
