"""Memory spaces in types, copies that overlap with work, tensors mapped from files."""

# ruff: noqa: F722, F821
import time

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, errors, memory


def test_plan_of_a_class():
    @ts.memory
    class Hierarchy:
        registers: Tensor["128", ts.f32] @ memory("register")
        shared: Tensor["1024", ts.bf16] @ memory("shared")
        global_mem: Tensor["1M", ts.fp8_e4m3] @ memory("global")
        host_mem: Tensor["1G", ts.int8] @ memory("host")
        disk: Tensor @ memory("disk")

    assert Hierarchy.plan() == {"registers": ("register", 512), "shared": ("shared", 2048), "global_mem": ("global", 2**20),
                                "host_mem": ("host", 2**30), "disk": ("disk", None)}
    assert (Tensor["B", ts.f32] @ memory("shared")).space == "shared"
    with pytest.raises(errors.ArgumentError, match="places a tensor type"):
        3 @ memory("shared")


def test_placed_parameters_are_checked_like_others():
    @ts.function
    def f(x: Tensor["B", 3] @ memory("global")):
        return x * 2

    assert f(ts.ones(2, 3)).shape == (2, 3)
    with pytest.raises(errors.ShapeError):
        f(ts.ones(2, 4))


def test_copies_overlap_with_work():
    def slow(a):
        time.sleep(0.2)
        return a.copy()

    x = ts.ones(4)
    start = time.perf_counter()
    future = memory.async_copy(x, to="global", copier=slow)
    assert time.perf_counter() - start < 0.1 and not future.done()
    time.sleep(0.2)
    assert future.wait().tolist() == [1, 1, 1, 1] and time.perf_counter() - start < 0.36
    assert future.wait() is future.wait() and future.done()

    def broken(a):
        raise OSError("no space")

    future = memory.async_copy(x, copier=broken)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            future.wait()
    assert ts.jit(lambda x: memory.async_copy(x * 2).wait() + 1)(x).tolist() == [3, 3, 3, 3]


def test_mapped_tensors(tmp_path):
    x = ts.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    y = memory.store(tmp_path / "x.npy", x)
    assert (y + 1).tolist() == (x + 1).tolist()
    y[0] = 9.0  # changes the tensor, not the file
    assert memory.mapped(tmp_path / "x.npy").tolist() == x.tolist() and y.tolist()[0] == [9, 9, 9]
    with pytest.raises(errors.ArgumentError, match="NumPy's own dtypes"):
        memory.store(tmp_path / "y.npy", x.to(ts.bf16))
