"""The library's product on Intel's OpenCL runtime: the interpreter's bits, at sizes that tiles do not divide, and from plain functions."""

import sys
from pathlib import Path

import numpy as np
import pytest
from simt_harness import compare, opencl

import tessera as ts
from tessera.kernels.simt.matmul import product_program
from tessera.machine import INTEL_CPU
from tessera.types.dims import name
from tessera.types.dtypes import bf16, f32, f64, int8, int32

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
from products import product_op
from test_simt_matmul import arrays

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


@pytest.mark.parametrize("sizes, kinds", [
    ((70, 45, 133), {"dtype": f32}), ((64, 64, 128), {"dtype": f32, "rhs_t": True}), ((33, 70, 40), {"dtype": bf16, "lhs_t": True}),
    ((40, 33, 70), {"dtype": f64, "batch": (("b0", 2),)}), ((9, 41, 35), {"dtype": int8, "accumulate": int32, "out": int32})], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_the_interpreters_bits(sizes, kinds, symbolic):
    fn = product_program(product_op(*(map(name, "MNK") if symbolic else sizes), **kinds), INTEL_CPU, "kernel")
    env = dict(zip("MNK", sizes)) if symbolic else {}
    data = arrays(fn, env)
    rng = np.random.default_rng(1)
    for a in data[:2]:
        if a.dtype.kind != "i":
            a[...] = rng.standard_normal(a.shape).astype(a.dtype)
    compare(fn, data, env)


@pytest.mark.parametrize("dtype", [ts.f32, ts.f16], ids=str)
def test_from_a_plain_function(dtype):
    rng = np.random.default_rng(2)
    a, w, r = (rng.standard_normal(s).astype(dtype.np) for s in ((2, 37, 50), (50, 45), (2, 37, 45)))

    @ts.function
    def layer(a, w, r):
        return ts.relu(a @ w) + r

    got = layer(*(ts.Tensor(x).to("intel:0") for x in (a, w, r))).numpy().astype(np.float64)
    exact = np.maximum(a.astype(np.float64) @ w.astype(np.float64), 0) + r.astype(np.float64)
    assert np.abs(got - exact).max() <= (1e-5 if dtype is ts.f32 else 2e-2) * np.abs(exact).max()


@pytest.mark.parametrize("k", [0, 3])
def test_empty_sums(k):
    @ts.function
    def f(a, b):
        return a @ b

    a, b = np.ones((8, k), np.float32), np.ones((k, 40), np.float32)
    np.testing.assert_array_equal(f(ts.Tensor(a).to("intel:0"), ts.Tensor(b).to("intel:0")).numpy(), np.full((8, 40), k, np.float32))
