"""Schedules as values, in scopes, and on kernels; what a kernel does, counted."""

# ruff: noqa: C408, F821  (fields of schedules by name; names of sizes in annotations)
import importlib
import itertools
import pickle

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.errors import ArgumentError, KernelError
from tessera.scheduling.decisions import FIELDS, Schedule

FULL = dict(tile_m=128, tile_n=64, tile_k=32, block_m=256, block_n=128, warps=8, stages=3, vector_width=8, unroll_factor=4,
            prefetch_distance=2, swizzle_pattern="xor")


@ts.kernel
def product(A: ts.Tile["M", "K", ts.f32], B: ts.Tile["K", "N", ts.f32], C: ts.Tile["M", "N", ts.f32]):
    return tile.matmul(A, B, C)


@ts.kernel
def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
    tile.store(C, A + B)


def test_a_schedule_is_a_value():
    s = ts.Schedule(**FULL)
    assert tuple(FULL) == FIELDS and all(s[n] == getattr(s, n) == v for n, v in FULL.items())
    assert s == ts.Schedule(**FULL) and hash(s) == hash(ts.Schedule(**FULL)) and s != s.derive(warps=4)
    assert pickle.loads(pickle.dumps(s)) == s and Schedule.from_json(s.to_json()) == s
    assert Schedule().decisions == {} and Schedule.from_json("{}") == Schedule()


def test_derive_and_merge():
    base = ts.Schedule(tile_m=64, tile_n=64)
    assert base.derive(tile_k=16, warps=4) == ts.Schedule(tile_m=64, tile_n=64, tile_k=16, warps=4)
    assert base == ts.Schedule(tile_m=64, tile_n=64)
    a, b, c = ts.Schedule(tile_m=128, warps=2), ts.Schedule(tile_n=128, warps=4), ts.Schedule(warps=8, stages=0)
    assert a | b == ts.Schedule(tile_m=128, tile_n=128, warps=4)
    assert a | a == a and (a | b) | c == a | (b | c)
    assert a | {"warps": 16} == a.derive(warps=16) and {"warps": 16} | a == a


def test_aliases():
    assert ts.Schedule(BM=1, BN=2, BK=3, num_warps=4) == ts.Schedule(tile_m=1, tile_n=2, tile_k=3, warps=4)
    assert ts.Schedule(tile_size=64, tile_k=16) == ts.Schedule(tile_m=64, tile_n=64, tile_k=16)


