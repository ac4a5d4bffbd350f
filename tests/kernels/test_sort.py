"""Sorting networks against numpy: lengths around tiles and chunks, every key type, ties, NaN, inner axes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run, template_op

from tessera.kernels import sort as sort_kernels
from tessera.machine import cpu
from tessera.types.dims import sym
from tessera.types.dtypes import as_dtype, int64

RNG = np.random.default_rng(3)


def ordered(x: np.ndarray, axis: int = -1, descending: bool = False, symbolic: bool = False, machine: Any = cpu.X86_AVX512) -> np.ndarray:
    shape: list[Any] = list(x.shape)
    sizes = {}
    if symbolic:
        shape[axis], sizes = sym("N"), {"N": x.shape[axis]}
    d = as_dtype(x.dtype)
    fn = build(template_op("sort", [(d, shape), (d, shape)], op="sort", axis=axis, descending=descending), machine)
    out = np.zeros_like(x)
    run(fn, [x, out], sizes)
    return out


def positions(x: np.ndarray, axis: int = -1, descending: bool = False) -> np.ndarray:
    d = as_dtype(x.dtype)
    fn = build(template_op("sort", [(d, x.shape), (int64, x.shape)], op="argsort", axis=axis, descending=descending))
    out = np.zeros(x.shape, np.int64)
    run(fn, [x, out])
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16, 17, 64, 65, 200])
def test_lengths(n: int) -> None:
    x = RNG.standard_normal((2, n)).astype(np.float32)
    assert np.array_equal(ordered(x), np.sort(x))
    assert np.array_equal(ordered(x, symbolic=True), np.sort(x))


def test_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sort_kernels, "CHUNK", 64)
    x = RNG.standard_normal(300).astype(np.float32)
    assert np.array_equal(ordered(x, machine=cpu.AARCH64_NEON), np.sort(x))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "f16", "f32", "f64"])
def test_key_types(dtype: str) -> None:
    t = as_dtype(dtype).np
    x = RNG.integers(0, 2, 70).astype(t) if dtype == "bool" else (RNG.standard_normal(70) * 50).astype(np.int32).astype(t) \
        if "f" not in dtype else RNG.standard_normal(70).astype(t)
    assert np.array_equal(ordered(x), np.sort(x))
    assert np.array_equal(ordered(x, descending=True), np.sort(x)[::-1])
    if t.itemsize <= 4:  # wider ones are sorted by halves: ops/sorting.py
        assert np.array_equal(positions(x), np.argsort(x, kind="stable"))


@pytest.mark.parametrize("axis", [0, 1])
def test_inner_axis(axis: int) -> None:
    x = RNG.standard_normal((5, 37, 3)).astype(np.float32)
    assert np.array_equal(ordered(x, axis), np.sort(x, axis))
    assert np.array_equal(positions(x, axis), np.argsort(x, axis, kind="stable"))


def test_nan_last_and_ties_in_order() -> None:
    x = RNG.integers(0, 3, 90).astype(np.float32)
    x[[4, 50]] = np.nan
    x[[7, 60]] = -0.0
    x[8] = -np.nan
    x[[9, 10]] = np.inf, -np.inf
    assert np.array_equal(ordered(x), np.sort(x), equal_nan=True)
    assert np.array_equal(positions(x), np.argsort(x, kind="stable"))
    with pytest.raises(AssertionError):
        positions(x.astype(np.float64))  # the op table halves those
    down = positions(x, descending=True)
    assert np.array_equal(np.isnan(x[down])[:3], [True] * 3)
    assert all(a < b for a, b in itertools.pairwise(down) if x[a] == x[b])


def test_values_and_positions() -> None:
    x = RNG.standard_normal((3, 40)).astype(np.float32)
    fn = build(template_op("sort", [("f32", x.shape), ("f32", x.shape), ("int64", x.shape)], outs=2, op="sort", axis=1))
    values, where = np.zeros_like(x), np.zeros(x.shape, np.int64)
    run(fn, [x, values, where])
    assert np.array_equal(values, np.sort(x))
    assert np.array_equal(where, np.argsort(x, kind="stable"))
