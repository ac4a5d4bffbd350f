"""Products with few rows: one program holds a variant for 1 row, for 2 to 4, for 5 to 8 and for more; all give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.kernels import matmul

M, K, N, B = ts.sym("M K N B")
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33)


def check(fn: Any, make: Any, reference: Any, tolerance: float = 1e-4) -> None:
    """``fn`` on the first rows of one matrix equals its rows of the whole bit for bit, and numpy to rounding; one program."""
    x, rest = make()
    whole = np.asarray(fn(ts.from_numpy(x), *rest))
    np.testing.assert_allclose(whole.astype(np.float64), reference(x.astype(np.float64)), rtol=tolerance, atol=tolerance * 30)
    for m in ROWS:
        assert np.asarray(fn(ts.from_numpy(x[:m].copy()), *rest)).tobytes() == whole[:m].tobytes(), m
    assert len(fn.programs) == 1


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [96, 1000, 1024])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_one_program(n: int, transposed: bool) -> None:
    w = numbers(n, 130) if transposed else numbers(130, n)
    wide = (w.T if transposed else w).astype(np.float64)

    @ts.function
    def product(x: ts.Tensor[M, 130], w: ts.Tensor) -> Any:
        return x @ (w.T if transposed else w)

    check(product, lambda: (numbers(40, 130), (ts.from_numpy(w),)), lambda x: x @ wide)


def test_with_an_epilogue_and_symbolic_sizes() -> None:
    w, b = numbers(300, 200), numbers(200)

    @ts.function
    def layer(x: ts.Tensor[M, K], w: ts.Tensor[K, N], b: ts.Tensor[N]) -> ts.Tensor[M, N]:
        return ts.relu(x @ w + b)

    check(layer, lambda: (numbers(40, 300), (ts.from_numpy(w), ts.from_numpy(b))),
          lambda x: np.maximum(x @ w.astype(np.float64) + b, 0))


def test_a_residual_that_the_epilogue_reads() -> None:
    w = numbers(130, 130)

    @ts.function
    def block(x: ts.Tensor[M, 130], w: ts.Tensor[130, 130]) -> ts.Tensor[M, 130]:
        return x + ts.tanh(x @ w)

    check(block, lambda: (numbers(40, 130), (ts.from_numpy(w),)), lambda x: x + np.tanh(x @ w.astype(np.float64)))


def test_batches_of_few_rows() -> None:
    w = numbers(3, 130, 96)

    @ts.function
    def batched(x: ts.Tensor[B, M, 130], w: ts.Tensor[B, 130, 96]) -> ts.Tensor[B, M, 96]:
        return x @ w

    x = numbers(3, 40, 130)
    whole = batched(ts.from_numpy(x), ts.from_numpy(w)).numpy()
    for m in ROWS:
        got = batched(ts.from_numpy(x[:, :m].copy()), ts.from_numpy(w)).numpy()
        assert got.tobytes() == np.ascontiguousarray(whole[:, :m]).tobytes()
    assert len(batched.programs) == 1


def test_each_variant_is_in_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, int]] = []

    @ts.function
    def product(x: ts.Tensor[M, 64], w: ts.Tensor[64, 640]) -> ts.Tensor[M, 640]:
        return x @ w

    stream, block = matmul.streaming, matmul.blocked

    def streaming(p: Any, plan: Any, rows: int, *rest: Any, **options: Any) -> None:
        built.append(("streaming", rows))
        stream(p, plan, rows, *rest, **options)

    def blocked(p: Any, plan: Any, *rest: Any) -> None:
        built.append(("blocked", plan.mr))
        block(p, plan, *rest)

    monkeypatch.setattr(matmul, "streaming", streaming)
    monkeypatch.setattr(matmul, "blocked", blocked)
    assert "matmul" in product.schedule_ir and product.tile_ir  # builds the kernels
    assert ("streaming", 1) in built and ("streaming", matmul.STREAMED_ROWS) in built and ("blocked", matmul.LOW_ROWS) in built
    assert any(what == "blocked" and mr > matmul.LOW_ROWS for what, mr in built)


@pytest.mark.parametrize("m", [1, 3, 7, 20])
def test_an_epilogue_in_place_runs_once(m):
    """Row blocks of a symbolic product that have no rows of their own do not add again to what another has stored."""
    rng = np.random.default_rng(m)
    a, b, x = (rng.standard_normal((m, 40)).astype(np.float32) for _ in range(3))
    w = rng.standard_normal((40, 48)).astype(np.float32)

    @ts.function
    def f(a: ts.Tensor[M, 40], b: ts.Tensor[M, 40], x: ts.Tensor[M, 40], w: ts.Tensor[40, 48]) -> ts.Tensor[M, 48]:
        return b @ w + a @ w - x @ w

    np.testing.assert_allclose(f(a, b, x, w).numpy(), b @ w + a @ w - x @ w, rtol=1e-4, atol=1e-4)
