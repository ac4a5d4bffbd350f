"""Group G of the inventory: the tile language (other rows have their tests beside the features: rows/G.toml)."""

# ruff: noqa: F821, UP037  (names of sizes in annotations)
from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_source import attention, built, exact_attention

import tessera as ts
from tessera import Tile, tile
from tessera.cli.show import stage_text
from tessera.errors import ArgumentError, KernelError
from tessera.ir import interpret_tile
from tessera.ir.interpret_tile import TileError
from tessera.machine import AMD_GFX942, NVIDIA_SM80, NVIDIA_SM86, NVIDIA_SM89, NVIDIA_SM90, X86_AVX2
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.nvidia import kernels as nvidia


@ts.kernel
def tile_matmul(A: Tile["M", "K", ts.bf16], B: Tile["K", "N", ts.bf16], C: Tile["M", "N", ts.f32]) -> None:
    ctx = tile.context()
    a_tile = tile.load(A, shape=(ctx.M, ctx.K))
    b_tile = tile.load(B, shape=(ctx.K, ctx.N))
    c_tile = tile.mma(a_tile, b_tile)
    tile.store(C, c_tile)


def ptx_of(fn: Any, machine: Any = NVIDIA_SM80) -> str:
    module = nvidia.lower(fn, machine)
    return workers().compile(Request(module.text, machine.triple, machine.cpu, machine.llvm_features, "asm", name=fn.name)).decode()


def assembled(text: str, folder: Path, cpu: str = "sm_80") -> str:
    """The report of the PTX assembler, where one is at hand."""
    if shutil.which("ptxas") is None:
        pytest.skip("no PTX assembler here")
    (folder / "k.ptx").write_text(text)
    done = subprocess.run(["ptxas", f"-arch={cpu}", "-v", str(folder / "k.ptx"), "-o", str(folder / "k.cubin")], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


MATRICES = [np.zeros((100, 40), ts.bf16.np), np.zeros((40, 70), ts.bf16.np), np.zeros((100, 70), np.float32)]


def test_g004_threads_shared_memory_and_barriers_are_the_compilers() -> None:
    source = inspect.getsource(tile_matmul.function)
    assert not re.search(r"thread|warp|shared|sync|barrier|lane", source)
    text = ptx_of(built(tile_matmul, *MATRICES)[0])
    for pattern in (r"%tid\.x", r"%ctaid\.x", r"bar\.sync|barrier\.sync|barrier\.cta", r"ldmatrix", r"mma\.sync", r"\.shared"):
        assert re.search(pattern, text), pattern


def test_g006_products_reach_the_matrix_unit_of_each_machine(tmp_path: Path) -> None:
    fn, _ = built(tile_matmul, *MATRICES)
    for machine in (NVIDIA_SM80, NVIDIA_SM86, NVIDIA_SM89, NVIDIA_SM90):
        text = ptx_of(fn, machine)
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in text
        assert not nvidia.complaints(assembled(text, tmp_path, machine.cpu))


def test_g008_wide_accesses_where_rows_are_aligned(tmp_path: Path) -> None:
    @ts.kernel
    def scale(X: Tile["M", 64, ts.f32], Y: Tile["M", 64, ts.f32]):
        for i in tile.range(X.shape[0], step=16):
            tile.store(Y[i:i + 16], tile.load(X[i:i + 16]) * 2)

    text = ptx_of(built(scale, np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32))[0])
    assert "ld.global.v4" in text and "st.global.v4" in text
    assert "cp.async.cg.shared.global" in ptx_of(built(tile_matmul, *MATRICES)[0])


