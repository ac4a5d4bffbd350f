"""Factorisations and triangular solves against numpy."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run, template_op

from tessera.kernels import linalg  # noqa: F401
from tessera.types.dims import sym
from tessera.types.dtypes import int64

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 16, 33])
def test_cholesky(n: int) -> None:
    a = RNG.standard_normal((2, n, n))
    a = a @ a.transpose(0, 2, 1) + n * np.eye(n)
    out = np.full_like(a, 7)
    size = sym("N")
    op = template_op("cholesky", [("f64", (2, size, size))] * 2)
    run(build(op), [np.tril(a) + np.triu(np.ones_like(a), 1), out], {"N": n})
    assert np.allclose(out, np.linalg.cholesky(a) if n else a)


def test_cholesky_of_an_indefinite_matrix_is_nan() -> None:
    a = np.array([[[1.0, 2.0], [2.0, 1.0]], [[4.0, 2.0], [2.0, 5.0]]], np.float32)
    out = np.zeros_like(a)
    run(build(template_op("cholesky", [("f32", a.shape)] * 2)), [a, out])
    assert np.isnan(out[0]).all()
    assert np.allclose(out[1], [[2, 0], [1, 2]])


@pytest.mark.parametrize("lower, transpose, unit", [*itertools.product([True, False], repeat=3)])
def test_triangular_solve(lower: bool, transpose: bool, unit: bool) -> None:
    for n, k in ((1, 1), (9, 3), (12, 70)):
        a = RNG.standard_normal((2, n, n)) * 0.3 + 3 * np.eye(n)
        b = RNG.standard_normal((2, n, k))
        out = np.zeros_like(b)
        op = template_op("triangular_solve", [("f64", a.shape), ("f64", b.shape), ("f64", b.shape)],
                         lower=lower, transpose=transpose, unit=unit)
        run(build(op), [a, b, out])
        t = np.tril(a) if lower else np.triu(a)
        if unit:
            t = t - t * np.eye(n) + np.eye(n)
        assert np.allclose(np.linalg.solve(t.transpose(0, 2, 1) if transpose else t, b), out)


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_lu(n: int) -> None:
    a = RNG.standard_normal((3, n, n)).astype(np.float32)
    if n == 7:
        a[0, :, 2] = 0
    out, order, sign = np.zeros_like(a), np.zeros((3, n), np.int64), np.zeros(3, np.float32)
    run(build(template_op("lu", [("f32", a.shape), ("f32", a.shape), (int64, (3, n)), ("f32", (3,))], outs=3)), [a, out, order, sign])
    low, up = np.tril(out, -1) + np.eye(n), np.triu(out)
    assert np.allclose(low @ up, np.take_along_axis(a, order[:, :, None], 1), atol=1e-5)
    assert np.abs(np.tril(out, -1)).max(initial=0) <= 1
    for p, s in zip(order, sign, strict=True):
        assert s == np.round(np.linalg.det(np.eye(n)[p]))
