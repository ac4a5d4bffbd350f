"""Groups of lanes, scans, sorting, atomics, random numbers and forms of access, compiled and interpreted, against numpy."""

# ruff: noqa: F821  (names of sizes in annotations)
import functools

import numpy as np
import pytest

from tessera import tile
from tessera.errors import KernelError
from tessera.ir import interpret_tile
from tessera.ops.random import philox
from tessera.tiling import Tile, kernel
from tessera.types.dtypes import bf16, bool_, f32, fp8_e4m3, fp8_e5m2, int32, int64, uint32

N = 128


def run(op, x, out=np.float32, shape=None):
    """``op`` on a whole tile, compiled; the interpreter must agree bit for bit."""
    from tessera.types.dtypes import as_dtype
    start = (0,) * x.ndim
    op = functools.partial(op)  # called as it is: a lambda has no lines of its own to rewrite

    def body(X, O):
        tile.store(O, op(tile.load(X, start, shape=x.shape)))

    body.__annotations__ = {"X": Tile[(*x.shape, as_dtype(x.dtype))], "O": Tile[(*(shape or x.shape), as_dtype(out))]}
    k = kernel(body)
    got, again = np.zeros(shape or x.shape, out), np.zeros(shape or x.shape, out)
    k(x, got)
    interpret_tile.interpret(k.build(_types(x, got)).function, [x, again])
    np.testing.assert_array_equal(got, again)
    return got


def _types(*arrays):
    from tessera.ir.core import TensorType
    from tessera.types.dtypes import as_dtype
    return {n: TensorType(as_dtype(a.dtype), a.shape) for n, a in zip("XO", arrays)}


def values(seed=0, n=N):
    return np.random.default_rng(seed).permutation(n).astype(np.float32) - 40


