"""One kernel source, every machine: interpreter, CPU, Intel's OpenCL and NVIDIA agree with f64 and with one another within the policy,
and each with itself bit by bit."""

import numpy as np
import pytest
from one_source import attention, built, exact_attention, exact_layer_norm, exact_stencil, layer_norm, product, stencil
from simt_harness import opencl

import tessera as ts
from tessera.ir import interpret_tile
from tessera.targets.nvidia import driver

EPS = float(ts.f32.finfo.eps)
LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def products(dtype):
    """What is rounded: each of the 71 sums of f32, in any order, relative to the sum of magnitudes."""
    a, b = normal(0, 50, 71).astype(dtype.np), normal(1, 71, 45).astype(dtype.np)
    exact, size = (f(a.astype(np.float64)) @ f(b.astype(np.float64)) for f in (np.array, np.abs))
    return product, (a, b, np.zeros((50, 45), np.float32)), {}, exact, 71 * EPS * size


def attentions(dtype):
    """Probabilities and results are rounded to the narrow type."""
    q, k, v = (normal(i, 2, s, 13).astype(dtype.np) for i, s in enumerate((50, 41, 41)))
    return (attention, (q, k, v, np.zeros((2, 50, 13), dtype.np)), {"scale": 0.25, "block": 16, "width": 16},
            exact_attention(q, k, v, 0.25), 4 * float(dtype.finfo.eps))


def layer_norms(dtype):
    x, w, b = normal(0, 13, 50).astype(dtype.np), normal(1, 50).astype(np.float32), normal(2, 50).astype(np.float32)
    exact = exact_layer_norm(x, w, b, 1e-5)
    allowed = 16 * EPS + float(dtype.finfo.eps) * np.abs(exact)
    return layer_norm, (x, w, b, np.zeros_like(x)), {"width": 64, "eps": 1e-5}, exact, allowed


def stencils(dtype):
    x = normal(0, 19, 37).astype(dtype.np) if dtype.is_float else np.random.default_rng(0).integers(-100, 100, (19, 37)).astype(dtype.np)
    weights = LAPLACE if dtype.is_float else tuple(tuple(map(int, row)) for row in LAPLACE)
    allowed = 16 * float(dtype.finfo.eps) * np.abs(x).max() if dtype.is_float else 0
    return stencil, (x, np.zeros_like(x)), {"weights": weights}, exact_stencil(x, LAPLACE), allowed


CASES = [(products, ts.f32), (products, ts.bf16), (attentions, ts.bf16), (attentions, ts.f16), (layer_norms, ts.f32), (layer_norms, ts.f16),
         (stencils, ts.f32), (stencils, ts.int32)]
MACHINES = ["interpreter", "cpu",
            pytest.param("intel:0", marks=pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")),
            pytest.param("gpu:0", marks=[pytest.mark.gpu, pytest.mark.skipif(driver.count() == 0, reason="no NVIDIA device")])]


def run(machine, kernel, arrays, static):
    """What the kernel makes of its last argument."""
    if machine == "interpreter":
        fn, sizes = built(kernel, *arrays, **static)
        buffers = [a.copy() for a in arrays]
        interpret_tile.run(fn, buffers, sizes)
        return buffers[-1]
    tensors = [ts.tensor(a, device=machine) for a in arrays]
    kernel(*tensors, **static)
    assert tensors[-1].device == machine
    return tensors[-1].numpy()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("case, dtype", CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_one_source(case, dtype, machine):
    kernel, arrays, static, exact, allowed = case(dtype)
    got = run(machine, kernel, arrays, static)
    assert (np.abs(got.astype(np.float64) - exact) <= allowed).all()
    np.testing.assert_array_equal(run(machine, kernel, arrays, static), got)            # to the bit
    if machine != "interpreter":
        interpreted = run("interpreter", kernel, arrays, static).astype(np.float64)
        assert (np.abs(got.astype(np.float64) - interpreted) <= allowed).all()
