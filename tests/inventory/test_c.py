"""Group C of the inventory: state and memory (other rows have their tests beside the features: rows/C.toml)."""

# ruff: noqa: F821, F722, UP037  (names of sizes in annotations)
from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, Tile, memory, tile
from tessera.cli.show import stage_text
from tessera.errors import ArgumentError, KernelError
from tessera.machine import NVIDIA_SM80, NVIDIA_SM90
from tessera.runtime.memory_pool import bytes_of


def test_c003_gradients_through_two_steps_of_a_state() -> None:
    w, v = (ts.tensor(np.random.default_rng(i).normal(size=(3, 3)) * 0.5) for i in range(2))

    class Cell(ts.Stateful):
        def __init__(self, start: Any):
            self.state = start

        @ts.stateful
        def forward(self, x: Any) -> Any:
            self.state = ts.tanh(self.state @ w + x @ v)
            return self.state * 2

    start, x = ts.tensor(np.array([0.1, -0.2, 0.3])), ts.tensor(np.array([0.5, 0.4, -0.3]))

    def loss(x: Any) -> Any:
        cell = Cell(start)
        return (cell(x) * cell(x * x)).sum()

    def by_hand(x: np.ndarray) -> float:
        one = np.tanh(start.numpy() @ w.numpy() + x @ v.numpy())
        two = np.tanh(one @ w.numpy() + x * x @ v.numpy())
        return float((4 * one * two).sum())

    assert abs(float(loss(x)) - by_hand(x.numpy())) < 1e-12
    h = np.eye(3) * 1e-6
    wanted = [(by_hand(x.numpy() + d) - by_hand(x.numpy() - d)) / 2e-6 for d in h]
    assert np.allclose(ts.grad(loss)(x).numpy(), wanted, atol=1e-8)


@ts.memory
class Hierarchy:
    registers: Tensor["128", ts.f32] @ memory("register")
    shared: Tensor["1024", ts.bf16] @ memory("shared")
    small: Tensor["128", ts.f32] @ memory("shared")
    global_mem: Tensor["1M", ts.fp8_e4m3] @ memory("global")
    host_mem: Tensor["1G", ts.int8] @ memory("host")
    disk: Tensor @ memory("disk")


N = ts.sym("N")


@ts.kernel
def staged(X: Tile["N", ts.f32] @ memory("global"), Y: Tile["N", ts.f32]):
    buffer, total = tile.alloc(Hierarchy.small), tile.alloc(Hierarchy.registers)
    tile.fill(total, 1.0)
    for i in tile.range(X.shape[0], step=128):
        tile.store_shared(buffer, X[i:i + 128] * 2)
        tile.store(Y[i:i + 128], tile.load_shared(buffer) + total)


def test_c006_a_memory_plan_and_what_a_block_can_hold() -> None:
    plan = Hierarchy.plan()  # type: ignore[attr-defined]
    assert plan == {"registers": ("register", 512), "shared": ("shared", 2048), "small": ("shared", 512), "global_mem": ("global", 2**20),
                    "host_mem": ("host", 2**30), "disk": ("disk", None)}
    assert len({space for space, _ in plan.values()}) == 5 and Hierarchy.plan("sm_90") == plan  # type: ignore[attr-defined]

    @ts.memory
    class Large:
        a: Tensor[128, 256, ts.f32] @ memory("shared")
        b: Tensor[100, 256, ts.f32] @ memory("shared")
        c: Tensor[4, ts.f32] @ memory("global")

    @ts.memory
    class Wide:
        accumulator: Tensor[256, 512, ts.f32] @ memory("register")

    for target, limit in (("sm_80", 163), ("sm_90", 227), ("gfx942", 64)):
        with pytest.raises(ArgumentError, match=f"Large needs {228 * 1024} bytes of shared memory; a block of .* has {limit * 1024}"):
            Large.plan(target)  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="Wide needs 524288 bytes of register memory"):
        Wide.plan(target="sm_90")  # type: ignore[attr-defined]
    Large.plan("avx512")  # type: ignore[attr-defined]  # a CPU has no such limit
    with pytest.raises(ArgumentError, match="there is no target 'sm_9'"):
        Large.plan("sm_9")  # type: ignore[attr-defined]


