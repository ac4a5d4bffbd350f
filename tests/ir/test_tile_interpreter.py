"""The tile interpreter: every op against numpy, and the errors that compiled code may leave undefined."""

import numpy as np
import pytest

from tessera.ir.core import BufferType
from tessera.ir.interpret_tile import TileError, run
from tessera.ir.pointwise_numpy import fma
from tessera.ir.text import parse_function
from tessera.ir.tile_machine import dot_chain, reduce_tree
from tessera.tiling import dsl as tile
from tessera.types import dtypes as dt
from tessera.types.dims import sym

ODD = [1, 3, 5, 14, 17]


def program(body, shapes, sizes=(), grid=(1,), **options):
    """The verified Tile function of ``body``, after a round trip through its text."""
    buffers = [(f"b{i}", BufferType(dtype, shape)) for i, (dtype, shape) in enumerate(shapes)]
    fn = tile.build(tile.TileProgram("k", buffers, sizes, grid=grid, **options), body)
    again = parse_function(str(fn))
    assert str(again) == str(fn)
    return again


def compute(body, x, out_shape=None, dtype=dt.f32):
    """Run ``store(o, body(tile of x))`` on one array."""
    x = np.ascontiguousarray(x)
    o = np.zeros(x.shape if out_shape is None else out_shape, dtype.np)

    def whole(a, b):
        value = body(tile.load(a, None, x.shape))
        tile.store(b, None, value)

    run(program(whole, [(dt.as_dtype(x.dtype), x.shape), (dtype, o.shape)]), [x, o])
    return o


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- memory ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", ODD)
@pytest.mark.parametrize("m", [1, 5, 14])
def test_masked_tiles_at_every_ragged_edge(m, n):
    def copy(x, o):
        i, j = tile.program_id(0) * 4, tile.program_id(1) * 8
        tile.store(o, (i, j), tile.load(x, (i, j), (4, 8), check=True) + 1, check=True)

    M, N = sym("M N")
    fn = program(copy, [(dt.f32, (M, N)), (dt.f32, (M, N))], ("M", "N"), grid=((M + 3) // 4, (N + 7) // 8))
    x, guarded = rand(m, n), np.full((m + 2, n), 7.0, np.float32)
    o = guarded[1:-1]
    run(fn, [x, o], {"M": m, "N": n}, seed=n)
    assert np.array_equal(o, x + 1) and (guarded[[0, -1]] == 7).all()


def test_fill_and_mask_of_a_load():
    def body(x, o):
        column = tile.iota((8,))
        tile.store(o, (0, 0), tile.load(x, (3,), (8,), check=True, fill=-2.5))
        tile.store(o, (1, 0), tile.load(x, (0,), (8,), check=True, mask=column % 2 == 0, fill=9))
        tile.store(o, (2, 0), tile.full((8,), 1.0, dt.f32), mask=column < 3)

    x, o = np.arange(5, dtype=np.float32), np.zeros((3, 8), np.float32)
    run(program(body, [(dt.f32, (5,)), (dt.f32, (3, 8))]), [x, o])
    assert o[0].tolist() == [3, 4] + [-2.5] * 6
    assert o[1].tolist() == [0, 9, 2, 9, 4, 9, 9, 9]
    assert o[2].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_axes_place_a_tile_in_its_buffer():
    def body(x, o):
        tile.store(o, (0, 2), tile.load(x, (0, 1, 2), (3, 2), axes=(2, 0)), axes=(1, 0))

    x, o = rand(2, 4, 5), np.zeros((2, 5), np.float32)
    run(program(body, [(dt.f32, x.shape), (dt.f32, o.shape)]), [x, o])
    assert np.array_equal(o[:, 2:], x[:, 1, 2:5]) and not o[:, :2].any()


def test_scalar_loads_and_stores():
    def body(x, o):
        tile.store(o, (1,), tile.load(x, (2,)) * 2)

    o = np.zeros(2, np.float32)
    run(program(body, [(dt.f32, (4,)), (dt.f32, (2,))]), [np.arange(4, dtype=np.float32), o])
    assert o.tolist() == [0, 4]


def test_gather_and_scatter():
    def body(x, o):
        where = tile.iota((3, 4)) * 4 + tile.iota((3, 4), 1)
        got = tile.gather(x, 11 - where, mask=where < 10, fill=-1)
        tile.scatter(o, where // 2, got)  # two lanes a place: the last wins

    x, o = np.arange(12, dtype=np.float32), np.full(6, 5, np.float32)
    run(program(body, [(dt.f32, (12,)), (dt.f32, (6,))]), [x, o])
    assert o.tolist() == [10, 8, 6, 4, 2, -1]


def test_scratch_memory():
    def body(x, o):
        s = tile.alloc((2, 3), dt.f32)
        tile.store(s, None, tile.load(x, None, (2, 3)) * 2)
        tile.store(o, None, tile.transpose(tile.load(s, None, (2, 3))))

    x, o = rand(2, 3), np.zeros((3, 2), np.float32)
    run(program(body, [(dt.f32, (2, 3)), (dt.f32, (3, 2))]), [x, o])
    assert np.array_equal(o, (x * 2).T)


# -- tiles -------------------------------------------------------------------------------------------------------------
def test_shape_ops():
    x = rand(4, 6)
    assert np.array_equal(compute(lambda t: t.reshape(6, -1), x, (6, 4)), x.reshape(6, 4))
    assert np.array_equal(compute(lambda t: t.T, x, (6, 4)), x.T)
    assert np.array_equal(compute(lambda t: tile.slice(t, (1, 2), (3, 6)), x, (2, 4)), x[1:3, 2:6])
    assert np.array_equal(compute(lambda t: t[1:3, -1], x, (2,)), x[1:3, -1])
    assert np.array_equal(compute(lambda t: t[..., None, 2], x, (4, 1)), x[..., None, 2])
    assert np.array_equal(compute(lambda t: tile.concat([t, t[:, :2]], 1), x, (4, 8)), np.concatenate([x, x[:, :2]], 1))
    assert np.array_equal(compute(lambda t: tile.full((2, 2), tile.extract(t, (2, 3))), x, (2, 2)), np.full((2, 2), x[2, 3]))
    assert np.array_equal(compute(lambda t: t + t[0], x), x + x[0])
    assert np.array_equal(compute(lambda t: t * t[:, :1], x), x * x[:, :1])
    assert np.array_equal(compute(lambda t: tile.broadcast_to(t[:1], (3, 6)), x, (3, 6)), np.broadcast_to(x[:1], (3, 6)))
    assert np.array_equal(compute(lambda t: tile.where(t > 0, t, -1.0), x), np.where(x > 0, x, np.float32(-1)))


@pytest.mark.parametrize("n", ODD)
def test_reductions_follow_the_halving_tree(n):
    x = rand(n, 3, seed=n)

    def tree(values):
        values = list(values)
        while len(values) > 1:
            h = 1
            while h * 2 < len(values):
                h *= 2
            values = [np.float32(a + b) for a, b in zip(values[:h], values[h:], strict=False)] + values[len(values) - h:h]
        return values[0]

    expected = np.array([tree(x[:, j]) for j in range(3)], np.float32)
    assert np.array_equal(compute(lambda t: tile.sum(t, 0), x, (3,)), expected)
    assert np.array_equal(compute(lambda t: tile.max(t, 0), x, (3,)), x.max(0))
    assert np.array_equal(compute(lambda t: tile.min(t, 1), x, (n,)), x.min(1))
    assert np.allclose(compute(lambda t: tile.prod(t, 0), x, (3,)), x.prod(0), rtol=1e-6)


def test_reductions_of_integers_and_bools():
    x = np.random.default_rng(0).integers(-100, 100, (5, 7)).astype(np.int32)
    assert np.array_equal(compute(lambda t: tile.reduce(t, 1, "xor"), x, (5,), dt.int32), np.bitwise_xor.reduce(x, 1))
    assert np.array_equal(compute(lambda t: tile.any(t > 90, 1), x, (5,), dt.bool_), (x > 90).any(1))
    assert np.array_equal(compute(lambda t: tile.all(t > -90, 0), x, (7,), dt.bool_), (x > -90).all(0))
    assert np.array_equal(reduce_tree(np.array([True, False]), 0, "or", dt.bool_), np.True_)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 14), (5, 17, 3), (14, 3, 17)])