@pytest.mark.parametrize("level, index", [("L2", 1), ("L1", 0)])
def test_g010_blocks_fit_the_cache_of_their_level(level: str, index: int) -> None:
    shapes = []

    @ts.kernel
    def walk(X: Tile["M", "N", ts.f32]):
        for block in tile.split(X, level=level):
            shapes.append(block.shape)
            tile.store(block, tile.load(block) + 1)

    x = np.zeros((300, 300), np.float32)
    walk(x)
    assert (x == 1).all()
    nbytes = 4 * int(np.prod(shapes[0]))
    cache = next(c for c in X86_AVX2.caches if c.level == index + 1)
    assert cache.size // 8 <= nbytes <= cache.size
    with pytest.raises(KernelError, match="split has no level 'L9'"):
        @ts.kernel
        def wrong(X: Tile["M", "N", ts.f32]):
            for block in tile.split(X, level="L9"):
                tile.store(block, tile.load(block))

        wrong(x)


def test_g012_spaces_of_parameters() -> None:
    @ts.kernel
    def double(X: Tile["N", ts.f32] @ ts.memory("global"), Y: Tile["N", ts.f32] @ ts.memory.global_):
        tile.store(Y, tile.load(X) * 2)

    x, y = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    double(x, y)
    assert y.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("machine, block_kib", [(NVIDIA_SM80, 163), (NVIDIA_SM86, 99), (NVIDIA_SM89, 99), (NVIDIA_SM90, 227),
                                                (AMD_GFX942, 64)], ids=lambda v: getattr(v, "cpu", ""))
def test_g014_limits_of_each_target(machine: Any, block_kib: int) -> None:
    """A100 163 KiB a block (of 164 KiB a multiprocessor, 1 KiB being the system's), 256 KiB of registers (AMD 512); 48 KiB is what a block
    has without asking, which the loader does."""
    registers = 512 if machine is AMD_GFX942 else 256
    assert machine.shared_bytes == block_kib << 10 and machine.register_bytes == registers << 10

    @ts.kernel
    def large(X: Tile["N", ts.f32], Y: Tile["N", ts.f32], n: int):
        held = tile.alloc_shared(n, dtype=ts.f32)
        tile.store_shared(held, tile.full((n,), 1.0, ts.f32))
        tile.store(Y[0:1], tile.sum(tile.load_shared(held)))

    x = np.zeros(1, np.float32)
    fn, _ = built(large, x, x, n=block_kib * 256 + 1)
    with pytest.raises(ts.CompileError, match=f"needs [0-9]+ bytes of shared memory; a block of .* has {block_kib << 10}"):
        from tessera.targets.amd.build import lower
        lower(fn, machine) if machine.vendor == "amd" else nvidia.lower(fn, machine)


def test_g018_g019_values_pass_through_shared_memory_unchanged() -> None:
    @ts.kernel
    def through(X: Tile["N", ts.f32], Y: Tile["N", ts.f32]):
        held = tile.alloc_shared(64, dtype=ts.f32)
        tile.store_shared(held, tile.load(X[0:64]))
        tile.store(Y[0:64], tile.load_shared(held))

    x, y = np.random.default_rng(0).standard_normal(64).astype(np.float32), np.zeros(64, np.float32)
    through(x, y)
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize("width, swizzle", [(33, "xor"), (32, "xor"), (33, None)])
def test_g025_padding_and_swizzles_change_no_value_and_meet_no_conflict(width: int, swizzle: Any) -> None:
    @ts.kernel
    def transpose(X: Tile[32, 32, ts.f32], Y: Tile[32, 32, ts.f32], width: int, swizzle: Any):
        held = tile.alloc_shared(shape=(32, width), dtype=ts.f32, swizzle=swizzle)
        tile.copy(X[0:32, 0:32], held)
        tile.store(Y[0:32, 0:32], tile.transpose(tile.load_shared(held))[0:32, 0:32])

    x, y = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32), np.zeros((32, 32), np.float32)
    transpose(x, y, width, swizzle)
    assert np.array_equal(y, x.T)
    assert all(a.conflicts == 0 for a in transpose.access_report(x, y, width, swizzle))