def test_c007_c008_placed_types_become_memory_of_the_block() -> None:
    assert Hierarchy.registers.space == "register" and Hierarchy.shared.space == "shared"
    x, y = ts.randn(300), ts.zeros(300)
    staged(x, y)
    assert np.allclose(y.numpy(), 2 * x.numpy() + 1, rtol=1e-6)
    text = staged.tile_ir(x, y)
    assert "alloc() : buf<f32[128], shared>" in text and text.count("alloc()") == 1  # registers are the values of tiles
    assert "tile<f32[128]>" in text
    with pytest.raises(KernelError, match=r"a block cannot allocate memory\('global'\)"):
        @ts.kernel
        def far(Y: Tile["N", ts.f32]):
            tile.store(Y, tile.load_shared(tile.alloc(Hierarchy.global_mem)))

        far(ts.zeros(4))
    with pytest.raises(KernelError, match="takes a tensor type with its place"):
        @ts.kernel
        def unplaced(Y: Tile["N", ts.f32]):
            tile.store(Y, tile.load_shared(tile.alloc(128)))

        unplaced(ts.zeros(4))


def test_c008_shared_memory_beyond_the_target_s_limit_is_refused() -> None:
    @ts.kernel
    def large(X: Tile["N", "M", ts.f32], Y: Tile["N", "M", ts.f32]):
        buffer = tile.alloc_shared(232, 256, dtype=ts.f32)
        tile.store_shared(buffer, tile.load(X, shape=(232, 256)))
        tile.store(Y, tile.load_shared(buffer))

    types = "f32[232, 256], f32[232, 256]"
    with pytest.raises(ts.CompileError, match=f"bytes of shared memory; a block of .*sm_90a.* has {227 * 1024}") as e:
        stage_text(large, "ll", NVIDIA_SM90, types)
    said = str(e.value).partition("Stack trace:")[0]
    (line,) = [row for row in said.splitlines() if "← Error here" in row]
    assert "buffer = tile.alloc_shared(232, 256, dtype=ts.f32)" in line
    assert f"Expected: at most {227 * 1024} bytes" in said and "1. use smaller tiles\n2. use fewer stages" in said


def test_c009_the_default_space_is_global_memory() -> None:
    assert memory.global_ == "global" and Tile["N"].space == "global" and (Tile["N"] @ memory("shared")).space == "shared"
    text = stage_text(staged, "ll", NVIDIA_SM80, "f32[300], f32[300]")
    assert "ptr addrspace(1) align 16 %b0" in text and "ptr addrspace(3) @shared" in text
    ptx = stage_text(staged, "asm", NVIDIA_SM80, "f32[300], f32[300]")
    assert "ld.global" in ptx and "st.global" in ptx and "st.shared" in ptx and ".param .u64 .ptr .global" in ptx


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")
    memory.MOVEMENTS.clear()


def moves() -> list[tuple[str, str]]:
    return [(m.what, str(m.level)) for m in memory.MOVEMENTS]


def test_c010_c012_arguments_are_moved_to_where_they_are_declared(simulated: None) -> None:
    @ts.function
    def f(x: Tensor[N] @ memory("global"), h: Tensor[N] @ memory("host"), s: Tensor[N]):
        return x + h + s

    on_host = [ts.full((3,), float(i)) for i in range(3)]
    assert f(*on_host).tolist() == [3, 3, 3] and moves() == []  # the memory of the CPU is its global memory
    with ts.device("gpu:0"):
        assert f(*on_host[:2], on_host[2].to("gpu:0")).tolist() == [3, 3, 3]
        assert moves() == [("f32[3]", "global"), ("f32[3]", "global")] and "test_c.py" in memory.MOVEMENTS[0].where
        with pytest.raises(ts.DeviceError, match="different devices"):
            f(*on_host)  # nobody said where the third is to lie
    memory.MOVEMENTS.clear()
    there = on_host[0].to("gpu:0")
    assert f(there, there, there).tolist() == [0, 0, 0]  # what was to lie on the host goes there, and is fetched
    assert moves() == [("f32[3]", "host"), ("f32[3]", "global")]
    with pytest.raises(ts.ShapeError):
        f(ts.ones(2), ts.ones(3), ts.ones(3))


def test_c012_a_file_and_on_chip_memory(tmp_path: Any) -> None:
    @ts.function
    def g(x: Tensor[N] @ memory("disk"), y: Tensor[N] @ memory("shared")):
        return x + y

    memory.MOVEMENTS.clear()
    x = ts.ones(4)
    stored = memory.store(tmp_path / "x.npy", x)
    assert g(stored, x).tolist() == [2] * 4 and moves() == [("f32[4]", "shared")]
    with pytest.raises(ArgumentError, match=r"g\(\) takes 'x' from a file") as e:
        g(x, x)
    assert "ts.memory.store(path, x)" in str(e.value)

    @ts.function
    def h(x: Tensor[N] @ memory("global")):
        return x * 1

    assert h(stored).tolist() == [1] * 4 and moves()[-1] == ("f32[4]", "global")


