"""Rows B005 and C013–C016 and exchange with other libraries, as people new to them use them."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import errors


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "A100,H100")


@ts.specialize_for("A100", "H100")
def scaled(x: Any) -> Any:
    """Twice on one model, three times on another."""
    return x * (2 if ts.current_device() == "A100" else 3 if ts.current_device() == "H100" else 1)


class Holder:
    factor = 1

    @ts.specialize_for("A100")
    def times(self, x: Any) -> Any:
        return x * (5 if ts.current_device() == "A100" else self.factor)


def test_b005_the_variant_is_that_of_the_arguments_device() -> None:
    x = ts.ones(2)
    assert [scaled(x.to(d)).tolist()[0] for d in ("cpu", "gpu:0", "gpu:1")] == [1, 2, 3]
    with ts.device("gpu:1"):
        assert scaled(x).tolist() == [3, 3] and scaled(x.to("gpu:0")).tolist() == [2, 2]
    jitted = ts.jit(lambda v: scaled(v) + 1)
    assert [jitted(x.to(d)).tolist()[0] for d in ("cpu", "gpu:0", "gpu:1", "gpu:0")] == [2, 3, 4, 3]
    assert ts.grad(lambda v: scaled(v).sum())(x.to("gpu:1")).tolist() == [3, 3]
    assert Holder().times(x.to("gpu:0")).tolist() == [5, 5] and Holder().times(x).tolist() == [1, 1]
    assert repr(scaled) == "<tessera function scaled(x: 'Any') -> 'Any' for A100, H100>" and "mul" in scaled.graph_ir
    assert pickle.loads(pickle.dumps(scaled)) is scaled and scaled.__doc__ == "Twice on one model, three times on another."
    for wrong in (lambda: ts.specialize_for("A100")("x"), lambda: ts.specialize_for(["A100"]), lambda: ts.specialize_for(len)):
        with pytest.raises(errors.ArgumentError):
            wrong()


def test_names_of_devices_that_are_nearly_right() -> None:
    assert ts.device(np.int64(1)) == "gpu:1" and ts.ones(2).to(0).device == "A100" and ts.device("cpu:0") == "cpu"
    for name in ("intel:x", "intel:-1", "gpu:-1", "tpu", "", -1, b"cpu", True):
        with pytest.raises(errors.ArgumentError):
            ts.device(name)
    for name in ("cpu:1", "gpu:7", 2, "intel:99"):
        with pytest.raises(errors.DeviceError):
            ts.device(name)
    with pytest.raises(errors.TesseraError, match="None is no element type"):
        ts.ones(2).to(None)  # not float64
    d = pickle.loads(pickle.dumps(ts.device("gpu:1")))
    assert d == "H100" and d.model == "H100" and d.simulated


def test_device_blocks_nest_and_belong_to_a_thread() -> None:
    d, seen = ts.device("gpu:0"), []
    barrier = threading.Barrier(2)

    def other() -> None:
        with ts.device("gpu:1"):
            barrier.wait()
            with d:
                barrier.wait()
                barrier.wait()
            seen.append(str(ts.current_device()))

    t = threading.Thread(target=other)
    t.start()
    barrier.wait()
    with d:
        barrier.wait()
    seen.append(str(ts.current_device()))
    barrier.wait()
    t.join()
    assert sorted(seen) == ["cpu", "gpu:1"]
    with pytest.raises(errors.ArgumentError, match="none was begun"):
        d.__exit__(None, None, None)


@pytest.mark.parametrize("device", ["cpu", "gpu:1", "intel:0"])
def test_c014_copies_go_where_they_are_told(device: str) -> None:
    if device == "intel:0":
        pytest.importorskip("pyopencl")
    x = ts.tensor([1.0, 2.0]).to(device)
    for to, want in (("global", device), ("host", "cpu"), ("gpu:0", "gpu:0"), ("cpu", "cpu")):
        y = ts.memory.async_copy(x, to=to).wait()
        assert y.device == want and y.tolist() == [1, 2] and y is not x
    go = threading.Event()
    late = ts.memory.async_copy(x, copier=lambda a: (go.wait(60), a.copy())[1])
    x[0] = 9.0
    with pytest.raises(TimeoutError):
        late.wait(timeout=0.001)
    assert repr(late) == "<copy, under way>"
    go.set()
    assert late.result().tolist() == [1, 2] and x.tolist() == [9, 2]
    assert ts.jit(lambda v: ts.memory.async_copy(v * 2).wait() + 1)(x).tolist() == [19, 5]


@pytest.mark.parametrize("call", [
    lambda x: ts.memory.async_copy(x, to="shared"), lambda x: ts.memory.async_copy(x, to=None), lambda x: ts.memory.async_copy(x, copier=3),
    lambda x: ts.memory.async_copy(x, copier=lambda a: a[:1]).wait(), lambda x: ts.memory.async_copy(x, copier=lambda a: "x").wait(),
    lambda x: ts.prefetch(x, None), lambda x: ts.prefetch(x, "L9"), lambda x: ts.memory.async_copy("x")])
def test_c013_c014_what_is_refused(call: Any) -> None:
    with pytest.raises(errors.TesseraError):
        call(ts.ones(3))


def test_dlpack_both_ways_in_every_element_type() -> None:
    torch = pytest.importorskip("torch")
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64):
        t = torch.tensor([[1, 0, 2], [3, 4, 5]]).to(kind)
        for source in (t, t.T, t[:, ::2], t[:0]):
            taken = ts.from_dlpack(source)
            want = source.to(torch.complex64).tolist()
            assert taken.to(ts.complex64).tolist() == want and torch.from_dlpack(taken).to(torch.complex64).tolist() == want
            assert torch.from_dlpack(taken).dtype is kind and ts.tensor(source).dtype is taken.dtype
    half = torch.ones(2, dtype=torch.bfloat16)
    shared = ts.from_dlpack(half)
    half[0] = 5
    assert shared.tolist() == [5, 1]
    shared[1] = 3.0  # a value of its own from here on
    assert half.tolist() == [5, 1] and shared.tolist() == [5, 3]
    assert (ts.ones(2) + half).tolist() == [6, 2]
    for x in (shared.to("gpu:0"), shared):
        assert torch.from_dlpack(x).dtype is torch.bfloat16
    with pytest.raises(errors.DTypeError, match=r"requires? grad") as e:
        ts.tensor(torch.ones(2, requires_grad=True))
    assert "x.detach()" in str(e.value)
    assert ts.ones(2).to(torch.device("cpu")).device == "cpu" and ts.ones(2).to(torch.float64).dtype is ts.f64


def test_dlpack_keeps_memory_alive() -> None:
    class Lender:
        def __init__(self, tensor: Any):
            self.tensor = tensor

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.tensor.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    made = ts.from_dlpack(Lender(ts.full((1000,), 3.0, dtype=ts.bf16)))
    _ = [ts.ones(1000, dtype=ts.bf16) for _ in range(50)]
    assert made.dtype is ts.bf16 and (made == 3).all()
    far = type("Far", (), {"__dlpack__": lambda self: None, "__dlpack_device__": lambda self: (2, 0)})()
    with pytest.raises(errors.DeviceError, match="is no array of the host"):
        ts.tensor(far)
    if ts.device("gpu:0").simulated:
        assert np.asarray(ts.ones(2, dtype=ts.bf16)).dtype == ml_dtypes.bfloat16