def test_g031_match_assembles(tmp_path: Path) -> None:
    """(It is formed from comparisons and a reduction within the warp, which every vendor has.)"""
    @ts.kernel
    def match(X: Tile["N", ts.int32], Y: Tile["N", ts.uint32]):
        tile.store(Y[0:64], tile.warp.match(tile.load(X[0:64])))

    text = ptx_of(built(match, np.zeros(64, np.int32), np.zeros(64, np.uint32))[0])
    assembled(text, tmp_path)


def test_g040_dimension_objects_and_bare_names() -> None:
    m, k, n = ts.sym("m k n")

    @ts.kernel
    def objects(A: Tile[m, k, ts.fp8_e4m3], B: Tile[k, n, ts.fp8_e4m3], C: Tile[m, n, ts.f32]):
        tile.store(C, tile.mma(tile.load(A, shape=(8, 8)), tile.load(B, shape=(8, 8))))

    @ts.kernel
    def strings(A: Tile["m", "k", ts.fp8_e4m3], B: Tile["k", "n", ts.fp8_e4m3], C: Tile["m", "n", ts.f32]):
        tile.store(C, tile.mma(tile.load(A, shape=(8, 8)), tile.load(B, shape=(8, 8))))

    assert objects.declared.specs == strings.declared.specs
    a = np.random.default_rng(0).integers(-4, 5, (20, 30)).astype(ts.fp8_e4m3.np)
    b, c, d = a.T.copy(), np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32)
    objects(a, b, c)
    strings(a, b, d)
    assert np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32)) and np.array_equal(c, d)


def test_g041_mixed_formats_are_exact_where_sums_are() -> None:
    @ts.kernel
    def mixed(A: Tile["m", "k", ts.fp8_e4m3], B: Tile["k", "n", ts.fp8_e5m2], C: Tile["m", "n", ts.f32]):
        tile.store(C, tile.mma_mixed(A, B, accumulate=ts.f32, saturate=True, rounding="rte"))

    rng = np.random.default_rng(2)
    a, b = rng.integers(-16, 17, (24, 100)).astype(ts.fp8_e4m3.np), rng.integers(-8, 9, (100, 40)).astype(ts.fp8_e5m2.np)
    c = np.zeros((24, 40), np.float32)
    mixed(a, b, c)
    assert np.array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_g042_long_sums_of_fp8_keep_the_bits_of_f32() -> None:
    """2**14 and then 4096 products of 1/64: a sum of 14 bits would stand still.  NVIDIA's matrix unit keeps fewer bits, so the compiler
    takes four instructions' sums at a time out of it."""
    n = 4096

    @ts.kernel
    def product(A: Tile["m", "k", ts.fp8_e4m3], B: Tile["k", "n", ts.fp8_e4m3], C: Tile["m", "n", ts.f32]):
        tile.store(C, tile.mma(tile.load(A, shape=(16, 256)), tile.load(B, shape=(256, 16))))

    a, b = np.full((16, n), 1 / 8, ts.fp8_e4m3.np), np.full((n, 16), 1 / 8, ts.fp8_e4m3.np)
    a[:, 0], b[0, :] = 128, 128
    c = np.zeros((16, 16), np.float32)
    product(a, b, c)
    assert (c == 2**14 + (n - 1) / 64).all()
    text = nvidia.lower(built(product, a, b, c)[0], NVIDIA_SM89).text
    products, sums = text.count("mma.sync.aligned.m16n8k32"), text.count("fadd float")
    assert products == 8 and sums == products // 4 * 4  # 256 of k are eight instructions for a warp's result: two sums of 4 elements


def test_g045_one_namespace() -> None:
    assert ts.tile is tile