WRITE = "import sys, numpy as np, tessera as ts; ts.memory.store(sys.argv[1], ts.arange(64 << 20).to(ts.f32))"
READ = """
import sys, tessera as ts
x = ts.memory.mapped(sys.argv[1])
rows = x.reshape(-1, 1 << 16)
print(x.nbytes, float(rows[5][3]), float(rows[1000].numpy()[0]))
print(max(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024)
"""


def test_c011_a_file_outlives_its_process_and_is_read_where_it_is_used(tmp_path: Any) -> None:
    for program in (WRITE, READ):
        out = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.npy")], capture_output=True, text=True, check=True,
                             timeout=120, env={**os.environ}).stdout
    nbytes, a, b, resident = map(float, out.split())
    assert nbytes == 256 << 20 and a == 5 * (1 << 16) + 3 and b == 1000 * (1 << 16)
    assert resident < nbytes


# -- movement and pools ------------------------------------------------------------------------------------------------------------
def test_c014_c015_c020_a_copy_goes_on_while_the_cpu_works() -> None:
    def throttled(a: np.ndarray) -> np.ndarray:
        time.sleep(0.3)
        return a.copy()

    x, total = ts.arange(1000).to(ts.f32), 0.0
    start = time.perf_counter()
    future = memory.async_copy(x, to="global", copier=throttled)
    assert not future.done()
    while time.perf_counter() - start < 0.3:
        total += float((x * 2).sum())
    assert future.wait().tolist() == x.tolist() and total > 0
    elapsed = time.perf_counter() - start
    if elapsed >= 0.7 * (0.3 + 0.3) and os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("the machine is busy")
    assert elapsed < 0.7 * (0.3 + 0.3)
    before = time.perf_counter()
    assert future.wait() is future.wait() and time.perf_counter() - before < 0.05


def test_c017_a_pool_grows_to_its_limit() -> None:
    pool = memory.Pool(size="64MB", device="cpu", growth_factor=1.5)
    assert pool.size == 64 << 20 and (pool.reserved, pool.grows, pool.system_calls) == (0, 0, 0)
    held, seen = [], []
    with memory.use_pool(pool):
        for _ in range(60):
            held.append(ts.zeros(1 << 18))  # 1 MB
            if not seen or seen[-1] != pool.reserved:
                seen.append(pool.reserved)
    assert seen[0] == 8 << 20 and all(abs(b / a - 1.5) < 1e-3 for a, b in itertools.pairwise(seen[:-1]))
    assert seen[-1] <= 64 << 20 and pool.grows == len(seen) - 1 == pool.system_calls - 1
    assert pool.in_use == pool.peak == 60 << 20
    with memory.use_pool(pool), pytest.raises(ts.errors.OutOfMemoryError, match="no room for 8388608 bytes: 62914560 of 67108864") as e:
        ts.zeros(1 << 21)
    assert "Let go of tensors" in str(e.value)
    del held
    assert pool.in_use == 0 and pool.stats()["peak"] == 60 << 20
    for bad, text in (({"size": "8XB"}, "no size of memory"), ({"size": 0}, "no size of memory"),
                      ({"size": "1GB", "growth_factor": 1}, "above 1"),
                      ({"size": "1MB", "initial": "2MB"}, "more than the pool may hold"),
                      ({"size": "1MB", "device": "cpo"}, "did you mean 'cpu'")):
        with pytest.raises(ArgumentError, match=text):
            memory.Pool(**bad)
    with pytest.raises(ArgumentError, match="takes a pool"), memory.use_pool("64MB"):
        pass
    assert [bytes_of(s) for s in ("1.5GB", "64 MiB", "512k", "100", 7)] == [3 << 29, 64 << 20, 512 << 10, 100, 7]


def test_c017_a_pool_on_a_simulated_device(simulated: None) -> None:
    pool = memory.Pool(size="8GB", device="gpu:0", growth_factor=1.5)
    assert pool.device == "gpu:0" and pool.reserved == 0 and "gpu:0" in repr(pool)


