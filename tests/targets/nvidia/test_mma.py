"""Products of the tile level on sm_80 and later: mma.sync, fed by ldmatrix from stages that cp.async fills.

The kernels' LLVM IR runs on an emulated warp machine (``emulated.py``), and a PTX assembler, where one is at hand, finds nothing slow."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
import pytest
from emulated import Emulated
from one_source import attention, built, exact_attention, product, product_nt
from test_emit import assemble, ptx

import tessera as ts
from tessera import tile
from tessera.ir import interpret_tile
from tessera.ir.core import BufferType
from tessera.machine import NVIDIA_SM80, NVIDIA_SM89, NVIDIA_SM90
from tessera.targets.nvidia import kernels
from tessera.tiling import dsl
from tessera.tiling.copies import pipelined, synchronous
from tessera.types.dtypes import int16


def operands(kind, right, out, shape_a, shape_b, shape_c, seed=0):
    rng = np.random.default_rng(seed)

    def some(shape, dtype):
        low = 0 if dtype is ts.uint8 else -4
        return rng.integers(low, 5, shape).astype(dtype.np)  # sums of few products of small integers are exact in any order

    return [some(shape_a, kind), some(shape_b, right), np.zeros(shape_c, out.np)]


CASES = [
    (ts.bf16, None, ts.f32, NVIDIA_SM80, (32, 32, 32), 128, False), (ts.f16, None, ts.f32, NVIDIA_SM80, (32, 64, 16), 32, False),
    (ts.bf16, None, ts.f32, NVIDIA_SM80, (32, 32, 64), 64, True), (ts.bf16, None, ts.f32, NVIDIA_SM80, (16, 8, 8), 32, False),
    (ts.int8, None, ts.int32, NVIDIA_SM80, (16, 32, 32), 64, False), (ts.int8, None, ts.int32, NVIDIA_SM80, (32, 32, 32), 32, True),
    (ts.uint8, None, ts.int32, NVIDIA_SM80, (16, 16, 16), 32, False), (ts.fp8_e4m3, None, ts.f32, NVIDIA_SM89, (16, 16, 64), 32, True),
    (ts.fp8_e4m3, ts.fp8_e5m2, ts.f32, NVIDIA_SM90, (16, 16, 32), 32, False),
]


@pytest.mark.parametrize("kind, right, out, machine, tiles, threads, transposed", CASES, ids=lambda v: str(getattr(v, "cpu", v)))
def test_products_on_an_emulated_machine(kind, right, out, machine, tiles, threads, transposed):
    m, n, k = tiles
    M, N, K = m - 3, n + 16, 2 * k + 16 // kind.itemsize
    right = right or kind
    arrays = operands(kind, right, out, (M, K), (N, K) if transposed else (K, N), (M, N))
    fn, env = built(product_nt if transposed else product, *arrays, m=m, n=n, k=k)
    fn.attrs["threads"] = threads
    module = kernels.lower(fn, machine)
    assert "mma.sync" in module.text and "cp.async" in module.text and module.threads == threads
    Emulated(module, arrays, [env[s] for s in fn.attrs["sizes"]]).run(1)
    a, b = (x.astype(np.float64) for x in arrays[:2])
    np.testing.assert_array_equal(arrays[2], (a @ (b.T if transposed else b)).astype(out.np))


def test_rows_that_begin_anywhere():
    """K = 41: rows of bf16 begin at no multiple of 16 bytes, so the copies go element by element, which the kernel finds out."""
    arrays = operands(ts.bf16, ts.bf16, ts.f32, (20, 41), (41, 12), (20, 12))
    fn, env = built(product, *arrays, m=16, n=16, k=16)
    fn.attrs["threads"] = 32
    Emulated(kernels.lower(fn, NVIDIA_SM80), arrays, [env[s] for s in fn.attrs["sizes"]]).run(2)
    np.testing.assert_array_equal(arrays[2], arrays[0].astype(np.float32) @ arrays[1].astype(np.float32))


def test_the_pipeline_means_what_the_loop_meant():
    """The interpreter, which reports races, gives the same bits with and without the stages, for every number of iterations."""
    for size in (0, 8, 16, 31, 100):
        arrays = operands(ts.bf16, ts.bf16, ts.f32, (20, size), (size, 16), (20, 16), size)
        fn, env = built(product, *arrays, m=16, n=16, k=16)
        staged = pipelined(fn, NVIDIA_SM80)
        names = [op.name for op in staged.walk()]
        assert names.count("copy_async") == 2 * 4 and names.count("copy_commit") == 4
        one, two, three = ([a.copy() for a in arrays] for _ in range(3))
        interpret_tile.run(fn, one, env)
        interpret_tile.run(staged, two, env)
        interpret_tile.run(synchronous(staged), three, env)
        assert one[2].tobytes() == two[2].tobytes() == three[2].tobytes()
    assert pipelined(staged, NVIDIA_SM80) is staged  # it copies itself


def test_a_loop_that_writes_what_it_reads_is_left_alone():
    @ts.kernel
    def powers(A: ts.Tile["M", "M", ts.f16], B: ts.Tile["M", "M", ts.f16], C: ts.Tile["M", "M", ts.f16]):
        for l in tile.range(0, 64, step=16, parallel=False):
            x = tile.mma(tile.load(A, (0, l), shape=(16, 16)), tile.load(B, (l, 0), shape=(16, 16)))
            tile.store(C[0:16, l:l + 16], x.to(ts.f16))
    arrays = [np.zeros((64, 64), np.float16) for _ in range(3)]
    fn, _ = built(powers, *arrays)
    assert not any(op.name == "copy_async" for op in pipelined(fn, NVIDIA_SM80).walk())


@pytest.mark.parametrize("kind, out, tiles, machine", [
    (ts.bf16, ts.f32, (128, 128, 32), NVIDIA_SM80), (ts.f16, ts.f32, (128, 64, 64), NVIDIA_SM80),
    (ts.int8, ts.int32, (64, 64, 64), NVIDIA_SM80), (ts.fp8_e5m2, ts.f32, (64, 64, 64), NVIDIA_SM89),
    (ts.bf16, ts.f32, (64, 64, 64), NVIDIA_SM90)], ids=lambda v: str(getattr(v, "cpu", v)))
@pytest.mark.parametrize("symbolic", [False, True])
def test_the_assembler_finds_nothing_slow(kind, out, tiles, machine, symbolic, tmp_path):
    arrays = operands(kind, kind, out, (256, 256), (256, 256), (256, 256))
    fn, _ = built(product, *arrays, specialize=symbolic, **dict(zip("mnk", tiles)))
    _, text = ptx(fn, machine)
    assert "mma.sync.aligned" in text and "cp.async.cg.shared.global" in text and "ldmatrix.sync.aligned.m8n8.x4" in text
    assert "cp.async.wait_group" in text and "st.local" not in text
    assert not kernels.complaints(assemble(text, tmp_path, machine.cpu))


def test_sums_of_f32_keep_their_order():
    arrays = operands(ts.f32, ts.f32, ts.f32, (16, 16), (16, 16), (16, 16))
    fn, _ = built(product, *arrays, m=16, n=16, k=16)
    assert "mma.sync" not in kernels.lower(fn, NVIDIA_SM80).text


# -- what kernels say themselves ---------------------------------------------------------------------------------------------
@ts.kernel
def fragments(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.f32]):
    a, b, c = tile.fragment.a((16, 16), ts.bf16), tile.fragment.b((16, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
    left, right = tile.alloc_shared(16, 16, dtype=ts.bf16), tile.alloc_shared(16, 16, dtype=ts.bf16)
    for k in tile.range(0, 40, step=16, parallel=False):
        tile.async_copy(A[0:16, k:k + 16], left)
        tile.async_copy(B[k:k + 16, 0:16], right)
        tile.wait_async(0)
        tile.load_matrix(a, left, stride=16)
        tile.load_matrix(b, right)
        tile.mma(c, a, b, c)
    tile.store_matrix(C[0:16, 0:16], c)


def test_fragments_become_ldmatrix_and_mma():
    arrays = operands(ts.bf16, ts.bf16, ts.f32, (13, 40), (40, 15), (13, 15))
    fn, env = built(fragments, *arrays)
    fn.attrs["threads"] = 32
    module = kernels.lower(fn, NVIDIA_SM80)
    assert module.text.count("cp.async.cg") >= 2 and module.text.count(".ldmatrix.") >= 2
    assert ".ldmatrix.sync.aligned.m8n8.x4.trans" in module.text
    assert module.text.count("mma.sync.aligned.m16n8k16") == 2
    Emulated(module, arrays, [env[s] for s in fn.attrs["sizes"]]).run(1)
    np.testing.assert_array_equal(arrays[2], arrays[0].astype(np.float32) @ arrays[1].astype(np.float32))


def test_copies_that_kernels_start(tmp_path):
    """Boxes of whole chunks go by cp.async, the rest by loads; ragged ends are zeros; a wait for all but one group leaves one pending."""
    @ts.kernel
    def double(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", "N", ts.f32], Z: ts.Tile["K", ts.f32]):
        one, two, odd = (tile.alloc_shared(*s, dtype=ts.f32) for s in ((16, 8), (16, 8), (6,)))
        tile.async_copy(X[0:16, 0:8], one, stage=2)
        tile.load_async(odd, Z[0:6])
        tile.async_copy(X[0:16, 8:16], two)
        tile.wait_async(1)
        tile.store(Y[0:16, 0:8], tile.load_shared(one) + tile.sum(tile.load_shared(odd)))
        tile.barrier()
        tile.store_shared(one, tile.load_shared(two) * 2)
        tile.async_copy(one, Y[0:16, 8:16])

    for shape in ((16, 16), (13, 11)):
        x, z = np.arange(np.prod(shape), dtype=np.float32).reshape(shape), np.arange(5, dtype=np.float32)
        arrays = [x, np.zeros(shape, np.float32), z]
        fn, env = built(double, *arrays)
        fn.attrs["threads"] = 32
        module = kernels.lower(fn, NVIDIA_SM80)
        assert "cp.async.wait.group(i32 1)" in module.text and module.text.count("cp.async.commit.group(") == 3
        Emulated(module, arrays, [env[s] for s in fn.attrs["sizes"]]).run(1)
        np.testing.assert_array_equal(arrays[1], np.concatenate([x[:, :8] + 10, x[:, 8:] * 2], 1))
    _, text = ptx(fn, NVIDIA_SM80)
    assert "cp.async.cg.shared.global" in text and not kernels.complaints(assemble(text, tmp_path, "sm_80"))


def test_attention_of_one_block():
    """Copies, products, reductions, conversions between fragments and the order of it all, as the emulated machine runs them."""
    arrays = [np.random.default_rng(i).standard_normal((1, 50, 16)).astype(ts.bf16.np) for i in range(3)]
    arrays.append(np.zeros_like(arrays[0]))
    fn, sizes = built(attention, *arrays, scale=0.25, block=32, width=16)
    fn.attrs["threads"] = 64
    module = kernels.lower(fn, NVIDIA_SM80)
    assert module.text.count("mma.sync") == 8 and module.text.count("cp.async.cg") == 3
    Emulated(module, arrays, [sizes[s] for s in fn.attrs["sizes"]]).run(2)
    assert np.abs(arrays[3].astype(np.float64) - exact_attention(*arrays[:3], 0.25)).max() < 2**-6


def test_checks_of_narrow_tiles_read_each_element():
    """What blocks hand on in pairs is checked one by one."""
    def body(a, c):
        x = dsl.load(a, (0,), (64,))
        dsl.check(x < 100, x, 3)
        dsl.store(c, (0,), x)

    prog = dsl.TileProgram("checked", [("a", BufferType(int16, (64,))), ("c", BufferType(int16, (64,)))])
    fn = dsl.build(prog, dsl.tile_function(body))
    fn.attrs["threads"] = 32
    text = kernels.lower(fn, NVIDIA_SM80).text
    assert text.count("atomicrmw umin") == 2 and text.count("sext i16") == 2 and "zext i16" not in text
    ptx(fn, NVIDIA_SM80)


def test_branches_hand_on_narrow_tiles_that_were_there_before():
    def body(a, c):
        x = dsl.load(a, (0,), (128,))
        y = x
        if dsl.load(a, (0,), ()) > 0:
            y = x + 1
        z = x
        if dsl.load(a, (1,), ()) > 0:
            z = y
        dsl.store(c, (0,), y + z + x)

    prog = dsl.TileProgram("branches", [("a", BufferType(int16, (128,))), ("c", BufferType(int16, (128,)))])
    fn = dsl.build(prog, dsl.tile_function(body))
    fn.attrs["threads"] = 32
    module, _ = ptx(fn, NVIDIA_SM80)
    for first, second in ((0, 0), (3, -2), (-1, 5), (7, 7)):
        x = np.arange(128, dtype=np.int16)
        x[:2] = first, second
        arrays = [x, np.zeros_like(x)]
        Emulated(module, arrays).run(1)
        y = x + (first > 0)
        assert np.array_equal(arrays[1], y + (y if second > 0 else x) + x)
