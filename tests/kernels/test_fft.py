"""Fourier transforms against numpy: smooth, prime and mixed lengths, both precisions, real forms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run, template_op

import tessera as ts
from tessera.errors import UnsupportedError
from tessera.ir.core import TensorType
from tessera.kernels import fft as kernels
from tessera.machine import cpu
from tessera.ops.fft_long import LONG, LONG_CHIRP, LONG_REAL, is_long
from tessera.targets.cpu.emit import MAX_STACK_BYTES
from tessera.types.dims import sym
from tessera.types.dtypes import as_dtype

RNG = np.random.default_rng(9)


def reals(x: np.ndarray) -> np.ndarray:
    return x.view(x.real.dtype) if x.dtype.kind == "c" else x


def transformed(kind: str, x: np.ndarray, n: int | None = None, machine: Any = cpu.X86_AVX512) -> np.ndarray:
    expected = reference(kind, x, n)
    op = template_op("fft", [(as_dtype(x.dtype), x.shape), (as_dtype(expected.dtype), expected.shape)], op=kind)
    out = np.zeros_like(expected)
    run(build(op, machine), [reals(x), reals(out)])
    return out


def reference(kind: str, x: np.ndarray, n: int | None) -> np.ndarray:
    wide = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    y = getattr(np.fft, kind)(wide, n) if n else getattr(np.fft, kind)(wide)
    small = x.dtype in (np.float32, np.complex64)
    return y.astype((np.complex64 if y.dtype.kind == "c" else np.float32) if small else y.dtype)


def data(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    x = RNG.standard_normal(shape)
    return (x + 1j * RNG.standard_normal(shape)).astype(dtype) if np.dtype(dtype).kind == "c" else x.astype(dtype)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    eps = np.finfo(b.dtype).eps
    return bool(np.abs(a - b).max() <= 8 * eps * np.log2(b.shape[-1] + 2) * np.abs(b).max())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 12, 16, 30, 60, 64, 72, 97, 128, 130, 210, 243])
def test_lengths(n: int) -> None:
    x = data((3, n), np.complex64)
    assert close(transformed("fft", x), reference("fft", x, None))
    assert close(transformed("ifft", x), reference("ifft", x, None))


@pytest.mark.parametrize("n", [1, 2, 6, 9, 17, 64, 66, 100, 101])
def test_real_forms(n: int) -> None:
    x = data((2, n), np.float32)
    assert close(transformed("rfft", x), reference("rfft", x, None))
    y = data((2, n // 2 + 1), np.complex64)
    assert close(transformed("irfft", y, n), reference("irfft", y, n))


def test_double_precision_and_other_machines() -> None:
    for n in (20, 80, 59):
        x = data((2, n), np.complex128)
        for machine in (cpu.X86_AVX2, cpu.AARCH64_NEON):
            assert close(transformed("fft", x, machine=machine), reference("fft", x, None))


def test_what_is_not_cut_up_fits_a_blocks_scratch() -> None:
    """The limits of ops/fft_long.py, for the widest vectors and both precisions."""
    for real, wide in (("f32", "complex64"), ("f64", "complex128")):
        lanes = cpu.X86_AVX512.vector_lanes(as_dtype(real))
        for n in (*range(2, 600), *(most - k for most in (LONG_CHIRP, LONG_REAL, LONG) for k in range(2000))):
            if is_long({}, [TensorType(as_dtype(wide), (n,))]) or n < kernels.SHORT:
                continue
            smooth = kernels.factors(n) is not None and kernels.split(n)[0] > 1
            form = kernels.FourStep if smooth else kernels.Chirp
            assert form.nbytes(n, lanes, as_dtype(real)) <= kernels.SCRATCH_BYTES, n
            if not is_long({}, [TensorType(as_dtype(real), (n,))]):
                assert form.nbytes(n, lanes, as_dtype(real)) + 2 * n * as_dtype(real).itemsize <= MAX_STACK_BYTES, n


def test_symbolic_length_is_refused() -> None:
    n = sym("N")
    with pytest.raises(UnsupportedError, match="symbolic size N"):
        build(template_op("fft", [("complex64", (2, n)), ("complex64", (2, n))], op="fft"))


@pytest.mark.parametrize("name", ["result", "side", "explicit"])
def test_a_product_s_epilogue_stays_real(name: str) -> None:
    """Complex numbers beside a product (it feeds a transform, or one is added to it) are computed outside its template."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 16)).astype(np.float32), rng.standard_normal((16, 16)).astype(np.float32)
    product = x.astype(np.float64) @ w
    fn, want = {
        "result": (lambda x, w: ts.real(ts.fft.fft(ts.relu(x @ w))), np.fft.fft(np.maximum(product, 0)).real),
        "side": (lambda x, w: (x @ w) * ts.real(ts.fft.fft(x)), product * np.fft.fft(x.astype(np.float64)).real),
        "explicit": (lambda x, w: ts.abs((x @ w).to(ts.complex64) * 1j), np.abs(product)),
    }[name]
    np.testing.assert_allclose(ts.jit(fn)(ts.tensor(x), ts.tensor(w)), want, rtol=1e-4, atol=1e-4)
