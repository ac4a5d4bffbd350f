"""Products of bf16 and int8 on an AVX-512 CPU without AMX: by ``vdpbf16ps`` and ``vpdpbusd``, compiled and interpreted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from products import check, matmul_function

from tessera.machine import host_cpu
from tessera.types.dtypes import bf16, f32, int8, int32


@pytest.mark.parametrize("m, n, k, transposed", [(17, 35, 21, False), (30, 64, 70, True), (16, 16, 600, False)])
def test_pairs(m: int, n: int, k: int, transposed: bool) -> None:
    host = host_cpu()
    if not host.has("avx512bf16"):
        pytest.skip("the host has no vdpbf16ps")
    machine = replace(host, tune="znver4", features=tuple(f for f in host.features if not f.startswith("amx")))
    rng = np.random.default_rng(k)
    a, b = (rng.standard_normal(s).astype(np.float32).astype(bf16.np) for s in ((m, k), (k, n)))
    fn = matmul_function(m, n, k, dtype=bf16, out=f32, rhs_t=transposed, machine=machine)
    assert {op.attrs.get("unit") for op in fn.walk() if op.name == "dot"} == {"dpbf16"}
    got = check(fn, [a.ravel(), (b.T if transposed else b).ravel(), np.zeros(m * n, np.float32)], machine=machine)[2]
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(got.reshape(m, n) - want).max() <= 1e-5 * k


@pytest.mark.parametrize("m, n, k, transposed", [(17, 35, 21, False), (30, 64, 70, True), (16, 16, 600, False)])
@pytest.mark.parametrize("unit", ["vnni", None])
def test_integers(m: int, n: int, k: int, transposed: bool, unit: str | None) -> None:
    """int8 by int8 into int32: by ``vpdpbusd``, four of k at a time, and without it; exact either way."""
    host = host_cpu()
    if unit and not host.has("avx512vnni"):
        pytest.skip("the host has no vpdpbusd")
    machine = replace(host, features=tuple(f for f in host.features if not f.startswith("amx") and (unit or f != "avx512vnni")))
    rng = np.random.default_rng(k)
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((m, k), (k, n)))
    fn = matmul_function(m, n, k, dtype=int8, out=int32, accumulate=int32, rhs_t=transposed, machine=machine)
    assert {op.attrs.get("unit") for op in fn.walk() if op.name == "dot"} == {unit}
    got = check(fn, [a.ravel(), (b.T if transposed else b).ravel(), np.zeros(m * n, np.int32)], machine=machine)[2]
    assert np.array_equal(got.reshape(m, n), a.astype(np.int32) @ b.astype(np.int32))