def test_dot_is_a_chain_of_fmas(shape):
    m, k, n = shape
    a, b, c = rand(m, k), rand(k, n, seed=1), rand(m, n, seed=2)
    expected = c.copy()
    for i in range(k):
        x, y = np.broadcast_arrays(a[:, i, None], b[None, i])
        expected = fma(x, y, expected)
    o = np.zeros((m, n), np.float32)
    fn = program(lambda x, y, z, out: tile.store(out, None, tile.dot(tile.load(x, None, (m, k)), tile.load(y, None, (k, n)),
                                                                       tile.load(z, None, (m, n)))),
                 [(dt.f32, a.shape), (dt.f32, b.shape), (dt.f32, c.shape), (dt.f32, o.shape)])
    run(fn, [a, b, c, o])
    assert np.array_equal(o, expected) and np.allclose(o, a @ b + c, atol=1e-5)


@pytest.mark.parametrize("dtype", [dt.bf16, dt.f16, dt.fp8_e4m3])
def test_dot_of_small_floats_accumulates_in_f32(dtype):
    a, b = (rand(4, 300, seed=s).astype(dtype.np) for s in (1, 2))
    got = dot_chain(a, b.T, np.zeros((4, 4), np.float32), dt.f32)
    assert got.dtype == np.float32 and np.allclose(got, a.astype(np.float64) @ b.T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_dot_of_integers_is_exact():
    a = np.random.default_rng(0).integers(-128, 128, (6, 33)).astype(np.int8)
    got = dot_chain(a, a.T, np.zeros((6, 6), np.int32), dt.int32)
    assert np.array_equal(got, a.astype(np.int32) @ a.T.astype(np.int32))


# -- control flow ------------------------------------------------------------------------------------------------------
def test_loops_and_conditionals():
    def body(o):
        def step(i, state):
            total, largest = state
            return tile.cond(i % 2 == 0, lambda: (total + i, largest), lambda: (total, tile.maximum(largest, i)))

        total, largest = tile.for_loop((0, 10, 1), (tile.constant(0), tile.constant(-1)), step)
        power = tile.while_loop(lambda p: p < 100, lambda p: p * 3, tile.constant(1))
        for k, v in enumerate((total, largest, power)):
            tile.store(o, (k,), v)

    o = np.zeros(3, np.int64)
    run(program(body, [(dt.int64, (3,))]), [o])
    assert o.tolist() == [20, 9, 243]


# -- errors ------------------------------------------------------------------------------------------------------------
def test_a_lane_outside_an_unchecked_axis_is_an_error():
    fn = program(lambda x, o: tile.store(o, (0,), tile.load(x, (3,), (4,))), [(dt.f32, (5,)), (dt.f32, (4,))])
    with pytest.raises(TileError, match=r"load: index 5 is outside axis 0 of %b0, which has 5 elements"):
        run(fn, [np.zeros(5, np.float32), np.zeros(4, np.float32)])


def test_a_store_outside_is_an_error_with_its_line():
    program_ = tile.TileProgram("k", [("o", BufferType(dt.f32, (4,)))])
    fn = tile.build(program_, lambda o: tile.store(o, (-1,), tile.full((2,), 0.0, dt.f32)))
    with pytest.raises(TileError, match=r"store: index -1 .*test_tile_interpreter.py:\d+"):
        run(fn, [np.zeros(4, np.float32)])


def test_gather_outside_is_an_error_unless_masked():
    o = np.zeros(3, np.float32)

    def fn(masked):
        def body(x, out):
            where = tile.iota((3,)) + 2
            tile.store(out, (0,), tile.gather(x, where, mask=where < 4 if masked else None, fill=8))
        return program(body, [(dt.f32, (4,)), (dt.f32, (3,))])

    with pytest.raises(TileError, match="gather: element 4 is outside"):
        run(fn(False), [np.arange(4, dtype=np.float32), o])
    run(fn(True), [np.arange(4, dtype=np.float32), o])
    assert o.tolist() == [2, 3, 8]


def test_reading_scratch_before_writing_it_is_an_error():
    def body(o):
        s = tile.alloc((4,), dt.f32)
        tile.store(s, (0,), tile.full((2,), 1.0, dt.f32))
        tile.store(o, (0,), tile.load(s, (0,), (4,)))

    with pytest.raises(TileError, match=r"reads .* before it is written"):
        run(program(body, [(dt.f32, (4,))]), [np.zeros(4, np.float32)])


def test_blocks_that_write_the_same_place_differently_race():
    fn = program(lambda o: tile.store(o, (0,), tile.program_id(0).to(dt.f32)), [(dt.f32, (1,))], grid=(3,))
    with pytest.raises(TileError, match="race: two blocks write different values to an element of %b0"):
        run(fn, [np.zeros(1, np.float32)])
    run(fn, [np.zeros(1, np.float32)], races=False)


def test_overlapping_blocks_that_agree_are_no_race():
    fn = program(lambda x, o: tile.store(o, (tile.minimum(tile.program_id(0) * 4, 2),), tile.load(
        x, (tile.minimum(tile.program_id(0) * 4, 2),), (4,))), [(dt.f32, (6,)), (dt.f32, (6,))], grid=(2,))
    x, o = rand(6), np.zeros(6, np.float32)
    run(fn, [x, o])
    assert np.array_equal(x, o)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_block_that_reads_what_another_writes_races_in_any_order(seed):
    def shift(x):
        i = tile.program_id(0)
        tile.store(x, (i,), tile.load(x, ((i + 1) % 4,)))

    fn = program(shift, [(dt.f32, (4,))], grid=(4,))
    with pytest.raises(TileError, match=r"race: (reads|writes) an element of %b0 that another block"):
        run(fn, [np.arange(4, dtype=np.float32)], seed=seed)


def test_an_endless_loop_ends():
    fn = program(lambda o: tile.store(o, (0,), tile.while_loop(lambda p: p > 0, lambda p: p + 1, tile.constant(1))), [(dt.int64, (1,))])
    with pytest.raises(TileError, match="while: does not end within 50 iterations"):
        run(fn, [np.zeros(1, np.int64)], limit=50)


def test_a_check_reports_its_first_failure():
    def body(x):
        t = tile.load(x, (tile.program_id(0) * 2,), (2,))
        tile.check(t >= 0, t, site=7)
        tile.store(x, (tile.program_id(0) * 2,), t)

    x = np.array([1, 2, 3, -4, -5, 6], np.int64)
    result = run(program(body, [(dt.int64, (6,))], grid=(3,)), [x], seed=3)
    assert (result.failure.site, result.failure.value, result.blocks) == (7, -4, 3)


def test_buffers_must_match_the_parameters():
    N, = (sym("N"),)
    fn = program(lambda o: tile.store(o, (0,), 1.0), [(dt.f32, (N,))], ("N",))
    with pytest.raises(ValueError, match="takes 1 buffers, got 2"):
        run(fn, [np.zeros(1, np.float32)] * 2, {"N": 1})
    with pytest.raises(ValueError, match="the size N has no value"):
        run(fn, [np.zeros(1, np.float32)])
    with pytest.raises(ValueError, match=r"is f32\[3\], got an array of float64\[3\]"):
        run(fn, [np.zeros(3)], {"N": 3})
    with pytest.raises(ValueError, match="not dense"):
        run(fn, [np.zeros(6, np.float32)[::2]], {"N": 3})