@pytest.mark.parametrize("make, text", [
    (lambda: ts.Schedule(tile_mm=1), "no field 'tile_mm'; did you mean 'tile_m'"),
    (lambda: ts.Schedule(warps=0), "warps is a whole number of at least 1"),
    (lambda: ts.Schedule(tile_m=True), "tile_m is a whole number"),
    (lambda: ts.Schedule(tile_m=64.0), "tile_m is a whole number"),
    (lambda: ts.Schedule(swizzle_pattern="xr"), "no swizzle pattern 'xr'; did you mean 'xor'"),
    (lambda: Schedule.from_json("[1]"), "written as a JSON object"),
    (lambda: ts.schedule(tile_sise=1), "did you mean 'tile_size'"),
    (lambda: ts.schedule(42), "a int is no schedule"),
])
def test_errors(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_a_scope_decides_and_changes_no_bit():
    scope = importlib.import_module("tessera.schedule")

    @ts.jit
    def f(x, w):
        return ts.gelu(x @ w)

    x, w = ts.randn(130, 300), ts.randn(300, 270)
    expected = f(x, w).numpy()
    for fields in (dict(tile_size=128, warps=8), dict(tile_m=7, tile_n=1, tile_k=1), dict(tile_k=5000, prefetch_distance=0),
                   dict(tile_m=10**6, tile_n=10**6)):
        with ts.schedule(**fields):
            np.testing.assert_array_equal(f(x, w).numpy(), expected)
            assert f"schedule = {ts.Schedule(**fields).items}".replace("'", '"') in str(f.programs[-1].graph)
    assert scope.current() is None and len(f.programs) == 5
    with ts.schedule(tile_m=64), ts.schedule(tile_n=32) as inner:
        assert inner == ts.Schedule(tile_m=64, tile_n=32)
    with ts.schedule.tile((64, 32, 16)) as s:
        assert s == ts.Schedule(tile_m=64, tile_n=32, tile_k=16)


def test_a_scope_reaches_the_kernel():
    @ts.jit
    def f(x, w):
        return x @ w

    x, w = ts.randn(512, 512), ts.randn(512, 512)
    f(x, w)
    plain = f.tile_ir
    with ts.schedule(tile_n=64):
        f(x, w)
        assert f.tile_ir != plain


def test_a_scope_reaches_attention():
    f = ts.jit(lambda q, k, v: ts.attention(q, k, v, causal=True))
    by_hand = ts.jit(lambda q, k, v: ts.softmax(q @ k.mT * 0.25, -1) @ v)
    q, k, v = (ts.randn(2, 3, 150, 16) for _ in range(3))
    expected = [g(q, k, v).numpy() for g in (f, by_hand)]
    gradient = ts.grad(lambda q: f(q, k, v).sum())(q).numpy()
    plain = f.tile_ir
    for fields in (dict(tile_m=16, stages=3), dict(tile_m=1), dict(tile_m=10**6)):
        with ts.schedule(**fields):
            for g, want in zip((f, by_hand), expected, strict=True):
                np.testing.assert_array_equal(g(q, k, v).numpy(), want)
                assert f"schedule = {ts.Schedule(**fields).items}".replace("'", '"') in g.schedule_ir
            np.testing.assert_array_equal(ts.attention(q, k, v, causal=True).numpy(), expected[0])
            np.testing.assert_array_equal(ts.grad(lambda q: f(q, k, v).sum())(q).numpy(), gradient)
        if fields["tile_m"] == 16:
            assert f.tile_ir != plain


def test_three_operands():
    a, b, c = ts.randn(5, 4), ts.randn(4, 3), ts.zeros(5, 3)
    out = ts.matmul(a, b, c)
    assert out is c
    np.testing.assert_array_equal(c.numpy(), (a @ b).numpy())


@pytest.mark.parametrize("config", [dict(tile_m=16, tile_n=8, tile_k=4), dict(tile_size=32), dict(BM=5, BN=7, BK=3)])
def test_kernels_take_schedules(config):
    a, b = ts.randn(45, 33), ts.randn(33, 29)
    c, d = ts.zeros(45, 29), ts.zeros(45, 29)
    product(a, b, c)
    scheduled = ts.kernel.with_schedule(ts.Schedule(**config))(product.function)
    scheduled(a, b, d)
    np.testing.assert_allclose(d.numpy(), c.numpy(), rtol=2e-5, atol=1e-5)
    assert scheduled.tile_ir(a, b, d) != product.tile_ir(a, b, c)
    assert product.with_schedule(config).schedule == scheduled.schedule == ts.Schedule(**config)


@pytest.mark.parametrize("m, n, k", [(100, 70, 33), (256, 128, 64), (5, 6, 7), (64, 64, 640)])
def test_counts_of_a_product(m, n, k):
    a, b, c = ts.zeros(m, k), ts.zeros(k, n), ts.zeros(m, n)
    assert product.count_flops(a, b, c) == 2 * m * n * k
    assert product.count_memory_bytes(a, b, c) == 4 * (m * k + k * n + m * n)
    assert product.arithmetic_intensity(a, b, c) == 2 * m * n * k / (4 * (m * k + k * n + m * n))
    assert product.memory_access_pattern(a, b, c) == "coalesced"


def test_counts_follow_loops_and_reads():
    @ts.kernel
    def prefix(X: ts.Tile["S", "D", ts.f32], O: ts.Tile["S", "D", ts.f32]):
        for i in tile.range(X.shape[0], step=8):
            acc = tile.alloc_register(8, 16, dtype=ts.f32)
            tile.fill(acc, 0.0)
            for j in tile.range(0, i + 8, step=8):
                acc = acc + X[j:j + 8]
            tile.store(O[i:i + 8], acc)

    x, o = ts.zeros(32, 16), ts.zeros(32, 16)
    assert prefix.count_flops(x, o) == 8 * 16 * sum(range(1, 5))

    @ts.kernel
    def increment(X: ts.Tile["N", ts.f32]):
        tile.store(X, tile.load(X) + 1.0)

    assert increment.count_memory_bytes(ts.zeros(100)) == 800 and increment.count_flops(ts.zeros(100)) == 100

    @ts.kernel
    def take(X: ts.Tile["N", ts.f32], I: ts.Tile["M", ts.int32], O: ts.Tile["M", ts.f32]):
        tile.store(O, tile.gather(X, tile.load(I)))

    assert take.memory_access_pattern(ts.zeros(10), ts.zeros(4, dtype=ts.int32), ts.zeros(4)) == "gather"
    assert add.count_flops(*[ts.zeros(1000)] * 3) == 1000


def test_example_arguments():
    k = ts.Kernel(add.function)
    with pytest.raises(KernelError, match="has no example arguments"):
        k.count_flops()
    out = ts.zeros(9)
    assert k.example(ts.ones(9), ts.ones(9), out).count_flops() == 9
    assert k.run({"tile_n": 4}) is out and out.numpy().tolist() == [2.0] * 9


def test_every_combination_of_a_small_space_gives_the_same_bits():
    a, b = ts.randn(70, 50), ts.randn(50, 90)
    expected = (a @ b).numpy()
    for m, n, k in itertools.product((8, 64), (16, 64), (32, 64)):
        with ts.schedule(tile_m=m, tile_n=n, tile_k=k):
            np.testing.assert_array_equal((a @ b).numpy(), expected)
