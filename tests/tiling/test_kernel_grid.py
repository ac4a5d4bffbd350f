# ruff: noqa: F821
"""Which loops of a kernel the grid replaces, and that the others keep their meaning."""

import numpy as np
import pytest

import tessera as ts
from tessera import tile


def built(kernel, **tensors):
    return kernel.build({n: t.type for n, t in tensors.items()}).function


def axes(kernel, **tensors):
    return len([g for g in built(kernel, **tensors).attrs["grid"] if g != 1])


def test_loops_directly_in_one_another_share_the_grid():
    @ts.kernel
    def linear(A: ts.Tile["M", "K", ts.f32], B: ts.Tile["K", "N", ts.f32], C: ts.Tile["M", "N", ts.f32]):
        for i in tile.range(A.shape[0], step=16):
            for j in tile.range(B.shape[1], step=32):
                acc = tile.alloc_register(16, 32, dtype=ts.f32)
                tile.fill(acc, 0.0)
                for k in tile.range(A.shape[1], step=32):
                    acc = tile.mma(A[i:i + 16, k:k + 32], B[k:k + 32, j:j + 32], acc)
                tile.store(C[i:i + 16, j:j + 32], acc)

    a, b, c = ts.randn(50, 70), ts.randn(70, 90), ts.zeros(50, 90)
    assert axes(linear, A=a, B=b, C=c) == 2
    linear(a, b, c)
    np.testing.assert_allclose(c.numpy(), a.numpy().astype(np.float64) @ b.numpy(), rtol=1e-4, atol=1e-4)


def test_what_is_computed_between_two_loops_is_computed_once():
    @ts.kernel
    def centred(X: ts.Tile["M", "N", ts.f32], O: ts.Tile["M", "N", ts.f32]):
        for i in tile.range(X.shape[0], step=4):
            total = tile.zeros((4,), ts.f32)
            for j in tile.range(X.shape[1], step=8):
                total = total + tile.sum(X[i:i + 4, j:j + 8], axis=1)
            for j in tile.range(X.shape[1], step=8):
                tile.store(O[i:i + 4, j:j + 8], X[i:i + 4, j:j + 8] - total[:, None])

    x, o = ts.randn(6, 20), ts.zeros(6, 20)
    assert axes(centred, X=x, O=o) == 1
    centred(x, o)
    np.testing.assert_allclose(o.numpy(), x.numpy() - x.numpy().sum(1, keepdims=True), rtol=1e-5, atol=1e-5)


def variable(X: ts.Tile["N", ts.f32], O: ts.Tile["N", ts.f32]):
    c = tile.zeros((4,), ts.f32)
    for i in tile.range(X.shape[0], step=4):
        c = c + X[i:i + 4]
        tile.store(O[i:i + 4], c)


def register(X: ts.Tile["N", ts.f32], O: ts.Tile["N", ts.f32]):
    c = tile.alloc_register(4, dtype=ts.f32)
    tile.fill(c, 0.0)
    for i in tile.range(X.shape[0], step=4):
        c += X[i:i + 4]
        tile.store(O[i:i + 4], c)


def written_later(X: ts.Tile["N", ts.f32], O: ts.Tile["N", ts.f32]):
    c = tile.zeros((4,), ts.f32)
    for i in tile.range(X.shape[0], step=4):
        before = c
        c = before + X[i:i + 4]
        tile.store(O[i:i + 4], before + X[i:i + 4])


@pytest.mark.parametrize("body", [variable, register, written_later], ids=lambda f: f.__name__)
def test_what_goes_from_one_iteration_to_the_next_keeps_a_loop_sequential(body):
    x, o = ts.randn(16), ts.zeros(16)
    ts.kernel(body)(x, o)
    np.testing.assert_allclose(o.numpy().reshape(4, 4), np.cumsum(x.numpy().reshape(4, 4), 0), rtol=1e-5, atol=1e-6)


def test_inner_loops_with_state_of_their_own_stay_sequential():
    @ts.kernel
    def running(X: ts.Tile["M", "N", ts.f32], O: ts.Tile["M", "N", ts.f32]):
        for i in tile.range(X.shape[0], step=2):
            c = tile.zeros((2, 4), ts.f32)
            for j in tile.range(X.shape[1], step=4):
                c = c + X[i:i + 2, j:j + 4]
                tile.store(O[i:i + 2, j:j + 4], c)

    x, o = ts.randn(6, 16), ts.zeros(6, 16)
    assert axes(running, X=x, O=o) == 1
    running(x, o)
    np.testing.assert_allclose(o.numpy(), np.cumsum(x.numpy().reshape(6, 4, 4), 1).reshape(6, 16), rtol=1e-5, atol=1e-5)


def test_two_loops_side_by_side_run_one_after_the_other():
    @ts.kernel
    def halves(X: ts.Tile["M", "N", ts.f32], O: ts.Tile["M", "N", ts.f32], P: ts.Tile["M", "N", ts.f32]):
        for i in tile.range(X.shape[0], step=2):
            for j in tile.range(X.shape[1], step=4):
                tile.store(O[i:i + 2, j:j + 4], X[i:i + 2, j:j + 4] * 2.0)
            for j in tile.range(X.shape[1], step=8):
                tile.store(P[i:i + 2, j:j + 8], X[i:i + 2, j:j + 8] * 3.0)

    x, o, p = ts.randn(5, 13), ts.zeros(5, 13), ts.zeros(5, 13)
    halves(x, o, p)
    assert np.array_equal(o.numpy(), x.numpy() * 2) and np.array_equal(p.numpy(), x.numpy() * 3)


def test_an_atomic_update_outside_a_loop_happens_once():
    @ts.kernel
    def count(X: ts.Tile["N", ts.f32], O: ts.Tile["N", ts.f32], Calls: ts.Tile["L", ts.int32]):
        tile.atomic_add(Calls, 0, 1)
        for i in tile.range(X.shape[0], step=4):
            tile.store(O[i:i + 4], X[i:i + 4] + 1.0)

    x, o, calls = ts.zeros(16), ts.zeros(16), ts.zeros(1, dtype=ts.int32)
    count(x, o, calls)
    assert int(calls[0]) == 1 and float(o.sum()) == 16


def test_kernels_of_warp_groups_run_in_the_interpreter_on_the_cpu_and_are_refused_in_its_programs():
    @ts.kernel
    def twice(A: ts.Tile["M", "N", ts.bf16], C: ts.Tile["M", "N", ts.bf16]):
        box = tile.alloc_tiles(64, 64, dtype=ts.bf16)
        full = tile.mbarriers(1)
        for m in tile.range(A.shape[0], step=64):
            for n in tile.range(A.shape[1], step=64):
                with tile.role(threads=1):
                    full.expect(0, box.nbytes)
                    tile.tma_load(box, A, (m, n), full[0])
                with tile.role():
                    full.wait(0, 0)
                    box.store(box.load() * 2.0)
                    tile.fence_async()
                    tile.tma_store(C, (m, n), box)
                    tile.tma_commit()
                    tile.tma_wait()

    a, c = ts.randn(100, 128).to(ts.bf16), ts.zeros(100, 128, dtype=ts.bf16)
    assert axes(twice, A=a, C=c) == 2
    twice(a, c)
    assert np.array_equal(c.numpy(), (a * 2).numpy())
    with pytest.raises(ts.errors.UnsupportedError, match="warp groups"):
        ts.jit(lambda a: twice(a, ts.zeros(100, 128, dtype=ts.bf16)))(a)