# -- groups -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [2, 32, 64, 128])
def test_groups_reduce_and_move(size):
    x = values()
    g = x.reshape(-1, size)
    group = lambda: tile.cooperative_group(size=size)
    every = lambda a: np.repeat(a, size).astype(np.float32)
    np.testing.assert_array_equal(run(lambda v: group().reduce(v, op="sum"), x), every(g.sum(1)))
    np.testing.assert_array_equal(run(lambda v: group().reduce_max(v), x), every(g.max(1)))
    np.testing.assert_array_equal(run(lambda v: group().reduce(v, "min"), x), every(g.min(1)))
    np.testing.assert_array_equal(run(lambda v: group().broadcast(v, size - 1), x), every(g[:, -1]))
    for mask in {1, size // 2, size - 1}:
        np.testing.assert_array_equal(run(lambda v, m=mask: group().butterfly(v, m), x), x[np.arange(N) ^ mask])


def test_warps():
    x = values(1)
    g = x.reshape(-1, 32)
    np.testing.assert_array_equal(run(lambda v: tile.warp.reduce_sum(v), x), np.repeat(g.sum(1), 32))
    np.testing.assert_array_equal(run(lambda v: tile.warp.reduce_max(v), x), np.repeat(g.max(1), 32))
    np.testing.assert_array_equal(run(lambda v: tile.warp.shuffle(v, lane_id=5), x), np.repeat(g[:, 5], 32))
    np.testing.assert_array_equal(run(lambda v: tile.warp.butterfly(v, mask=0xF), x), x[np.arange(N) ^ 15])
    np.testing.assert_array_equal(run(lambda v: tile.warp.all(v > -30), x, np.bool_), np.repeat((g > -30).all(1), 32))
    np.testing.assert_array_equal(run(lambda v: tile.warp.any(v == 0), x, np.bool_), np.repeat((g == 0).any(1), 32))
    few = np.random.default_rng(2).integers(0, 4, N).astype(np.int32)
    masks = [sum(1 << j for j in range(32) if w[j] == v) for w in few.reshape(-1, 32) for v in w]
    np.testing.assert_array_equal(run(lambda v: tile.warp.match(v), few, np.uint32), np.array(masks, np.uint32))


def test_lanes_outside_the_data_take_no_part():
    @kernel
    def sums(X: Tile["N", f32], S: Tile["N", f32], M: Tile["N", f32], C: Tile["N", f32]):
        x = tile.load(X, shape=(64,))
        tile.store(S, tile.warp.reduce_sum(x))
        tile.store(M, tile.warp.reduce_min(x))
        tile.store(C, tile.sort(x))

    x = values(n=100) + 100
    s, m, c = (np.zeros(100, np.float32) for _ in range(3))
    sums(x, s, m, c)
    groups = [x[i:i + 32] for i in range(0, 100, 32)]
    np.testing.assert_array_equal(s, np.concatenate([np.full(len(g), g.sum()) for g in groups]))
    np.testing.assert_array_equal(m, np.concatenate([np.full(len(g), g.min()) for g in groups]))
    np.testing.assert_array_equal(c, np.concatenate([np.sort(x[:64]), np.sort(x[64:])]))


def test_blocks():
    x = values(3).reshape(4, 32)
    for name in ("sum", "max", "min"):
        got = run(lambda v, n=name: tile.broadcast_to(getattr(tile.block, f"reduce_{n}")(v), (4, 32)), x)
        np.testing.assert_array_equal(got, np.full((4, 32), getattr(x, name)()))
    np.testing.assert_array_equal(run(lambda v: tile.block.broadcast(v, src_thread=33), x), np.full((4, 32), x[1, 1]))

    def synced(v):
        tile.block.sync()
        return v

    np.testing.assert_array_equal(run(synced, x), x)


@pytest.mark.parametrize("op, text", [
    (lambda v: tile.cooperative_group(size=48), "a power of two, not 48"),
    (lambda v: tile.warp.shuffle(v, 32), "lanes 0 … 31, not 32"),
    (lambda v: tile.warp.reduce(v, "mean"), "no reduction is called 'mean'"),
    (lambda v: tile.warp.reduce_sum(v[:20]), "a multiple of 32 elements"),
    (lambda v: tile.sort(v[:20]), "a power of two"),
    (lambda v: tile.block.broadcast(v, 128), "lanes 0 … 127"),
])
def test_errors(op, text):
    with pytest.raises(KernelError, match=text):
        run(op, values())


# -- scans, extrema, sorting -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans(axis, reverse):
    x = np.random.default_rng(5).integers(-4, 5, (6, 20)).astype(np.float32)
    turn = lambda a: np.flip(a, axis) if reverse else a
    for name, fn in (("cumsum", np.cumsum), ("cummax", np.maximum.accumulate), ("cummin", np.minimum.accumulate)):
        np.testing.assert_array_equal(run(lambda v, n=name: getattr(tile, n)(v, axis, reverse), x), turn(fn(turn(x), axis=axis)))


def test_first_extrema():
    x = np.random.default_rng(6).integers(0, 5, (7, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(lambda v: tile.argmax(v, 1), x, np.int64, (7,)), x.argmax(1))
    np.testing.assert_array_equal(run(lambda v: tile.argmin(v, 0), x, np.int64, (16,)), x.argmin(0))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
@pytest.mark.parametrize("descending", [False, True])
def test_sorting(n, descending):
    x = np.random.default_rng(n).integers(-9, 9, (3, n)).astype(np.float32)
    expected = np.sort(x, -1)[:, ::-1] if descending else np.sort(x, -1)
    np.testing.assert_array_equal(run(lambda v: tile.sort(v, descending), x), expected)


# -- atomics -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_atomics(dtype):
    from tessera.types.dtypes import as_dtype
    data = np.random.default_rng(7).integers(0, 12, 1000).astype(np.int32)
    for name, ufunc, start in (("add", np.add, 0), ("max", np.maximum, 0), ("min", np.minimum, 50), ("xor", np.bitwise_xor, 1)):
        def body(X, H, _op=name):
            for i in tile.range(X.shape[0], step=64):
                x = X[i:i + 64]
                getattr(tile, f"atomic_{_op}")(H, x, tile.load(x).to(as_dtype(dtype)) * 3 + 1)

        body.__annotations__ = {"X": Tile["N", int32], "H": Tile["M", as_dtype(dtype)]}
        got, expected, again = (np.full(10, start, dtype) for _ in range(3))
        k = kernel(body)
        k(data, got)  # positions 10 and 11 lie outside
        inside = data[data < 10]
        ufunc.at(expected, inside, (inside * 3 + 1).astype(dtype))
        np.testing.assert_array_equal(got, expected)
        built = k.build(dict(zip("XH", (_types(data)["X"], _types(got)["X"]))))
        interpret_tile.run(built.function, [data, again], {str(s): n for s, n in zip(built.function.attrs["sizes"], (1000, 10))}, seed=3)
        np.testing.assert_array_equal(again, expected)


def test_atomics_refuse_floats_and_report_races():
    @kernel
    def floats(X: Tile["N", int32], H: Tile["M", f32]):
        tile.atomic_add(H, tile.load(X, shape=(8,)), 1.0)

    with pytest.raises(KernelError, match="atomics work on integers of 32 or 64 bits, not on f32"):
        floats(np.zeros(8, np.int32), np.zeros(4, np.float32))

    @kernel
    def mixed(X: Tile["N", int32], H: Tile["M", int32]):
        for i in tile.range(X.shape[0], step=8):
            tile.atomic_add(H, X[i:i + 8], tile.gather(H, X[i:i + 8]))

    built = mixed.build(dict(zip("XH", (_types(np.zeros(32, np.int32))["X"], _types(np.zeros(4, np.int32))["X"]))))
    with pytest.raises(interpret_tile.TileError, match="race"):
        interpret_tile.run(built.function, [np.zeros(32, np.int32), np.ones(4, np.int32)],
                           dict(zip(built.function.attrs["sizes"], (32, 4))))


# -- random numbers -----------------------------------------------------------------------------------------------------------
def test_random_numbers_are_philox():
    offset = np.arange(64, dtype=np.int64) * 10**10
    seed = 2**40 + 5
    got = run(lambda v: tile.random_bits(seed, v), offset, np.uint32)
    words = philox((offset.astype(np.uint64), offset.astype(np.uint64) >> np.uint64(32), np.zeros(64, np.uint64), np.zeros(64, np.uint64)),
                   (seed & 0xFFFFFFFF, seed >> 32))
    np.testing.assert_array_equal(got, words[0])
    u = run(lambda v: tile.rand(3, v), np.arange(4096, dtype=np.int64))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 3 / np.sqrt(12 * 4096)


# -- forms of access ------------------------------------------------------------------------------------------------------------
def test_forms_of_access():
    @kernel
    def forms(X: Tile["N", f32], I: Tile["M", int64], C: Tile["N", f32], S: Tile["K", f32], G: Tile["M", f32], B: Tile["M", f32]):
        tile.store(C[0:64], tile.load_coalesced(X[0:64], threads=32))
        tile.store(S[0:32], tile.load_strided(X[0:64], stride=2))
        tile.store(G[0:32], tile.load_gather(X, I[0:32]))
        tile.store(B[0:32], tile.load_broadcast(X[3:4], (32,)))

    x, i = values(8, 64), np.random.default_rng(8).permutation(64)[:32]
    c, s, g, b = np.zeros(64, "f4"), np.zeros(32, "f4"), np.zeros(32, "f4"), np.zeros(32, "f4")
    forms(x, i, c, s, g, b)
    for got, expected in ((c, x), (s, x[::2]), (g, x[i]), (b, np.full(32, x[3]))):
        np.testing.assert_array_equal(got, expected)
    loads = [a for a in forms.access_report(x, i, c, s, g, b) if a.buffer == "X"]
    assert [a.efficiency for a in loads[:2]] == [1.0, 0.5] and loads[2].efficiency < 1
    assert loads[3].requests == loads[3].sectors == 1
    assert "50%" in str(loads[1]) and "line" in str(loads[1])


def test_bank_conflicts_are_counted():
    @kernel
    def columns(X: Tile[32, 32, f32], O: Tile[32, 32, f32], width: int):
        s = tile.alloc_shared(32, width, dtype=f32)
        tile.copy(X, s)
        tile.store(O, tile.transpose(tile.load_shared(s))[0:32, 0:32])

    x, o = np.zeros((32, 32), "f4"), np.zeros((32, 32), "f4")
    columns(x, o, 32)
    assert all(a.conflicts == 0 for a in columns.access_report(x, o, 32))  # whole rows at a time


def test_out_of_bounds_is_refused():
    @kernel
    def rows(X: Tile["N", f32], O: Tile["N", f32]):
        tile.store(O, tile.load_coalesced(X[0:20]))

    with pytest.raises(KernelError, match="rows of 20 elements, which 32 threads do not share"):
        rows(np.zeros(64, "f4"), np.zeros(64, "f4"))


def test_mixed_formats():
    rng = np.random.default_rng(9)
    a, b = (rng.standard_normal(s).astype(np.float32) * 4 for s in ((16, 64), (64, 16)))
    a, b = a.astype(fp8_e4m3.np), b.astype(fp8_e5m2.np)

    @kernel
    def mixed(A: Tile[16, 64, fp8_e4m3], B: Tile[64, 16, fp8_e5m2], C: Tile[16, 16, f32]):
        tile.store(C, tile.mma_mixed(A, B, accumulate=f32, saturate=True, rounding="rte"))

    c = np.zeros((16, 16), "f4")
    mixed(a, b, c)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(c, exact, rtol=1e-5, atol=1e-4)
    with pytest.raises(KernelError, match="round to nearest even, not 'up'"):
        @kernel
        def wrong(A: Tile[16, 64, fp8_e4m3], B: Tile[64, 16, fp8_e5m2], C: Tile[16, 16, f32]):
            tile.store(C, tile.mma_mixed(A, B, rounding="up"))

        wrong(a, b, c)


def test_every_name_is_there():
    assert {"warp", "block", "cooperative_group", "atomic_add", "load_gather"} <= set(tile.__all__) and bf16 and bool_ and uint32
