"""Kernels called on the tensors of a device, and what other tensors see of a kernel's writes."""

import numpy as np
import pytest

import tessera as ts
from tessera.tracing import placed


@ts.kernel
def double(x, y):
    ts.tile.store(y, ts.tile.load(x) * 2)


@ts.kernel
def scaled(x, s, y, power=1):
    ts.tile.store(y, ts.tile.load(x) * ts.tile.load(s) ** power)


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")


@pytest.mark.parametrize(("device", "in_place"), [("gpu:1", True), ("gpu:1", False), ("intel:0", True)])
def test_a_kernel_runs_where_its_arguments_are(device, in_place, monkeypatch):
    if device == "intel:0":
        pytest.importorskip("pyopencl")
    if not in_place:  # as for memory of others that is not aligned
        monkeypatch.delitem(placed.LAUNCH, "simulated")
    x, out = ts.ones(2, 3).to(device), ts.zeros(2, 3).to(device)
    others = [out.reshape(6), out.detach(), out.view(3, 2), out[0]]
    assert double(x, out) is out and out.device == device and out.tolist() == [[2] * 3] * 2 and not any(o.any() for o in others)
    total = ts.zeros(1)
    for power, want in ((1, 5), (2, 25)):
        scaled(ts.ones(1).to(device), ts.tensor([5.0]), total, power)  # one number goes along, and comes back
        assert total.device == "cpu" and total.tolist() == [want]
    empty = ts.zeros(0, 3).to(device)
    assert double(empty, empty) is empty and empty.device == device


def test_arguments_on_two_devices_are_refused():
    a, b, c = ts.ones(2, 3).to("gpu:0"), ts.zeros(2, 3).to("gpu:1"), ts.zeros(2, 3)
    for x, y in ((a, b), (a, c), (c, a), (np.ones((2, 3), np.float32), a), (a, np.ones((2, 3), np.float32))):
        with pytest.raises(ts.DeviceError, match="operands live on different devices: ") as e:
            double(x, y)
        assert "test_elsewhere.py" in str(e.value) and "double(x, y)  # ← Error here" in str(e.value)
    assert b.tolist() == c.tolist() == [[0] * 3] * 2


def test_tensors_that_share_memory_with_an_output_keep_their_value():
    x, out, array = ts.ones(2, 3), ts.zeros(2, 3), np.zeros((2, 3), np.float32)
    view, borrowed = out.reshape(6), ts.from_numpy(array)
    double(x, out)
    double(x, borrowed)
    assert out.tolist() == borrowed.tolist() == [[2] * 3] * 2 and view.tolist() == [0] * 6 and not array.any()
    double(x, array)  # an array is the caller's own memory
    assert array.all()
    double(out, out)
    assert out.tolist() == [[4] * 3] * 2


def test_empty_outputs_need_no_kernel():
    @ts.kernel
    def total(x, y):
        ts.tile.store(y, ts.tile.load(x))

    y = ts.zeros(0, 4)
    assert total(ts.zeros(0, 4), y) is y
