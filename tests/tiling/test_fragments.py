"""Fragments of matrix instructions, said by the kernel; copies into shared memory that are under way until they are waited for."""

# ruff: noqa: F821  (names of sizes in annotations)
import re

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.errors import KernelError
from tessera.ir import interpret_tile
from tessera.ir.interpret_tile import TileError


def built(kernel, arrays, static=None):
    b = kernel.build({n: ts.Tensor(a).type for n, a in zip(kernel.declared.specs, arrays)}, static or {})
    env = {}
    for p, a in zip(b.params.values(), arrays):
        ts.types.shapes.unify(p.type.shape, a.shape, env)
    return b.function, env


@ts.kernel
def tensor_core_kernel(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.f32]):
    a_frag = tile.fragment.a(shape=(16, 16), dtype=ts.bf16)
    b_frag = tile.fragment.b(shape=(16, 16), dtype=ts.bf16)
    c_frag = tile.fragment.c(shape=(16, 16), dtype=ts.f32)
    tile.load_matrix(a_frag, A, stride=16)
    tile.load_matrix(b_frag, B)
    tile.mma(c_frag, a_frag, b_frag, c_frag)
    tile.store_matrix(C, c_frag)


@pytest.mark.parametrize("m, n", [(16, 16), (40, 33), (16, 7)])
def test_the_specifications_kernel(m, n):
    """One fragment a program; the grid walks rows and columns, of which the last are masked."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, s).astype(ts.bf16.np) for s in ((m, 16), (16, n)))
    c = np.full((m, n), np.nan, np.float32)
    tensor_core_kernel(a, b, c)
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))
    again = np.full((m, n), np.nan, np.float32)
    fn, env = built(tensor_core_kernel, [a, b, again])
    interpret_tile.run(fn, [a, b, again], env)
    assert again.tobytes() == c.tobytes()


def test_a_stride_is_what_the_memory_has():
    a = np.zeros((16, 32), ts.bf16.np)
    with pytest.raises(KernelError) as e:
        tensor_core_kernel(a, np.zeros((32, 16), ts.bf16.np), np.zeros((16, 16), np.float32))
    text = str(e.value)
    assert "load_matrix: the rows of A lie 32 elements apart, not 16" in text and "tile.load_matrix(a_frag, A, stride=16)" in text
    assert "stride=32" in text


@pytest.mark.parametrize("transposed", [False, True])
def test_loops_over_windows_and_shared_memory(transposed):
    @ts.kernel
    def product(A: ts.Tile["M", "K", ts.f16], B: ts.Tile["P", "Q", ts.f16], C: ts.Tile["M", "N", ts.f32]):
        a, b, c = tile.fragment.a((32, 16), ts.f16), tile.fragment.b((16, 16), ts.f16), tile.fragment.c((32, 16), ts.f32)
        held = tile.alloc_shared(32, 16, dtype=ts.f16)
        for k in tile.range(0, 64, step=16, parallel=False):
            tile.async_copy(A[0:32, k:k + 16], held)
            tile.wait_async()
            tile.load_matrix(a, held)
            if transposed:
                tile.load_matrix(b, B[0:16, k:k + 16], transposed=True)
            else:
                tile.load_matrix(b, B[k:k + 16, 0:16])
            tile.mma(c, a, b, c)
        tile.store_matrix(C[0:32, 0:16], c)

    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, s).astype(np.float16) for s in ((32, 64), (16, 64) if transposed else (64, 16)))
    for run in (product, lambda *x: interpret_tile.run(built(product, x)[0], x, built(product, x)[1])):
        c = np.zeros((32, 16), np.float32)
        run(a, b, c)
        np.testing.assert_array_equal(c, a.astype(np.float32) @ (b.T if transposed else b).astype(np.float32))


def test_round_trip_through_shared_memory():
    @ts.kernel
    def copy(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", "N", ts.f32]):
        f, held = tile.fragment.c((16, 8), ts.f32), tile.alloc_shared(16, 8, dtype=ts.f32)
        tile.load_matrix(f, X[0:16, 0:8])
        tile.store_matrix(held, f, stride=8)
        tile.load_matrix(f, held, stride=8)
        tile.store_matrix(Y[0:16, 0:8], f, stride=8)

    x, y = np.random.default_rng(2).standard_normal((16, 8)).astype(np.float32), np.zeros((16, 8), np.float32)
    copy(x, y)
    assert y.tobytes() == x.tobytes()


def ptx_tables(side, each):
    """Where lane ``4 g + t`` holds element ``i``, as the PTX ISA's tables of m16n8k* say it; ``each`` elements fill 32 bits."""
    if side == "a":
        return lambda g, t, i: (g + 8 * (i // each % 2), each * t + i % each + 4 * each * (i // (2 * each)))
    if side == "b":
        return lambda g, t, i: (each * t + i % each + 4 * each * (i // each), g)
    return lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2)


@pytest.mark.parametrize("side, shape, dtype", [
    ("a", (16, 16), ts.bf16), ("a", (16, 8), ts.f16), ("a", (16, 32), ts.int8), ("a", (16, 16), ts.uint8), ("a", (16, 32), ts.fp8_e4m3),
    ("b", (16, 8), ts.bf16), ("b", (8, 8), ts.f16), ("b", (32, 8), ts.int8), ("b", (32, 8), ts.fp8_e5m2), ("c", (16, 8), ts.f32),
    ("c", (16, 8), ts.int32)], ids=str)
def test_lanes_hold_what_the_ptx_tables_say(side, shape, dtype):
    held = {}

    def body(X, Y):
        held["f"] = getattr(tile.fragment, side)(shape, dtype)
        tile.store(Y, tile.load(X))

    body.__annotations__ = {"X": ts.Tile["N", ts.f32], "Y": ts.Tile["N", ts.f32]}
    built(ts.kernel(body), [np.zeros(4, np.float32)] * 2)
    lanes, place = held["f"].lanes("sm_89"), ptx_tables(side, 4 // dtype.itemsize)
    assert lanes.shape == (32, shape[0] * shape[1] // 32, 2)
    for lane in range(32):
        assert [tuple(x) for x in lanes[lane]] == [place(lane // 4, lane % 4, i) for i in range(lanes.shape[1])]
    assert held["f"].lanes("gfx942").shape[0] == 64 if (side, shape) == ("a", (16, 16)) and dtype is ts.bf16 else True


def raises(body, *dtypes):
    """The text of the error that building a kernel gives."""
    body.__annotations__ = dict(zip("XY", dtypes or (ts.Tile["N", ts.f32],) * 2))
    arrays = [np.zeros(tuple(16 for _ in t.dims), t.dtype.np) if hasattr(t, "dims") else np.zeros(16, np.float32)
              for t in body.__annotations__.values()]
    with pytest.raises(KernelError) as e:
        built(ts.kernel(body), arrays)
    return str(e.value)


def test_a_dtype_that_the_matrix_unit_lacks():
    def body(X, Y):
        tile.fragment.a(shape=(16, 16), dtype=ts.f64)

    text = raises(body)
    assert "no matrix unit takes f64 as its left operand" in text and "tile.fragment.a(shape=(16, 16), dtype=ts.f64)" in text
    assert re.search(r"Expected: bf16, f16, int8, uint8, fp8_e4m3, fp8_e5m2", text) and re.search(r"Received: f64", text)
    assert "tile.dot multiplies every type" in text


def test_shapes_that_do_not_divide():
    def body(X, Y):
        tile.fragment.b(shape=(20, 16), dtype=ts.bf16)

    text = raises(body)
    assert "a fragment.b of bf16 does not divide into matrix instructions" in text and "[20, 16]" in text
    assert "multiples of [16, 8] or multiples of [8, 8]" in text and "tile.fragment.b(shape=(20, 16), dtype=ts.bf16)" in text


def test_fragments_at_the_wrong_place():
    def body(X, Y):
        a, c = tile.fragment.a((16, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
        tile.mma(c, a, a, c)

    text = raises(body)
    assert "mma(d, a, b, c): b is <fragment.a bf16[16, 16]>" in text and "a fragment.b" in text and "tile.mma(c, a, a, c)" in text

    def empty(X, Y):
        a, b, c = tile.fragment.a((16, 16), ts.bf16), tile.fragment.b((16, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
        tile.mma(c, a, b, c)

    assert "is read before it is filled" in raises(empty)

    def no_fragment(X, Y):
        tile.load_matrix(X, X)

    assert "load_matrix takes a fragment, not" in raises(no_fragment)


def test_a_contraction_longer_than_the_fragment():
    @ts.kernel
    def short(A: ts.Tile["M", "K", ts.bf16], C: ts.Tile["M", "M", ts.f32]):
        a = tile.fragment.a((16, 16), ts.bf16)
        tile.load_matrix(a, A)

    with pytest.raises(KernelError, match=r"the contraction of 'A' has 64 elements, and <fragment.a bf16\[16, 16\]> has 16"):
        built(short, [np.zeros((16, 64), ts.bf16.np), np.zeros((16, 16), np.float32)])


# -- copies that are under way -----------------------------------------------------------------------------------------------
def staged(wait):
    @ts.kernel
    def stage(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32]):
        one, two = tile.alloc_shared(16, dtype=ts.f32), tile.alloc_shared(16, dtype=ts.f32)
        tile.async_copy(X[0:16], one, stage=1)
        tile.load_async(two, X[16:32])
        wait()
        tile.store(Y[0:16], tile.load_shared(one) * 2)
        tile.wait_async(0)
        tile.store(Y[16:32], tile.load_shared(two) * 3)
    return stage


def wait_for_one():
    tile.wait_async(1)


def meet():
    tile.barrier()


def meet_as_block():
    tile.block.sync()


def go_on():
    pass


WAITS = {"wait_async(1)": wait_for_one, "barrier": meet, "block.sync": meet_as_block}


@pytest.mark.parametrize("wait", WAITS, ids=str)
def test_what_was_waited_for_is_there(wait):
    x = np.arange(32, dtype=np.float32)
    kernel = staged(WAITS[wait])
    for run in (kernel, lambda *a: interpret_tile.run(built(kernel, a)[0], a, built(kernel, a)[1])):
        y = np.zeros(32, np.float32)
        run(x, y)
        np.testing.assert_array_equal(y, x * np.repeat([2, 3], 16))


def test_reading_before_the_wait_is_a_race():
    """Without the wait the first read is one; with wait_async(1) the second read would be, were its own wait missing."""
    arrays = [np.zeros(32, np.float32), np.zeros(32, np.float32)]
    fn, env = built(staged(go_on), arrays)
    with pytest.raises(TileError) as e:
        interpret_tile.run(fn, arrays, env)
    text = str(e.value)
    assert "race: accesses memory that store may still be writing, in" in text
    assert len(re.findall(r"test_fragments\.py:\d+", text)) == 2  # the reading line and the copy's

    @ts.kernel
    def second(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32]):
        one, two = tile.alloc_shared(16, dtype=ts.f32), tile.alloc_shared(16, dtype=ts.f32)
        tile.load_async(one, X[0:16])
        tile.load_async(two, X[16:32])
        tile.wait_async(1)
        tile.store(Y[0:16], tile.load_shared(two))

    fn, env = built(second, arrays)
    with pytest.raises(TileError, match="race: accesses memory that store may still be writing"):
        interpret_tile.run(fn, arrays, env)


def test_overwriting_what_is_under_way_is_a_race():
    @ts.kernel
    def twice(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32]):
        held = tile.alloc_shared(16, dtype=ts.f32)
        tile.load_async(held, X[0:16])
        tile.fill(held, 1.0)
        tile.barrier()
        tile.store(Y[0:16], tile.load_shared(held))

    arrays = [np.zeros(16, np.float32), np.zeros(16, np.float32)]
    fn, env = built(twice, arrays)
    with pytest.raises(TileError, match="race: accesses memory that store may still be writing"):
        interpret_tile.run(fn, arrays, env)


def test_a_wait_for_no_number_of_copies():
    def body(X, Y):
        tile.wait_async(-1)

    assert "wait_async: stage is a number of copies that may pend, not -1" in raises(body)
