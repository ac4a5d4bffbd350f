"""Tiles that do not fit registers: the program over pieces computes the same bits."""

import ml_dtypes
import numpy as np
import pytest
import test_kernel as kernels

from tessera.ir.core import BufferType, TileType
from tessera.ir.interpret_tile import run
from tessera.ir.text import parse_function
from tessera.tiling import dsl as tile
from tessera.tiling import frontend
from tessera.tiling.large_tiles import fit_registers
from tessera.types import dtypes as dt


def largest(fn):
    return max((v.type.size for op in fn.walk() for v in op.results if isinstance(v.type, TileType)), default=0)


@pytest.fixture(params=[8, 256])
def both(request, monkeypatch):
    """Kernels run as written and in pieces; both must leave the same bits."""
    seen = []

    def launch(fn, buffers, sizes):
        small = fit_registers(fn, request.param)
        again = parse_function(str(small))
        copies = [b.copy() for b in buffers]
        run(fn, buffers, sizes)
        run(again, copies, sizes, seed=1)
        for a, b in zip(buffers, copies, strict=True):
            assert a.tobytes() == b.tobytes()
        seen.append(largest(small) < largest(fn))

    monkeypatch.setattr(frontend, "launch", launch)
    return seen


def test_matmul(both):
    kernels.tile_matmul(kernels.rand(70, 66, dtype=ml_dtypes.bfloat16), kernels.rand(66, 65, seed=1, dtype=ml_dtypes.bfloat16),
                        np.zeros((70, 65), np.float32))
    assert both == [True]


def test_attention(both):
    q, k, v = (kernels.rand(1, 150, 17, seed=i, dtype=ml_dtypes.bfloat16) for i in range(3))
    kernels.fused_attention_kernel(q, k, v, np.zeros_like(q), 0.3)
    assert both == [True]


@pytest.mark.parametrize("name", [
    "test_row_softmax_masks_the_ragged_edge", "test_reductions_leave_out_lanes_beyond_the_edge", "test_elementwise_of_whole_parameters"])
def test_kernels_with_sizes(both, name):
    arguments = {"test_row_softmax_masks_the_ragged_edge": (33, 100)}.get(name, (17,))
    getattr(kernels, name)(*arguments)
    assert both


@pytest.mark.parametrize("name", [
    "test_memory_hierarchy", "test_mma_in_place_and_matmul_with_an_output", "test_registers_in_loops_and_conditionals",
    "test_double_buffering_keeps_count_of_ragged_copies", "test_carried_tiles_ignore_lanes_beyond_a_moving_edge", "test_gather_and_scatter",
    "test_in_place_windows", "test_a_row_vector_broadcasts_along_rows_even_where_the_tile_is_square",
    "test_helper_functions_are_inlined_with_their_loops"])
def test_kernels(both, name):
    getattr(kernels, name)()
    assert both


def pieces(body, *arrays, limit=16):
    """``body`` over whole arrays, as written and in pieces; returns what the last array holds."""
    buffers = [(f"b{i}", BufferType(dt.as_dtype(a.dtype), a.shape)) for i, a in enumerate(arrays)]
    fn = tile.build(tile.TileProgram("k", buffers), body)
    small = fit_registers(fn, limit)
    assert largest(small) < largest(fn)
    results = []
    for program in (fn, parse_function(str(small))):
        copies = [a.copy() for a in arrays]
        results.append((run(program, copies), copies))
    (first, a), (second, b) = results
    assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    assert (first.failure and first.failure.value) == (second.failure and second.failure.value)
    return a[-1]


def f32(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_moves():
    x = f32(12, 20)

    def body(a, o):
        t = tile.load(a, None, (12, 20))
        u = tile.concat([t.T[2:18], tile.reshape(t, (24, 10))[:16, :8]], 1)
        tile.store(o, None, u + tile.iota((16, 20), 1).to(dt.f32) + tile.broadcast_to(tile.sum(t, 0)[None, :], (16, 20)) * u[3, 4])

    got = pieces(body, x, np.zeros((16, 20), np.float32))
    assert np.isfinite(got).all() and got.any()


def test_masks_fills_and_scatter():
    def body(a, o):
        where = tile.iota((6, 10)) * 10 + tile.iota((6, 10), 1)
        t = tile.load(a, (2, 0), (6, 10), check=True, fill=3.0, mask=where % 3 != 0)
        g = tile.gather(a, (where * 7) % 60, mask=where > 5, fill=-1.0)
        tile.scatter(o, where // 3, t + g, mask=where < 50)

    got = pieces(body, f32(6, 10), np.zeros(20, np.float32))
    assert got[:16].any() and not got[17:].any()


def test_carried_tiles_that_change_places():
    def body(a, o):
        x, y = tile.load(a, None, (8, 9)), tile.full((8, 9), 1.0, dt.f32)

        def step(i, state):
            p, q, n = state
            return tile.cond(i % 2 == 0, lambda: (q, p + q, n + 1), lambda: (q * 2.0, p, n))

        x, y, n = tile.for_loop((0, 5, 1), (x, y, 0), step)
        x, y = tile.while_loop(lambda s: tile.max(s[0]) < 100.0, lambda s: (s[0] * 2.0 + s[1], s[0]), (tile.abs(x) + 1.0, y))
        tile.store(o, None, x - y + n)

    assert np.isfinite(pieces(body, f32(8, 9), np.zeros((8, 9), np.float32))).all()


def test_reductions_of_every_axis():
    x = f32(4, 6, 8)

    def body(a, o):
        t = tile.load(a, None, (4, 6, 8))
        tile.store(o, (0,), tile.sum(t) + tile.max(tile.sum(tile.sum(t, 1), 1)) + tile.min(tile.sum(tile.max(t, 0), 0)))

    assert pieces(body, x, np.zeros(1, np.float32))[0] != 0


def test_integer_and_low_precision_products():
    a, b = np.arange(-60, 60).astype(np.int8).reshape(10, 12), np.arange(-72, 72).astype(np.int8).reshape(12, 12)

    def body(x, y, o):
        tile.store(o, None, tile.dot(tile.load(x, None, (10, 12)), tile.load(y, None, (12, 12)), tile.full((10, 12), 7, dt.int32)))

    assert np.array_equal(pieces(body, a, b, np.zeros((10, 12), np.int32)), a.astype(np.int32) @ b.astype(np.int32) + 7)


def test_a_check_reports_the_same_lane():
    def body(a, o):
        t = tile.load(a, None, (6, 10))
        tile.check(t < 42, t, site=5)
        tile.store(o, None, t)

    pieces(body, np.arange(60).reshape(6, 10), np.zeros((6, 10), np.int64))


def test_small_programs_are_left_alone():
    fn = tile.build(tile.TileProgram("k", [("o", BufferType(dt.f32, (4,)))]), lambda o: tile.store(o, (0,), tile.full((4,), 1.0, dt.f32)))
    assert fit_registers(fn) is fn