def test_c018_after_warming_up_the_system_is_not_asked_again() -> None:
    pool = memory.Pool(size="512MB")

    def work() -> float:
        tensors = [ts.zeros(1000, 1000) for _ in range(20)]
        more = [ts.exp(t + i) for i, t in enumerate(tensors[:5])]
        return float(more[4][0, 0])

    outside = ts.ones(1 << 16)
    with memory.use_pool(pool):
        work()
        asked, misses = pool.system_calls, memory.stats()["misses"]
        for _ in range(3):
            assert abs(work() - np.exp(4)) < 1e-4
        kept = ts.ones(1 << 16)
    assert pool.system_calls == asked and memory.stats()["misses"] == misses and pool.in_use == 4 << 16
    before = pool.in_use
    ts.zeros(1 << 20)  # outside of the block
    assert pool.in_use == before and (outside + kept).tolist()[0] == 2
    usage = memory.get_memory_usage()
    pool.trim()
    assert memory.get_memory_usage() == usage and pool.reserved < 1 << 20 and kept.tolist()[-1] == 1  # live tensors stay


def test_c019_a_fragmented_pool_serves_a_large_request() -> None:
    pool = memory.Pool(size="64MB", initial="64MB")
    with memory.use_pool(pool):
        pieces = [ts.full((1 << 18,), float(i)) for i in range(60)]  # 1 MB each
        kept = pieces[::3]
        del pieces  # two thirds come back, in holes of 2 MB
        assert pool.in_use == 20 << 20 and max(pool._free.values()) < 7 << 20
        large = ts.full((10_066_329,), 7.0)  # 60 % of the pool
        assert pool.defragmentations == 1 and pool.reserved <= pool.size
        assert large.nbytes > 0.6 * pool.size - 64 and float(large[-1]) == 7
        for i, t in enumerate(kept):
            assert float(t[0]) == float(t[-1]) == 3 * i
        del large
        again = [ts.zeros(1 << 18) for _ in range(30)]  # the pool goes on
        assert len(again) == 30 and pool.reserved <= pool.size


def test_a_pool_outlives_its_block_and_its_name() -> None:
    pool = memory.Pool(size="8MB")
    with memory.use_pool(pool), memory.use_pool(memory.Pool("1MB")) as inner:
        x = ts.ones(1 << 15)
    assert inner.in_use == 1 << 17 and pool.in_use == 0
    x[0] = 5.0  # the tensor owns its memory
    y = x[1:]
    del x, inner, pool
    gc.collect()
    assert float(y.sum()) == (1 << 15) - 1
    threads, shared = [], memory.Pool("32MB")

    def churn() -> None:
        with memory.use_pool(shared):
            for i in range(200):
                t = ts.full((20_000 + i,), float(i))
                assert float(t[-1]) == i

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.in_use == 0 and shared.peak >= 80_000


def test_c013_a_scope_of_staging_stands_in_the_program() -> None:
    def efficient_compute(x: Any) -> Any:
        y = x + 1
        with ts.memory.prefetch(x, to="shared"):
            result = ts.exp(x) * 2
        return result - y

    f, x = ts.jit(efficient_compute), ts.randn(5, 4)
    assert np.allclose(f(x).numpy(), 2 * np.exp(x.numpy()) - x.numpy() - 1, rtol=1e-5, atol=1e-5)
    names = [op.name for op in f.programs[0].graph.walk()]
    assert names.index("prefetch") < names.index("exp") < names.index("release") < names.index("sub")
    assert 'prefetch(%x) {to = "shared"}' in f.graph_ir and 'release(%x) {to = "shared"}' in f.graph_ir and f.effects == {"memory"}
    assert len(f.kernels) == 1 and "prefetch" not in f.schedule_ir  # nothing of it is computed
    plain = lambda x: ts.exp(x) * 2 - (x + 1)
    for transform in (lambda g: ts.grad(lambda x: g(x).sum()), ts.vmap, lambda g: lambda x: ts.jvp(g, (x,), (x,))[1], ts.checkpoint):
        assert np.allclose(transform(efficient_compute)(x).numpy(), transform(plain)(x).numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ts.EffectError, match="'prefetch' has the effect memory"):
        ts.pure(efficient_compute)(x)


def test_c016_weights_for_the_second_level() -> None:
    weights = ts.randn(64, 64)
    before = weights.numpy().tobytes()
    ts.memory.prefetch_to_l2(weights)
    assert weights.numpy().tobytes() == before and moves()[-1] == ("f32[64, 64]", "L2")


def test_c032_a_cleared_cache_gives_its_memory_back() -> None:
    before = ts.memory.get_memory_usage()
    cache = ts.KVCache()
    cache.update(ts.zeros(1, 8, 4096, 64), ts.zeros(1, 8, 4096, 64))  # 2 x 8.4 MB
    held = ts.memory.get_memory_usage() - before
    assert held > cache.nbytes / 1e9 - 1e-6 > 0.0167
    released = cache.clear()
    gc.collect()
    assert released >= 2 * 8 * 4096 * 64 * 4 and ts.memory.get_memory_usage() - before <= held - released / 1e9 + 1e-4
