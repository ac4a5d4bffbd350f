"""Kernels of the tile level with their references, for a device or what stands for one: each in a jitted function on ``gpu:0``."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
from one_source import attention, exact_attention, product

import tessera as ts
from tessera import tile


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


CASES = [(ts.bf16, ts.bf16, ts.f32, (64, 64, 32)), (ts.f16, ts.f16, ts.f32, (128, 128, 32)), (ts.int8, ts.int8, ts.int32, (64, 64, 64)),
         (ts.fp8_e4m3, ts.fp8_e5m2, ts.f32, (64, 64, 64)), (ts.bf16, ts.bf16, ts.f32, (16, 8, 8))]


def check_product(kind, right, out, tiles, shape=(150, 90, 170)):
    """Small integers, whose sums are exact in any order."""
    rng = np.random.default_rng(0)
    m, n, k = shape
    tm, tn, tk = tiles
    a, b = rng.integers(-4, 5, (m, k)).astype(kind.np), rng.integers(-4, 5, (k, n)).astype(right.np)
    run = ts.jit(lambda a, b: product(a, b, ts.zeros(m, n, dtype=out, device="gpu:0"), tm, tn, tk))
    got = run(*(ts.from_numpy(x).to("gpu:0") for x in (a, b)))
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
    assert np.abs(got - exact_attention(*(x.numpy() for x in (q, k, v)), d ** -0.5)).max() < 2**-5
