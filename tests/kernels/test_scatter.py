"""Scatter in every mode: order of equal indices, negative and out-of-range indices, one rounding for narrow floats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run, template_op

import tessera as ts
from tessera.ir.interpret_tile import Result
from tessera.kernels import scatter  # noqa: F401
from tessera.kernels.simt.select import simt_program
from tessera.machine import INTEL_CPU, NVIDIA_SM90, X86_AVX512, SimtMachine
from tessera.types.dims import sym
from tessera.types.dtypes import as_dtype

RNG = np.random.default_rng(2)
UFUNC = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def scattered(x: np.ndarray, index: np.ndarray, updates: np.ndarray, mode: str, machine: Any = X86_AVX512,
              **attrs: int) -> tuple[np.ndarray, Result]:
    n, m = sym("N M")
    d = as_dtype(x.dtype)
    op = template_op("scatter", [(d, (n, *x.shape[1:])), (as_dtype(index.dtype), (m,)), (d, (m, *x.shape[1:])), (d, (n, *x.shape[1:]))],
                     op="scatter", mode=mode, **attrs)
    out = np.zeros_like(x)
    fn = simt_program(op, machine, "k") if isinstance(machine, SimtMachine) else build(op)
    assert fn is not None
    result = run(fn, [x, index, updates, out], {"N": x.shape[0], "M": len(index)})
    return out, result


@pytest.mark.parametrize("machine", [X86_AVX512, INTEL_CPU, NVIDIA_SM90], ids=lambda m: m.cpu or m.vendor)
@pytest.mark.parametrize("mode", ["set", "add", "mul", "max", "min"])
@pytest.mark.parametrize("inner", [(), (5,), (2, 70)])
def test_modes(mode: str, inner: tuple[int, ...], machine: Any) -> None:
    x, index = RNG.standard_normal((9, *inner)).astype(np.float32), RNG.integers(-9, 9, 20)
    updates = RNG.standard_normal((20, *inner)).astype(np.float32)
    expected = x.copy()
    if mode == "set":
        expected[index] = updates
    else:
        UFUNC[mode].at(expected, index, updates)
    assert np.array_equal(scattered(x, index, updates, mode, machine)[0], expected)


def test_many_blocks_share_the_rows_of_a_gpu() -> None:
    """The gradient of an embedding: each block owns every so-manyth row, whatever the number of updates."""
    x, index = np.zeros((3000, 8), np.float32), (RNG.integers(0, 3000, 500) ** 2 // 3000).astype(np.int64)
    updates = RNG.standard_normal((500, 8)).astype(np.float32)
    got, result = scattered(x, index, updates, "add", NVIDIA_SM90)
    expected = x.copy()
    np.add.at(expected, index, updates)
    assert np.array_equal(got, expected) and result.blocks >= 4 * NVIDIA_SM90.units


def test_no_updates_copy() -> None:
    x = RNG.standard_normal((4, 3)).astype(np.float32)
    assert np.array_equal(scattered(x, np.zeros(0, np.int32), np.zeros((0, 3), np.float32), "add")[0], x)


def test_narrow_floats_round_once() -> None:
    x, index = np.ones((3, 4), np.float16), np.array([1] * 60 + [2], np.int32)
    updates = np.full((61, 4), 0.0004, np.float16)
    got = scattered(x, index, updates, "add")[0]
    expected = x.astype(np.float32)
    np.add.at(expected, index, updates.astype(np.float32))
    assert np.array_equal(got, expected.astype(np.float16))


def test_first_bad_index_is_reported_and_clamped() -> None:
    x, index = np.zeros((4, 2), np.float32), np.array([1, 7, -9])
    got, result = scattered(x, index, np.ones((3, 2), np.float32), "add", site=5)
    assert result.failure is not None
    assert (result.failure.site, int(result.failure.value)) == (5, 7)
    assert np.array_equal(got[:, 0], [1, 1, 0, 1])


@pytest.mark.parametrize("dtype", [ts.bf16, ts.f16], ids=str)
def test_many_narrow_sums_are_taken_wide_and_round_once(dtype):
    """The same bits as the kernel's own search for equal rows, in time linear in the updates."""
    import time

    from tessera.transforms import expand
    rng = np.random.default_rng(5)
    n, m = 37, 400
    x = ts.from_numpy(rng.standard_normal((n, 6)).astype(np.float32)).to(dtype)
    u = ts.from_numpy(rng.standard_normal((m, 6)).astype(np.float32)).to(dtype)
    i = ts.from_numpy(rng.integers(-n, n, m))

    def add(x, i, u):
        return ts.ops.indexing.bind("scatter", x, i, u, mode="add")

    wide = ts.jit(add)(x, i, u)
    many, expand.FEW_UPDATES = expand.FEW_UPDATES, 10**6
    try:
        narrow = ts.jit(lambda x, i, u: add(x, i, u) * 1)(x, i, u)
    finally:
        expand.FEW_UPDATES = many
    assert wide.numpy().tobytes() == narrow.numpy().tobytes()
    exact = np.array(x.to(ts.f32).numpy())
    np.add.at(exact, i.numpy(), u.to(ts.f32).numpy())
    assert wide.numpy().tobytes() == ts.from_numpy(exact).to(dtype).numpy().tobytes()

    f = ts.jit(add)
    i = ts.from_numpy(rng.integers(0, 50, 20000))
    x, u = ts.zeros(50, 2, dtype=dtype), ts.ones(20000, 2, dtype=dtype)
    f(x, i, u)
    start = time.perf_counter()
    f(x, i, u)
    assert time.perf_counter() - start < 1.0  # the search took 20000**2 steps