def test_g046_g047_shapes_as_arguments_or_as_a_keyword() -> None:
    seen = []

    @ts.kernel
    def shapes(X: Tile["N", ts.f32]):
        seen.extend([tile.alloc_shared(128, 64, dtype=ts.bf16), tile.alloc_shared(shape=(128, 64), dtype=ts.bf16),
                     tile.alloc_register(128, dtype=ts.f32), tile.alloc_register(128, 64, dtype=ts.f32),
                     tile.alloc_register(shape=(128, 64), dtype=ts.f32)])
        tile.store(X, tile.load(X))

    built(shapes, np.zeros(4, np.float32))
    assert [(tuple(s.shape), s.dtype) for s in seen[:5]] == [
        ((128, 64), ts.bf16), ((128, 64), ts.bf16), ((128,), ts.f32), ((128, 64), ts.f32), ((128, 64), ts.f32)]


def test_g051_attention_without_its_barrier_is_a_race() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((2, 50, 16)).astype(ts.bf16.np) for i in range(3))
    o = np.full((2, 50, 16), np.nan, ts.bf16.np)
    static = {"scale": 0.25, "block": 32, "width": 16}
    fn, env = built(attention, q, k, v, o, **static)
    interpret_tile.run(fn, [q, k, v, o], env)
    assert np.abs(o.astype(np.float64) - exact_attention(q, k, v, 0.25)).max() < 2**-6  # every row was written
    fn, env = built(attention, q, k, v, o, **static, wait=False)
    with pytest.raises(TileError, match="race: accesses memory that store may still be writing") as e:
        interpret_tile.run(fn, [q, k, v, o], env)
    (line,) = [row for row in str(e.value).splitlines() if "← Error here" in row]
    assert "tile.online_softmax(tile.matmul(q, k.T) * scale, m, l)" in line


def test_g052_attention_takes_the_matrix_unit(tmp_path: Path) -> None:
    q = np.zeros((2, 50, 16), ts.bf16.np)
    text = ptx_of(built(attention, q, q, q, q, scale=0.25, block=32, width=16)[0])
    assert text.count("mma.sync.aligned.m16n8k16") >= 2 and "ldmatrix" in text and "cp.async.cg" in text
    assert not nvidia.complaints(assembled(text, tmp_path))


