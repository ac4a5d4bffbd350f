"""Kernels of fragments and of copies that they start, on Intel's OpenCL runtime: the interpreter's bits."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
import pytest
from one_source import built
from simt_harness import check, opencl

import tessera as ts
from tessera import tile

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


@ts.kernel
def fragments(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.f32]):
    a, b, c = tile.fragment.a((16, 16), ts.bf16), tile.fragment.b((16, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
    held = tile.alloc_shared(16, 16, dtype=ts.bf16)
    for k in tile.range(0, 40, step=16, parallel=False):
        tile.load_async(held, A[0:16, k:k + 16])
        tile.barrier()
        tile.load_matrix(a, held)
        tile.load_matrix(b, B[k:k + 16, 0:16])
        tile.mma(c, a, b, c)
    tile.store_matrix(C[0:16, 0:16], c)


@ts.kernel
def lanes(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32], Same: ts.Tile["N", ts.uint32]):
    x = tile.load(X, (0,), shape=(64,))
    y = tile.warp.reduce_sum(x) + tile.warp.shuffle(x, lane_id=5) + tile.warp.butterfly(x, mask=15)
    y = y + tile.where(tile.warp.any(x > 2) | tile.warp.all(x > -1), 1.0, 0.0)
    y = y + tile.block.reduce_max(x) + tile.block.broadcast(x, 3)
    tile.block.sync()
    tile.store(Y[0:64], y + tile.cooperative_group(size=16).reduce(x, op="sum"))
    tile.store(Same[0:64], tile.warp.match(tile.floor(x)))


@ts.kernel
def ring(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32]):
    """Two stages of copies under way; sums of windows of two."""
    held = tile.alloc_shared(64, dtype=ts.f32, swizzle="xor"), tile.alloc_shared(64, dtype=ts.f32, swizzle="xor")
    tile.async_copy(X[0:64], held[0])
    for i in tile.static_range(3):
        tile.async_copy(X[(i + 1) * 64:(i + 2) * 64], held[(i + 1) % 2])
        tile.wait_async(1)
        tile.store(Y[i * 64:(i + 1) * 64], tile.load_shared(held[i % 2]) * 2.0)
        tile.barrier()


@pytest.mark.parametrize("kernel, arrays", [
    (lanes, [np.random.default_rng(0).standard_normal(50).astype(np.float32), np.zeros(50, np.float32), np.zeros(50, np.uint32)]),
    (ring, [np.random.default_rng(0).standard_normal(220).astype(np.float32), np.zeros(220, np.float32)])], ids=["lanes", "ring"])
def test_groups_and_copies(kernel, arrays):
    fn, sizes = built(kernel, *arrays)
    check(fn, arrays, sizes)


def test_fragments():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 9, s).astype(ts.bf16.np) for s in ((13, 40), (40, 15))] + [np.zeros((13, 15), np.float32)]
    fn, sizes = built(fragments, *arrays)
    out = check(fn, arrays, sizes)
    np.testing.assert_array_equal(out[2], arrays[0].astype(np.float32) @ arrays[1].astype(np.float32))
