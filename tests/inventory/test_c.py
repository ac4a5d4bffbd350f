"""Group C of the inventory: state and memory (other rows have their tests beside the features: rows/C.toml)."""

# ruff: noqa: F821, F722, UP037  (names of sizes in annotations)
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, Tile, memory, tile
from tessera.cli.show import stage_text
from tessera.errors import ArgumentError, KernelError
from tessera.machine import NVIDIA_SM80, NVIDIA_SM90


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
    with pytest.raises(ts.CompileError, match=f"bytes of shared memory; a block of .*sm_90a.* has {227 * 1024}"):
        stage_text(large, "ll", NVIDIA_SM90, types)


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