@pytest.mark.parametrize("seed", range(5))
def test_g053_g054_softmax_in_pieces(seed: int) -> None:
    """Random cuts of the keys: maximum, sum and accumulator agree with the softmax of whole rows to 1e-6."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 60))
    cuts = [0, *sorted(rng.choice(np.arange(1, n), size=int(rng.integers(1, 6)), replace=False).tolist()), n]
    pairs = list(pairwise(cuts))

    @ts.kernel
    def pieces(S: Tile["M", "N", ts.f32], V: Tile["N", "D", ts.f32], O: Tile["M", "D", ts.f32], P: Tile["M", ts.f32]):
        m, l, acc = tile.alloc_register(8, dtype=ts.f32), tile.alloc_register(8, dtype=ts.f32), tile.alloc_register(8, 4, dtype=ts.f32)
        tile.fill(m, -float("inf"))
        tile.fill(l, 0.0)
        tile.fill(acc, 0.0)
        for a, b in pairs:
            m_new, l_new, p = tile.online_softmax(tile.load(S[0:8, a:b]), m, l)
            tile.update_accumulator(acc, tile.matmul(p, tile.load(V[a:b, 0:4])), m, m_new, l, l_new)
            m = m_new
            l = l_new
        tile.store(O[0:8, 0:4], acc / l)
        tile.store(P[0:8], l)

    s, v = (rng.standard_normal(x).astype(np.float32) * 5 for x in ((8, n), (n, 4)))
    o, total = np.zeros((8, 4), np.float32), np.zeros(8, np.float32)
    pieces(s, v, o, total)
    wide = np.exp(s.astype(np.float64) - s.max(1, keepdims=True))
    assert np.allclose(total, wide.sum(1), rtol=1e-6)
    assert np.allclose(o, wide / wide.sum(1, keepdims=True) @ v, rtol=0, atol=1e-6 * np.abs(v).max())


def test_g059_tile_ir_names_the_grid_the_tiles_and_the_product() -> None:
    fn, _ = built(tile_matmul, *MATRICES)
    text = re.sub(r" \([^()]*\.py:\d+\)", "", str(fn))
    assert "grid = (<((M+63)//(64))>, <((N+63)//(64))>)" in text  # blocks
    assert re.search(r"for\(.*\) do\(", text) and "load(" in text and "store(" in text
    assert re.search(r"dot\(%\d+, %\d+, %\w+\) : tile<f32\[64, 64\]>", text)  # the tensor core's part
    placed = stage_text(tile_matmul, "tile", NVIDIA_SM80, "bf16[100, 40], bf16[40, 70], f32[100, 70]")
    assert "threads = 128" in placed and "lanes = 32" in placed
    assert re.search(r"tile<f32\[64, 64\], .*reg[\d.]+_lane[\d.]+_warp[\d.]+", placed)


def test_g060_four_levels_of_a_function() -> None:
    @ts.jit
    def f(x: ts.Tensor["N", 8]) -> ts.Tensor["N", 8]:
        return ts.softmax(x)

    f(ts.ones(3, 8))
    for level, opening in (("graph", "graph @"), ("schedule", "sched @"), ("tile", "tile @"), ("target", "define ")):
        assert opening in f.inspect(level), level
    with pytest.raises(ArgumentError, match=r"inspect\(\) shows no level 'tiles'; did you mean 'tile'"):
        f.inspect("tiles")


def test_g023_positions_outside_raise_where_that_is_asked() -> None:
    @ts.kernel
    def pick(X: Tile["N", ts.f32], I: Tile["M", ts.int32], Y: Tile["M", ts.f32], check: bool):
        tile.store(Y, tile.load_gather(X, tile.load(I, shape=(16,)), fill=-1, check=check))

    x, i, y = np.arange(10, dtype=np.float32), np.array([3, 9, 0] * 7, np.int32), np.zeros(21, np.float32)
    pick(x, i, y, True)
    assert np.array_equal(y, np.take(x, i))
    i[20] = 12
    pick(x, i, y, False)
    assert y[20] == -1
    with pytest.raises(IndexError, match=r"load_gather: index 12 is out of range of 'X'") as e:
        pick(x, i, y, True)
    assert "tile.store(Y, tile.load_gather(X," in str(e.value) and "← Error here" in str(e.value)
    with pytest.raises(IndexError, match=r"index 12 is out of range of 'X'"):
        ts.jit(lambda a, b: pick(a, b, ts.zeros(21), True) + 1)(ts.tensor(x), ts.tensor(i))


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "gfx942", "intel-cpu", "avx2"])
def test_g016_g057_every_target_shows_a_kernel_that_copies(target: str) -> None:
    """The text of each stage, as ``tessera show`` prints it: stages on NVIDIA, synchronous copies elsewhere."""
    machine = ts.machine.names.machine(target)

    @ts.kernel
    def staged(X: Tile["M", "N", ts.bf16], Y: Tile["N", "K", ts.bf16], Z: Tile["M", "K", ts.f32]):
        held = tile.alloc_shared(16, 16, dtype=ts.bf16)
        tile.load_async(held, X[0:16, 0:16])
        tile.barrier()
        tile.store(Z[0:16, 0:16], tile.matmul(held, Y[0:16, 0:16]))

    text = stage_text(staged, "ll", machine, "bf16[16, 16], bf16[16, 16], f32[16, 16]")
    assert ("cp.async.cg.shared.global" in text) == target.startswith("sm_")
    assert ("mma.sync" in text) == target.startswith("sm_") and ("mfma" in text) == target.startswith("gfx")
    products = stage_text(tile_matmul, "tile", machine, "bf16[100, 40], bf16[40, 70], f32[100, 70]")
    assert ("copy_async(" in products) == target.startswith("sm_")
