"""Running sums, products and extrema along any axis, both ways."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run, template_op

from tessera.kernels import scan  # noqa: F401
from tessera.types.dims import sym
from tessera.types.dtypes import as_dtype

RNG = np.random.default_rng(11)
UFUNC = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}


def scanned(name: str, x: np.ndarray, axis: int, reverse: bool, symbolic: bool = False) -> np.ndarray:
    shape: list[Any] = list(x.shape)
    sizes = {}
    if symbolic:
        shape[axis], sizes = sym("N"), {"N": x.shape[axis]}
    t = (as_dtype(x.dtype), shape)
    out = np.zeros_like(x)
    run(build(template_op("scan", [t, t], op=name, axis=axis, reverse=reverse)), [x, out], sizes)
    return out


def expected(name: str, x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    y = np.flip(x, axis) if reverse else x
    y = UFUNC[name].accumulate(y, axis, dtype=x.dtype)
    return np.flip(y, axis) if reverse else y


@pytest.mark.parametrize("name", list(UFUNC))
@pytest.mark.parametrize("shape, axis", [
    ((40,), 0), ((3, 17), 1), ((3, 16), 1), ((5, 70), 0), ((2, 9, 3), 1), ((3, 0), 1), ((0, 3), 1), ((2, 1), 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans(name: str, shape: tuple[int, ...], axis: int, reverse: bool) -> None:
    x = (RNG.random(shape) + 0.5).astype(np.float32)
    assert np.allclose(scanned(name, x, axis, reverse), expected(name, x, axis, reverse), rtol=1e-5)
    assert np.allclose(scanned(name, x, axis, reverse, True), expected(name, x, axis, reverse), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "f64", "f16"])
def test_dtypes(dtype: str) -> None:
    x = RNG.integers(0, 3, (4, 37)).astype(as_dtype(dtype).np)
    for axis in (0, 1):
        assert np.array_equal(scanned("cumsum", x, axis, False), expected("cumsum", x, axis, False))
        assert np.array_equal(scanned("cummax", x, axis, True), expected("cummax", x, axis, True))


def test_nan_stays() -> None:
    x = RNG.standard_normal((2, 30)).astype(np.float32)
    x[0, 4] = np.nan
    assert np.array_equal(scanned("cummin", x, 1, False), expected("cummin", x, 1, False), equal_nan=True)
