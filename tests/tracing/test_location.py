"""Where a program runs, what its body may ask about it, and what it may state."""

import numpy as np
import pytest

import tessera as ts
from tessera import errors


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "A100,H100")


def on(device, *values):
    return ts.tensor(list(values)).to(device)


def test_a_body_may_ask_where_it_runs():
    @ts.jit
    def scaled(x):
        return x * 2.0 if x.device == "gpu:0" else x * 3.0

    for device, want in (("cpu", 3), ("gpu:0", 2), ("gpu:1", 3), ("gpu:0", 2), ("cpu", 3)):
        y = scaled(on(device, 1.0, 1.0))
        assert y.tolist() == [want, want] and y.device == device
    assert len(scaled.programs) == 3
    beside = ts.jit(lambda x: ts.ones(2, device=x.device) + x)  # code for any device needs no change
    assert [str(beside(on(d, 1.0, 2.0)).device) for d in ("cpu", "gpu:0", "gpu:1")] == ["cpu", "gpu:0", "gpu:1"]


def test_a_body_may_ask_for_the_current_device():
    @ts.jit
    def scaled(x):
        return x * (2.0 if ts.current_device() == "H100" else 1.0)

    x = ts.ones(2)
    assert scaled(x).tolist() == [1, 1]
    with ts.device("gpu:1"):
        assert scaled(x).tolist() == [2, 2]
        with ts.device("cpu"):
            assert scaled(x).tolist() == [1, 1]
    assert scaled(x).tolist() == [1, 1]


def test_a_body_may_state_where_it_runs():
    @ts.jit
    def blocked(x):
        with ts.device("gpu:0"):
            return x + ts.ones(2)

    assert blocked(on("gpu:0", 1.0, 2.0)).device == "gpu:0"
    for there in (2.0, ts.tensor(2.0), np.float32(2)):  # nothing here lives anywhere: the statement decides
        assert blocked(there).tolist() == [3, 3] and blocked(there).device == "gpu:0"
    same = ts.jit(lambda x: x.to("gpu:0").to(ts.f64))
    assert same(on("gpu:0", 1.0)).device == "gpu:0" and same(1.0).dtype is ts.f64
    assert ts.jit(lambda x: x.cpu() + 1)(ts.ones(1)).tolist() == [2]
    assert ts.grad(lambda x: (x.to("gpu:0") ** 2).sum())(on("gpu:0", 3.0)).tolist() == [6]


@pytest.mark.parametrize(("body", "device", "what", "here", "there"), [
    (lambda x: x.to("gpu:0") * 2, "cpu", '.to("gpu:0")', "cpu", "gpu:0"),
    (lambda x: (x * 2).cpu(), "gpu:1", '.to("cpu")', "gpu:1", "cpu"),
    (lambda x: x + ts.zeros(2, device="gpu:1"), "gpu:0", '.to("gpu:1")', "gpu:0", "gpu:1"),
    (lambda x: ts.grad(lambda v: v.to("gpu:0").sum())(x), "cpu", '.to("gpu:0")', "cpu", "gpu:0"),
    (lambda x: ts.vmap(lambda v: v.to("gpu:0"))(x), "cpu", '.to("gpu:0")', "cpu", "gpu:0"),
])
def test_what_moves_inside_a_program_is_refused(body, device, what, here, there):
    with pytest.raises(errors.DeviceError) as e:
        ts.jit(body)(on(device, 1.0, 2.0))
    text = str(e.value)
    assert f"{what} in a traced function that runs on {here}" in text and f"Received: {there}" in text
    assert "test_location.py" in text and "# ← Error here" in text and f'f(x.to("{there}"))' in text and f'f(x).to("{there}")' in text


def test_one_program_is_on_one_device():
    def two():
        with ts.device("gpu:0"):
            a = ts.ones(2)
        with ts.device("gpu:1"):
            return a + 1

    with pytest.raises(errors.DeviceError, match="runs on gpu:0") as e:
        ts.jit(two)()
    assert e.value.expected == "gpu:0, because of what it stated before"


def test_without_arguments_the_current_device_decides():
    @ts.jit
    def made():
        return ts.arange(3)

    weight = ts.ones(3)
    held = ts.jit(lambda: weight + 1)
    for _ in range(2):
        assert made().device == "cpu"
        with ts.device("gpu:1"):
            assert made().device == "gpu:1" and held().device == "cpu"
    assert len(made.programs) == 1


def test_specialised_variants_see_their_device_and_run_anywhere():
    @ts.specialize_for("A100")
    def f(x):
        return x * 2 if ts.current_device() == "A100" else x

    with ts.device("gpu:0"):
        assert f(ts.ones(2, device="cpu")).tolist() == [2, 2] and f(ts.ones(2)).device == "gpu:0"
    assert f(ts.ones(2)).tolist() == [1, 1]
