"""Kernels of fragments and of copies that they start, on Intel's OpenCL runtime: the interpreter's bits."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
import pytest
from simt_harness import check, opencl

import tessera as ts
from tessera import tile
from tessera.types.shapes import unify

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


def test_fragments():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 9, s).astype(ts.bf16.np) for s in ((13, 40), (40, 15))] + [np.zeros((13, 15), np.float32)]
    built = fragments.build({n: ts.Tensor(a).type for n, a in zip("ABC", arrays)})
    env = {}
    for p, a in zip(built.params.values(), arrays):
        unify(p.type.shape, a.shape, env)
    out = check(built.function, arrays, env)
    np.testing.assert_array_equal(out[2], arrays[0].astype(np.float32) @ arrays[1].astype(np.float32))
